"""The session that model factories write with: a plain one, of the test's own engine.

The session of a unit of work refuses writes to mapped sides, because they would reach one side only. Making
such rows on purpose is what model factories are for, so they go past the units of work.
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

__all__ = ["current_session", "session_on", "use_session"]

_session: ContextVar[Session] = ContextVar("consensus_orm.testing.session")


def current_session() -> Session:
    """The session that model factories write with now.

    Raises:
        ConfigurationError: None is in use.
    """
    try:
        return _session.get()
    except LookupError:
        raise ConfigurationError(
            "model factories have no session to write with",
            hint="wrap the test in `with consensus_orm.testing.use_session(session):`",
        ) from None


@contextmanager
def use_session(session: Session) -> Iterator[Session]:
    """Let model factories write with a session, in this thread or task.

    Args:
        session: A session on an engine of your own, not that of a unit of work. What is made is flushed and
            expired, so that a test sees what the database sees; committing is yours.

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

    It is like another program: nothing of consensus_orm is in between, and its triggers notice it. Text that
    is no UTF-8 is read with its bytes escaped.

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
