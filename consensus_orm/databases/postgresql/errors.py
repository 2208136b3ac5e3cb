"""The errors of this package for the errors of PostgreSQL, without their texts, which quote values of rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import psycopg

from consensus_orm import errors

__all__ = ["UNMIRRORED", "missing_privilege", "translate", "words"]

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
        return _failure(error, database)
    if state in _MISFITS:
        return errors.InvalidValueError(
            f"{database}: a value is none of the type of its column: {_words(error)}",
            hint="give a value of the type that the model declares",
        )
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return _forbidden(error, database)
    if isinstance(error, psycopg.errors.ReadOnlySqlTransaction):
        return errors.ReadOnlyDatabaseError(f"{database}: {_words(error)}", hint=STANDBY, sqlstate=state)
    blockers = getattr(error, "blockers", ())
    if blockers and isinstance(error, psycopg.errors.LockNotAvailable):
        return _blocked(error, database, blockers)
    fitting = [known for known in _KINDS if (state or "").startswith(known)]
    kind = _KINDS[max(fitting, key=len)] if fitting else errors.StorageError
    return kind(f"{database}: {_words(error)}", sqlstate=state)


def _blocked(error: psycopg.Error, database: str | None, blockers: Sequence[Any]) -> errors.DatabaseBusyError:
    """The error for a flip that gave up; `blockers` are those it waited for (`databases.postgresql.blockers`)."""
    pids = [each.pid for each in blockers if each.pid]
    ended = "; ".join(f"SELECT pg_terminate_backend({pid})" for pid in pids) or "ROLLBACK PREPARED"
    return errors.DatabaseBusyError(
        f"{database}: the change of the phase waited in vain for {'; '.join(map(str, blockers))}",
        hint=f"let it end its transaction, or end it ({ended}), then try again",
        sqlstate=error.sqlstate,
        blockers=tuple(blockers),
    )


# Missing privileges -----------------------------------------------------------------------------------------

STANDBY = (
    "this server is a standby, or default_transaction_read_only is on: connect to the primary, for instance with all"
    " hosts and target_session_attrs=read-write in the URL"
)

_VERBS = {
    "SELECT": "(?:FROM|JOIN)",
    "INSERT": "INSERT INTO",
    "UPDATE": "(?:UPDATE|LOCK TABLE)",
    "DELETE": "DELETE FROM",
}
_USAGE = {"schema": "USAGE", "sequence": "USAGE", "function": "EXECUTE", "database": "CONNECT, CREATE"}
_DENIED = re.compile(r"permission denied for (?P<kind>\w+) (?P<name>\S+)")


def missing_privilege(error: psycopg.Error, statement: str = "") -> dict[str, str]:
    """What a role may not do: `privilege`, `kind` of object, and `table`, its name; as far as the server says so."""
    found = _DENIED.match(error.diag.message_primary or "")
    if found is None:
        return {}
    kind, name = found["kind"], found["name"]
    follows = rf' (?:\S+\.)?"?{re.escape(name)}\b'
    needs = [verb for verb, before in _VERBS.items() if re.search(rf"\b{before}{follows}", statement)]
    needs += ["UPDATE"] if "INSERT" in needs and "DO UPDATE" in statement else []
    usual = _USAGE.get(kind, "SELECT, INSERT, UPDATE, DELETE")
    of_table = "TABLE" if kind in ("table", "relation", "view") else kind.upper()
    privilege = usual if kind in _USAGE else ", ".join(dict.fromkeys(needs)) or usual
    return {"privilege": privilege, "kind": of_table, "table": name}


def _forbidden(error: psycopg.Error, database: str | None) -> errors.StorageError:
    """The error for a missing privilege; the server's words name the object, and hold no contents of rows."""
    said = error.diag.message_primary or _words(error)
    found = {**missing_privilege(error), **getattr(error, "missing", {})}
    role, schema = found.pop("role", None), found.get("schema")
    if kind := found.pop("kind", None):
        name = f"{schema}.{found['table']}" if schema else found["table"]
        hint = f"as its owner, run: GRANT {found['privilege']} ON {kind} {name} TO {role or 'the role of the URL'}"
    else:
        hint = f"let the owner do it, or give {role or 'the role of the URL'} its rights: GRANT OWNER TO ROLE"
    return errors.ReadOnlyDatabaseError(f"{database}: {said}", hint=hint, sqlstate=error.sqlstate, **found)


# Why a connection fails -------------------------------------------------------------------------------------

_REASONS = {
    "password": r"password authentication failed|no password supplied|authentication failed|SASL",
    "database": r"database .* does not exist|no such database",
    "role": r"role .* does not exist|no such user",
    "host": r"could not translate host name|Name or service not known|failed to resolve host",
    "ssl": r"server does not support SSL|SSL error|SSL (?:connection )?is required|SSL required|certificate",
    "access": r"no pg_hba\.conf entry|pg_hba\.conf rejects|permission denied for database|not permitted to log in",
    "connections": r"too many (?:clients|connections)|remaining connection slots|no more connections allowed",
    "starting": r"is (?:starting up|shutting down)|in recovery mode|not (?:yet )?accepting",
    "standby": r"session is (?:not )?read-only|server is (?:not )?in hot standby mode",
    "parameter": r"unsupported startup parameter",
    "value": r"invalid .*value|invalid (?:connection option|port)",
    "timeout": r"timeout expired|timed out",
    "listening": r"Connection refused|No such file or directory|No route to host|Network is unreachable",
}
"""What libpq and the server say of each reason that a connection fails, the first that fits counts. A failed login has
no SQLSTATE; in another language the words fit no reason, and are repeated all the same."""

_HINTS = {
    "password": "check user and password: those of the URL, of CONSENSUS_ORM_PASSWORD_COMMAND, or of libpq's password"
    " file; @ : / ? # % within a password are written as %40 %3A %2F %3F %23 %25",
    "database": "check the name of the database in the URL, or create it: CREATE DATABASE",
    "role": "check the user in the URL, or create the role: CREATE ROLE ... LOGIN",
    "host": "check the name of the host in the URL; the name service of this machine does not know it",
    "ssl": "check sslmode and sslrootcert in the URL against what the server offers (SHOW ssl)",
    "access": "let this user in from this machine in pg_hba.conf of the server, or use sslmode=require if it asks for"
    " encryption",
    "connections": "lower CONSENSUS_ORM_POOL_SIZE, raise max_connections of the server, or put a connection pooler in"
    " front",
    "starting": "wait until the server has started (store.run retries by itself)",
    "standby": "check target_session_attrs and the hosts in the URL: none of them is such a server now",
    "parameter": "leave that parameter out and set it for the role (ALTER ROLE ... SET ...), or have the connection"
    " pooler pass it",
    "value": "correct that parameter of the URL",
    "timeout": "check host and port, and the firewalls on the way; connect_timeout in the URL is in seconds",
    "listening": "check host and port of the URL, and that the server runs and listens there (listen_addresses)",
}


def words(error: BaseException) -> str:
    """What libpq says, in one line; it never repeats a password."""
    return " ".join(str(error).split())


def _failure(error: psycopg.OperationalError, database: str | None) -> errors.ConsensusError:
    """The error of this package for a connection that failed or broke; `reason` says why, where it is known.

    Args:
        error: As raised, without a SQLSTATE.
        database: The name of the database.
    """
    said = words(error)
    reason = next((reason for reason, known in _REASONS.items() if re.search(known, said)), None)
    hint = _HINTS.get(reason or "")
    if reason == "value":
        return errors.ConfigurationError(f"the URL cannot be used: {said}", hint=hint)
    return errors.DatabaseUnavailableError(f"{database}: {said}", hint=hint, reason=reason, sqlstate=None)


def _words(error: psycopg.Error) -> str:
    if error.sqlstate == psycopg.errors.RaiseException.sqlstate:
        return error.diag.message_primary or "a trigger refused it"
    names = {"table": error.diag.table_name, "column": error.diag.column_name, "constraint": error.diag.constraint_name}
    where = ", ".join(f"{what} {name}" for what, name in names.items() if name)
    return f"{type(error).__name__} ({error.sqlstate})" + (f", {where}" if where else "")
