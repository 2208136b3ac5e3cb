"""The plain session, on an engine of its own, with which model factories write.

The session of a unit of work refuses writes to one side of a pair. Model factories make such rows on purpose, so they
write past the units of work.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from sqlalchemy import create_engine, event
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool

from consensus_orm.databases.opening import parse_url
from consensus_orm.errors import ConfigurationError

__all__ = ["current_session", "is_on_server", "session_on", "use_session"]

_session: ContextVar[Session] = ContextVar("consensus_orm.testing.session")


def current_session() -> Session:
    """The session with which model factories write now.

    Raises:
        ConfigurationError: No session is in use.
    """
    try:
        return _session.get()
    except LookupError:
        raise ConfigurationError(
            "model factories have no session to write with",
            hint="wrap the test in `with consensus_orm.testing.use_session(session):`",
        ) from None


def is_on_server() -> bool:
    """Whether model factories write to a server, whose columns of texts hold nothing else."""
    session = _session.get(None)
    return session is not None and session.get_bind().dialect.name != "sqlite"


@contextmanager
def use_session(session: Session) -> Iterator[Session]:
    """Let model factories write with a session, in this thread or task.

    Args:
        session: A session on an engine of your own, not that of a unit of work. Rows are flushed and expired, so
            that a test reads what the database stored; you commit.

    Yields:
        The session.
    """
    token = _session.set(session)
    try:
        yield session
    finally:
        _session.reset(token)


@contextmanager
def session_on(path: str | Path) -> Iterator[Session]:
    """Open a plain session on a database and let model factories write with it.

    It writes like another program, without consensus_orm, and the triggers notice it. Text that is not UTF-8 is read
    with its bytes escaped.

    Args:
        path: The SQLite file, or the URL of a database; prepared by `ConsensusStore.upgrade`, by alembic, or by
            `legacy_file`.

    Yields:
        The session; committed at the end, rolled back on an exception.
    """
    engine = create_engine(parse_url(path), poolclass=NullPool)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _escape_text)
    try:
        with Session(engine) as session, session.begin(), use_session(session):
            yield session
    finally:
        engine.dispose()


def _escape_text(connection: sqlite3.Connection, _record: object) -> None:
    connection.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
