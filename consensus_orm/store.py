"""Store: one open database, its units of work, its migration and its maintenance."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from functools import cache, cached_property
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Self, TypeVar, overload

import typing_extensions
from sqlalchemy import URL, Connection, Engine
from sqlalchemy.orm import DeclarativeBase, Session

from consensus_orm import validation as check
from consensus_orm.databases import opening
from consensus_orm.databases.opening import rendering
from consensus_orm.databases.session_guard import SessionGuard
from consensus_orm.databases.step_backups import StepBackups
from consensus_orm.declaration.move import Move
from consensus_orm.declaration.moves import Moves
from consensus_orm.hub import Telemetry
from consensus_orm.phase import Phase, Side
from consensus_orm.progress import Watch, of_pages
from consensus_orm.repository.repository import Repository
from consensus_orm.repository.session import CarryingSession
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
    from consensus_orm.migration.health import Health
    from consensus_orm.migration.records import MigrationRecords
    from consensus_orm.migration.rehearsal_report import RehearsalReport
    from consensus_orm.rehearsal.application import Rehearsed
    from consensus_orm.rehearsal.subject import Subject
    from consensus_orm.retrying.retrier import Retrier

__all__ = ["RepositoryUnitOfWork", "Store"]

T = TypeVar("T")
P = ParamSpec("P")
R = TypeVar("R")
M = TypeVar("M", bound="MigrationRecords")


class RepositoryUnitOfWork(UnitOfWork):
    """A unit of work with a repository for each move."""

    def _open_to_session(self) -> tuple[Side, ...]:
        # A database that is not prepared has no phase, and its mapped tables are only read.
        return tuple(side for side, is_open in self.phase.sides if is_open) if self.prepared else ()

    def _new_session(self, connection: Connection, guard: SessionGuard) -> Session:
        return CarryingSession(connection, self, guard) if self.prepared else super()._new_session(connection, guard)

    def _end_session(self, session: Session) -> None:
        if isinstance(session, CarryingSession):
            session.end()
        else:
            super()._end_session(session)

    def model(self, move: Move[Any] | str) -> type[DeclarativeBase]:
        """The class of the side that is the truth in this phase.

        Args:
            move: The move, or its name.

        Raises:
            InvalidValueError: The store was opened with other moves.
        """
        known = self._known(move)
        return known.legacy_model if self.phase.truth is Side.LEGACY else known.normalized

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
        return Repository(self, self._known(move))

    def _known(self, move: Move[Any] | str) -> Move[Any]:
        moves = self.statements.moves
        name = move.name if isinstance(move, Move) else check.identifier("move", move)
        if isinstance(move, Move) and not any(move is each for each in moves):
            raise check.invalid("move", f"{name!r:.60} is none of the moves that this store was opened with")
        return moves[name]


U = typing_extensions.TypeVar("U", bound=RepositoryUnitOfWork, default=RepositoryUnitOfWork, covariant=True)


class Store(Generic[U]):
    """A database whose tables are moved, whichever schema is live.

    Open it once and share it between threads; take a unit of work for each piece of work.

    Args:
        engine: An engine of the database. Units of work take connections of their own, made as this engine makes
            them, because each is tuned and watched; an engine that `open` has made is used itself.
        moves: The declaration of what is moved.
        settings: The settings; read from the environment where left out.
        application: The application that owns the tables; one that makes them itself where left out.
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
        opening.look_in(database, moves.schemas)
        legacy = (pair.legacy_name for pair in moves)
        self.application = application or Application(legacy, moves.tables(Side.NORMALIZED))
        statements = _statements(moves, database.dialect.name)
        self._units = UnitOfWorkFactory(database, settings, statements, self.application, self._unit_type)
        self._backups = StepBackups(database, settings, self._back_up)
        self._upgrade = Upgrade(self._units, self._backups)
        self._units.prepare = self._upgrade.before_writing
        self._units.alarmed = self._fall_back

    @classmethod
    def open(
        cls,
        url: str | Path | URL,
        *,
        moves: Moves,
        settings: Settings | None = None,
        echo: bool = False,
        password: Callable[[], str] | None = None,
    ) -> Self:
        """Open a database; inspects it and writes nothing.

        Args:
            url: Any SQLAlchemy URL, or a path.
            moves: The declaration of what is moved.
            settings: The settings; read from the environment where left out.
            echo: Log each statement that goes through SQLAlchemy.
            password: Called at each connect for the password for a server, where it changes; as the setting.

        Returns:
            The store; a context manager that closes it.

        Raises:
            ConfigurationError: The URL or a setting cannot be used.
            SchemaError: The database holds tables of these names with an unknown schema.
            StorageError: The database cannot be read.
        """
        check.instance("moves", moves, Moves)
        used = _chosen(settings)
        if check.callback("password", password, optional=True) is not None:
            used = used.model_copy(update={"password": password})
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
        """The path of the database, `:memory:`, or its URL without password."""
        return self._units.name

    @property
    def initial_phase(self) -> Phase:
        """The phase of a database that is not prepared: EXPAND if there are legacy tables, else CONTRACT."""
        return self._units.initial_phase

    def pending_rewrite(self) -> Rewrite | None:
        """Tell what an upgrade would do to tables of another program; None if it leaves them alone. Writes nothing."""
        return self._upgrade.pending_rewrite()

    def upgrade(self, progress: Watch = None, *, rewrite: bool = False, protect: bool | None = None) -> list[str]:
        """Bring the schema to the newest revision.

        Args:
            progress: Called while a file whose tables are recreated is backed up.
            rewrite: Allow to recreate tables of another program, after a verified backup (`pending_rewrite` names
                them); that program fails on them from then on.
            protect: Whether older programs of the application must refuse the file; the setting where left out.

        Returns:
            The revisions that were applied.

        Raises:
            RewriteNotConfirmedError: Tables would be recreated, and `rewrite` is not set; nothing was changed.
        """
        return self._upgrade.run(progress, rewrite=rewrite, protect=protect)

    # Units of work --------------------------------------------------------------------------------------

    def unit_of_work(self, *, read_only: bool = False, exclusive: bool = False) -> U:
        """Take a unit of work; use it in a `with` block, once.

        Args:
            read_only: Read one snapshot, of the replica if there is one, without a lock.
            exclusive: Write while no other unit of work writes, in any process: what is read stays so until the commit.
                A SQLite file has one writer at a time anyway; on a server, other writers wait.

        Returns:
            The unit of work; it commits at the end of its block, and rolls back on any exception.
        """
        return self._units.begin(read_only=read_only, exclusive=exclusive)

    def _fall_back(self, reason: str) -> None:
        """Roll back to DUAL_WRITE, if the settings say so."""
        if self.settings.alarm_falls_back and self.migration.phase is Phase.CUTOVER:
            self.migration.rollback(Phase.DUAL_WRITE, reason=f"alarm: {reason}")

    def run(
        self,
        work: Callable[[U], T],
        *,
        read_only: bool = False,
        exclusive: bool = False,
        cancel: Event | None = None,
    ) -> T:
        """Do a piece of work in a unit of work, and repeat all of it after a transient error.

        Args:
            work: Called with the unit of work, maybe several times; so it must have side effects only through
                `uow.on_commit`.
            read_only: Take a read-only unit of work.
            exclusive: Take one that writes while no other does.
            cancel: Set it to stop waiting for the next try.

        Returns:
            What `work` returned.

        Raises:
            ConsensusError: The last error, when the policy is exhausted or the error is permanent.
        """
        check.callback("work", work)
        if cancel is not None:
            check.instance("cancel", cancel, Event)

        return self._units.run(work, read_only=read_only, exclusive=exclusive, cancel=cancel)

    def in_unit_of_work(self, work: Callable[Concatenate[U, P], T]) -> Callable[P, T]:
        """Make a function that uses `run` for each of its calls; usable as a decorator.

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
        """The counts and hooks of this store; see `consensus_orm.telemetry`."""
        return self._units.telemetry

    @property
    def retrier(self) -> Retrier:
        """The retrier of units of work."""
        return self._units.retrier

    # The migration --------------------------------------------------------------------------------------

    @cached_property
    def migration(self) -> Migration:
        """The move from phase to phase; loaded when first asked for."""
        from consensus_orm.migration.migration import Migration

        return self._of_migration(Migration)

    @cached_property
    def _records(self) -> MigrationRecords:
        """What can be read of the migration, without the modules of its steps, so that a status starts early."""
        from consensus_orm.migration.records import MigrationRecords

        return self._of_migration(MigrationRecords)

    def _of_migration(self, part: type[M]) -> M:
        return part(self._units, self._upgrade, self._backups, self._rehearse)

    def _rehearse(self, **options: Any) -> RehearsalReport:
        from consensus_orm.rehearsal.round_trip import rehearse

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
        """Open a store of the same tables in another database, without a replica."""
        alone = settings.model_copy(update={"read_url": None})
        return type(self).open(where, settings=alone, moves=self._units.statements.moves)

    @property
    def _rehearsed(self) -> Rehearsed | None:
        """What a rehearsal knows about these tables besides the moves, if anything."""
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
        """Copy the database into another one, in any phase; continues where an earlier call stopped.

        Args:
            target: An empty database, or an unfinished copy of this one.
            reject: Leave rows that the target cannot hold behind, as rejects with their images.
            finish: Take the last pass, and open the target. Otherwise it stays closed, and a later call continues.
            lock: Take the write lock for the snapshot of the last pass, which then includes what is being written.
                If the file has no write-ahead log, writers wait until the pass is over.
            progress: Called after each chunk.

        Returns:
            What was done.

        Raises:
            CopyRefusedError: The target cannot hold some rows, all of them in its `rows`; nothing was copied.
            CopyError: The target is not empty, this database cannot be copied as it is, or a row differs at the end.
            ConfigurationError: Both are the same database.
            StorageError: One of the databases failed.
        """
        from consensus_orm.copying import copy

        for name, value in (("reject", reject), ("finish", finish), ("lock", lock)):
            check.flag(name, value)
        check.callback("progress", progress, optional=True)
        into = check.instance("target", target, Store)._units
        return copy(self._units, into, reject=reject, finish=finish, lock=lock, progress=progress)

    def health(self) -> Health:
        """Look whether the database can be served; cheap, without a retry, and writes nothing.

        Returns:
            The health; `healthy` if the database answers and its schema is that of this release.
        """
        from consensus_orm.migration.health import look

        return look(self._units)

    # Upkeep ---------------------------------------------------------------------------------------------

    @property
    def maintenance(self) -> Maintenance:
        """Statistics, vacuum and backup."""
        self._units.require_open()
        return self._maintenance

    @cached_property
    def _maintenance(self) -> Maintenance:
        from consensus_orm.databases.maintenance import Maintenance

        return Maintenance(
            self.engine,
            self.settings,
            tables=self._tables(),
            repeat=self._repeated,
        )

    def _repeated(self, work: Callable[[], T]) -> T:
        self._units.require_open()
        return self.retrier.call(work, name="maintenance")

    def _back_up(self, path: Path, progress: Watch) -> dict[str, Any]:
        report = self.maintenance.backup(path, progress=of_pages(progress, "backup"))
        return {"backup": str(report.path)}

    def _tables(self) -> list[str]:
        """The names of the tables of the moves, and of the other tables of the application."""
        moves = self._units.statements.moves
        moved = [name for pair in moves for name in (pair.legacy_name, pair.table.name)]
        parents = [*(parent.table.name for parent in moves.parents), *(table.name for table in moves.tables_beside)]
        others = [table.name for table in (*moves.originals, *self.application.unmapped)]
        return [*moved, *parents, *others]

    def close(self) -> None:
        """Close every connection; whatever is asked of the store afterwards raises `StoreClosedError`."""
        if (maintenance := self.__dict__.get("_maintenance")) is not None:
            maintenance.close()
        self._units.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    def __enter__(self) -> Self:
        self._units.require_open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _chosen(settings: Settings | None) -> Settings:
    return from_environment() if settings is None else check.instance("settings", settings, Settings)


@cache
def _statements(moves: Moves, database: str) -> Statements:
    """The statements of a moves, which takes 30 ms for the first store."""
    return Statements(moves, rendering(database))
