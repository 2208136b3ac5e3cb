"""SQLite's definitions of tables that other programs made, kept while the data is on a database of another kind.

On PostgreSQL the models make the legacy tables. SQLite's own definitions (tables, indexes, triggers, verbatim) are kept
in `consensus_orm_saved_schema`, under types that the phases ignore, so that a copy back to SQLite restores
them exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from sqlalchemy import Table
from sqlalchemy.dialects import sqlite
from sqlalchemy.schema import CreateIndex, CreateTable

from consensus_orm.copying.source import Source, State
from consensus_orm.copying.tables import made_elsewhere
from consensus_orm.databases import saved_schema
from consensus_orm.databases.sqlite.legacy_tables import objects
from consensus_orm.phase import Side

__all__ = ["ABROAD", "Definition", "definitions"]

ABROAD = "sqlite "
"""Prefix of the types of SQLite's definitions on a database of another kind."""


@dataclass(frozen=True)
class Definition:
    """One object of SQLite's schema, or a row that stands on the legacy side alone.

    Attributes:
        type: table, index, trigger or image.
        name: Its name.
        table: The table it belongs to.
        sql: Its definition, verbatim; the image of a row.
    """

    type: str
    name: str
    table: str
    sql: str


def definitions(source: Source, state: State) -> list[Definition]:
    """SQLite's definitions of the tables of other programs in a source of any kind."""
    legacy = [pair.legacy_table for pair in source.statements.moves.of_tables(Side.LEGACY)]
    wanted = legacy if state.phase.has_legacy or state.reversible else []
    # Revisions make the normalized tables of the consensus data; the program that declares others makes those.
    others = made_elsewhere(source.application, source.statements.moves)
    entries = saved_schema.entries(source) if state.prepared else []
    saved = [Definition(each.type, each.name, each.table, each.sql) for each in entries]
    if source.kind == "sqlite":
        live = [*(legacy if state.phase.has_legacy else ()), *others]
        return [d for d in saved if not state.phase.has_legacy] + [d for table in live for d in _objects(source, table)]
    found = [replace(d, type=d.type.removeprefix(ABROAD)) for d in saved if d.type.startswith(ABROAD)]
    known = {d.table.lower() for d in found}
    return found + [d for table in (*wanted, *others) if table.name.lower() not in known for d in _printed(table)]


def _objects(source: Source, table: Table) -> Iterator[Definition]:
    for kind, name, sql in objects(source, table.name):
        yield Definition(kind, name, table.name, sql)


def _printed(table: Table) -> Iterable[Definition]:
    """The definitions by the models of a table that never was on SQLite."""
    dialect = sqlite.dialect()
    yield Definition("table", table.name, table.name, str(CreateTable(table).compile(dialect=dialect)).strip())
    for index in sorted(table.indexes, key=lambda index: str(index.name)):
        sql = str(CreateIndex(index).compile(dialect=dialect))
        yield Definition("index", str(index.name), table.name, sql)
