"""A move that has nothing to do with the consensus data: a shop's customers, addresses and orders, on SQLite."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import ForeignKey, Integer, Text, UniqueConstraint, case, func, literal_column
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from consensus_orm import Phase, Store
from consensus_orm.declaration.move import Move
from consensus_orm.declaration.moves import Moves
from consensus_orm.declaration.parts import Parent
from consensus_orm.declaration.rules import Computed, Latest
from consensus_orm.models.base import Verbatim
from consensus_orm.settings import Settings
from consensus_orm.store import RepositoryUnitOfWork
from tests.field import builders
from tests.support import oracle
from tests.support.dependencies import accept_dependencies

# The two schemas ------------------------------------------------------------------------------------------

LEGACY_DDL = """
CREATE TABLE customers_flat (
  customer_no INTEGER PRIMARY KEY AUTOINCREMENT, -- the number on the letters: "a:b"
  name TEXT NOT NULL, street TEXT, city TEXT, zip TEXT, since TIMESTAMP, "limit" NUMERIC DEFAULT 100);
CREATE INDEX customers_by_city ON customers_flat(city, zip) WHERE city IS NOT NULL;
CREATE TABLE Orders_Old (order_no INTEGER PRIMARY KEY, what TEXT COLLATE NOCASE, amount REAL);
CREATE TABLE letters (customer INTEGER, text TEXT);
CREATE TRIGGER welcome AFTER INSERT ON customers_flat WHEN NEW.city = 'Trigger' BEGIN
  INSERT INTO letters VALUES (NEW.customer_no, 'Welcome: ' || NEW.name); END;
CREATE VIEW berliners AS SELECT name FROM customers_flat WHERE city = 'Berlin';
"""

NORMALIZED_DDL = """
CREATE TABLE addresses (address_no INTEGER PRIMARY KEY AUTOINCREMENT, address_key TEXT NOT NULL UNIQUE, street TEXT,
  city TEXT, zip TEXT, newest_name_hex TEXT);
CREATE TABLE customers (customer_no INTEGER PRIMARY KEY AUTOINCREMENT,
  lives_at INTEGER NOT NULL REFERENCES addresses(address_no) ON DELETE CASCADE, name TEXT NOT NULL, since TIMESTAMP,
  credit NUMERIC, nickname TEXT, ours BOOLEAN NOT NULL DEFAULT 0);
CREATE TABLE orders (order_no INTEGER PRIMARY KEY, item TEXT COLLATE NOCASE, amount REAL,
  ours BOOLEAN NOT NULL DEFAULT 0);
"""


class Base(DeclarativeBase):
    pass


class CustomerFlat(Base):
    __tablename__ = "customers_flat"

    customer_no: Mapped[int] = mapped_column(Integer, primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    street: Mapped[str | None] = mapped_column(Text)
    city: Mapped[str | None] = mapped_column(Text)
    zip: Mapped[str | None] = mapped_column(Text)
    since: Mapped[Any] = mapped_column(Verbatim("TIMESTAMP"))
    limit: Mapped[Any] = mapped_column(Verbatim("NUMERIC"))


class OrderOld(Base):
    __tablename__ = "Orders_Old"

    order_no: Mapped[int] = mapped_column(Integer, primary_key=True)
    what: Mapped[Any] = mapped_column(Text)
    amount: Mapped[Any] = mapped_column(Verbatim("REAL"))


class Address(Base):
    __tablename__ = "addresses"
    __table_args__ = (UniqueConstraint("address_key"),)

    address_no: Mapped[int] = mapped_column(Integer, primary_key=True)
    address_key: Mapped[str] = mapped_column(Text)
    street: Mapped[str | None] = mapped_column(Text)
    city: Mapped[str | None] = mapped_column(Text)
    zip: Mapped[str | None] = mapped_column(Text)
    newest_name_hex: Mapped[str | None] = mapped_column(Text)


class Customer(Base):
    __tablename__ = "customers"

    customer_no: Mapped[int] = mapped_column(Integer, primary_key=True)
    lives_at: Mapped[int] = mapped_column(ForeignKey("addresses.address_no", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(Text)
    since: Mapped[Any] = mapped_column(Verbatim("TIMESTAMP"))
    credit: Mapped[Any] = mapped_column(Verbatim("NUMERIC"))
    nickname: Mapped[str | None] = mapped_column(Text)
    ours: Mapped[int] = mapped_column(Integer)


class Order(Base):
    __tablename__ = "orders"

    order_no: Mapped[int] = mapped_column(Integer, primary_key=True)
    item: Mapped[Any] = mapped_column(Text)
    amount: Mapped[Any] = mapped_column(Verbatim("REAL"))
    ours: Mapped[int] = mapped_column(Integer)


# The declaration ------------------------------------------------------------------------------------------


def _spelled(value: Any) -> Any:
    """A part of an address as text that no other part gives: NULL is no text, and a comma may stand in one."""
    return case((value.is_(None), literal_column("'-'")), else_=literal_column("'='") + func.hex(value))


def _address_key() -> Any:
    comma: Any = literal_column("','")
    return _spelled(CustomerFlat.street) + comma + _spelled(CustomerFlat.city) + comma + _spelled(CustomerFlat.zip)


def declaration(*, derived: bool = True) -> Moves:
    addresses = Parent(
        Address,
        link=Customer.lives_at,
        by={Address.address_key: Computed(_address_key())},
        columns={Address.street: "street", Address.city: "city", Address.zip: "zip"},
        derived={Address.newest_name_hex: Latest("customers", func.hex(CustomerFlat.name))} if derived else {},
    )
    customers = Move(
        f"customers_flat={__name__}:CustomerFlat",
        Customer,
        name="customers",
        key={"customer_no": Customer.customer_no},
        columns={Customer.name: "name", Customer.since: "since", Customer.credit: "limit"},
        parts=[addresses],
        marker=Customer.ours,
    )
    orders = Move(
        f"Orders_Old={__name__}:OrderOld",
        Order,
        name="orders",
        key={"order_no": Order.order_no},
        columns={Order.item: "what", Order.amount: "amount"},
        marker=Order.ours,
    )
    return Moves(customers, orders)


MOVES = declaration()
PLAIN = declaration(derived=False)

SETTINGS = Settings(soak_dual_write=0, soak_cutover=0, soak_normalized=0, chunk_rows=3, chunk_pause=0)

# What is in it --------------------------------------------------------------------------------------------

ROWS = """
INSERT INTO customers_flat (name, street, city, zip, since, "limit") VALUES
  ('Ada', 'Way 1', 'Berlin', '10115', '2025-01-01 10:00:00', 100), ('Bob', 'Way 1', 'Berlin', '10115', 2, '007'),
  ('Cyd', NULL, NULL, NULL, NULL, NULL), ('Dan', '', NULL, '', '', 0.1),
  ('Eve', 'Way 1', 'berlin', '10115', x'00ff', 2),
  ('Fay' || char(0), 'Way 1', 'Berlin', '010115', 'not a date', 1e300), (x'ff', x'ff', x'00', '1', 1.5, 'much'),
  ('Gil', 'Way 1,', 'Berlin', '10115', 1762743600000, -1),
  ('Hal', 'Way 1', ',Berlin', '10115', 'now', 9007199254740993),
  (CAST(x'ff' AS TEXT), CAST(x'fffe' AS TEXT), 'Köln', '50667', '1', 9e99);
DELETE FROM customers_flat WHERE name = 'Dan';
INSERT INTO customers_flat (customer_no, name) VALUES (5000000000, 'far'), (5000000001, 'gone');
DELETE FROM customers_flat WHERE name = 'gone';
INSERT INTO Orders_Old VALUES
  (1, 'Bread', 1.5), (2, 'bread', 1e-300), (7, NULL, NULL), (9, x'00', 'free'), (11, '', -0.0);
"""

LEGACY_TABLES = ("customers_flat", "Orders_Old")
COLUMNS = {
    "customers": ["customer_no", "name", "street", "city", "zip", "since", '"limit"'],
    "orders": ["order_no", "what", "amount"],
}


def build(path: Path) -> None:
    """Make a legacy file of the shop."""
    with builders.writing(path) as connection:
        connection.executescript(LEGACY_DDL + NORMALIZED_DDL + ROWS)


@contextlib.contextmanager
def opened(path: Path, moves: Moves = MOVES, **settings: Any) -> Iterator[Store]:
    chosen = SETTINGS.model_copy(update=settings)
    with Store.open(path, settings=chosen, moves=moves) as store:
        yield store


def judged(path: Path) -> dict[str, dict[str, list[oracle.Row]]]:
    """Both sides by raw SQL, in the shape of the legacy one."""
    with oracle.reading(path) as connection:
        legacy = {
            "customers": oracle.query(connection, COLUMNS["customers"], "FROM customers_flat ORDER BY 1"),
            "orders": oracle.query(connection, COLUMNS["orders"], "FROM Orders_Old ORDER BY 1"),
        }
        names = ["c.customer_no", "c.name", "a.street", "a.city", "a.zip", "c.since", "c.credit"]
        joined = "FROM customers c JOIN addresses a ON a.address_no = c.lives_at ORDER BY c.customer_no"
        normalized = {
            "customers": oracle.query(connection, names, joined),
            "orders": oracle.query(connection, ["order_no", "item", "amount"], "FROM orders ORDER BY 1"),
        }
    return {"legacy": legacy, "normalized": normalized}


def image(path: Path) -> tuple[Any, ...]:
    """The legacy tables as they are, without the triggers of the package."""
    _, rows, sequences = oracle.image(path, *LEGACY_TABLES)
    definitions = oracle.definitions(path, *LEGACY_TABLES, "berliners")
    return sorted(entry for entry in definitions if not entry[1].startswith("consensus_orm_")), rows, sequences


def agree(path: Path) -> None:
    sides = judged(path)
    assert sides["legacy"] == sides["normalized"]
    with oracle.reading(path) as connection:
        assert (
            connection.execute("SELECT count(*) FROM addresses").fetchone()
            == connection.execute("SELECT count(DISTINCT lives_at) FROM customers").fetchone()
        ), "an address lives as long as somebody lives there"


def everything(uow: RepositoryUnitOfWork) -> dict[str, Any]:
    """All that the repositories say, without what only the normalized side keeps."""
    customers, orders = uow.repository("customers"), uow.repository("orders")
    return {
        "customers": [row[:7] for row in customers.rows({})],
        "berlin": [row[:7] for row in customers.rows({"city": "Berlin"}, limit=2)],
        "orders": orders.rows({}),
        "one": orders.get(2),
        "count": (customers.count({"zip": "10115"}), orders.count({})),
        "cities": customers.distinct("city"),
    }


def read(store: Store) -> dict[str, Any]:
    with store.unit_of_work(read_only=True) as uow:
        return everything(uow)


def forward(store: Store, to: Phase = Phase.CONTRACT) -> None:
    """Step by step to a phase, with all that the gates want."""
    while (now := store.migration.phase) < to:
        if now.writes_normalized:
            if now.compares:
                store.migration.backfill()
                store.migration.reconcile()
            assert store.migration.verify().clean
        if now.freezes_legacy:
            accept_dependencies(store)
        store.migration.advance()


NEW = {"name": "Zoe", "street": "Way 9", "city": "Bern", "zip": "3000", "since": "now", "limit": 5, "nickname": "Z"}
