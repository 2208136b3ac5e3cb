"""Rule 2 on PostgreSQL: neither the engine nor PostgreSQL's part of it knows a table by name.

Customers with their address in the row become customers and addresses; orders lose a column name. The names need
quotes, and the tables are made here, by their own DDL.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import BigInteger, Boolean, ForeignKey, Text, UniqueConstraint, case, literal_column
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import consensus_orm
from consensus_orm import ConsensusStore, Phase
from consensus_orm.declaration.expressions import exact_hex
from consensus_orm.declaration.move import Move
from consensus_orm.declaration.moves import Moves
from consensus_orm.declaration.parts import Parent
from consensus_orm.declaration.rules import Computed, Latest
from consensus_orm.errors import GateClosedError, SchemaError
from consensus_orm.schema import revisions
from consensus_orm.settings import Settings
from tests.declaration.test_second_pair import NAMES, words
from tests.support.databases import Database
from tests.support.dependencies import accept_dependencies

pytestmark = pytest.mark.postgresql

DDL = """
CREATE TABLE "Customers Flat" ("No" BIGSERIAL PRIMARY KEY, name TEXT NOT NULL, city TEXT, "limit" BIGINT DEFAULT 100);
CREATE INDEX customers_by_city ON "Customers Flat"(city) WHERE city IS NOT NULL;
CREATE VIEW berliners AS SELECT name FROM "Customers Flat" WHERE city = 'Berlin';
CREATE TABLE orders_old (order_no BIGSERIAL PRIMARY KEY, what TEXT, amount BIGINT);
CREATE TABLE places (place_no BIGSERIAL PRIMARY KEY, place_key TEXT NOT NULL UNIQUE, city TEXT, newest TEXT);
CREATE TABLE customers ("No" BIGSERIAL PRIMARY KEY, lives_at BIGINT NOT NULL REFERENCES places ON DELETE CASCADE,
  name TEXT NOT NULL, credit BIGINT, nickname TEXT, ours BOOLEAN NOT NULL DEFAULT FALSE);
CREATE TABLE orders (order_no BIGSERIAL PRIMARY KEY, item TEXT, amount BIGINT, ours BOOLEAN NOT NULL DEFAULT FALSE);
INSERT INTO "Customers Flat" (name, city, "limit") VALUES ('Ada', 'Berlin', 100), ('Bob', 'Berlin', NULL),
  ('Cyd', NULL, 9223372036854775807), ('Dan', '', 0), ('Eve', 'berlin', -1), (U&'F\\00e9y', 'K\\00f6ln''s "', 2);
INSERT INTO orders_old (what, amount) VALUES ('Bread', 1), ('bread', NULL), ('', 2), (NULL, 3);
DELETE FROM orders_old WHERE amount = 3;
"""
LEGACY = ("Customers Flat", "orders_old")


class Base(DeclarativeBase):
    pass


class CustomerFlat(Base):
    __tablename__ = "Customers Flat"

    No: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    city: Mapped[str | None] = mapped_column(Text)
    limit: Mapped[int | None] = mapped_column(BigInteger)


class OrderOld(Base):
    __tablename__ = "orders_old"

    order_no: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    what: Mapped[str | None] = mapped_column(Text)
    amount: Mapped[int | None] = mapped_column(BigInteger)


class Place(Base):
    __tablename__ = "places"
    __table_args__ = (UniqueConstraint("place_key"),)

    place_no: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    place_key: Mapped[str] = mapped_column(Text)
    city: Mapped[str | None] = mapped_column(Text)
    newest: Mapped[str | None] = mapped_column(Text)


class Customer(Base):
    __tablename__ = "customers"

    No: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    lives_at: Mapped[int] = mapped_column(ForeignKey("places.place_no", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(Text)
    credit: Mapped[int | None] = mapped_column(BigInteger)
    nickname: Mapped[str | None] = mapped_column(Text)
    ours: Mapped[bool] = mapped_column(Boolean)


class Order(Base):
    __tablename__ = "orders"

    order_no: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    item: Mapped[str | None] = mapped_column(Text)
    amount: Mapped[int | None] = mapped_column(BigInteger)
    ours: Mapped[bool] = mapped_column(Boolean)


def declaration(*, derived: bool) -> Moves:
    key = literal_column("'='") + exact_hex(CustomerFlat.city) + _is_null(CustomerFlat.city)
    places = Parent(
        Place,
        link=Customer.lives_at,
        by={Place.place_key: Computed(key)},
        columns={Place.city: "city"},
        derived={Place.newest: Latest("customers", exact_hex(CustomerFlat.name))} if derived else {},
    )
    customers = Move(
        f"Customers Flat={__name__}:CustomerFlat",
        Customer,
        name="customers",
        key={"No": Customer.No},
        columns={Customer.name: "name", Customer.credit: "limit"},
        parts=[places],
        marker=Customer.ours,
    )
    orders = Move(
        f"orders_old={__name__}:OrderOld",
        Order,
        name="orders",
        key={"order_no": Order.order_no},
        columns={Order.item: "what", Order.amount: "amount"},
        marker=Order.ours,
    )
    return Moves(customers, orders)


def _is_null(value: Any) -> Any:
    return case((value.is_(None), literal_column("'-'")), else_=literal_column("''"))


MOVES = {"derived": declaration(derived=True), "plain": declaration(derived=False)}
SETTINGS = Settings(soak_dual_write=0, soak_cutover=0, soak_normalized=0, chunk_rows=2, chunk_pause=0)


@pytest.fixture
def database(new_database: Database) -> Database:
    new_database.script(DDL)
    return new_database


@contextlib.contextmanager
def opened(database: Database, folder: Path, moves: Moves = MOVES["derived"]) -> Iterator[ConsensusStore]:
    settings = SETTINGS.model_copy(update={"backup_dir": folder})
    with ConsensusStore.open(database.where, settings=settings, moves=moves) as store:
        store.upgrade()
        yield store


def read(store: ConsensusStore) -> list[Any]:
    with store.unit_of_work(read_only=True) as uow:
        customers = [row[:4] for row in uow.repository("customers").rows({})]
        return [customers, uow.repository("orders").rows({}), uow.repository("customers").count({"city": "Berlin"})]


def sides(database: Database) -> tuple[object, object]:
    legacy = database.rows_of('SELECT "No", name, city, "limit" FROM "Customers Flat" ORDER BY 1')
    joined = "FROM customers c JOIN places p ON p.place_no = c.lives_at ORDER BY 1"
    normalized = database.rows_of(f'SELECT c."No", c.name, p.city, c.credit {joined}')
    return (
        (legacy, database.rows_of("SELECT order_no, what, amount FROM orders_old ORDER BY 1")),
        (normalized, database.rows_of("SELECT order_no, item, amount FROM orders ORDER BY 1")),
    )


def forward(store: ConsensusStore, to: Phase) -> None:
    while (now := store.migration.phase) < to:
        if now.compares:
            store.migration.backfill()
            store.migration.reconcile()
        if now.writes_normalized:
            assert store.migration.verify().clean
        if now.freezes_legacy:
            accept_dependencies(store)
        store.migration.advance()


@pytest.mark.parametrize("moves", MOVES.values(), ids=MOVES)
def test_an_unrelated_pair_goes_through_all_phases_and_back(database: Database, tmp_path: Path, moves: Moves) -> None:
    """Reads stay the same in all five phases and on the way back, and the legacy tables end as they began."""
    before = database.image(*LEGACY)
    with opened(database, tmp_path, moves) as store:
        reads = read(store)
        for phase in list(Phase)[1:]:
            forward(store, phase)
            assert read(store) == reads, phase
        assert not set(LEGACY) & set(database.tables())
        for phase in reversed(list(Phase)[:-1]):
            assert store.migration.rollback() is phase
            assert read(store) == reads, phase
        assert store.migration.mismatches(everything=True) == []
        assert store.migration.rejects(everything=True) == []
    assert database.image(*LEGACY) == before


def test_writes_of_every_phase_are_there_at_the_end(database: Database, tmp_path: Path) -> None:
    """Rows added, and one deleted, in each phase forth and back: both sides agree wherever there are two."""
    with opened(database, tmp_path) as store:
        added: list[str] = []

        def write(label: str) -> None:
            with store.unit_of_work() as uow:
                customers = uow.repository("customers")
                customers.add({"name": label, "city": label, "limit": 5, "nickname": "Z"})
                customers.add({"name": "gone", "city": None, "limit": None, "nickname": None})
                assert customers.delete({"name": "gone"}) == 1
                uow.repository("orders").add({"what": label, "amount": 1})
            added.append(label)
            if store.migration.phase.compares:
                store.migration.backfill()
                legacy, normalized = sides(database)
                assert legacy == normalized

        for phase in Phase:
            forward(store, phase)
            write(f"forth {phase.name}")
        for phase in reversed(list(Phase)[:-1]):
            store.migration.rollback()
            write(f"back {phase.name}")
        assert store.migration.mismatches(everything=True) == []
    assert [
        name for (name,) in database.rows_of('SELECT name FROM "Customers Flat" WHERE "No" > 6 ORDER BY "No"')
    ] == added


@pytest.mark.parametrize("phase", [Phase.DUAL_WRITE, Phase.CUTOVER], ids=lambda p: p.name)
def test_writes_of_programs_that_know_one_side_are_adopted(database: Database, tmp_path: Path, phase: Phase) -> None:
    """A plain program inserts, updates and deletes on either side: noticed, the gate shut, and adopted as chosen."""
    with opened(database, tmp_path) as store:
        forward(store, phase)
        store.migration.backfill()
        assert store.migration.verify().clean
        database.script("INSERT INTO \"Customers Flat\" (name, city) VALUES ('foreign', 'Trigger')")
        database.script("UPDATE \"Customers Flat\" SET city = 'Bonn' WHERE name = 'Ada'")
        database.script("DELETE FROM \"Customers Flat\" WHERE name = 'Dan'")
        database.script("INSERT INTO orders (item, amount) VALUES ('new', 3)")
        database.script("UPDATE places SET city = 'Basel' WHERE city = 'berlin'")
        assert store.migration.status().foreign_writes == 5
        with pytest.raises(GateClosedError, match="around the repositories"):
            store.migration.advance()
        waits = [("customers", 5)] if phase is Phase.DUAL_WRITE else [("customers", 1), ("customers", 4)]
        assert [(row.pair, row.key) for row in store.migration.reconcile().undecided] == waits
        assert store.migration.reconcile(foreign="adopt").undecided == ()
        legacy, normalized = sides(database)
        assert legacy == normalized
        assert store.migration.verify().clean
        cities = dict(database.rows_of('SELECT name, city FROM "Customers Flat"'))
        assert (cities["foreign"], cities["Ada"], cities["Eve"]) == ("Trigger", "Bonn", "Basel")
        assert "Dan" not in cities


MODULES = sorted((Path(consensus_orm.__file__).parent / "databases" / "postgresql").glob("*.py"))


@pytest.mark.parametrize("earlier", [False, True], ids=["this release", "an earlier one"])
@pytest.mark.parametrize("phase", [Phase.EXPAND, Phase.DUAL_WRITE, Phase.CONTRACT])
def test_a_database_keeps_to_its_move(database: Database, tmp_path: Path, phase: Phase, earlier: bool) -> None:
    """From the first upgrade on; what an earlier release has not recorded, the audit and the guards tell."""
    with opened(database, tmp_path) as store:
        store.upgrade()
        forward(store, phase)
        if earlier:
            revisions.downgrade(store.engine, "0009", store.application)
    before = database.everything()
    with pytest.raises(SchemaError, match=r"orders_old.*one move"):
        ConsensusStore.open(database.where).upgrade()
    assert database.everything() == before
    with opened(database, tmp_path) as again:
        again.upgrade()
        assert again.migration.phase is phase
    assert database.scalar("SELECT moves FROM consensus_orm_state") == "customers flat\norders_old"


@pytest.mark.parametrize("module", MODULES, ids=lambda path: path.name)
def test_no_module_of_postgresql_names_a_consensus_table(module: Path) -> None:
    """What is said in PostgreSQL's words is said of whatever is declared."""
    # The JSON of a synthesis is a rule about values, and stands with the other rules.
    known = {"synthesis_json", "run_key"} if module.name == "expressions.py" else set()
    assert not words(module.read_text()) & NAMES - known
