"""Each refactoring of the gallery goes through all five phases and back, and nothing is lost or changed on the way.

Units of work and another program write on the way; what the tables hold is judged by raw SQL, in type and bytes.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import create_engine, insert

from consensus_orm import Phase, Side, Store
from consensus_orm.databases.opening import parse_url
from consensus_orm.settings import Settings
from tests.declaration.gallery.cases import CASES, Case
from tests.support.databases import Database

SETTINGS = Settings(soak_dual_write=0, soak_cutover=0, soak_normalized=0, chunk_rows=2, chunk_pause=0)


@pytest.fixture(params=list(CASES))
def case(request: pytest.FixtureRequest) -> Case:
    made: Case = CASES[request.param]()
    return made


def prepared(database: Database, case: Case) -> None:
    engine = create_engine(parse_url(database.where))
    case.metadata.create_all(engine)
    with engine.begin() as connection:
        for move in case.moves:
            if case.rows:
                connection.execute(insert(move.legacy_table), list(case.rows))
    engine.dispose()


def legacy(database: Database, case: Case) -> list[list[Any]]:
    return [sorted(map(repr, database.rows(move.legacy_name))) for move in case.moves]


def new(case: Case, n: int) -> dict[str, Any]:
    made = {name: value.format(n=n) if isinstance(value, str) else value for name, value in case.new.items()}
    return {name: n if value is ... else value for name, value in made.items()}


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
    (move,) = case.moves
    settings = SETTINGS.model_copy(update={"backup_dir": tmp_path})
    with Store.open(new_database.where, moves=case.moves, settings=settings) as store:
        store.upgrade()
        for count, phase in enumerate([*Phase, *reversed(list(Phase)[:-1])]):
            while store.migration.phase < phase:
                store.migration.advance()
            while store.migration.phase > phase:
                store.migration.rollback(Phase(store.migration.phase - 1))
            seen = read(store, move.name)
            with store.unit_of_work() as uow:
                key = uow.repository(move.name).add(new(case, count))
            assert read(store, move.name) == sorted([*seen, told(store, move.name, key)], key=repr)
            write_foreign(new_database, case, phase, count)
            if phase.compares:
                settle(store)
                before = legacy(new_database, case)
                left_out = rejected(store) if phase.truth is Side.NORMALIZED else set()
                assert len(left_out) == (case.rejected if phase.truth is Side.NORMALIZED else 0)
                assert stored(read(store, move.name)) == from_legacy(new_database, case, left_out)
                judge(new_database, case, "normalized")
            elif phase is Phase.NORMALIZED:
                assert store.migration.verify().clean
        assert store.migration.phase is Phase.EXPAND
        assert before
        assert len(read(store, move.name)) == len(new_database.rows(move.legacy_name))


def judge(database: Database, case: Case, side: str) -> None:
    for query, right in case.judged.get(side, {}).items():
        assert database.scalar(query) == right, query


def read(store: Store, name: str) -> list[Any]:
    with store.unit_of_work(read_only=True) as uow:
        return sorted(uow.repository(name).rows({}), key=repr)


def told(store: Store, name: str, key: Any) -> Any:
    with store.unit_of_work(read_only=True) as uow:
        return uow.repository(name).get(key)


def from_legacy(database: Database, case: Case, left_out: set[Any]) -> list[Any]:
    """The rows of the legacy table by raw SQL, as the repository tells them: without what was given up or rejected."""
    (move,) = case.moves
    names = ", ".join(f'"{name}"' for name in move.legacy_columns)
    kept = tuple(None for _ in move.kept)
    rows = database.rows_of(f'SELECT {names} FROM "{move.legacy_name}"')
    return stored(row + kept for row in rows if row[0] not in left_out)


def stored(rows: Iterable[Any]) -> list[Any]:
    """Rows with what every kind of database can hold of their values, in one order."""
    return sorted((tuple(v.hex if isinstance(v, UUID) else v for v in row) for row in rows), key=repr)


def write_foreign(database: Database, case: Case, phase: Phase, count: int) -> None:
    if count >= len(Phase):
        return
    side = Side.LEGACY if phase is Phase.DUAL_WRITE else Side.NORMALIZED if phase is Phase.CUTOVER else None
    for statement in case.foreign.get(side.value if side else "", ()):
        database.script(statement)


def rejected(store: Store) -> set[Any]:
    return {each.key for each in store.migration.rejects(everything=True) if each.state in ("open", "accepted")}


def test_a_copy_takes_the_originals_along(new_database: Database, tmp_path: Path) -> None:
    """What a rule cannot give back goes with the rows into another database, and comes back there."""
    case = CASES["kept values"]()
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
