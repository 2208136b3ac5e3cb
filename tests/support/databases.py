"""The databases of the tests, reached past the package: what another program sees and does there, on each kind.

The judges are `oracle` for SQLite and `oracle_of_servers` for PostgreSQL; a test asks for neither by name where it
holds on both.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import sqlite3
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import Engine

from consensus_orm import ConsensusStore
from tests.field import builders, rows, server
from tests.support import oracle, oracle_of_servers
from tests.support.oracle import Row

__all__ = [
    "FAIL", "IGNORE", "REFUSE", "Database", "File", "ServerDatabase", "at", "behind", "build_legacy", "copied",
    "holds", "made",
    "odd_history", "odd_rows",
]  # fmt: skip

REFUSE, FAIL, IGNORE = "refuse", "fail", "ignore"
"""What a trigger may do to a write: fail it; fail it, and keep what it wrote by then (SQLite only); leave it out."""


class Database(ABC):
    """One database, without the package in between."""

    where: str | Path
    """What a store opens."""
    kind: str
    Error: type[Exception]
    """What the driver raises."""
    key = "key"
    """The key of a row in a ledger, as a number or a text."""

    @abstractmethod
    def rows_of(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Run one statement, parameters as `?`, and commit."""

    def scalar(self, sql: str) -> Any:
        """The one value that a query gives."""
        return self.rows_of(sql)[0][0]

    @abstractmethod
    def unnoticed(self, sql: str) -> None:
        """Damage that no trigger sees: the rows of a file copied back, a bug, a bit flipped."""

    @abstractmethod
    def script(self, sql: str) -> None:
        """Run statements without parameters, and commit."""

    @abstractmethod
    def fault(self, event: str, table: str, does: str) -> None:
        """Make the trigger `fault`.

        Args:
            event: For example AFTER INSERT.
            table: Of these rows.
            does: A statement, or REFUSE, FAIL or IGNORE.
        """

    @abstractmethod
    def heal(self) -> None:
        """Drop the trigger `fault`."""

    @property
    @abstractmethod
    def judge(self) -> Any:
        """The module whose functions take `where`."""

    @abstractmethod
    def writers_waiting(self) -> contextlib.AbstractContextManager[None]:
        """Keep whoever wants to write waiting while the block lasts, as another process may."""

    @contextlib.contextmanager
    def locked_for(self, seconds: float) -> Iterator[None]:
        """Keep whoever wants to write waiting for so long, from the beginning of the block on."""
        held = threading.Event()

        def hold() -> None:
            with self.writers_waiting():
                held.set()
                time.sleep(seconds)

        holder = threading.Thread(target=hold)
        holder.start()
        assert held.wait(30)
        try:
            yield
        finally:
            holder.join()

    def columns(self, table: str) -> list[str]:
        """Names of the columns of a table, in their order."""
        with self.judge.reading(self.where) as connection:
            return [name.strip('"') for name in self.judge.columns(connection, table)]

    def rows(self, table: str) -> list[Row]:
        """All rows of a table, every cell in type and bytes."""
        found: list[Row] = self.judge.rows(self.where, table)
        return found

    def everything(self) -> dict[str, list[Row]]:
        """All rows of all tables."""
        found: dict[str, list[Row]] = self.judge.everything(self.where)
        return found

    def tables(self) -> list[str]:
        """The tables there are."""
        found: list[str] = self.judge.tables(self.where)
        return found

    def legacy(self) -> dict[str, list[Row]]:
        """The rows of the legacy side."""
        found: dict[str, list[Row]] = self.judge.legacy(self.where)
        return found

    def normalized(self) -> dict[str, list[Row]]:
        """The rows of the normalized side, in the shape of the legacy one."""
        found: dict[str, list[Row]] = self.judge.normalized(self.where)
        return found

    def sequences(self) -> dict[str, int]:
        """The highest id ever given, by table."""
        found: dict[str, int] = self.judge.sequences(self.where)
        return found

    def image(self, *names: str) -> tuple[object, ...]:
        """All there is to say of some tables."""
        found: tuple[object, ...] = self.judge.image(self.where, *names)
        return found


@dataclass(frozen=True)
class File(Database):
    """A SQLite file."""

    where: Path
    kind = "sqlite"
    judge = oracle
    Error = sqlite3.Error

    def rows_of(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with builders.writing(self.where) as connection:
            return connection.execute(sql, parameters).fetchall()

    def script(self, sql: str) -> None:
        with builders.writing(self.where) as connection:
            connection.executescript(sql)

    def unnoticed(self, sql: str) -> None:
        with builders.writing(self.where) as connection:
            ours = connection.execute(
                "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND name GLOB 'consensus_orm_*'"
            ).fetchall()
            for name, _ in ours:
                connection.execute(f'DROP TRIGGER "{name}"')
            connection.executescript(sql)
            for _, trigger in ours:
                connection.execute(trigger)
            # No sign is left that they were made again: the mark is younger than they are.
            mark = "SELECT sql FROM sqlite_master WHERE name = 'consensus_orm_guarded'"
            for (view,) in connection.execute(mark).fetchall():
                connection.execute("DROP VIEW consensus_orm_guarded")
                connection.execute(view)

    def fault(self, event: str, table: str, does: str) -> None:
        effects = {
            REFUSE: "SELECT RAISE(ABORT, 'no')",
            FAIL: "SELECT RAISE(FAIL, 'no')",
            IGNORE: "SELECT RAISE(IGNORE)",
        }
        self.script(f"CREATE TRIGGER fault {event} ON {table} BEGIN {effects.get(does, does)}; END")

    def heal(self) -> None:
        self.script("DROP TRIGGER fault")

    @contextlib.contextmanager
    def writers_waiting(self) -> Iterator[None]:
        with builders.writing(self.where) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield


@dataclass(frozen=True)
class ServerDatabase(Database):
    """A database of a PostgreSQL server."""

    where: str
    kind = "postgresql"
    key = "CAST(key AS JSONB)"
    judge = oracle_of_servers
    Error = psycopg.Error

    def rows_of(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.where) as connection:
            cursor = connection.execute(sql.replace("?", "%s").encode(), parameters or None)
            return cursor.fetchall() if cursor.description else []

    def script(self, sql: str) -> None:
        with psycopg.connect(self.where) as connection:
            connection.execute(sql.encode())

    def unnoticed(self, sql: str) -> None:
        self.script(f"SET session_replication_role = replica; {sql}")  # no trigger fires, those of foreign keys neither

    def fault(self, event: str, table: str, does: str) -> None:
        effects = {REFUSE: "RAISE EXCEPTION 'no'", FAIL: "RAISE EXCEPTION 'no'", IGNORE: "RETURN NULL"}
        body = f"{effects.get(does, does)};"
        row = "OLD" if "DELETE" in event else "NEW"
        self.script(
            f"CREATE FUNCTION fault() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} RETURN {row}; END $$;"
            f" CREATE TRIGGER fault {event} ON {table} FOR EACH ROW EXECUTE FUNCTION fault()"
        )

    def heal(self) -> None:
        self.script("DROP FUNCTION fault() CASCADE")

    @contextlib.contextmanager
    def writers_waiting(self) -> Iterator[None]:
        with psycopg.connect(self.where) as connection:
            connection.execute("SET LOCAL lock_timeout = '20s'")
            connection.execute("LOCK TABLE consensus_orm_state IN EXCLUSIVE MODE")
            yield


def at(where: str | Path) -> Database:
    """The database at a path or URL."""
    if isinstance(where, str) and "://" in where:
        return ServerDatabase(re.sub(r"^postgresql\+psycopg:", "postgresql:", where))
    return File(Path(where))


@contextlib.contextmanager
def made(kind: str, build: Callable[[Any], object], path: Path) -> Iterator[Database]:
    """A database of a kind, made by a function that takes its path or URL; gone when the block ends."""
    if kind == "sqlite":
        build(path)
        yield File(path)
        return
    from tests.support import servers

    with servers.database() as url:
        build(url)
        yield ServerDatabase(url)


@contextlib.contextmanager
def copied(kind: str, name: str, build: Callable[[Any], object], path: Path, templates: Path) -> Iterator[Database]:
    """A database of a kind, a copy of the one that a function makes once; gone when the block ends.

    Args:
        kind: Its kind.
        name: What that one is known by.
        build: Takes the path or URL of that one, and closes its connections.
        path: Where a file is copied to.
        templates: The folder of the files that are copied.
    """
    if kind == "sqlite":
        if not (template := templates / f"{name}.db").exists():
            build(template)
        shutil.copyfile(template, path)
        yield File(path)
        return
    from tests.support import servers

    with servers.database(servers.template(name, build)) as url:
        yield ServerDatabase(url)


def behind(store: ConsensusStore | Engine) -> Database:
    """The database of a store."""
    engine = store if isinstance(store, Engine) else store.engine
    if engine.dialect.name == "sqlite":
        return File(Path(str(engine.url.database)))
    return at(engine.url.render_as_string(hide_password=False))


def holds(kind: str, text: str) -> bool:
    """Whether a database of a kind can hold a text: SQLite any, PostgreSQL UTF-8 without NUL."""
    return kind == "sqlite" or not re.search("[\0\ud800-\udfff]", text)


# Legacy databases to begin with -----------------------------------------------------------------------------


def build_legacy(where: str | Path, *, columns: int = 11, altered: bool = False) -> None:
    """The common rows only, and an agent_executions with so many columns."""
    if isinstance(where, Path):
        builders.build_legacy(where, columns=columns, altered=altered)
    else:
        server.build_legacy(where, columns=columns, altered=altered)


def odd_history(where: str | Path) -> None:
    """The rows that break simple implementations, as far as they can be held, less the two of several megabytes."""
    build_legacy(where)
    odd_rows(where)


def odd_rows(where: str | Path) -> None:
    """Add the odd rows to a legacy database."""
    if isinstance(where, Path):
        with builders.writing(where) as connection:
            rows.insert_odd_rows(connection, big=False)
    else:
        with psycopg.connect(where) as server_connection:
            server.insert_odd_rows(server_connection)
