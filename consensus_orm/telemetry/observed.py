"""A unit of work that reports events, used by a store only while there are listeners.

It overrides the steps of the plain unit of work, so that telemetry costs that one nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, cached_property, lru_cache, partial
from time import perf_counter
from types import TracebackType
from typing import Any, Self, TypeVar

from sqlalchemy import event
from sqlalchemy.orm import Session
from sqlalchemy.sql.expression import ClauseElement

from consensus_orm.databases.engine import translate
from consensus_orm.errors import DatabaseBusyError
from consensus_orm.events import (
    ComparisonEvent,
    ConnectionEvent,
    Event,
    LockEvent,
    StatementEvent,
    UnitBegun,
    UnitEvent,
    UnitOutcome,
)
from consensus_orm.hub import Telemetry
from consensus_orm.statements.pairs import Statements
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["ObservedUnitOfWork", "observing"]

T = TypeVar("T")
U = TypeVar("U", bound=UnitOfWork)


class ObservedUnitOfWork(UnitOfWork):
    """Reports its begin and end, its waits for a connection and for the lock, and its statements.

    Args:
        *arguments: Those of a unit of work.
        telemetry: Takes the events.
        **options: Those of a unit of work.
    """

    def __init__(self, *arguments: Any, telemetry: Telemetry, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._telemetry = telemetry
        self._comparing = _comparing(self.statements)
        self._asked = self._queued = 0.0
        self._borrowed: float | None = None
        self._outcome: UnitOutcome | None = None
        self._ended_by: BaseException | None = None
        self._reading = False

    def _tell(self, event: Event) -> None:
        self._telemetry.tell(event)

    def _time(self, step: Callable[[], T], event: Callable[[float, str | None], Event]) -> T:
        """Take a step, and report its seconds and the type of its error."""
        started = perf_counter()
        try:
            result = step()
        except BaseException as error:
            self._tell(event(perf_counter() - started, self._type_of(error)))
            raise
        self._tell(event(perf_counter() - started, None))
        return result

    def _type_of(self, error: BaseException) -> str:
        return type(translate(error, self.engine) or error).__name__

    # Begin and end --------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        if self._entered:
            return super().__enter__()  # raises
        self._tell(UnitBegun(self))
        self._asked = perf_counter()
        try:
            return super().__enter__()
        except BaseException as error:
            self._ended(UnitOutcome.FAILED, error)
            raise

    def _borrow(self) -> None:
        if not self.read_only:
            self._asked = perf_counter()  # an upgrade of the schema has units of its own
        started = perf_counter()
        try:
            super()._borrow()
        except BaseException as error:
            event = LockEvent if isinstance(error, DatabaseBusyError) else ConnectionEvent
            self._tell(event(perf_counter() - started, self._type_of(error)))
            raise
        self._borrowed = perf_counter()
        # On SQLite a writer waits in the queue before it gets a connection.
        turn = getattr(self._pooled and self._pooled.driver_connection, "turn", None)
        self._queued = turn.waited if turn else 0.0
        self._tell(ConnectionEvent(self._borrowed - started - self._queued, None))

    def _begin(self) -> None:
        if self.read_only:
            super()._begin()
        else:
            self._time(super()._begin, lambda seconds, error: LockEvent(self._queued + seconds, error))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self._outcome, self._ended_by = UnitOutcome.ROLLED_BACK, error
        super().__exit__(kind, error, traceback)

    def _commit(self) -> None:
        self._outcome = UnitOutcome.FAILED  # until the commit has succeeded
        try:
            super()._commit()
        except BaseException as error:
            self._ended_by = error
            raise
        self._outcome = UnitOutcome.COMMITTED

    def _commit_transaction(self, driver: Any, *last: tuple[str, Any]) -> None:
        self._time(partial(super()._commit_transaction, driver, *last), partial(StatementEvent, self, "COMMIT"))

    def _release(self) -> None:
        try:
            super()._release()
        finally:
            if self._outcome is not None:
                self._ended(self._outcome, self._ended_by)

    def _ended(self, outcome: UnitOutcome, error: BaseException | None) -> None:
        now = perf_counter()
        self._tell(
            UnitEvent(
                self,
                phase=self._phase.name.lower() if self._phase else "none",
                outcome=outcome,
                read_only=self.read_only,
                seconds=now - self._asked,
                held_seconds=None if self._borrowed is None else now - self._borrowed,
                error_type=None if error is None else self._type_of(error),
            )
        )

    # Statements -----------------------------------------------------------------------------------------

    def _execute(self, statement: str | ClauseElement, parameters: Any = ()) -> Any:
        sql = self._printed(statement)
        if (pair := self._comparing.get(sql)) is not None:
            self._tell(ComparisonEvent(pair, "write"))
        if self._reading:  # reported with the fetching of its rows
            return super()._execute(sql, parameters)
        return self._time(partial(super()._execute, sql, parameters), partial(StatementEvent, self, _operation(sql)))

    def _together(self, *statements: tuple[str, Any]) -> list[Any] | None:
        # One round trip for all statements, which OpenTelemetry's conventions call a batch.
        told = partial(StatementEvent, self, "BATCH")
        rows = self._time(partial(super()._together, *statements), told)
        for sql, _ in statements if rows is not None else ():
            if (pair := self._comparing.get(sql)) is not None:
                self._tell(ComparisonEvent(pair, "write"))
        return rows

    def _rows(self, statement: str | ClauseElement, parameters: Any = ()) -> list[tuple[Any, ...]]:
        sql = self._printed(statement)
        self._reading = True
        try:
            return self._time(partial(super()._rows, sql, parameters), partial(StatementEvent, self, _operation(sql)))
        finally:
            self._reading = False

    @cached_property
    def session(self) -> Session:
        """The SQLAlchemy session of this unit of work; its statements that succeed are reported, too."""
        session = super().session
        started = 0.0

        def before(*_: Any) -> None:
            nonlocal started
            started = perf_counter()

        def after(_connection: Any, _cursor: Any, sql: str, *_: Any) -> None:
            self._tell(StatementEvent(self, _operation(sql), perf_counter() - started))

        # SQLAlchemy reports failures per engine only, which every unit of work would pay for.
        event.listen(session.get_bind(), "before_cursor_execute", before)
        event.listen(session.get_bind(), "after_cursor_execute", after)
        return session


def observing(unit_type: type[U], telemetry: Telemetry) -> Callable[..., U]:
    """Make the factory of a store's observed units of work, with the repositories of its class."""
    kind: Any = type(f"Observed{unit_type.__name__}", (ObservedUnitOfWork, unit_type), {})
    return partial(kind, telemetry=telemetry)


@lru_cache(1024)  # a session may send any number of statements
def _operation(sql: str) -> str:
    return sql.split(None, 1)[0].upper()


@cache
def _comparing(statements: Statements) -> dict[str, str]:
    """The statements that compare a row just written, and the pair of each."""
    each = [(statements[pair], pair.name) for pair in statements.moves]
    return {sql: name for pair, name in each for sql in (pair.compare, pair.compare_written)}
