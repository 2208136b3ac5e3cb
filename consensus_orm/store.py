"""The store: one database, opened once, from which units of work are taken."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from functools import cache, cached_property, partial
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

import typing_extensions
from sqlalchemy import URL, Engine

from consensus_orm import validation as check
from consensus_orm.databases import opening
from consensus_orm.databases.opening import rendering
from consensus_orm.databases.step_backups import StepBackups
from consensus_orm.declaration.move import Move
from consensus_orm.declaration.moves import Moves
from consensus_orm.hub import Telemetry
from consensus_orm.phase import Phase
from consensus_orm.progress import Watch, of_pages
from consensus_orm.repository.repository import Repository
from consensus_orm.schema.application import Application, Rewrite
from consensus_orm.settings import Settings, from_environment
from consensus_orm.statements.pairs import Statements
from consensus_orm.unit_of_work.factory import UnitOfWorkFactory
from consensus_orm.unit_of_work.unit import UnitOfWork
from consensus_orm.unit_of_work.upgrade import Upgrade

if TYPE_CHECKING:
    from consensus_orm.copying import CopyReport
    from consensus_orm.databases.maintenance import Maintenance
    from consensus_orm.migration import Migration
    from consensus_orm.migration.rehearsal_report import RehearsalReport
    from consensus_orm.rehearsal.application import Rehearsed
    from consensus_orm.rehearsal.subject import Subject
    from consensus_orm.retrying.retrier import Retrier

__all__ = ["RepositoryUnitOfWork", "Store"]

T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")


class RepositoryUnitOfWork(UnitOfWork):
    """A unit of work with a repository for each move."""

    @overload
    def repository(self, move: Move[R]) -> Repository[R]: ...
    @overload
    def repository(self, move: str) -> Repository[Any]: ...
    def repository(self, move: Move[Any] | str) -> Repository[Any]:
        """The rows of a move.

        Args:
            move: The move, or its name.

        Raises:
            InvalidValueError: The store was opened with other moves.
        """
        known = self.statements.mapping
        name = move.name if isinstance(move, Move) else check.identifier("move", move)
        if isinstance(move, Move) and not any(move is each for each in known):
            raise check.invalid("move", f"{name!r:.60} is none of the moves that this store was opened with")
        return Repository(self, known[name])


U = typing_extensions.TypeVar("U", bound=RepositoryUnitOfWork, default=RepositoryUnitOfWork, covariant=True)


class Store(Generic[U]):
    """A database whose tables are moved, whichever schema is live.

    Open it once and share it between threads; take a unit of work for each piece of work.

    Args:
        engine: An engine of the database. Units of work take connections of their own, made as this engine makes
            them, because each is tuned and watched; an engine that `open` has made is used itself.
        moves: What corresponds to what.
        settings: Every knob; read from the environment where left out.
        application: Whose tables these are; one that makes its tables itself where left out.
    """

    _unit_type: type[U] = RepositoryUnitOfWork  # type: ignore[assignment]  # a subclass says another, with its U

    def __init__(
        self,
        engine: Engine,
        moves: Moves,
        settings: Settings | None = None,
        *,
        application: Application | None = None,
    ) -> None:
        check.instance("moves", moves, Moves)
        self.settings = settings = _chosen(settings)
        self.engine = database = opening.pooled(check.instance("engine", engine, Engine), settings)
        self.application = application or Application(pair.legacy_name for pair in moves)
        statements = _statements(moves, database.dialect.name)
        self._units = UnitOfWorkFactory(database, settings, statements, self.application, self._unit_type)
        self._backups = StepBackups(database, settings, self._back_up)
        self._upgrade = Upgrade(self._units, self._backups)
        self._units.prepare = self._upgrade.before_writing
        self._units.alarmed = self._fall_back

    @classmethod
    def open(cls, url: str | Path | URL, *, moves: Moves, settings: Settings | None = None, echo: bool = False) -> Self:
        """Open a database; looks at it and writes nothing.

        Args:
            url: Any SQLAlchemy URL, or a path.
            moves: The declaration of what is moved.
            settings: Every knob; read from the environment where left out.
            echo: Log each statement that goes through SQLAlchemy.

        Returns:
            The store; a context manager that closes it.

        Raises:
            ConfigurationError: The URL or a setting cannot be used.
            SchemaError: The database holds tables of our names that we cannot work with.
            StorageError: The database cannot be read.
        """
        check.instance("moves", moves, Moves)
        used = _chosen(settings)
        database = opening.create(url, used, echo=echo)
        try:
            return cls(database, moves, used)
        except BaseException:
            database.dispose()
            raise

    @property
    def path(self) -> Path | None:
        """The file; None for a database in memory or on a server."""
        return self._units.path

    @property
    def name(self) -> str:
        """What to call the database: its path, `:memory:`, or its URL without password."""
        return self._units.name

    @property
    def initial_phase(self) -> Phase:
        """The phase a database begins with that nobody prepared: where there are legacy tables, EXPAND."""
        return self._units.initial_phase

    def pending_rewrite(self) -> Rewrite | None:
        """Say what an upgrade will do to tables that another program made; writes nothing.

        Returns:
            None where an upgrade leaves all such tables alone.
        """
        return self._upgrade.pending_rewrite()

    def upgrade(self, progress: Watch = None, *, rewrite: bool = False, protect: bool | None = None) -> list[str]:
        """Bring the schema to the newest revision.

        Args:
            progress: Called while a file is backed up whose tables are made anew.
            rewrite: Let tables be made anew that another program made, after a verified backup (`pending_rewrite`
                says which); that program fails on them from then on.
            protect: Whether older programs of the application shall refuse the file; the setting where left out.

        Returns:
            The revisions that were applied.

        Raises:
            RewriteNotConfirmedError: Tables would be made anew, and `rewrite` is not given; nothing was changed.
        """
        return self._upgrade.run(progress, rewrite=rewrite, protect=protect)

    # Units of work --------------------------------------------------------------------------------------

    def unit_of_work(self, *, read_only: bool = False) -> U:
        """Take a unit of work; use it in a `with` block, once.

        Args:
            read_only: See one snapshot, take no lock, and be unable to write; of the replica, where there is one.

        Returns:
            The unit of work; it commits at the end of its block, and rolls back on any exception.
        """
        return self._units.begin(read_only=read_only)

    def _fall_back(self, reason: str) -> None:
        """Take reads back to the legacy side, where the settings say so."""
        if self.settings.alarm_falls_back and self.migration.phase is Phase.CUTOVER:
            self.migration.rollback(Phase.DUAL_WRITE, reason=f"alarm: {reason}")

    def run(
        self,
        work: Callable[[U], T],
        *,
        read_only: bool = False,
        cancel: Event | None = None,
    ) -> T:
        """Do a piece of work in a unit of work, and all of it again after a transient error.

        Args:
            work: Called with the unit of work; it may be called several times, so it must change nothing
                outside but through `uow.on_commit`.
            read_only: Take a read-only unit of work.
            cancel: Set it to give up waiting for the next try.

        Returns:
            What `work` returned.

        Raises:
            ConsensusError: The last error, when the policy is exhausted or the error is permanent.
        """
        check.callback("work", work)
        if cancel is not None:
            check.instance("cancel", cancel, Event)

        return self._units.run(work, read_only=read_only, cancel=cancel)

    def in_unit_of_work(self, work: Callable[Concatenate[U, P], T]) -> Callable[P, T]:
        """Make a function that does each of its calls with `run`; usable as a decorator.

            @store.in_unit_of_work
            def save(uow, name):
                uow.repository("customers").add({"name": name, "street": "Bachstr. 1", "city": "Bern"})

            save("Ada")

        Args:
            work: A function whose first argument is the unit of work.

        Returns:
            A function without that argument.
        """

        @functools.wraps(work)
        def call(*args: P.args, **kwargs: P.kwargs) -> T:
            return self.run(functools.update_wrapper(lambda uow: work(uow, *args, **kwargs), work))

        return call

    @property
    def telemetry(self) -> Telemetry:
        """Where events are told; `consensus_orm.telemetry` has one call for each listener."""
        return self._units.telemetry

    @property
    def retrier(self) -> Retrier:
        """What repeats units of work; its telemetry, the store's, counts how they went."""
        return self._units.retrier

    # The migration --------------------------------------------------------------------------------------

    @cached_property
    def migration(self) -> Migration:
        """The move from phase to phase; loaded when first asked for."""
        from consensus_orm.migration import Migration

        return Migration(self._units, self._upgrade, self._backups, self._rehearse)

    def _rehearse(self, **options: Any) -> RehearsalReport:
        from consensus_orm.rehearsal import rehearse

        return rehearse(self._subject(), **options)

    def _subject(self) -> Subject:
        from consensus_orm.rehearsal.subject import Subject

        return Subject(
            self._units, self.migration, self._upgrade, self.maintenance, self._rehearsed, self._subject_beside
        )

    @contextlib.contextmanager
    def _subject_beside(self, where: Path | str, settings: Settings) -> Iterator[Subject]:
        with self._beside(where, settings) as copy:
            yield copy._subject()

    def _beside(self, where: Path | str, settings: Settings) -> Self:
        """A store of the same tables in another database, which has no replica."""
        alone = settings.model_copy(update={"read_url": None})
        return type(self).open(where, settings=alone, moves=self._units.statements.mapping)

    @property
    def _rehearsed(self) -> Rehearsed | None:
        """What a rehearsal needs to know about these tables; None where nothing is known but the moves."""
        return None

    def copy_to(
        self,
        target: Store[Any],
        *,
        reject: bool = False,
        finish: bool = True,
        lock: bool = True,
        progress: Watch = None,
    ) -> CopyReport:
        """Copy the database into another one, in any phase; goes on where an earlier call stopped.

        Args:
            target: Where to: an empty database, or an unfinished copy of this one.
            reject: Leave rows that the target cannot hold behind, as rejects with their whole image.
            finish: Take the last pass, and open the target. Otherwise it stays closed, for a later call to catch up.
            lock: Take the write lock for the moment that the last pass looks at: what is being written by then comes
                along. Where the file has no write-ahead log, writers wait until the pass is over.
            progress: Called after each chunk.

        Returns:
            What was done.

        Raises:
            CopyRefusedError: There are rows that the target cannot hold, all of them in its `rows`; nothing was
                copied.
            CopyError: The target is not empty, this database cannot be copied as it is, or a row differs at the end.
            ConfigurationError: Both are the same database.
            StorageError: One of them could not do what was asked.
        """
        from consensus_orm.copying import copy

        for name, value in (("reject", reject), ("finish", finish), ("lock", lock)):
            check.flag(name, value)
        check.callback("progress", progress, optional=True)
        into = check.instance("target", target, Store)._units
        return copy(self._units, into, reject=reject, finish=finish, lock=lock, progress=progress)

    # Upkeep ---------------------------------------------------------------------------------------------

    @cached_property
    def maintenance(self) -> Maintenance:
        """Statistics, vacuum and backup."""
        from consensus_orm.databases.maintenance import Maintenance

        return Maintenance(
            self.engine,
            self.settings,
            tables=self._tables(),
            repeat=partial(self.retrier.call, name="maintenance"),
        )

    def _back_up(self, path: Path, progress: Watch) -> dict[str, Any]:
        if self.engine.dialect.name == "sqlite":
            report = self.maintenance.backup(path, progress=of_pages(progress, "backup"))
            return {"backup": str(report.path)}
        from consensus_orm.copying.backup import backup_of_server

        return backup_of_server(self._units, path, self._units_beside, progress)

    @contextlib.contextmanager
    def _units_beside(self, where: Path | str) -> Iterator[UnitOfWorkFactory[UnitOfWork]]:
        with self._beside(where, self.settings) as other:
            yield other._units

    def _tables(self) -> list[str]:
        """The names of the tables that are moved, and of those of the application that no move speaks of."""
        moves = self._units.statements.mapping
        moved = [name for pair in moves for name in (pair.legacy_name, pair.table.name)]
        parents = [parent.table.name for parent in moves.parents]
        return [*moved, *parents, *(table.name for table in self.application.unmapped)]

    def close(self) -> None:
        """Close every connection; the store cannot be used after it."""
        if (maintenance := self.__dict__.get("maintenance")) is not None:
            maintenance.close()
        self._units.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _chosen(settings: Settings | None) -> Settings:
    return from_environment() if settings is None else check.instance("settings", settings, Settings)


@cache
def _statements(moves: Moves, database: str) -> Statements:
    """The statements of moves: rendering them takes 30 ms, which a second store need not wait for."""
    return Statements(moves, rendering(database))
