"""Rows that cannot be named by their key: NULL, which SQLite permits in every primary key but a rowid, and the like.

Each of them is a reject, is never carried, never lost, and is counted by every verify. On PostgreSQL no primary key
holds NULL, but a unique column may.
"""

from __future__ import annotations

import pytest

from consensus_orm import ConsensusStore, Phase
from consensus_orm.errors import GateClosedError, InvalidValueError
from consensus_orm.phase import Side
from consensus_orm.statements.pairs import PairStatements
from tests.support.databases import Database
from tests.support.keyed import BOXED, BY_TEXT, opened, stored

TEXT_KEYS = """
CREATE TABLE things_flat (id TEXT PRIMARY KEY, what TEXT);
CREATE TABLE things (id TEXT PRIMARY KEY, what TEXT, ours BOOLEAN NOT NULL DEFAULT FALSE);
"""
NUMBERS = {
    "sqlite": """
CREATE TABLE things_flat (id INTEGER PRIMARY KEY DESC, what TEXT);
CREATE TABLE things (id INTEGER UNIQUE, what TEXT, ours BOOLEAN NOT NULL DEFAULT FALSE);
""",
    "postgresql": """
CREATE SEQUENCE given; CREATE TABLE things_flat (id BIGINT UNIQUE DEFAULT nextval('given'), what TEXT);
ALTER SEQUENCE given OWNED BY things_flat.id;
CREATE TABLE things (id BIGINT UNIQUE, what TEXT, ours BOOLEAN NOT NULL DEFAULT FALSE);
""",
}
ROWS = "INSERT INTO things_flat (id, what) VALUES (1, 'a'), (2, 'b'), (NULL, 'c'), (NULL, 'c'), (3, NULL), (NULL, NULL)"
NULLS = [(("null", ""), cell) for cell in (("null", ""), ("text", "63"), ("text", "63"))]


def kept(database: Database) -> list[tuple[str | None, str, str]]:
    """What the ledger holds of rejects by raw SQL: key, table and image."""
    rejects = database.rows_of("SELECT key, table_name, image FROM consensus_orm_rejects ORDER BY id")
    return [(key, table, image) for key, table, image in rejects]


def rows_of_data(database: Database) -> list[list[object]]:
    """All rows of both sides, and the rejects."""
    tables = {"things_flat", "things", "consensus_orm_rejects", "consensus_orm_mismatches"} & set(database.tables())
    return [list(database.rows(table)) for table in sorted(tables)]


def accept(store: ConsensusStore) -> None:
    for reject in store.migration.rejects():
        store.migration.accept_reject(reject.id, reason="nobody needs it")


@pytest.fixture
def database(new_database: Database) -> Database:
    """Three rows with a key, and three without, two of which are equal."""
    new_database.script(NUMBERS[new_database.kind] + ROWS)
    return new_database


def test_each_row_without_a_key_is_one_reject(database: Database) -> None:
    """Rows of the same chunk are carried; a second backfill and two verifies find none of the others again."""
    with opened(database) as store:
        store.migration.advance()
        assert store.migration.backfill().rejects == 3
        assert stored(database, "things") == [row for row in stored(database, "things_flat") if row not in NULLS]
        assert store.migration.backfill().rejects == 0
        for _ in range(2):
            report = store.migration.verify()
            assert (report.legacy_rows, report.normalized_rows, report.compared) == (6, 3, 3)
            assert (report.clean, report.rejects) == (True, 3)
        assert {(r.key, r.reason) for r in store.migration.rejects()} == {(None, "its key is NULL")}
        with pytest.raises(GateClosedError, match="3 rejects are open"):
            store.migration.advance(reason="try", force=True)
    images = [image for _, _, image in kept(database)]
    assert len(images) == 3
    assert sorted('"63"' in image for image in images) == [False, True, True]


def test_a_row_without_a_key_survives_the_way_there_and_back(database: Database) -> None:
    """Accepted, it stays out of the normalized side and of nobody's way, and the legacy table ends as it was."""
    before = stored(database, "things_flat")
    with opened(database) as store:
        with pytest.raises(GateClosedError):
            store.migration.migrate(Phase.CONTRACT)
        accept(store)
        store.migration.migrate(Phase.CONTRACT)
        assert len(stored(database, "things")) == 3
        assert store.migration.verify().clean
        store.migration.rollback(Phase.NORMALIZED)
        assert stored(database, "things_flat") == before
        assert store.migration.verify().clean
        store.migration.migrate(Phase.CONTRACT)
        store.migration.rollback(Phase.EXPAND)
    assert stored(database, "things_flat") == before


@pytest.mark.parametrize("noticed", [True, False], ids=["noticed", "unnoticed"])
@pytest.mark.parametrize("side", list(Side))
def test_one_that_arrives_later_is_a_reject_too(database: Database, side: Side, noticed: bool) -> None:
    """Another program adds one to either side: the change is adopted as a reject, or a verify finds it."""
    database.script("DELETE FROM things_flat WHERE id IS NULL")
    table = "things_flat" if side is Side.LEGACY else "things"
    added = f"INSERT INTO {table} (id, what) VALUES (NULL, 'late')"
    with opened(database) as store:
        store.migration.migrate(Phase.CUTOVER)
        (database.script if noticed else database.unnoticed)(added)
        if noticed:
            assert store.migration.status().foreign_writes == 1
            store.migration.reconcile()
        report = store.migration.verify()
        assert sorted((report.legacy_rows, report.normalized_rows)) == [3, 4]
        assert report.compared == 3
        assert (report.differences, report.missed, report.rejects) == ((), (), 1)
        assert [(key, of) for key, of, _ in kept(database)] == [(None, table)]
        with pytest.raises(GateClosedError, match="1 reject is open"):
            store.migration.advance()


def test_a_row_that_was_given_a_key_is_carried_and_its_reject_resolved(database: Database) -> None:
    """`resolve` says no as long as a row stands there without a key for each such reject, and yes after that."""
    with opened(database) as store:
        store.migration.advance()
        store.migration.backfill()
        first, *others = store.migration.rejects()
        assert not store.migration.resolve_reject(first.id)
        database.script("UPDATE things_flat SET id = 9 WHERE id IS NULL AND what IS NULL")
        database.script("DELETE FROM things_flat WHERE id IS NULL")
        store.migration.reconcile()
        assert all(store.migration.resolve_reject(reject.id) for reject in (first, *others))
        report = store.migration.verify()
        assert (report.clean, report.rejects, report.compared) == (True, 0, 4)
        store.migration.advance()
    assert stored(database, "things") == stored(database, "things_flat")


def test_with_nothing_but_rows_without_a_key_the_gate_opens_once_they_are_accepted(database: Database) -> None:
    """There is nothing to compare, and a verify that has counted says so."""
    database.script("DELETE FROM things_flat WHERE id IS NOT NULL")
    with opened(database) as store:
        with pytest.raises(GateClosedError):
            store.migration.migrate(Phase.CUTOVER)
        accept(store)
        assert store.migration.verify().clean
        store.migration.migrate(Phase.CONTRACT)
        store.migration.rollback(Phase.EXPAND)
    assert stored(database, "things_flat") == NULLS


@pytest.mark.sqlite
@pytest.mark.parametrize(
    "key", ["NULL", "x'6b31'", "x''", "'k' || char(0) || '1'", "CAST(x'6bff' AS TEXT)", "CAST(x'eda080' AS TEXT)"]
)
def test_a_key_of_another_kind_is_a_reject(new_database: Database, key: str) -> None:
    """A key that is no text, or one that JSON cannot say, is no key of text; the row comes back as it was."""
    rows = f"INSERT INTO things_flat VALUES ('k', 'a'), ('k1', 'b'), ({key}, 'c'), ('\N{SNOWMAN}', 'd')"
    new_database.script(TEXT_KEYS + rows)
    before = stored(new_database, "things_flat")
    with opened(new_database, BY_TEXT) as store:
        with pytest.raises(GateClosedError, match="1 reject is open"):
            store.migration.migrate(Phase.CONTRACT)
        assert len(stored(new_database, "things")) == 3
        accept(store)
        store.migration.migrate(Phase.CONTRACT)
        store.migration.rollback(Phase.EXPAND)
    assert stored(new_database, "things_flat") == before


@pytest.mark.sqlite
@pytest.mark.parametrize("key", ["'abc'", "1.5", "x'31'", "1e300", "9e999"])
def test_a_key_that_is_no_number_is_a_reject(new_database: Database, key: str) -> None:
    """A column that is no rowid holds any type: what is no integer is told apart, also from integers around it."""
    new_database.script(NUMBERS["sqlite"] + f"INSERT INTO things_flat VALUES (1, 'a'), ({key}, 'b'), (2, 'c')")
    before = stored(new_database, "things_flat")
    with opened(new_database) as store:
        with pytest.raises(GateClosedError, match="1 reject is open"):
            store.migration.migrate(Phase.CONTRACT)
        with store.unit_of_work() as uow:
            assert uow.repository("things").add({"what": "d"}) == 3
            uow.repository("things").delete({"what": "d"})
        accept(store)
        store.migration.migrate(Phase.CONTRACT)
        store.migration.rollback(Phase.EXPAND)
    assert stored(new_database, "things_flat") == before


@pytest.mark.sqlite
def test_without_a_log_rows_without_a_key_are_counted_too(new_database: Database) -> None:
    """In journal mode DELETE each statement of a verify looks for itself, and the counts are of one moment."""
    new_database.script(NUMBERS["sqlite"] + ROWS)
    with opened(new_database) as store, new_database.judge.reading(new_database.where) as other:
        other.execute("SELECT count(*) FROM things_flat").fetchall()
        store.migration.advance()
        store.migration.backfill()
        report = store.migration.verify()
        assert (report.clean, report.legacy_rows, report.compared, report.rejects) == (True, 6, 3, 3)
        assert other.execute("PRAGMA journal_mode").fetchone() == ("delete",)


# Counts without any range -----------------------------------------------------------------------------------


@pytest.mark.parametrize("side", list(Side))
def test_a_verify_whose_ranges_leave_rows_out_is_not_clean(
    database: Database, side: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the ranges do: rows that lie in none are missed by the counts, and the certificate opens no gate."""
    database.script("DELETE FROM things_flat WHERE id IS NULL")
    bounds = PairStatements.next_chunk

    def without_the_first(self: PairStatements, of: Side) -> tuple[str, str]:
        first, further = bounds(self, of)
        return (further.replace(":_after", "1"), further) if of is side else (first, further)

    with opened(database) as store:
        store.migration.migrate(Phase.CUTOVER)
        assert store.migration.verify().clean
        monkeypatch.setattr(PairStatements, "next_chunk", without_the_first)
        report = store.migration.verify()
        monkeypatch.undo()
        assert not report.clean
        assert [(c.table, c.rows, c.looked_at, c.missed) for c in report.missed] == [
            ("things_flat" if side is Side.LEGACY else "things", 3, 2, 1)
        ]
        with pytest.raises(GateClosedError, match="cannot account for 1 row"):
            store.migration.advance(reason="try", force=True)
        assert store.migration.verify().clean
        store.migration.advance()


def test_a_verify_whose_comparison_sees_less_than_its_chunks_is_not_clean(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows of a chunk are counted by the comparison, not by what found the chunk."""
    database.script("DELETE FROM things_flat WHERE id IS NULL")
    compare = PairStatements.compare_range

    def narrower(self: PairStatements, side: Side, *, but_recorded: bool) -> str:
        sql, of = compare(self, side, but_recorded=but_recorded), f"{self.table_of(side).name}.id"
        assert f"WHERE {of} BETWEEN :_first AND" in sql
        return sql.replace(f"WHERE {of} BETWEEN :_first AND", f"WHERE {of} > :_first AND {of} <=")

    with opened(database) as store:
        store.migration.migrate(Phase.CUTOVER)
        monkeypatch.setattr(PairStatements, "compare_range", narrower)
        report = store.migration.verify()
        assert not report.clean
        assert {counted.table for counted in report.missed} == {"things_flat", "things"}


def test_a_row_under_no_parent_is_missed_where_there_is_no_other_side(new_database: Database) -> None:
    """At CONTRACT nothing but the count tells of a row that no read gives, since its parent is not there."""
    serial = "BIGSERIAL" if new_database.kind == "postgresql" else "INTEGER"
    new_database.script(
        f"CREATE TABLE things_flat (id {serial} PRIMARY KEY, what TEXT);"
        f"CREATE TABLE boxes (id {serial} PRIMARY KEY, what TEXT UNIQUE);"
        f"CREATE TABLE things (id {serial} PRIMARY KEY, box BIGINT, ours BOOLEAN NOT NULL DEFAULT FALSE);"
        "INSERT INTO things_flat (what) VALUES ('a'), ('b'), ('a')"
    )
    with opened(new_database, BOXED) as store:
        store.migration.migrate(Phase.CONTRACT)
        assert store.migration.verify().clean
        for box in ("NULL", "99"):
            new_database.script(f"UPDATE things SET box = {box} WHERE id = 2")
            report = store.migration.verify()
            assert [(c.table, c.rows, c.looked_at, c.missed) for c in report.missed] == [("things", 3, 2, 1)]
            assert not report.clean


# What callers give ------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.sqlite
@pytest.mark.parametrize("phase", list(Phase), ids=lambda phase: phase.name)
@pytest.mark.parametrize("key", [None, 1, b"k", "a\0b", "\ud800", "a\udcff"])
def test_a_key_of_another_kind_is_not_accepted(new_database: Database, phase: Phase, key: object) -> None:
    """A key of text has to be given, and to be one: else a row would be written that nothing can name."""
    new_database.script(TEXT_KEYS + "INSERT INTO things_flat VALUES ('k', 'a')")
    with opened(new_database, BY_TEXT) as store:
        store.migration.migrate(phase)
        before = rows_of_data(new_database)
        with store.unit_of_work() as uow, pytest.raises(InvalidValueError, match="key of a row of things") as raised:
            uow.repository("things").add({"id": key, "what": "b"})
        assert raised.value.field == "id"
        assert rows_of_data(new_database) == before


@pytest.mark.parametrize("phase", list(Phase), ids=lambda phase: phase.name)
@pytest.mark.parametrize("key", ["1", 1.0, 2**63, -(2**63) - 1])
def test_a_key_that_is_no_number_is_not_accepted(new_database: Database, phase: Phase, key: object) -> None:
    """A key is a whole number of 64 bits."""
    new_database.script(NUMBERS[new_database.kind] + "INSERT INTO things_flat VALUES (1, 'a')")
    with opened(new_database) as store:
        store.migration.migrate(phase)
        before = rows_of_data(new_database)
        with store.unit_of_work() as uow, pytest.raises(InvalidValueError, match="key of a row of things"):
            uow.repository("things").add({"id": key, "what": "b"})
        assert rows_of_data(new_database) == before
