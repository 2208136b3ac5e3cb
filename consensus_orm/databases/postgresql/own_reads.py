"""Reads of frozen legacy tables by this package, told to the ledger of reads before the server counts them.

The server counts what a transaction has read when this has ended, for everybody at once: another process that looks
then must find in the database that these are no reads of others. A connection pooler may have no second connection to
lend while the transaction has one, and a flip keeps writers waiting that have the others: there they are told at once
after its end.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from sqlalchemy import Engine, bindparam, update

from consensus_orm import errors
from consensus_orm.databases.engine import source_of, translated
from consensus_orm.databases.postgresql.rendering import PostgresRendering
from consensus_orm.declaration.attributes import table_of
from consensus_orm.models.control import ReadCount
from consensus_orm.statements.rendering import Statement

__all__ = ["INSUFFICIENT_PRIVILEGE", "OWN_READS", "SCANS", "expect", "expected", "tell"]

SCANS = (
    "CAST(sum(s.seq_scan + coalesce(s.idx_scan, 0)) AS BIGINT){times} FROM unnest(CAST(:names AS TEXT[])) AS n(name)"
    " JOIN {view} AS s ON s.relid = to_regclass(quote_ident(n.name))"
    " OR s.relid IN (SELECT p.relid FROM pg_partition_tree(to_regclass(quote_ident(n.name))) AS p)"
    " GROUP BY n.name ORDER BY n.name"
)
OWN_READS = f"SELECT n.name, {SCANS.format(times='', view='pg_stat_xact_user_tables')}"
"""The scans of tables and their indexes by this transaction."""

PATIENCE = 1000
"""Milliseconds to wait for the row of the ledger: a flip that holds it may wait for the transaction that read."""

INSUFFICIENT_PRIVILEGE = "42501"
"""SQLSTATE: no right to read a table, or row security hides rows of it."""

_FROZEN = "SELECT 1 FROM consensus_orm_reads WHERE table_name = :name"


@cache
def _expect() -> Statement:
    reads = table_of(ReadCount)
    more = update(reads).values(own=reads.c.own + bindparam("more")).where(reads.c.table_name == bindparam("name"))
    return PostgresRendering().render(more)


def expect(engine: Engine, own: Mapping[str, int]) -> None:
    """Have reads of a transaction that has not ended taken off what the server will count.

    Where the ledger cannot be written, as by a role without the right, they are kept for the next unit of work of this
    process that writes.

    Args:
        engine: The engine of a store; a connection of its own is used, whatever the pool has lent.
        own: How often each frozen table was read.
    """
    source: Any = source_of(engine)
    told = {name: more for name, more in sorted(own.items()) if more}
    if source.transaction_settings:
        source.own_reads.update(told)
    elif told:
        _tell(engine, told)


def tell(engine: Engine) -> None:
    """Tell of what a transaction has read through a connection pooler, now that it has ended.

    Args:
        engine: The engine of a store.
    """
    source: Any = source_of(engine)
    told = {name: more for name, more in sorted(source.own_reads.items()) if more}
    if source.transaction_settings and told:
        source.own_reads.subtract(told)
        _tell(engine, told)


def _tell(engine: Engine, told: Mapping[str, int]) -> None:
    source = source_of(engine)
    try:
        with translated(engine), contextlib.closing(source.connect()) as connection:
            connection.begin(write=True)
            connection.execute(f"SET LOCAL lock_timeout = {PATIENCE}")
            for name, more in told.items():
                connection.execute(_expect(), {"name": name, "more": more})
            connection.commit()
    except errors.ConsensusError:  # the command for the password may fail, too
        source.own_reads.update(told)


@contextlib.contextmanager
def expected(engine: Engine, connection: Any, name: str) -> Iterator[None]:
    """Tell of the read of a table before it is made, so that also a process that is killed meanwhile has told of it.

    Args:
        engine: The engine of a store.
        connection: Reads the table within the block, in a transaction.
        name: The table; nothing is told of one that is not frozen.
    """
    if connection.execute(_FROZEN, {"name": name}).fetchone() is None:
        yield
        return

    def read() -> int:
        return sum(scans for _, scans in connection.execute(OWN_READS, {"names": [name]}).fetchall())

    before = read()
    expect(engine, {name: 1})
    try:
        yield
    except connection.Error as error:
        if error.sqlstate == INSUFFICIENT_PRIVILEGE:  # it was refused before it read
            expect(engine, {name: -1})
        raise
    expect(engine, {name: read() - before - 1})  # of a table with partitions, each of these was read
