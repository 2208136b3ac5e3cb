"""The errors of this package for the errors of PostgreSQL, without their texts, which quote values of rows."""

from __future__ import annotations

import re

import psycopg

from consensus_orm import errors

__all__ = ["UNMIRRORED", "translate"]

UNMIRRORED = "CO001"
"""SQLSTATE of the triggers that refuse a write of a session."""

_KINDS: dict[str, type[errors.StorageError]] = {
    "40001": errors.DatabaseBusyError,  # serialization failure
    "40P01": errors.DatabaseBusyError,  # deadlock
    "55P03": errors.DatabaseBusyError,  # lock not available in time
    "53100": errors.DatabaseFullError,
    "53": errors.DatabaseUnavailableError,  # resources, too many connections among them
    "57P": errors.DatabaseUnavailableError,  # shut down, crashed, or starting
    "08": errors.DatabaseUnavailableError,  # connection exceptions
    "2200H": errors.KeysUsedUpError,  # a sequence that has reached its maximum
    "25006": errors.ReadOnlyDatabaseError,
    "42501": errors.ReadOnlyDatabaseError,  # insufficient privilege
    "XX001": errors.CorruptDatabaseError,
    "XX002": errors.CorruptDatabaseError,
}
"""The error for each SQLSTATE or class of them (postgresql.org/docs/current/errcodes-appendix.html); the longest prefix
counts."""


_MISFITS = ("22P02", "22003", "22007", "22008", "42846", "42804")
"""SQLSTATEs of values that a type cannot hold: wrong syntax, out of range, no time, no date, of another type."""


def translate(error: psycopg.Error, database: str | None) -> errors.ConsensusError:
    """Give the error of this package for an error of the server.

    Args:
        error: The error as it was raised.
        database: The name of the database.

    Returns:
        The error to raise instead, with its attribute `sqlstate`.
    """
    state = error.sqlstate
    if state == UNMIRRORED:
        table = error.diag.table_name or (error.diag.message_detail or "a mapped table")
        return errors.UnmirroredWriteError(
            f"a statement of the session would write {table} past the repositories", table=table
        )
    if error.diag.source_function == "check_enable_rls":
        named = re.search(r"[\"«„“](.+)[\"»”“]", error.diag.message_primary or "")
        table = named[1] if named else ""
        told = f"{database}: the row security of {table or 'a table'} hides rows from this role"
        return errors.RowsHiddenError(told, table=table, sqlstate=state)
    if isinstance(error, psycopg.DataError) and state is None:  # raised by psycopg itself
        return errors.InvalidValueError("PostgreSQL cannot hold a text with a NUL character in it")
    if isinstance(error, psycopg.OperationalError) and state is None:
        return errors.DatabaseUnavailableError(f"{database}: the connection was refused or lost", sqlstate=None)
    if state in _MISFITS:
        return errors.InvalidValueError(
            f"{database}: a value is none of the type of its column: {_words(error)}",
            hint="give a value of the type that the model declares",
        )
    fitting = [known for known in _KINDS if (state or "").startswith(known)]
    kind = _KINDS[max(fitting, key=len)] if fitting else errors.StorageError
    return kind(f"{database}: {_words(error)}", sqlstate=state)


def _words(error: psycopg.Error) -> str:
    if error.sqlstate == psycopg.errors.RaiseException.sqlstate:
        return error.diag.message_primary or "a trigger refused it"
    names = {"table": error.diag.table_name, "column": error.diag.column_name, "constraint": error.diag.constraint_name}
    where = ", ".join(f"{what} {name}" for what, name in names.items() if name)
    return f"{type(error).__name__} ({error.sqlstate})" + (f", {where}" if where else "")
