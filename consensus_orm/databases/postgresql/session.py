"""The settings that the statements of this package need, and the connection poolers between it and the server.

On a connection to the server itself they are settings of the session. A connection pooler that lends its connections
for single transactions (pgbouncer with pool_mode = transaction) would leave them to other clients, so there each
transaction sets them for itself, and nothing else outlives it: no prepared statement, no lock, no temporary table. A
pooler is told by the process of the server, which is not the one that answered the login; so one with pool_mode =
session is treated alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus

from consensus_orm import errors
from consensus_orm.statements.rendering import literal, quoted

__all__ = ["is_pooled", "keeps_transactions", "refusal", "session_settings", "transaction_settings"]

AS_WRITTEN = {
    "client_encoding": "UTF8",
    "datestyle": "ISO",
    "standard_conforming_strings": "on",
    "extra_float_digits": "1",
    "bytea_output": "hex",
}
"""Settings that decide how values are written and read, because a database or a role may have defaults of its own."""

_PATH = "SELECT reset_val FROM pg_settings WHERE name = 'search_path'"
"""What the role, the database or the configuration says, whatever another client has set."""

_NAMES = re.compile(r'"((?:[^"]|"")*)"|([^\s,"]+)')


def _settings(patience: int) -> dict[str, str]:
    # A plan for the given values costs more than it saves, because statements find their rows by keys. A transaction
    # that reads ranges of keys sets it otherwise.
    return {"plan_cache_mode": "force_generic_plan", "lock_timeout": str(patience), **AS_WRITTEN}


def session_settings(patience: int, schemas: Sequence[str]) -> str:
    """The statements that set up a session, once.

    Args:
        patience: Longest wait for a lock in ms.
        schemas: In which tables are looked for, after those that the role looks in.
    """
    settings = "; ".join(f"SET {name} = {literal(value)}" for name, value in _settings(patience).items())
    # Searched first, a temporary table with the name of one of the package's tables would take its place.
    more = literal(", ".join(["", *map(quoted, schemas), "pg_temp"]))
    return f"{settings}; SELECT set_config('search_path', current_setting('search_path') || {more}, false)"


def transaction_settings(
    connection: psycopg.Connection[Any], patience: int, options: Mapping[str, str], schemas: Sequence[str]
) -> str:
    """The statements that set up a transaction, each after its BEGIN; none of them takes a snapshot.

    Args:
        connection: In no transaction.
        patience: Longest wait for a lock in ms.
        options: The settings that the URL asks for, which a pooler does not pass to the server.
        schemas: As for `session_settings`.
    """
    row: Any = connection.execute(_PATH).fetchone()
    settings = {name: literal(value) for name, value in {**_settings(patience), **options}.items()}
    path = [*_names(options.get("search_path") or row[0]), *schemas, "pg_temp"]
    settings["search_path"] = ", ".join(map(literal, path))
    return "".join(f" SET LOCAL {name} = {value};" for name, value in settings.items())


def _names(path: str) -> Iterator[str]:
    """The schemas of a search path."""
    for marked, plain in _NAMES.findall(path):
        yield plain.lower() if plain else marked.replace('""', '"')


def is_pooled(connection: psycopg.Connection[Any]) -> bool:
    """Whether another process serves the statements of a connection than answered its login."""
    row: Any = connection.execute("SELECT pg_backend_pid()").fetchone()
    return bool(row[0] != connection.pgconn.backend_pid)


def keeps_transactions(connection: psycopg.Connection[Any]) -> bool:
    """Whether a pooler lends one connection to the server for a whole transaction."""
    try:
        connection.execute("BEGIN")
        served = [connection.execute("SELECT pg_backend_pid()").fetchone() for _ in range(2)]
        kept = connection.pgconn.transaction_status == TransactionStatus.INTRANS
        connection.execute("ROLLBACK")
    except psycopg.OperationalError:
        return False
    return kept and served[0] == served[1]


def refusal() -> errors.ConfigurationError:
    """The error for a pooler that keeps no transactions."""
    return errors.ConfigurationError(
        "the connection pooler does not keep a transaction on one connection to the server (statement pooling)",
        hint="set its pool_mode to transaction or session for this database, or connect to the server itself",
    )
