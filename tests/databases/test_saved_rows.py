"""What a database saved of rows is values (rule 13): no text of it is run as a statement."""

from __future__ import annotations

import json

import pytest

from consensus_orm import ConsensusStore, Phase, errors
from tests.databases.contracted import ODD, SETTINGS, contracted
from tests.support.databases import Database


def in_the_words_of_an_earlier_release(database: Database) -> None:
    """Have the saved rows as statements, which is what was kept before."""
    for position, table, image in database.rows_of(
        "SELECT position, table_name, sql FROM consensus_orm_saved_schema WHERE type = 'image'"
    ):
        cells = json.loads(image)
        names = ", ".join(f'"{name}"' for name in cells)
        values = ", ".join(literal(database.kind, *cell) for cell in cells.values())
        sql = f'INSERT OR IGNORE INTO "{table}" ({names}) VALUES ({values})'
        if database.kind == "postgresql":
            sql = f'INSERT INTO "{table}" ({names}) VALUES ({values}) ON CONFLICT DO NOTHING'
        database.rows_of(
            "UPDATE consensus_orm_saved_schema SET type = 'row', sql = ? WHERE position = ?", sql, position
        )


def literal(kind: str, type_: str, digits: str) -> str:
    if type_ == "null":
        return "NULL"
    if type_ == "blob":
        return f"X'{digits}'"
    if type_ == "text":
        if kind == "postgresql":
            return f"convert_from(decode('{digits}', 'hex'), 'UTF8')"
        return f"CAST(X'{digits}' AS TEXT)"
    return bytes.fromhex(digits).decode()


@pytest.mark.long
@pytest.mark.parametrize("earlier", [False, True], ids=["image", "statement"])
def test_a_row_of_the_legacy_side_alone_comes_back(database: Database, earlier: bool) -> None:
    """It is kept by value, in type and bytes; one that was kept as a statement comes back by its literals."""
    database.script(f"UPDATE consensus_artifacts SET {ODD[database.kind]} WHERE id = 5")
    before = database.rows("consensus_artifacts")
    contracted(database)
    saved = "SELECT count(*) FROM consensus_orm_saved_schema WHERE type = 'image'"
    assert database.scalar(saved) == 2
    if earlier:
        in_the_words_of_an_earlier_release(database)
        assert database.scalar(saved) == 0
    with ConsensusStore.open(database.where, settings=SETTINGS) as store:
        store.migration.rollback("expand")
    assert database.rows("consensus_artifacts") == before


STATEMENTS = {
    "another statement": "DELETE FROM agent_outputs",
    "attach": "ATTACH '{victim}' AS v",
    "a second statement": 'INSERT OR IGNORE INTO "consensus_artifacts" ("id") VALUES (99); DELETE FROM agent_outputs',
    "another table": 'INSERT OR IGNORE INTO "agent_outputs" ("id") VALUES (99)',
    "a query as a value": 'INSERT OR IGNORE INTO "consensus_artifacts" ("id") VALUES ((SELECT 99))',
    "a call as a value": 'INSERT OR IGNORE INTO "consensus_artifacts" ("id") VALUES (random())',
    "rows of a query": 'INSERT OR IGNORE INTO "consensus_artifacts" ("id") SELECT 99',
    "replace": 'INSERT OR REPLACE INTO "consensus_artifacts" ("id") VALUES (99)',
    "too many values": 'INSERT OR IGNORE INTO "consensus_artifacts" ("id") VALUES (99, 98)',
    "too few values": 'INSERT OR IGNORE INTO "consensus_artifacts" ("id", "stage") VALUES (99)',
    "two rows": 'INSERT OR IGNORE INTO "consensus_artifacts" ("id") VALUES (99), (98)',
    "a conflict of its own": 'INSERT INTO "consensus_artifacts" ("id") VALUES (5) ON CONFLICT DO UPDATE SET id = 99',
    "a comment": 'INSERT OR IGNORE INTO "consensus_artifacts" ("id") VALUES (99) -- ',
    "odd digits": """INSERT OR IGNORE INTO "consensus_artifacts" ("id") VALUES (X'9')""",
    "a word": 'INSERT OR IGNORE INTO "consensus_artifacts" ("id") VALUES (CURRENT_TIMESTAMP)',
    "another word": 'INSERT OR IGNORE INTO "consensus_artifacts" ("id") VALUES (rowid)',
}
IMAGES = {
    "no JSON": "{",
    "a list": "[]",
    "nested": "[" * 100_000,
    "no cells": '{"id": 7}',
    "a cell of three": '{"id": ["integer", "31", "32"]}',
    "another type": '{"id": ["sql", "31"]}',
    "no digits": '{"id": ["integer", "xy"]}',
    "no number": '{"id": ["integer", "61"]}',
    "a number for digits": '{"id": ["text", null]}',
}


WORDS = ("a word", "another word")
"""Values on a server, which reads them as text of the column's type."""


@pytest.mark.long
@pytest.mark.parametrize(
    ("kind_of_row", "name"),
    [pytest.param("row", n, marks=[pytest.mark.sqlite] if n in WORDS else []) for n in STATEMENTS]
    + [pytest.param("image", n) for n in IMAGES],
)
def test_a_saved_row_is_nothing_but_values(database: Database, kind_of_row: str, name: str) -> None:
    """A statement that is more than the literals of one row, or an image that is none, is refused, and nothing runs."""
    contracted(database)
    text = STATEMENTS[name] if kind_of_row == "row" else IMAGES[name]
    database.rows_of(
        "INSERT INTO consensus_orm_saved_schema VALUES (1000, ?, 'x', 'consensus_artifacts', ?, NULL)",
        kind_of_row,
        text,
    )
    before = database.rows("agent_outputs")
    with ConsensusStore.open(database.where, settings=SETTINGS) as store:
        with pytest.raises(errors.UnsafeDefinitionError):
            store.migration.rollback()
        assert store.migration.phase is Phase.CONTRACT
    assert database.rows("agent_outputs") == before


@pytest.mark.parametrize("column", ['id", "stage', "nowhere", "id) VALUES (99) --", ""])
def test_a_column_of_a_saved_row_is_a_name(database: Database, column: str) -> None:
    """What stands for the name of a column is quoted: it names no other, and ends no list."""
    contracted(database)
    database.rows_of(
        "INSERT INTO consensus_orm_saved_schema VALUES (1000, 'image', 'x', 'consensus_artifacts', ?, NULL)",
        json.dumps({column: ["integer", "31"]}),
    )
    with ConsensusStore.open(database.where, settings=SETTINGS) as store:
        with pytest.raises(errors.ConsensusError):
            store.migration.rollback()
        assert store.migration.phase is Phase.CONTRACT
