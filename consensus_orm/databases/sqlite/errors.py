"""The errors of this package for the errors of SQLite."""

from __future__ import annotations

import sqlite3

from consensus_orm import errors

__all__ = ["cannot_decode", "is_busy", "is_missing_table", "is_read_only", "refers_to_missing", "translate"]

BROKEN_DISK = (
    "nothing of this unit of work was kept; check the disk, and whether the -wal file was removed"
    " (then close every program that has the database open: the last one saves what the log held)"
)

UNTRUSTED = (
    "a trigger, view or constraint of the file uses what its schema is not trusted with: open the store again where"
    " another program has made a virtual table meanwhile, or set CONSENSUS_ORM_TRUSTED_SCHEMA=true"
)

TOO_BIG = (
    "nothing of what failed was kept; a row, or the image that is kept of one, is longer than MAX_ROW_BYTES allows: set"
    " CONSENSUS_ORM_MAX_ROW_BYTES higher where there is memory for it"
)

_BY_CODE: dict[int, type[errors.StorageError]] = {
    sqlite3.SQLITE_BUSY: errors.DatabaseBusyError,
    sqlite3.SQLITE_LOCKED: errors.DatabaseBusyError,
    sqlite3.SQLITE_PROTOCOL: errors.DatabaseBusyError,
    sqlite3.SQLITE_FULL: errors.DatabaseFullError,
    sqlite3.SQLITE_IOERR_SHMSIZE: errors.DatabaseFullError,  # no room for the -shm file, which a read needs, too
    sqlite3.SQLITE_CORRUPT: errors.CorruptDatabaseError,
    sqlite3.SQLITE_NOTADB: errors.NotADatabaseError,
    sqlite3.SQLITE_READONLY: errors.ReadOnlyDatabaseError,
    sqlite3.SQLITE_PERM: errors.ReadOnlyDatabaseError,
    sqlite3.SQLITE_CANTOPEN: errors.ReadOnlyDatabaseError,
}
"""The class of error for each primary or extended result code of SQLite (sqlite.org/rescode.html)."""

_HINTS = {sqlite3.SQLITE_IOERR: BROKEN_DISK, sqlite3.SQLITE_TOOBIG: TOO_BIG}
"""What to do about errors that have no class of their own, by their primary code."""


def translate(error: BaseException, database: str | None) -> errors.ConsensusError | None:
    """Give the error of this package for an error of SQLite.

    Args:
        error: The error as it was raised.
        database: The name of the database.

    Returns:
        The error to raise instead, with SQLite's code in its attribute `sqlite_errorcode`; None for an error that is
        not SQLite's.
    """
    if not isinstance(error, sqlite3.Error):
        return None
    code, primary = getattr(error, "sqlite_errorcode", None), _primary_code(error)
    kind = _BY_CODE.get(code or 0) or _BY_CODE.get(primary, errors.StorageError)
    hint = _HINTS.get(primary) if kind is errors.StorageError else None
    if "unsafe use of" in str(error):  # SQLite has no code for it
        hint = UNTRUSTED
    return kind(f"{database}: {error}", hint=hint, sqlite_errorcode=code)


def _primary_code(error: BaseException) -> int:
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF


def is_busy(error: BaseException) -> bool:
    """Whether SQLite refused a lock that another connection holds."""
    return isinstance(error, sqlite3.OperationalError) and _primary_code(error) == sqlite3.SQLITE_BUSY


def is_missing_table(error: BaseException) -> bool:
    """Whether one of the package's own statements failed because its table does not exist."""
    # SQLite has no code of its own for it, and nothing else can be wrong with these statements.
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR


def refers_to_missing(error: BaseException | None) -> bool:
    """Whether a row refers to one that does not exist."""
    return getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY


def is_read_only(error: BaseException) -> bool:
    """Whether a statement failed because the transaction may not write."""
    return _primary_code(error) == sqlite3.SQLITE_READONLY


def cannot_decode(error: BaseException) -> bool:
    """Whether a read failed because a text is not valid UTF-8."""
    return isinstance(error, sqlite3.OperationalError) and not hasattr(error, "sqlite_errorcode")
