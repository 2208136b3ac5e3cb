"""Counts the statements that are sent to the database, since counts are stable and times are not."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, overload

from sqlalchemy import event

if TYPE_CHECKING:
    from consensus_orm.store import Store
    from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["QueryLog", "count_queries"]


class QueryLog(Sequence[str]):
    """The statements that were sent, in order, as they were written (parameters not filled in).

    BEGIN and COMMIT are among them, statements of triggers are not. `executemany` counts once, and so do several
    statements that go to a server as one message.
    """

    def __init__(self) -> None:
        self._sent: list[str] = []

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        return self._sent[index]

    def __len__(self) -> int:
        return len(self._sent)

    def __repr__(self) -> str:
        return "\n".join(f"{number}: {sql}" for number, sql in enumerate(self._sent))

    @property
    def verbs(self) -> list[str]:
        """The first word of each statement."""
        return [sql.split(None, 1)[0].upper() for sql in self._sent]

    def mentioning(self, word: str) -> list[str]:
        """The statements that contain a word (for example the name of a table), in any case."""
        return [sql for sql in self._sent if word.lower() in sql.lower()]

    def clear(self) -> None:
        """Forget the statements so far."""
        self._sent.clear()


class _FileWatch:
    """Watches one connection to a file.

    SQLite's trace reports what ran, but repeats a statement for each trigger that it fires, and has its parameters
    filled in; so the cursor tells which statement is being executed.
    """

    def __init__(self, log: QueryLog, connection: sqlite3.Connection) -> None:
        self.log = log
        self.executing: str | None = None
        self.in_script = False
        watch = self

        class Cursor(sqlite3.Cursor):
            def execute(self, sql: str, *parameters: Any) -> Any:
                with watch.statement(sql):
                    return super().execute(sql, *parameters)

            def executemany(self, sql: str, *parameters: Any) -> Any:
                with watch.statement(sql):
                    return super().executemany(sql, *parameters)

            def executescript(self, script: str) -> Any:
                watch.in_script = True
                try:
                    return super().executescript(script)
                finally:
                    watch.in_script = False

        self._connection = connection
        # Instance attributes override the methods of the class, which would make cursors of the driver's class.
        vars(connection).update(
            cursor=lambda factory=Cursor: sqlite3.Connection.cursor(connection, factory),
            execute=lambda *arguments: Cursor(connection).execute(*arguments),
            executemany=lambda *arguments: Cursor(connection).executemany(*arguments),
            executescript=lambda script: Cursor(connection).executescript(script),
        )
        connection.set_trace_callback(self._traced)

    @contextmanager
    def statement(self, sql: str) -> Iterator[None]:
        self.executing = sql
        try:
            yield
        finally:
            self.executing = None

    def _traced(self, sql: str) -> None:
        if self.executing is not None:
            if self.executing:
                self._log(self.executing)
            self.executing = ""  # the rest of this statement is done by triggers
        elif not (self.in_script and self.log and self.log[-1] == sql.strip(" ;\n")):
            self._log(sql)

    def _log(self, sql: str) -> None:
        self.log._sent.append(sql.strip(" ;\n\f"))

    def stop(self) -> None:
        with suppress(sqlite3.ProgrammingError):  # it may be closed
            self._connection.set_trace_callback(None)
        for name in ("cursor", "execute", "executemany", "executescript"):
            vars(self._connection).pop(name, None)


class _ServerWatch:
    """Watches one connection to a server, through its cursors and its own `_send`."""

    def __init__(self, log: QueryLog, connection: Any) -> None:
        self.log = log
        self._connection = connection
        self._factory = connection.cursor_factory
        watch = self

        class Cursor(self._factory):  # type: ignore[misc, name-defined]  # a class known at run time
            def execute(self, query: Any, *arguments: Any, **options: Any) -> Any:
                watch.note(query)
                return super().execute(query, *arguments, **options)

            def executemany(self, query: Any, *arguments: Any, **options: Any) -> Any:
                watch.note(query)
                return super().executemany(query, *arguments, **options)

            def copy(self, statement: Any, *arguments: Any, **options: Any) -> Any:
                watch.note(statement)
                return super().copy(statement, *arguments, **options)

        connection.cursor_factory = Cursor
        vars(connection).update(_send=self._send)  # statements without a cursor

    def note(self, query: Any) -> None:
        text = query.decode() if isinstance(query, bytes) else str(query)
        self.log._sent.append(text.strip(" ;\n"))

    def _send(self, commands: bytes) -> Any:
        self.note(commands)
        return type(self._connection)._send(self._connection, commands)

    def stop(self) -> None:
        self._connection.cursor_factory = self._factory
        vars(self._connection).pop("_send", None)


@contextmanager
def count_queries(target: Store[Any] | UnitOfWork) -> Iterator[QueryLog]:
    """List the statements that a store (on all its connections), or a unit of work that has begun, sends.

    Yields:
        The statements; empty at first.
    """
    from consensus_orm.unit_of_work.unit import UnitOfWork

    log = QueryLog()
    watches: dict[int, _FileWatch | _ServerWatch] = {}
    kind = _FileWatch if target.engine.dialect.name == "sqlite" else _ServerWatch

    def watch(connection: Any, *_: object) -> None:
        if id(connection) not in watches:
            watches[id(connection)] = kind(log, connection)

    if isinstance(target, UnitOfWork):
        watch(target._connected)
        try:
            yield log
        finally:
            for each in watches.values():
                each.stop()
        return
    event.listen(target.engine, "checkout", watch)
    try:
        yield log
    finally:
        event.remove(target.engine, "checkout", watch)
        for each in watches.values():
            each.stop()
