"""The store: one database, opened once, from which units of work are taken."""

from __future__ import annotations

import functools
from collections.abc import Callable
from functools import cache, cached_property, partial
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Self, TypeVar

import typing_extensions
from sqlalchemy import URL, Engine

from consensus_orm import errors
from consensus_orm import validation as check
from consensus_orm.databases import engine, guard_record, opening
from consensus_orm.databases.lock import Lock
from consensus_orm.databases.opening import rendering
from consensus_orm.databases.sqlite.write_ahead_log import occupants
from consensus_orm.declaration.pairs import Mapping
from consensus_orm.hub import Telemetry
from consensus_orm.ledgers import guards, mismatches
from consensus_orm.phase import Phase
from consensus_orm.repository.dual_write import Repository
from consensus_orm.retrying.repetition import Repeat, once
from consensus_orm.schema import revisions
from consensus_orm.schema.application import Application, Identity, Origin, Rewrite
from consensus_orm.settings import Settings, from_environment
from consensus_orm.statements.pairs import Statements
from consensus_orm.statements.rendering import quoted
from consensus_orm.unit_of_work.unit import UnitOfWork

if TYPE_CHECKING:
    from consensus_orm.databases.maintenance import Maintenance
    from consensus_orm.databases.postgresql.replica import Replica
    from consensus_orm.migration import Migration
    from consensus_orm.migration.progress import Watch
    from consensus_orm.rehearsal.application import Rehearsed
    from consensus_orm.retrying.retrier import Retrier

__all__ = ["RepositoryUnitOfWork", "Store"]

T = TypeVar("T")
P = ParamSpec("P")


class RepositoryUnitOfWork(UnitOfWork):
    """A unit of work with a repository for each declared pair."""

    def repository(self, pair: str) -> Repository:
        """The rows of a declared pair.

        Args:
            pair: Its name in the mapping.

        Raises:
            InvalidValueError: There is no such pair.
        """
        return Repository(self, self.statements.mapping[pair])


U = typing_extensions.TypeVar("U", bound=RepositoryUnitOfWork, default=RepositoryUnitOfWork, covariant=True)


class Store(Generic[U]):
    """A database whose tables a mapping moves, whichever schema is live.

    Open it once and share it between threads; take a unit of work for each piece of work.

    Args:
        database: The pooled engine.
        settings: Every knob.
        mapping: What corresponds to what.
        application: Whose tables these are; one that makes its tables itself where left out.
    """

    _unit_type: type[U] = RepositoryUnitOfWork  # type: ignore[assignment]  # a subclass says another, with its U

    def __init__(
        self, database: Engine, settings: Settings, mapping: Mapping, application: Application | None = None
    ) -> None:
        self.engine = database
        self.settings = settings
        self.application = application or Application(pair.legacy_name for pair in mapping.pairs)
        self._new_unit: Callable[..., U] = self._unit_type  # another, where somebody observes
        self._statements = _statements(mapping, database.dialect.name)
        self._replica = self._find_replica()
        self._identity = self._inspect_patiently()
        self._prepared = False

    @classmethod
    def open(
        cls, url: str | Path | URL, *, mapping: Mapping, settings: Settings | None = None, echo: bool = False
    ) -> Self:
        """Open a database; looks at it and writes nothing.

        Args:
            url: Any SQLAlchemy URL, or a path.
            mapping: The declaration of what is moved.
            settings: Every knob; read from the environment where left out.
            echo: Log each statement that goes through SQLAlchemy.

        Returns:
            The store; a context manager that closes it.

        Raises:
            ConfigurationError: The URL or a setting cannot be used.
            SchemaError: The database holds tables of our names that we cannot work with.
            StorageError: The database cannot be read.
        """
        chosen = from_environment() if settings is None else check.instance("settings", settings, Settings)
        check.instance("mapping", mapping, Mapping)
        database = opening.create(url, chosen, echo=echo)
        try:
            return cls(database, chosen, mapping)
        except BaseException:
            database.dispose()
            raise

    def _find_replica(self) -> Replica | None:
        if self.settings.read_url is None:
            return None
        from consensus_orm.databases.postgresql.replica import Replica

        return Replica(self.settings.read_url, self.engine, self.settings)

    def _inspect(self) -> Identity:
        if self.path is not None and not self.path.exists():
            return Identity(Origin.NEW)  # looking would create it
        return revisions.inspect(self.engine, self.application)

    def _inspect_patiently(self) -> Identity:
        """Look at the database; again, where somebody keeps it locked. Who opens another one loads no retrier."""
        try:
            return self._inspect()
        except errors.DatabaseBusyError:
            return self.retrier.call(self._inspect, name="open", read_only=True)

    @property
    def path(self) -> Path | None:
        """The file; None for a database in memory."""
        return engine.database_path(self.engine)

    @property
    def name(self) -> str:
        """What to call the database: its path, `:memory:`, or its URL without password."""
        if self.engine.dialect.name == "sqlite":
            return str(self.path or ":memory:")
        return self.engine.url.set(drivername="postgresql").render_as_string(hide_password=True)

    @property
    def initial_phase(self) -> Phase:
        """The phase a file begins with that nobody prepared: where there are legacy tables, EXPAND."""
        return Phase.EXPAND if self._identity.legacy_tables else Phase.CONTRACT

    def pending_rewrite(self) -> Rewrite | None:
        """Say what an upgrade will do to tables that another program made; writes nothing.

        Returns:
            None where an upgrade leaves all such tables alone.
        """
        self._identity = self._inspect_patiently()
        if self._identity.made_by is None:
            return None
        rows = self._look(self._rows_rewritten)
        own = len(engine.source_of(self.engine).connections)
        return Rewrite(
            file=self.name,
            made_by=self._identity.made_by,
            rows=rows,
            backup=None if self.path is None else str(self.migration._backup_place("upgrade", "TIME")),
            others=() if self.path is None else tuple(occupants(self.path, own=own)),
        )

    def _rows_rewritten(self, uow: UnitOfWork) -> dict[str, int]:
        names = sorted(uow.catalog.tables(uow).intersection(self._identity.rewritten))
        return {name: int(uow._rows(f"SELECT count(*) FROM {quoted(name)}")[0][0]) for name in names}

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
        return self._upgrade(partial(self.retrier.call, name="upgrade"), progress, rewrite=rewrite, protect=protect)

    def _upgrade(
        self, repeat: Repeat, progress: Watch = None, *, rewrite: bool = False, protect: bool | None = None
    ) -> list[str]:
        self._identity = repeat(self._inspect)  # another process may have been faster
        facts: dict[str, Any] = {}
        if self._identity.rewritten:
            if not rewrite:
                found = self.pending_rewrite()
                raise errors.RewriteNotConfirmedError(str(found) if found else None, rewrite=found)
            facts = self.migration.backup_before("upgrade", progress)
        again = bool(self._identity.rewritten)
        applied = repeat(
            lambda: revisions.upgrade(self.engine, self.settings, self.application, rewrite=again, protected=protect)
        )
        self._identity = repeat(lambda: revisions.inspect(self.engine, self.application))
        if facts:
            repeat(lambda: self._audit_backup(facts))
        repeat(self._renew_triggers)
        return applied

    def _upgrade_if_needed(self, progress: Watch = None) -> list[str]:
        """Upgrade before another step, which leaves a file alone that somebody chose not to protect."""
        needed = self._inspect_patiently().needs_upgrade
        return self.upgrade(progress, protect=None if needed else False)

    def _audit_backup(self, facts: dict[str, Any]) -> None:
        with self._unit() as uow:
            mismatches.audit(uow, "backup", **facts)

    def _renew_triggers(self) -> None:
        with self._unit(read_only=True) as uow:
            stale = _stale_triggers(uow)
        if stale:
            with self._unit(lock=Lock.FLIP) as uow:
                if _stale_triggers(uow):
                    _install_triggers(uow)

    def _unit(self, *, read_only: bool = False, lock: Lock = Lock.WRITE) -> U:
        uow = self._new_unit(self.engine, self._statements, self.settings, read_only=read_only)
        uow.lock = Lock.NONE if read_only else lock
        return uow

    # Units of work --------------------------------------------------------------------------------------

    def unit_of_work(self, *, read_only: bool = False) -> U:
        """Take a unit of work; use it in a `with` block, once.

        Args:
            read_only: See one snapshot, take no lock, and be unable to write; of the replica, where there is one.

        Returns:
            The unit of work; it commits at the end of its block, and rolls back on any exception.
        """
        uow = self._on_primary(read_only=read_only)
        if read_only and self._replica is not None:
            uow._elsewhere = self._replica.begin
        return uow

    def _on_primary(self, *, read_only: bool = False, readable: bool = False) -> U:
        """A unit of work that sees what is, not what a replica has seen of it.

        Args:
            read_only: As for `unit_of_work`.
            readable: Let a founding file be looked at, too, whose rows cannot be read yet.
        """
        if read_only and self._identity.is_new and self.path is not None and not self.path.exists():
            return self._nowhere()
        uow = self._unit(read_only=read_only)
        uow._prepare = self._ensure_current
        uow._readable = readable or self._identity.is_readable
        uow._on_doubt = self._confirm
        uow._on_alarm = self._fall_back
        return uow

    def _nowhere(self) -> U:
        """A read of a file that does not exist: everything is empty, and the file stays away."""
        database = opening.create(":memory:", self.settings)
        uow = self._unit_type(database, self._statements, self.settings, read_only=True)
        uow._at_end = database.dispose
        return uow

    def _look(self, read: Callable[[U], T]) -> T:
        """Read on the primary, in a unit of work that is taken again after a transient error."""

        def once() -> T:
            with self._on_primary(read_only=True, readable=True) as uow:
                return read(uow)

        return self.retrier.call(once, name="look", read_only=True)

    def _ensure_current(self) -> None:
        """The first unit of work that writes brings the schema of a file up to date, and asks for WAL.

        A server's schema is changed by whoever may, and when they say so.
        """
        if self.engine.dialect.name != "sqlite":
            if not self._prepared and self._inspect().needs_upgrade:
                raise errors.SchemaOutdatedError(f"{self.name} is not at revision {revisions.head()}")
            if not self._prepared:
                self._renew_triggers()
        elif self._identity.needs_upgrade:
            self._upgrade(once)  # who repeats the unit of work repeats this
        elif not self._prepared:
            engine.prepare(self.engine, self.settings)
        self._prepared = True

    def _confirm(self, doubtful: dict[str, set[Any]]) -> None:
        self.retrier.call(partial(self._confirm_once, doubtful), name="confirm")

    def _confirm_once(self, doubtful: dict[str, set[Any]]) -> None:
        with self._unit(lock=Lock.CARRY) as uow:
            for name, keys in doubtful.items():
                mismatches.confirm(uow, uow.statements.mapping[name], keys, found_by="shadow_read")

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

        def once() -> T:
            with self.unit_of_work(read_only=read_only) as uow:
                return work(uow)

        return self.retrier.call(once, cancel=cancel, name=getattr(work, "__qualname__", "work"), read_only=read_only)

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

    @cached_property
    def telemetry(self) -> Telemetry:
        """Where events are told; `consensus_orm.telemetry` has one call for each listener."""
        return Telemetry()

    @cached_property
    def retrier(self) -> Retrier:
        """What repeats units of work; its telemetry, the store's, counts how they went."""
        from consensus_orm.retrying.circuit_breaker import CircuitBreaker
        from consensus_orm.retrying.retrier import Retrier, RetryPolicy

        return Retrier(
            RetryPolicy.from_settings(self.settings),
            read_policy=RetryPolicy.from_settings(self.settings, read_only=True),
            telemetry=self.telemetry,
            breaker=CircuitBreaker.from_settings(self.settings) if self.settings.breaker else None,
        )

    @cached_property
    def migration(self) -> Migration:
        """The move from phase to phase; loaded when first asked for."""
        from consensus_orm.migration import Migration

        return Migration(self)

    @property
    def _rehearsed(self) -> Rehearsed | None:
        """What a rehearsal needs to know about these tables; None where nothing is known but the mapping."""
        return None

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

    def _tables(self) -> list[str]:
        """The names of the tables that are moved, and of those of the application that no mapping speaks of."""
        mapping = self._statements.mapping
        moved = [name for pair in mapping.pairs for name in (pair.legacy_name, pair.table.name)]
        parents = [parent.table.name for parent in mapping.parents]
        return [*moved, *parents, *(table.name for table in self.application.unmapped)]

    def close(self) -> None:
        """Close every connection; the store cannot be used after it."""
        if (maintenance := self.__dict__.get("maintenance")) is not None:
            maintenance.close()
        if self._replica is not None:
            self._replica.close()
        self.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


@cache
def _statements(mapping: Mapping, database: str) -> Statements:
    """The statements of a mapping: rendering them takes 30 ms, which a second store need not wait for."""
    return Statements(mapping, rendering(database))


def _stale_triggers(uow: UnitOfWork) -> bool:
    """Whether the triggers in force were made from another mapping than this program's, or were never recorded."""
    rows = uow._rows("SELECT mapping FROM consensus_orm_state")
    made_from = rows[0][0] if rows else uow.phase  # raises: a copy that was not finished has none
    if guard_record.lost(uow):
        return True
    if not uow.phase.has_legacy:
        # None of them speaks of the legacy side, whose models are imported no more; views say where its rows are.
        return (made_from is None and uow.catalog.needs_triggers) or guards.lacks_signs(uow)
    if made_from is None:
        return uow.catalog.needs_triggers
    recorded = bool(guard_record.recorded(uow))
    # What is missing is somebody's to decide on, and must not be papered over.
    return not recorded or (made_from != guard_record.made_from(uow, uow.phase) and not guards.look(uow))


def _install_triggers(uow: UnitOfWork) -> None:
    """Install the triggers of the phase from this program's mapping."""
    found = [f"table {table.name} was dropped" for table in guard_record.lost(uow)]
    if not guard_record.recorded(uow):
        found += [f"trigger {name} is missing" for name in guards.not_installed(uow)]
    guard_record.install(uow, uow.phase)
    if uow.phase.has_legacy:
        uow.catalog.legacy.remember(uow)
    else:
        guards.put_up_signs(uow)
    if uow.phase.has_legacy or uow.catalog.needs_triggers:
        uow._execute("UPDATE consensus_orm_state SET mapping = ?", (guard_record.made_from(uow, uow.phase),))
    if found:  # what was written meanwhile was noticed by nobody
        mismatches.audit(uow, "mend guards", found=found)
        guards.void(uow)
