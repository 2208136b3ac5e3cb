"""Each refactoring of the gallery goes through all five phases and back, and nothing is lost or changed on the way.

Units of work and another program write on the way; what the tables hold is judged by raw SQL, in type and bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import JSON, create_engine, insert

from consensus_orm import Move, Phase, Side, Store
from consensus_orm.databases.opening import parse_url
from consensus_orm.errors import GateClosedError
from consensus_orm.settings import Settings
from tests.declaration.gallery.case import Case
from tests.declaration.gallery.cases import CASES
from tests.declaration.gallery.columns import column_types
from tests.support.databases import Database

SETTINGS = Settings(soak_dual_write=0, soak_cutover=0, soak_normalized=0, chunk_rows=2, chunk_pause=0)


LONG = {
    "shared parent with NULLs", "text key", "one table into two", "kept values", "joined subclass", "list to children",
    "association", "text date to date", "UUID key", "composite keys into one", "self-reference by a composite key",
}  # fmt: skip
"""Those that differ little from another one."""


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.long if name in LONG else ()) for name in CASES])
def case(request: pytest.FixtureRequest) -> Case:
    made: Case = CASES[request.param]()
    return made


def prepared(database: Database, case: Case) -> None:
    engine = create_engine(parse_url(database.where))
    case.metadata.create_all(engine)
    with engine.begin() as connection:
        for move in case.moves.of_tables(Side.LEGACY):
            for row in case.rows_of(move.legacy_name):
                connection.execute(insert(move.legacy_table), row)
    engine.dispose()
    for statement in case.foreign.get("before", ()):
        database.script(statement)


def legacy(database: Database, case: Case) -> list[list[Any]]:
    return [sorted(map(repr, database.rows(move.legacy_name))) for move in case.moves]


def settle(store: Store) -> None:
    store.migration.backfill()
    store.migration.reconcile(foreign="adopt")
    for reject in store.migration.rejects():
        store.migration.accept_reject(reject.id, reason="no way to say it on the other side")
    report = store.migration.verify()
    assert report.clean, report


def test_there_and_back(new_database: Database, case: Case, tmp_path: Path) -> None:
    """Rows written in any phase, by whomever, are there in every later one, and the legacy table ends with all."""
    prepared(new_database, case)
    settings = SETTINGS.model_copy(update={"backup_dir": tmp_path})
    with Store.open(new_database.where, moves=case.moves, settings=settings) as store:
        store.upgrade()
        for count, phase in enumerate([*Phase, *reversed(list(Phase)[:-1])]):
            while store.migration.phase < phase:
                store.migration.advance()
            while store.migration.phase > phase:
                store.migration.rollback(Phase(store.migration.phase - 1))
            for move in case.moves:
                seen = read(store, move.name)
                with store.unit_of_work() as uow:
                    key = uow.repository(move.name).add(case.new_in(move.name, count))
                assert read(store, move.name) == sorted([*seen, told(store, move.name, key)], key=repr)
            write_foreign(new_database, case, phase, count)
            if phase.compares:
                settle(store)
                before = legacy(new_database, case)
                for move in case.moves:
                    left_out = rejected(store, move.name) if phase.truth is Side.NORMALIZED else set()
                    expected = case.rejected_of(move.name) if phase.truth is Side.NORMALIZED else 0
                    assert len(left_out) == expected
                    assert stored(read(store, move.name)) == from_legacy(new_database, move, left_out)
                judge(new_database, case, "normalized")
            elif phase is Phase.NORMALIZED:
                assert store.migration.verify().clean
        assert store.migration.phase is Phase.EXPAND
        assert before
        for move in case.moves:
            assert stored(read(store, move.name)) == from_legacy(new_database, move, set())


def judge(database: Database, case: Case, side: str) -> None:
    for query, right in case.judged.get(side, {}).items():
        assert database.scalar(query) == right, query


def read(store: Store, name: str) -> list[Any]:
    with store.unit_of_work(read_only=True) as uow:
        return sorted(uow.repository(name).rows({}), key=repr)


def told(store: Store, name: str, key: Any) -> Any:
    with store.unit_of_work(read_only=True) as uow:
        return uow.repository(name).get(key)


def from_legacy(database: Database, move: Move, left_out: set[Any]) -> list[Any]:
    """The rows of the legacy table by raw SQL, as the repository tells them: without what was given up or rejected."""
    names = ", ".join(f'"{name}"' for name in move.legacy_columns)
    kept = tuple(None for _ in move.kept)
    wanted = [f'"{name}" = {constant(value.value)}' for name, value in move.only[Side.LEGACY].items()]
    where = f" WHERE {' AND '.join(wanted)}" if wanted else ""
    rows = database.rows_of(f'SELECT {names} FROM "{move.legacy_name}"{where}')
    objects = [isinstance(move.legacy_table.c[name].type, JSON) for name in move.legacy_columns]
    rows = [tuple(map(decoded, row, objects)) for row in rows]
    return stored(row + kept for row in rows if row[0] not in left_out)


def stored(rows: Iterable[Any]) -> list[Any]:
    """Rows with what every kind of database can hold of their values, in one order."""
    return sorted((tuple(v.hex if isinstance(v, UUID) else v for v in row) for row in rows), key=repr)


def decoded(value: Any, is_object: bool) -> Any:
    """JSON as the driver of a server gives it."""
    return json.loads(value) if is_object and isinstance(value, str) else value


def constant(value: Any) -> str:
    return str(value).upper() if isinstance(value, bool) else f"'{value}'"


def write_foreign(database: Database, case: Case, phase: Phase, count: int) -> None:
    if count >= len(Phase):
        return
    side = Side.LEGACY if phase is Phase.DUAL_WRITE else Side.NORMALIZED if phase is Phase.CUTOVER else None
    for statement in case.foreign.get(side.value if side else "", ()):
        database.script(statement)


def rejected(store: Store, move: str) -> set[Any]:
    """What names the rejects of a move: the key, or the number of one that cannot be named."""
    found = [each for each in store.migration.rejects(everything=True) if each.pair == move]
    return {each.key or f"reject {each.id}" for each in found if each.state in ("open", "accepted")}


@pytest.mark.sqlite
def test_a_session_carries_parts(new_database: Database) -> None:
    """What a session writes to a subclass with a table of its own is on the legacy side after each flush."""
    case = CASES["joined subclass"]()
    prepared(new_database, case)
    (move,) = case.moves
    employee: Any = move.parts[0].model
    flat: Any = move.legacy_model
    kept = "SELECT kind, salary FROM people_flat WHERE id = 99"
    with Store.open(new_database.where, moves=case.moves, settings=SETTINGS) as store:
        store.upgrade()
        store.migration.advance()
        store.migration.backfill()
        with store.unit_of_work() as uow:
            uow.session.add(employee(id=99, name="Eve", salary=4))
        assert new_database.rows_of(kept) == [("employee", 4)]
        with store.unit_of_work() as uow:
            entity = uow.session.get(employee, 99)
            assert entity is not None
            entity.salary = 5
            uow.session.flush()
            uow.session.get_one(flat, 99).salary = 6
            uow.session.flush()
            assert entity.salary == 6
        assert new_database.rows_of(kept) == [("employee", 6)]
        with store.unit_of_work() as uow:
            uow.session.delete(uow.session.get(employee, 99))
        assert new_database.rows_of(kept) == []
        assert store.migration.verify().differences == ()


def test_an_item_with_the_separator_in_it_is_a_reject(new_database: Database) -> None:
    """Equal one way is not equal: "x,y" as one item would come back as two, so it is no row that can be carried."""
    case = CASES["list to children"]()
    prepared(new_database, case)
    with Store.open(new_database.where, moves=case.moves, settings=SETTINGS) as store:
        store.upgrade()
        store.migration.migrate(Phase.DUAL_WRITE, soak=False)
        settle(store)
        store.migration.advance()
        new_database.script("INSERT INTO dishes (id, name) VALUES (77, 'other')")
        new_database.script("INSERT INTO steps (id, dish_id, position, text) VALUES (77, 77, 0, 'x,y')")
        store.migration.reconcile()
        assert [(each.pair, each.key) for each in store.migration.rejects()] == [("recipes", 77)]
        with pytest.raises(GateClosedError):
            store.migration.rollback()
        new_database.script("UPDATE steps SET text = 'x' WHERE id = 77")
        store.migration.reconcile()
        assert new_database.rows_of("SELECT steps FROM recipes WHERE id = 77") == [("x",)]


@pytest.mark.parametrize("name", ["kept values", "several parents"])
def test_a_copy_takes_along_what_belongs_to_a_row(new_database: Database, tmp_path: Path, name: str) -> None:
    """What a rule cannot give back, and all parents, go with the rows into another database."""
    case = CASES[name]()
    prepared(new_database, case)
    (move,) = case.moves
    target = tmp_path / "copy.db"
    with Store.open(new_database.where, moves=case.moves, settings=SETTINGS) as store:
        store.upgrade()
        store.migration.migrate(Phase.CUTOVER, soak=False)
        seen = read(store, move.name)
        with Store.open(target, moves=case.moves, settings=SETTINGS) as copy:
            assert store.copy_to(copy).finished
            assert read(copy, move.name) == seen
            assert copy.migration.verify().clean


def test_a_session_carries_several_parents(new_database: Database) -> None:
    """Each link of a row follows its own values, and a parent stays as long as any link of any row leads to it."""
    case = CASES["several parents"]()
    prepared(new_database, case)
    (move,) = case.moves
    models: Any = [move.legacy_model, move.normalized, *(parent.model for parent in move.parents)]
    flat, order, customer, address, _ = models
    kept = "SELECT customer, city, ship_city FROM orders_flat WHERE id = 99"
    cities = "SELECT count(*) FROM addresses WHERE city IN ('Genf', 'Zug')"
    zoe = "SELECT count(*) FROM customers WHERE name = 'Zoe'"
    with Store.open(new_database.where, moves=case.moves, settings=SETTINGS) as store:
        store.upgrade()
        store.migration.migrate(Phase.DUAL_WRITE, soak=False)
        store.migration.backfill()
        with store.unit_of_work() as uow:
            ada = uow.session.query(customer).filter_by(name="Ada").one()
            genf = address(street="Way 5", city="Genf")
            uow.session.add(genf)
            uow.session.flush()
            uow.session.add(order(id=99, customer_id=ada.id, billed_to=genf.id, sent_to=genf.id))
        assert new_database.rows_of(kept) == [("Ada", "Genf", "Genf")]
        with store.unit_of_work() as uow:
            uow.session.get_one(flat, 99).city = "Zug"
        assert new_database.scalar(cities) == 2
        with store.unit_of_work() as uow:
            entity = uow.session.get_one(order, 99)
            entity.sent_to = entity.billed_to
        assert new_database.rows_of(kept) == [("Ada", "Zug", "Zug")]
        assert new_database.scalar(cities) == 1
        with store.unit_of_work() as uow:
            assert uow.repository(move).update(99, {"city": "Genf", "customer": "Zoe"})
        assert new_database.rows_of(kept) == [("Zoe", "Genf", "Zug")]
        assert (new_database.scalar(cities), new_database.scalar(zoe)) == (2, 1)
        with store.unit_of_work() as uow:
            uow.session.delete(uow.session.get_one(flat, 99))
        assert (new_database.scalar(cities), new_database.scalar(zoe)) == (0, 0)
        with store.unit_of_work() as uow:
            key = uow.repository(move).add({"customer": "Zoe", "street": "s", "city": "Genf"})
            assert uow.repository(move).delete({"id": key}) == 1
        assert (new_database.scalar(cities), new_database.scalar(zoe)) == (0, 0)
        report = store.migration.verify()
        assert report.clean, report


def test_columns_of_all_types_come_back(new_database: Database, tmp_path: Path) -> None:
    """Values of each type stand alike on both sides in type and bytes, and the legacy table ends as it began."""
    case = column_types()
    prepared(new_database, case)
    (move,) = case.moves
    names = ", ".join(f'"{name}"' for name in move.legacy_columns)
    typed = f"typeof(at), {names}" if new_database.kind == "sqlite" else names
    before = new_database.rows_of(f"SELECT {typed}, cents FROM samples_old ORDER BY id")
    settings = SETTINGS.model_copy(update={"backup_dir": tmp_path})
    with Store.open(new_database.where, moves=case.moves, settings=settings) as store:
        store.upgrade()
        for phase in [*Phase, *reversed(list(Phase)[:-1])]:
            while store.migration.phase < phase:
                store.migration.advance()
            while store.migration.phase > phase:
                store.migration.rollback(Phase(store.migration.phase - 1))
            with store.unit_of_work() as uow:
                key = uow.repository(move.name).add(case.new)
                entity = uow.model(move)(**case.new)
                uow.session.add(entity)
            with store.unit_of_work(read_only=True) as uow:
                row = uow.repository(move.name).get(key)
                values = {name: getattr(row, name) for name in case.new}
                values["instant"] = values["instant"].replace(
                    tzinfo=values["instant"].tzinfo or UTC
                )  # SQLite has no zones
                assert values == case.new
            if phase.compares:
                store.migration.backfill()
            assert phase in (Phase.EXPAND, Phase.CONTRACT) or store.migration.verify().clean
            if phase.compares:
                sides = [
                    new_database.rows_of(f"SELECT {typed} FROM {of} ORDER BY id") for of in ("samples", "samples_old")
                ]
                assert sides[0] == sides[1]
                assert (
                    new_database.scalar("SELECT count(*) FROM samples WHERE letters <> length(state) OR note <> '-'")
                    == 0
                )
        assert new_database.rows_of(f"SELECT {typed}, cents FROM samples_old ORDER BY id")[: len(before)] == before
        assert new_database.scalar("SELECT count(*) FROM samples_old WHERE state = 'made' AND cents = 2025") == 18
