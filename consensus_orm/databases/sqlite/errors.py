"""What SQLite's errors are to a user."""

from __future__ import annotations

import sqlite3

from consensus_orm import errors

__all__ = ["translate"]

BROKEN_DISK = (
    "nothing of this unit of work was kept; look at the disk, and whether somebody removed the -wal file"
    " (then close every program that has the database open: the last one saves what the log held)"
)

UNTRUSTED = (
    "a trigger, view or constraint of the file uses what its schema is not trusted with: open the store again where"
    " another program has made a virtual table meanwhile, or set CONSENSUS_ORM_TRUSTED_SCHEMA=true"
)

_BY_CODE: dict[int, type[errors.StorageError]] = {
    sqlite3.SQLITE_BUSY: errors.DatabaseBusyError,
    sqlite3.SQLITE_LOCKED: errors.DatabaseBusyError,
    sqlite3.SQLITE_PROTOCOL: errors.DatabaseBusyError,
    sqlite3.SQLITE_FULL: errors.DatabaseFullError,
    sqlite3.SQLITE_CORRUPT: errors.CorruptDatabaseError,
    sqlite3.SQLITE_NOTADB: errors.NotADatabaseError,
    sqlite3.SQLITE_READONLY: errors.ReadOnlyDatabaseError,
    sqlite3.SQLITE_PERM: errors.ReadOnlyDatabaseError,
    sqlite3.SQLITE_CANTOPEN: errors.ReadOnlyDatabaseError,
}
"""Primary result codes of SQLite (sqlite.org/rescode.html) and what they are to a user."""


def translate(error: BaseException, database: str | None) -> errors.ConsensusError | None:
    """Say in our words what SQLite said in its.

    Args:
        error: The error as it was raised.
        database: The name of the database.

    Returns:
        The error to raise instead, with SQLite's code in its attribute `sqlite_errorcode`; None where SQLite did not
        raise it.
    """
    if not isinstance(error, sqlite3.Error):
        return None
    code = getattr(error, "sqlite_errorcode", None)
    kind = errors.StorageError if code is None else _BY_CODE.get(code & 0xFF, errors.StorageError)
    hint = BROKEN_DISK if code is not None and code & 0xFF == sqlite3.SQLITE_IOERR else None
    if "unsafe use of" in str(error):  # SQLite has no code for it
        hint = UNTRUSTED
    return kind(f"{database}: {error}", hint=hint, sqlite_errorcode=code)
