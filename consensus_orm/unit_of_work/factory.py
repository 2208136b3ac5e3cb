"""The factory of units of work: begins them on one open database, and repeats them after transient errors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sqlalchemy import Engine

from consensus_orm import errors
from consensus_orm import validation as check
from consensus_orm.databases import opening
from consensus_orm.databases.base import Transaction
from consensus_orm.databases.engine import database_path, pool_of
from consensus_orm.databases.lock import Lock
from consensus_orm.hub import Telemetry
from consensus_orm.ledgers import mismatches
from consensus_orm.phase import Phase
from consensus_orm.schema import revisions
from consensus_orm.schema.application import Application, Identity, Origin
from consensus_orm.settings import Settings
from consensus_orm.statements.pairs import Statements
from consensus_orm.unit_of_work.unit import NO_HOOKS, Committing, UnitHooks, UnitOfWork

if TYPE_CHECKING:
    from consensus_orm.databases.postgresql.replica import Replica
    from consensus_orm.retrying.retrier import Retrier

__all__ = ["UnitOfWorkFactory"]

T = TypeVar("T")
U = TypeVar("U", bound=UnitOfWork, covariant=True)


class UnitOfWorkFactory(Generic[U]):
    """Begins the units of work of one database.

    Args:
        engine: Where connections come from.
        settings: Policies and the clock.
        statements: The statements of the moves.
        application: Whose tables these are.
        unit_type: The class of the units.

    Attributes:
        unit_type: The class of the units, where telemetry does not observe them.
        identity: What the database held when it was inspected last.
        new_unit: Makes a unit: `unit_type`, or a subclass that is observed.
        prepare: Called before a writing unit begins; brings the schema up to date where it is not.
        alarmed: Called with the reason after a unit has set off the alarm.
        committing: As `UnitHooks.committing`; set by `before_commit`.
        following: As `UnitHooks.following`; set by it, too.
    """

    def __init__(
        self, engine: Engine, settings: Settings, statements: Statements, application: Application, unit_type: type[U]
    ) -> None:
        self.engine = engine
        self.settings = settings
        self.statements = statements
        self.application = application
        self.prepare: Callable[[], object] | None = None
        self.alarmed: Callable[[str], object] | None = None
        self.committing: Committing | None = None
        self.following: Callable[[Transaction], bool] | None = None
        self.new_unit: Callable[..., U] = unit_type
        self.unit_type = unit_type
        self._closed = False
        self._replica = self._find_replica()
        self.identity = self.inspect_patiently()

    def _find_replica(self) -> Replica | None:
        if self.settings.read_url is None:
            return None
        from consensus_orm.databases.postgresql.replica import Replica

        return Replica(self.settings.read_url, self.engine, self.settings)

    # The database ---------------------------------------------------------------------------------------

    @property
    def path(self) -> Path | None:
        """The file; None for a database in memory or on a server."""
        return database_path(self.engine)

    @property
    def name(self) -> str:
        """The name of the database: its path, `:memory:`, or its URL without password."""
        if self.engine.dialect.name == "sqlite":
            return str(self.path or ":memory:")
        return opening.without_secrets(self.engine.url)

    @property
    def initial_phase(self) -> Phase:
        """The phase in which a database begins that was never upgraded: EXPAND where there are legacy tables."""
        return Phase.EXPAND if self.identity.legacy_tables else Phase.CONTRACT

    def require_open(self) -> None:
        """Refuse to go on after `close`, when a database in memory would be a new and empty one.

        Raises:
            StoreClosedError: The store is closed.
        """
        if self._closed:
            raise errors.StoreClosedError(f"the store of {self.name} is closed")

    def inspect(self) -> Identity:
        """Identify what the database holds; creates no file."""
        self.require_open()
        if self.path is not None and not self.path.exists():
            return Identity(Origin.NEW)  # to open it would create it
        return revisions.inspect(self.engine, self.application)

    def inspect_patiently(self) -> Identity:
        """Identify the database, and repeat that while another process keeps it locked."""
        try:
            return self.inspect()
        except errors.DatabaseBusyError:
            return self.retrier.call(self.inspect, name="open", read_only=True)  # imported only now

    @cached_property
    def telemetry(self) -> Telemetry:
        """The listeners to events."""
        telemetry = Telemetry()
        pool_of(self.engine).source.tell = telemetry.tell
        return telemetry

    @cached_property
    def retrier(self) -> Retrier:
        """Repeats units of work after a transient error."""
        from consensus_orm.retrying.circuit_breaker import CircuitBreaker
        from consensus_orm.retrying.retrier import Retrier, RetryPolicy

        return Retrier(
            RetryPolicy.from_settings(self.settings),
            read_policy=RetryPolicy.from_settings(self.settings, read_only=True),
            telemetry=self.telemetry,
            breaker=CircuitBreaker.from_settings(self.settings) if self.settings.breaker else None,
        )

    # Units of work --------------------------------------------------------------------------------------

    def bare(self, *, read_only: bool = False, lock: Lock = Lock.WRITE) -> U:
        """A unit of work that takes the database as it is, to bring its schema up to date."""
        return self._make(NO_HOOKS, read_only=read_only, lock=lock)

    def on_primary(
        self,
        *,
        read_only: bool = False,
        readable: bool = False,
        lock: Lock = Lock.WRITE,
        durable: bool = False,
        whole: bool = False,
    ) -> U:
        """A unit of work on the primary, never on a replica, which may lag.

        Args:
            read_only: See one snapshot, take no lock, and be unable to write.
            readable: Allow reads of a file of the final build, too, whose rows cannot be read yet.
            lock: Which lock a writing one takes when it begins.
            durable: Make its commit, and all before it, reach the disk, whatever the settings say.
            whole: Fail where the row security of a server would leave rows out of an answer.
        """
        if not read_only:
            return self._make(self._hooks, lock=lock, durable=durable, whole=whole)
        if self.identity.is_new and self.path is not None and not self.path.exists():
            return self._nowhere()
        readable = readable or self.identity.is_readable
        return self._make(self._hooks, read_only=True, readable=readable, whole=whole)

    def begin(self, *, read_only: bool = False, exclusive: bool = False) -> U:
        """A unit of work for the application: a read-only one runs on the replica, where there is one.

        Args:
            read_only: See one snapshot, take no lock, and be unable to write.
            exclusive: Write while no other unit of work writes.

        Raises:
            InvalidValueError: It is to be both.
        """
        check.flag("read_only", read_only)
        if check.flag("exclusive", exclusive) and read_only:
            raise check.invalid("exclusive", "is about writing, which a read-only unit of work cannot", "leave one out")
        if not read_only or self._replica is None:
            return self.on_primary(read_only=read_only, lock=Lock.ALONE if exclusive else Lock.WRITE)
        hooks = replace(self._hooks, begin_elsewhere=self._replica.begin)
        return self._make(hooks, read_only=True, readable=self.identity.is_readable)

    def _make(self, hooks: UnitHooks, **options: Any) -> U:
        self.require_open()
        return self.new_unit(self.engine, self.statements, self.settings, hooks, **options)

    @cached_property
    def _hooks(self) -> UnitHooks:
        return UnitHooks(
            committing=self.committing,
            following=self.following,
            prepare=self.prepare,
            alarmed=self.alarmed,
            doubted=self._confirm,
        )

    def before_commit(self, committing: Committing, following: Callable[[Transaction], bool]) -> None:
        """Have later units call a function in their transaction before they commit what they wrote to rows.

        Args:
            committing: As `UnitHooks.committing`.
            following: As `UnitHooks.following`.
        """
        self.committing, self.following = committing, following
        self.__dict__.pop("_hooks", None)

    def _nowhere(self) -> U:
        """A read of a file that does not exist: everything is empty, and no file is created."""
        database = opening.create(":memory:", self.settings)
        hooks = UnitHooks(released=database.dispose)
        return self.unit_type(database, self.statements, self.settings, hooks, read_only=True)

    def _confirm(self, doubtful: dict[str, set[Any]]) -> None:
        self.retrier.call(partial(self._confirm_once, doubtful), name="confirm")

    def _confirm_once(self, doubtful: dict[str, set[Any]]) -> None:
        with self.bare(lock=Lock.CARRY) as uow:
            for name, keys in doubtful.items():
                mismatches.confirm(uow, uow.statements.moves[name], keys, found_by="shadow_read")

    # Repetition -----------------------------------------------------------------------------------------

    def look(self, read: Callable[[U], T]) -> T:
        """Read on the primary, in a unit of work that is repeated after a transient error."""

        def once() -> T:
            with self.on_primary(read_only=True, readable=True) as uow:
                return read(uow)

        return self.retrier.call(once, name="look", read_only=True)

    def run(
        self,
        work: Callable[[U], T],
        *,
        read_only: bool = False,
        exclusive: bool = False,
        cancel: Event | None = None,
    ) -> T:
        """Run some work in a unit of work, and repeat all of it after a transient error.

        Args:
            work: Called with the unit of work.
            read_only: Use a read-only unit of work.
            exclusive: Use one that writes while no other does.
            cancel: Set it to stop waiting for the next try.
        """

        def once() -> T:
            with self.begin(read_only=read_only, exclusive=exclusive) as uow:
                return work(uow)

        return self.retrier.call(once, cancel=cancel, name=getattr(work, "__qualname__", "work"), read_only=read_only)

    def close(self) -> None:
        """Close every connection, for good."""
        self._closed = True
        if self._replica is not None:
            self._replica.close()
        self.engine.dispose()
