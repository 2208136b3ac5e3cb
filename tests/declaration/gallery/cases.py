"""The gallery: refactorings that applications make, each as two schemas, a declaration and rows.

Models are written as an application would write them: none has a column for this package.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Date,
    DateTime,
    Enum,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    Interval,
    LargeBinary,
    MetaData,
    Numeric,
    String,
    Text,
    UniqueConstraint,
    Uuid,
    case,
    cast,
    func,
)
from sqlalchemy import Computed as Generated
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from consensus_orm import (
    Computed,
    Convert,
    Default,
    EnumMap,
    Explode,
    JsonItems,
    Many,
    Move,
    Moves,
    Parent,
    Part,
    Split,
)

__all__ = ["CASES", "Case", "column_types"]

ONE, TWO, THREE = (UUID(int=number << 100) for number in (1, 0xABCDEF, 3))
PLACES = ["a", "B", "é", '"', "\\", "[1]", "a b", "'", "", "\n", "\U0001f600", "10", "9"]
BIG = BigInteger().with_variant(Integer(), "sqlite")


@dataclass(frozen=True)
class Case:
    """One refactoring.

    Attributes:
        moves: Its declaration.
        metadata: The tables of both sides.
        rows: Rows of each legacy table, by column, as any program may have written them; a list where there is one.
        new: A row for the repository of each move, of one where there is one; `{n}` in a text, and `...`, become a
            number that goes up.
        foreign: Statements of another program, by side: what it writes on the one that it knows; and `before` all.
        rejected: How many of the rows of each move cannot be carried.
        judged: What queries of another program give in phases that write a side.
    """

    moves: Moves
    metadata: MetaData
    rows: Any
    new: dict[str, Any]
    foreign: dict[str, Sequence[str]] = field(default_factory=dict)
    rejected: Any = 0
    judged: dict[str, dict[str, Any]] = field(default_factory=dict)

    def rows_of(self, table: str) -> Sequence[dict[str, Any]]:
        """The rows of a legacy table."""
        found: Sequence[dict[str, Any]] = self.rows.get(table, ()) if isinstance(self.rows, dict) else self.rows
        return found

    def new_in(self, move: str, n: int) -> dict[str, Any]:
        """The nth row for a repository."""
        row = self.new[move] if len(self.moves) > 1 else self.new
        made = {name: value.format(n=n) if isinstance(value, str) else value for name, value in row.items()}
        return {name: n if value is ... else value for name, value in made.items()}

    def rejected_of(self, move: str) -> int:
        """How many of the rows of a move cannot be carried."""
        found: int = self.rejected.get(move, 0) if isinstance(self.rejected, dict) else self.rejected
        return found


def renamed_columns() -> Case:
    """Rename a table, its key and its columns."""

    class Base(DeclarativeBase):
        pass

    class Kunde(Base):
        __tablename__ = "kunden"
        nr: Mapped[int] = mapped_column(BIG, primary_key=True)
        vorname: Mapped[str] = mapped_column(String(40))
        ort: Mapped[str | None] = mapped_column(Text)

    class Customer(Base):
        __tablename__ = "customers"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        given_name: Mapped[str] = mapped_column(String(40))
        city: Mapped[str | None] = mapped_column(Text)

    move = Move(
        Kunde,
        Customer,
        key={Kunde.nr: Customer.id},
        columns={Customer.given_name: Kunde.vorname, Customer.city: Kunde.ort},
    )
    return Case(
        Moves(move),
        Base.metadata,
        [{"vorname": "Ada", "ort": "Bern"}, {"vorname": "", "ort": None}, {"vorname": "é'\\", "ort": "Bern"}],
        {"vorname": "new {n}", "ort": "Thun"},
        {
            "legacy": [
                "INSERT INTO kunden (vorname, ort) VALUES ('foreign', NULL)",
                "UPDATE kunden SET ort = 'moved' WHERE vorname = 'Ada'",
                "DELETE FROM kunden WHERE vorname = ''",
            ],
            "normalized": [
                "INSERT INTO customers (given_name, city) VALUES ('other', 'Chur')",
                "UPDATE customers SET city = 'again' WHERE given_name = 'Ada'",
                "DELETE FROM customers WHERE given_name = 'foreign'",
            ],
        },
    )


def shared_parent() -> Case:
    """Rows that repeat an address refer to one."""

    class Base(DeclarativeBase):
        pass

    class CustomerFlat(Base):
        __tablename__ = "customers_flat"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        name: Mapped[str] = mapped_column(Text)
        street: Mapped[str] = mapped_column(Text)
        city: Mapped[str] = mapped_column(Text)

    class Address(Base):
        __tablename__ = "addresses"
        __table_args__ = (UniqueConstraint("street", "city"),)
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        street: Mapped[str] = mapped_column(Text)
        city: Mapped[str] = mapped_column(Text)

    class Customer(Base):
        __tablename__ = "customers"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        address_id: Mapped[int] = mapped_column(ForeignKey("addresses.id"), index=True)
        name: Mapped[str] = mapped_column(Text)

    by = {Address.street: CustomerFlat.street, Address.city: CustomerFlat.city}
    move = Move(
        CustomerFlat,
        Customer,
        name="customers",
        key={CustomerFlat.id: Customer.id},
        columns={Customer.name: CustomerFlat.name},
        parts=[Parent(Address, link=Customer.address_id, by=by)],
    )
    return Case(
        Moves(move),
        Base.metadata,
        [
            {"name": "Ada", "street": "Way 1", "city": "Bern"},
            {"name": "Bob", "street": "Way 1", "city": "Bern"},
            {"name": "Cyd", "street": "Way 1", "city": "Thun"},
        ],
        {"name": "new {n}", "street": "Way {n}", "city": "Bern"},
        {
            "legacy": [
                "INSERT INTO customers_flat (name, street, city) VALUES ('foreign', 'Way 1', 'Bern')",
                "UPDATE customers_flat SET city = 'Chur' WHERE name = 'Ada'",
            ],
            "normalized": [
                "UPDATE customers SET name = 'Robert' WHERE name = 'Bob'",
                "DELETE FROM customers WHERE name = 'foreign'",
            ],
        },
    )


def shared_parent_with_nulls() -> Case:
    """An address may lack a part, and then equals others that lack it; a row without any has no address."""

    class Base(DeclarativeBase):
        pass

    class GuestFlat(Base):
        __tablename__ = "guests_flat"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        name: Mapped[str] = mapped_column(Text)
        street: Mapped[str | None] = mapped_column(Text)
        city: Mapped[str | None] = mapped_column(Text)

    class Address(Base):
        __tablename__ = "addresses"
        __table_args__ = (UniqueConstraint("street", "city"),)
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        street: Mapped[str | None] = mapped_column(Text)
        city: Mapped[str | None] = mapped_column(Text)

    class Guest(Base):
        __tablename__ = "guests"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        address_id: Mapped[int | None] = mapped_column(ForeignKey("addresses.id"), index=True)
        name: Mapped[str] = mapped_column(Text)

    by = {Address.street: GuestFlat.street, Address.city: GuestFlat.city}
    move = Move(
        GuestFlat,
        Guest,
        name="guests",
        key={GuestFlat.id: Guest.id},
        columns={Guest.name: GuestFlat.name},
        parts=[Parent(Address, link=Guest.address_id, by=by)],
    )
    return Case(
        Moves(move),
        Base.metadata,
        [
            {"name": "Ada", "street": "Way 1", "city": "Bern"}, {"name": "Bob", "street": None, "city": "Bern"},
            {"name": "Cyd", "street": None, "city": "Bern"}, {"name": "Dan", "street": None, "city": None},
            {"name": "Eve", "street": None, "city": None}, {"name": "Fay", "street": "", "city": None},
        ],
        {"name": "new {n}", "street": None, "city": "Bern"},
        {
            "legacy": [
                "INSERT INTO guests_flat (name, street, city) VALUES ('foreign', NULL, 'Bern')",
                "UPDATE guests_flat SET city = NULL WHERE name = 'Bob'",
                "UPDATE guests_flat SET city = 'Bern' WHERE name = 'Dan'",
                "INSERT INTO guests_flat (name, street, city) VALUES ('nowhere', NULL, NULL)",
            ],
            "normalized": [
                "UPDATE guests SET address_id = NULL WHERE name = 'Ada'",
                "UPDATE guests SET name = 'Robert' WHERE name = 'Bob'",
                "INSERT INTO guests (name, address_id) SELECT 'other', min(id) FROM addresses WHERE street IS NULL",
                "DELETE FROM guests WHERE name = 'foreign'",
            ],
        },
        judged={
            "normalized": {
                # As many addresses as there are different ones, and none that lacks both parts.
                "SELECT count(*) FROM addresses WHERE street IS NULL AND city IS NULL": 0,
                "SELECT count(*) FROM addresses WHERE street IS NULL AND city = 'Bern'": 1,
            },
        },
    )  # fmt: skip


def several_parents() -> Case:
    """Two addresses of an order become references to one table, its customer one to another."""

    class Base(DeclarativeBase):
        pass

    class OrderFlat(Base):
        __tablename__ = "orders_flat"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        customer: Mapped[str] = mapped_column(Text)
        street: Mapped[str] = mapped_column(Text)
        city: Mapped[str] = mapped_column(Text)
        ship_street: Mapped[str | None] = mapped_column(Text)
        ship_city: Mapped[str | None] = mapped_column(Text)

    class Address(Base):
        __tablename__ = "addresses"
        __table_args__ = (UniqueConstraint("street", "city"),)
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        street: Mapped[str | None] = mapped_column(Text)
        city: Mapped[str | None] = mapped_column(Text)

    class Customer(Base):
        __tablename__ = "customers"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        name: Mapped[str] = mapped_column(Text, unique=True)

    class Order(Base):
        __tablename__ = "orders"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        customer_id: Mapped[int] = mapped_column(ForeignKey("customers.id"), index=True)
        billed_to: Mapped[int] = mapped_column(ForeignKey("addresses.id"), index=True)
        sent_to: Mapped[int | None] = mapped_column(ForeignKey("addresses.id"), index=True)

    sent_to = {Address.street: OrderFlat.ship_street, Address.city: OrderFlat.ship_city}
    move = Move(
        OrderFlat,
        Order,
        name="orders",
        key={OrderFlat.id: Order.id},
        columns={},
        parts=[
            Parent(Customer, link=Order.customer_id, by={Customer.name: OrderFlat.customer}),
            Parent(Address, link=Order.billed_to, by={Address.street: OrderFlat.street, Address.city: OrderFlat.city}),
            Parent(Address, link=Order.sent_to, by=sent_to),
        ],
    )
    return Case(
        Moves(move),
        Base.metadata,
        [
            {"customer": "Ada", "street": "Way 1", "city": "Bern", "ship_street": "Way 1", "ship_city": "Bern"},
            {"customer": "Bob", "street": "Way 2", "city": "Thun", "ship_street": "Way 1", "ship_city": "Bern"},
            {"customer": "Ada", "street": "Way 2", "city": "Bern", "ship_street": None, "ship_city": None},
        ],
        {"customer": "Cyd", "street": "Way {n}", "city": "Bern", "ship_street": "Way 2", "ship_city": None},
        {
            "legacy": [
                "INSERT INTO orders_flat (customer, street, city) VALUES ('Dan', 'Way 9', 'Chur')",
                "UPDATE orders_flat SET ship_street = street, ship_city = city WHERE customer = 'Dan'",
                "UPDATE orders_flat SET ship_city = 'Thun', customer = 'Eve' WHERE customer = 'Bob'",
                "UPDATE orders_flat SET ship_street = 'Way 8' WHERE ship_street IS NULL",
            ],
            "normalized": [
                "UPDATE addresses SET city = 'Sion' WHERE city = 'Chur'",
                "UPDATE orders SET sent_to = billed_to WHERE sent_to IS NULL",
                "DELETE FROM orders WHERE customer_id = (SELECT id FROM customers WHERE name = 'Eve')",
                "UPDATE customers SET name = 'Danny' WHERE name = 'Dan'",
            ],
        },
        judged={
            "normalized": {
                # Each value once, and none without a row: whichever of the links leads to it.
                "SELECT count(*) FROM addresses WHERE street = 'Way 1' AND city = 'Bern'": 1,
                """SELECT count(*) FROM addresses WHERE id NOT IN (SELECT billed_to FROM orders UNION
                SELECT sent_to FROM orders WHERE sent_to IS NOT NULL)""": 0,
                "SELECT count(*) FROM customers WHERE id NOT IN (SELECT customer_id FROM orders)": 0,
            },
        },
    )


def states() -> Case:
    """An integer status becomes a word, and hours become minutes."""

    class Base(DeclarativeBase):
        pass

    class Job(Base):
        __tablename__ = "jobs"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        status: Mapped[int | None] = mapped_column(BIG)
        hours: Mapped[int | None] = mapped_column(BIG)

    class Task(Base):
        __tablename__ = "tasks"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        state: Mapped[str | None] = mapped_column(String(10))
        minutes: Mapped[int | None] = mapped_column(BIG)

    move = Move(
        Job,
        Task,
        key={Job.id: Task.id},
        columns={
            Task.state: EnumMap(Job.status, {0: "new", 1: "done"}),
            Task.minutes: Convert(Job.hours, up=Job.hours * 60, down=Task.minutes // 60),
        },
    )
    return Case(
        Moves(move),
        Base.metadata,
        [
            {"status": 0, "hours": 8}, {"status": 1, "hours": None}, {"status": None, "hours": -1},
            {"status": 7, "hours": 1},
        ],
        {"status": 1, "hours": 3},
        {
            "legacy": ["UPDATE jobs SET status = 1 WHERE hours = 8", "INSERT INTO jobs (status, hours) VALUES (0, 9)"],
            "normalized": ["UPDATE tasks SET minutes = 600 WHERE state = 'done' AND minutes IS NULL"],
        },
        rejected=1,
    )  # fmt: skip


def defaults() -> Case:
    """A float price becomes cents, a NULL becomes a value; what that cannot say is kept."""

    class Base(DeclarativeBase):
        pass

    class ItemOld(Base):
        __tablename__ = "items_old"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        price: Mapped[float | None] = mapped_column(Float)
        unit: Mapped[str | None] = mapped_column(Text)
        level: Mapped[int | None] = mapped_column(BIG)

    class Item(Base):
        __tablename__ = "items"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        cents: Mapped[int | None] = mapped_column(BIG)
        unit: Mapped[str] = mapped_column(Text)
        level: Mapped[str | None] = mapped_column(Text)

    cents = cast(func.round(ItemOld.price * 100), BIG)
    move = Move(
        ItemOld,
        Item,
        name="items",
        key={ItemOld.id: Item.id},
        columns={
            Item.cents: Convert(ItemOld.price, up=cents, down=cast(Item.cents, Float) / 100.0, keep=True),
            Item.unit: Default(ItemOld.unit, "piece"),
            Item.level: EnumMap(ItemOld.level, {1: "low", 2: "high"}, keep=True),
        },
    )
    return Case(
        Moves(move),
        Base.metadata,
        [
            {"price": 19.99, "unit": "kg", "level": 1}, {"price": 0.007, "unit": None, "level": 9},
            {"price": None, "unit": "piece", "level": None}, {"price": -1e15, "unit": "", "level": 2},
        ],
        {"price": 1.005, "unit": None, "level": 7},
        {
            "legacy": [
                "UPDATE items_old SET price = 0.333, unit = NULL WHERE unit = 'kg'",
                "UPDATE items_old SET unit = 'piece' WHERE level = 9",
                "INSERT INTO items_old (price, unit, level) VALUES (0.001, NULL, 77)",
            ],
            "normalized": [
                "UPDATE items SET cents = 5 WHERE unit = ''",
                "INSERT INTO items (cents, unit) VALUES (7, 'box')",
                "UPDATE items SET unit = 'kg' WHERE level = 'high'",
            ],
        },
    )  # fmt: skip


def text_key() -> Case:
    """A key of text, and a column that is given up."""

    class Base(DeclarativeBase):
        pass

    class Word(Base):
        __tablename__ = "words"
        word: Mapped[str] = mapped_column(Text, primary_key=True)
        weight: Mapped[float | None] = mapped_column(Float)
        old: Mapped[str | None] = mapped_column(Text)

    class Term(Base):
        __tablename__ = "terms"
        term: Mapped[str] = mapped_column(Text, primary_key=True)
        weight: Mapped[float | None] = mapped_column(Float)

    move = Move(
        Word,
        Term,
        key={Word.word: Term.term},
        columns={Term.weight: Word.weight},
        without={Word.old: "nobody reads it"},
    )
    return Case(
        Moves(move),
        Base.metadata,
        [{"word": "a", "weight": 0.1}, {"word": "Z", "weight": None}, {"word": "é", "weight": -1.5}],
        {"word": "new {n}", "weight": 2.5},
        {
            "legacy": ["UPDATE words SET weight = 3 WHERE word = 'Z'"],
            "normalized": ["INSERT INTO terms VALUES ('other', 1)"],
        },
    )


def one_of_two() -> Case:
    """Two tables become one, which has ids of its own and remembers theirs."""

    class Base(DeclarativeBase):
        pass

    class Supplier(Base):
        __tablename__ = "suppliers"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        name: Mapped[str] = mapped_column(Text)
        vat: Mapped[str | None] = mapped_column(Text)

    class Buyer(Base):
        __tablename__ = "buyers"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        name: Mapped[str] = mapped_column(Text)
        mail: Mapped[str | None] = mapped_column(Text)

    class Party(Base):
        __tablename__ = "parties"
        __table_args__ = (UniqueConstraint("kind", "former_id"),)
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        kind: Mapped[str] = mapped_column(String(10))
        former_id: Mapped[int] = mapped_column(BIG)
        name: Mapped[str] = mapped_column(Text)
        vat: Mapped[str | None] = mapped_column(Text)
        mail: Mapped[str | None] = mapped_column(Text)

    suppliers = Move(
        Supplier,
        Party,
        key={Supplier.id: Party.former_id},
        columns={Party.name: Supplier.name, Party.vat: Supplier.vat},
        only={Party.kind: "supplier"},
    )
    buyers = Move(
        Buyer,
        Party,
        key={Buyer.id: Party.former_id},
        columns={Party.name: Buyer.name, Party.mail: Buyer.mail},
        only={Party.kind: "buyer"},
    )
    return Case(
        Moves(suppliers, buyers),
        Base.metadata,
        {
            "suppliers": [{"name": "Ada", "vat": "CH1"}, {"name": "Bob", "vat": None}, {"name": "Cyd", "vat": ""}],
            "buyers": [{"name": "Ada", "mail": "a@b"}, {"name": "Eve", "mail": None}],
        },
        {"suppliers": {"name": "new {n}", "vat": "CH{n}"}, "buyers": {"name": "new {n}", "mail": None}},
        {
            "legacy": [
                "INSERT INTO suppliers (name, vat) VALUES ('foreign', 'X')",
                "INSERT INTO buyers (name, mail) VALUES ('foreign', 'Y')",
                "UPDATE buyers SET mail = 'other' WHERE name = 'Ada'",
                "DELETE FROM suppliers WHERE name = 'Bob'",
            ],
            "normalized": [
                "INSERT INTO parties (kind, former_id, name, mail) VALUES ('buyer', 900, 'other', 'Z')",
                "UPDATE parties SET vat = 'again' WHERE kind = 'supplier' AND name = 'Ada'",
                "DELETE FROM parties WHERE kind = 'buyer' AND name = 'Eve'",
            ],
        },
    )


def two_of_one() -> Case:
    """One table becomes two, by a column that says what a row is."""

    class Base(DeclarativeBase):
        pass

    class Person(Base):
        __tablename__ = "people"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        kind: Mapped[str] = mapped_column(Text)
        name: Mapped[str] = mapped_column(Text)

    class Teacher(Base):
        __tablename__ = "teachers"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        name: Mapped[str] = mapped_column(Text)

    class Pupil(Base):
        __tablename__ = "pupils"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        called: Mapped[str] = mapped_column(Text)

    teachers = Move(
        Person, Teacher, name="teachers", key={Person.id: Teacher.id}, columns={Teacher.name: Person.name},
        only={Person.kind: "teacher"},
    )  # fmt: skip
    pupils = Move(
        Person, Pupil, name="pupils", key={Person.id: Pupil.id}, columns={Pupil.called: Person.name},
        only={Person.kind: "pupil"},
    )  # fmt: skip
    return Case(
        Moves(teachers, pupils),
        Base.metadata,
        {
            "people": [
                {"kind": "teacher", "name": "Ada"}, {"kind": "pupil", "name": "Bob"}, {"kind": "pupil", "name": ""},
                {"kind": "teacher", "name": "Cyd"}, {"kind": "Pupil", "name": "of no move"},
            ]
        },
        {"teachers": {"name": "new {n}"}, "pupils": {"name": "young {n}"}},
        {
            "legacy": [
                "INSERT INTO people (kind, name) VALUES ('pupil', 'foreign')",
                "UPDATE people SET kind = 'teacher' WHERE name = 'Bob'",
                "UPDATE people SET name = 'Ada again' WHERE name = 'Ada'",
                "DELETE FROM people WHERE name = 'Cyd'",
                "INSERT INTO people (kind, name) VALUES ('janitor', 'of no move')",
            ],
            "normalized": [
                "INSERT INTO teachers (id, name) VALUES (900, 'other')",
                "UPDATE pupils SET called = 'named' WHERE called = ''",
                "DELETE FROM pupils WHERE called = 'foreign'",
            ],
        },
        rejected={"teachers": 2},
    )  # fmt: skip


def archive() -> Case:
    """A flag of deleted rows becomes a table of them."""

    class Base(DeclarativeBase):
        pass

    class NoteOld(Base):
        __tablename__ = "notes_old"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        deleted: Mapped[bool] = mapped_column(Boolean, default=False)
        text: Mapped[str | None] = mapped_column(Text)

    class Note(Base):
        __tablename__ = "notes"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        text: Mapped[str | None] = mapped_column(Text)

    class DeletedNote(Base):
        __tablename__ = "deleted_notes"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        text: Mapped[str | None] = mapped_column(Text)

    live = Move(
        NoteOld, Note, name="notes", key={NoteOld.id: Note.id}, columns={Note.text: NoteOld.text},
        only={NoteOld.deleted: False},
    )  # fmt: skip
    gone = Move(
        NoteOld, DeletedNote, name="deleted", key={NoteOld.id: DeletedNote.id},
        columns={DeletedNote.text: NoteOld.text}, only={NoteOld.deleted: True},
    )  # fmt: skip
    return Case(
        Moves(live, gone),
        Base.metadata,
        {
            "notes_old": [
                {"deleted": False, "text": "a"},
                {"deleted": True, "text": None},
                {"deleted": False, "text": ""},
            ]
        },
        {"notes": {"text": "new {n}"}, "deleted": {"text": "old {n}"}},
        {
            "legacy": [
                "UPDATE notes_old SET deleted = TRUE WHERE text = 'a'",
                "INSERT INTO notes_old (deleted, text) VALUES (FALSE, 'foreign')",
            ],
            "normalized": [
                "INSERT INTO deleted_notes SELECT * FROM notes WHERE text = 'foreign'",
                "DELETE FROM notes WHERE text = 'foreign'",
                "UPDATE deleted_notes SET text = 'gone' WHERE text IS NULL",
            ],
        },
    )  # fmt: skip


def json_to_columns() -> Case:
    """What an object of JSON holds becomes columns; what has no column, and how it was written, stays."""

    class Base(DeclarativeBase):
        pass

    class UserOld(Base):
        __tablename__ = "users_old"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        profile: Mapped[Any | None] = mapped_column(JSON(none_as_null=True))

    class User(Base):
        __tablename__ = "users"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        city: Mapped[str | None] = mapped_column(Text)
        age: Mapped[int | None] = mapped_column(BIG)
        news: Mapped[bool | None] = mapped_column(Boolean)
        street: Mapped[str | None] = mapped_column(Text)

    move = Move(
        UserOld,
        User,
        name="users",
        key={UserOld.id: User.id},
        columns={
            (User.city, User.age, User.news, User.street): Explode(
                UserOld.profile, "city", "age", "news", "address.street"
            )
        },
    )
    return Case(
        Moves(move),
        Base.metadata,
        [
            {"profile": {"city": "Bern", "age": 36, "news": True, "more": [1, 2.50]}}, {"profile": None},
            {"profile": {}}, {"profile": [1]}, {"profile": {"city": 5, "age": "old", "news": None}},
            {"profile": {"address": {"street": "Way 1", "no": 3}, "city": "é'\\\"\n"}},
        ],
        {"profile": {"city": "Thun", "age": 1, "address": {"street": "Way"}}},
        {
            "legacy": [
                """INSERT INTO users_old (profile) VALUES ('{"city" : "Chur",   "x": 1}')""",
                """UPDATE users_old SET profile = '{"city":"Genf"}' WHERE CAST(profile AS TEXT) = '{}'""",
            ],
            "normalized": [
                "UPDATE users SET city = 'Basel', street = 'Way 2' WHERE city = 'Chur'",
                "UPDATE users SET age = NULL, news = FALSE WHERE age = 36",
                "INSERT INTO users (city, age) VALUES ('other', 7)",
            ],
        },
    )  # fmt: skip


def vertical_split() -> Case:
    """A wide table is divided: what few rows have stands in a table of its own."""

    class Base(DeclarativeBase):
        pass

    class Product(Base):
        __tablename__ = "products"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        name: Mapped[str] = mapped_column(Text)
        manual: Mapped[str | None] = mapped_column(Text)
        pages: Mapped[int | None] = mapped_column(BIG)
        weight: Mapped[float | None] = mapped_column(Float)

    class Article(Base):
        __tablename__ = "articles"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        name: Mapped[str] = mapped_column(Text)

    class Manual(Base):
        __tablename__ = "manuals"
        article_id: Mapped[int] = mapped_column(ForeignKey("articles.id"), primary_key=True)
        text: Mapped[str | None] = mapped_column(Text)
        sheets: Mapped[int | None] = mapped_column(BIG)

    class Parcel(Base):
        __tablename__ = "parcels"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        article_id: Mapped[int] = mapped_column(ForeignKey("articles.id", ondelete="CASCADE"), unique=True)
        grams: Mapped[int | None] = mapped_column(BIG)

    grams = cast(func.round(Product.weight * 1000), BIG)
    move = Move(
        Product,
        Article,
        key={Product.id: Article.id},
        columns={Article.name: Product.name},
        parts=[
            Part(
                Manual,
                by=Manual.article_id,
                columns={
                    Manual.text: Product.manual,
                    Manual.sheets: Convert(Product.pages, up=Product.pages * 2, down=Manual.sheets / 2),
                },
            ),
            Part(
                Parcel,
                by=Parcel.article_id,
                columns={
                    Parcel.grams: Convert(Product.weight, up=grams, down=cast(Parcel.grams, Float) / 1000.0, keep=True)
                },
            ),
        ],
    )
    return Case(
        Moves(move),
        Base.metadata,
        [
            {"name": "a", "manual": "read", "pages": 2, "weight": 1.5}, {"name": "b", "pages": None, "weight": None},
            {"name": "c", "manual": "", "weight": 0.00001}, {"name": "d", "pages": 3},
        ],
        {"name": "new {n}", "manual": "read {n}", "weight": 2.25},
        {
            "legacy": [
                "UPDATE products SET manual = NULL, pages = NULL WHERE name = 'a'",
                "UPDATE products SET manual = 'now' WHERE name = 'b'",
                "INSERT INTO products (name, pages, weight) VALUES ('foreign', 5, 0.0004)",
                "DELETE FROM products WHERE name = 'd'",
            ],
            "normalized": [
                "UPDATE manuals SET text = 'again' WHERE text = 'now'",
                "DELETE FROM manuals WHERE text = ''",
                "INSERT INTO manuals (article_id, text) SELECT id, 'first' FROM articles WHERE name = 'a'",
                "INSERT INTO articles (id, name) VALUES (900, 'other')",
                "INSERT INTO parcels (article_id, grams) VALUES (900, 20)",
                "UPDATE parcels SET grams = 7 WHERE article_id = (SELECT id FROM articles WHERE name = 'foreign')",
            ],
        },
    )  # fmt: skip


def joined_subclass() -> Case:
    """A flat table of all kinds of people becomes a class, and a subclass with a table of its own."""

    class Base(DeclarativeBase):
        pass

    class PersonFlat(Base):
        __tablename__ = "people_flat"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        kind: Mapped[str] = mapped_column(String(10))
        name: Mapped[str] = mapped_column(Text)
        salary: Mapped[int | None] = mapped_column(BIG)

    class Person(Base):
        __tablename__ = "persons"
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}  # noqa: RUF012 - declarative
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        kind: Mapped[str] = mapped_column(String(10))
        name: Mapped[str] = mapped_column(Text)

    class Employee(Person):
        __tablename__ = "employees"
        __mapper_args__ = {"polymorphic_identity": "employee"}  # noqa: RUF012 - declarative
        id: Mapped[int] = mapped_column(ForeignKey("persons.id"), primary_key=True)
        salary: Mapped[int | None] = mapped_column(BIG)

    move = Move(
        PersonFlat,
        Person,
        name="people",
        key={PersonFlat.id: Person.id},
        columns={Person.kind: PersonFlat.kind, Person.name: PersonFlat.name},
        parts=[
            Part(
                Employee,
                by=Employee.id,
                columns={Employee.salary: PersonFlat.salary},
                when=PersonFlat.kind == "employee",
            )
        ],
    )
    return Case(
        Moves(move),
        Base.metadata,
        [
            {"kind": "person", "name": "Ada", "salary": None}, {"kind": "employee", "name": "Bob", "salary": 5},
            {"kind": "employee", "name": "Cyd", "salary": None}, {"kind": "person", "name": "odd", "salary": 7},
        ],
        {"kind": "employee", "name": "new {n}", "salary": 3},
        {
            "legacy": [
                "UPDATE people_flat SET kind = 'employee', salary = 9 WHERE name = 'Ada'",
                "UPDATE people_flat SET kind = 'person', salary = NULL WHERE name = 'Bob'",
                "INSERT INTO people_flat (kind, name, salary) VALUES ('employee', 'foreign', 1)",
            ],
            "normalized": [
                "UPDATE employees SET salary = 10 WHERE salary = 9",
                "INSERT INTO persons (id, kind, name) VALUES (900, 'employee', 'other')",
                "INSERT INTO employees (id, salary) VALUES (900, NULL)",
                "DELETE FROM employees WHERE id = (SELECT id FROM persons WHERE name = 'foreign')",
                "DELETE FROM persons WHERE name = 'foreign'",
            ],
        },
        rejected=1,
    )  # fmt: skip


def list_to_children() -> Case:
    """A text like "a,b,c" becomes rows of a table, and a JSON array rows of another one."""

    class Base(DeclarativeBase):
        pass

    class Recipe(Base):
        __tablename__ = "recipes"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        name: Mapped[str] = mapped_column(Text)
        steps: Mapped[str | None] = mapped_column(Text)
        tools: Mapped[Any | None] = mapped_column(JSON(none_as_null=True))

    class Dish(Base):
        __tablename__ = "dishes"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        name: Mapped[str] = mapped_column(Text)

    class Step(Base):
        __tablename__ = "steps"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        dish_id: Mapped[int] = mapped_column(ForeignKey("dishes.id"), index=True)
        position: Mapped[int] = mapped_column(Integer)
        text: Mapped[str] = mapped_column(Text)

    class Tool(Base):
        __tablename__ = "tools"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        dish_id: Mapped[int] = mapped_column(ForeignKey("dishes.id", ondelete="CASCADE"), index=True)
        position: Mapped[int] = mapped_column(Integer)
        text: Mapped[str] = mapped_column(Text)

    move = Move(
        Recipe,
        Dish,
        name="recipes",
        key={Recipe.id: Dish.id},
        columns={Dish.name: Recipe.name},
        parts=[
            Many(Step, by=Step.dish_id, position=Step.position, item=Step.text, items=Split(Recipe.steps, ",")),
            Many(Tool, by=Tool.dish_id, position=Tool.position, item=Tool.text, items=JsonItems(Recipe.tools)),
        ],
    )
    return Case(
        Moves(move),
        Base.metadata,
        [
            {"name": "a", "steps": "cut,cook,eat", "tools": ["pot", "é'\\\""]},
            {"name": "b", "steps": None, "tools": None},
            {"name": "c", "steps": "", "tools": []}, {"name": "d", "steps": "x,,\\\",é'", "tools": None},
            {"name": "e", "steps": "one", "tools": ["no text", 5]},
        ],
        {"name": "new {n}", "steps": "a,b {n}", "tools": ["t"]},
        {
            "legacy": [
                "UPDATE recipes SET steps = 'cut,eat' WHERE name = 'a'",
                """UPDATE recipes SET tools = '["x",  "y"]' WHERE name = 'b'""",
                """INSERT INTO recipes (name, steps, tools) VALUES ('foreign', 'f,g', '["z"]')""",
                "UPDATE recipes SET steps = NULL WHERE name = 'c'",
            ],
            "normalized": [
                "UPDATE steps SET text = 'swallow' WHERE text = 'eat'",
                "UPDATE steps SET position = position + 7 WHERE text IN ('f', 'g')",
                "INSERT INTO tools (id, dish_id, position, text) SELECT 900, id, 5, 'w' FROM dishes WHERE name = 'b'",
                "DELETE FROM steps WHERE text = ''",
                "INSERT INTO dishes (id, name) VALUES (901, 'other')",
                "INSERT INTO steps (id, dish_id, position, text) VALUES (902, 901, 0, 'without a comma')",
            ],
        },
        rejected=1,
    )  # fmt: skip


def list_to_tags() -> Case:
    """A text like "a,b,c" becomes many-to-many: an association table, and a table of tags."""

    class Base(DeclarativeBase):
        pass

    class PostOld(Base):
        __tablename__ = "posts_old"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        title: Mapped[str] = mapped_column(Text)
        tags: Mapped[str | None] = mapped_column(Text)

    class Post(Base):
        __tablename__ = "posts"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        title: Mapped[str] = mapped_column(Text)

    class Tag(Base):
        __tablename__ = "tags"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        name: Mapped[str] = mapped_column(Text, unique=True)

    class PostTag(Base):
        __tablename__ = "post_tags"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        post_id: Mapped[int] = mapped_column(ForeignKey("posts.id"), index=True)
        position: Mapped[int] = mapped_column(Integer)
        tag_id: Mapped[int] = mapped_column(ForeignKey("tags.id"), index=True)

    move = Move(
        PostOld,
        Post,
        name="posts",
        key={PostOld.id: Post.id},
        columns={Post.title: PostOld.title},
        parts=[
            Many(
                PostTag,
                by=PostTag.post_id,
                position=PostTag.position,
                item=Tag.name,
                items=Split(PostOld.tags, ";"),
                parents=[Parent(Tag, link=PostTag.tag_id, by={Tag.name: PostOld.tags})],
            )
        ],
    )
    return Case(
        Moves(move),
        Base.metadata,
        [
            {"title": "a", "tags": "x;y"}, {"title": "b", "tags": "y;x;y"}, {"title": "c", "tags": None},
            {"title": "d", "tags": ""},
        ],
        {"title": "new {n}", "tags": "x;{n}"},
        {
            "legacy": [
                "UPDATE posts_old SET tags = 'y;z' WHERE title = 'a'",
                "INSERT INTO posts_old (title, tags) VALUES ('foreign', 'x')",
                "DELETE FROM posts_old WHERE title = 'd'",
            ],
            "normalized": [
                "UPDATE tags SET name = 'Y' WHERE name = 'y'",
                "DELETE FROM post_tags WHERE post_id = (SELECT id FROM posts WHERE title = 'foreign')",
                """INSERT INTO post_tags (id, post_id, position, tag_id)
                SELECT 900, posts.id, 3, tags.id FROM posts, tags WHERE title = 'c' AND name = 'z'""",
            ],
        },
    )  # fmt: skip


def composite_key() -> Case:
    """Lines of an order, told apart by the order and a place in it; the place is a text, and comes first there."""

    class Base(DeclarativeBase):
        pass

    class LineOld(Base):
        __tablename__ = "lines_old"
        order_nr: Mapped[int] = mapped_column(BIG, primary_key=True, autoincrement=False)
        place: Mapped[str] = mapped_column(Text, primary_key=True)
        amount: Mapped[int | None] = mapped_column(BIG)
        unit: Mapped[str | None] = mapped_column(Text)

    class Line(Base):
        __tablename__ = "lines"
        line: Mapped[str] = mapped_column(Text, primary_key=True)
        order_id: Mapped[int] = mapped_column(BIG, primary_key=True, autoincrement=False)
        quantity: Mapped[int | None] = mapped_column(BIG)
        unit: Mapped[str] = mapped_column(Text)
        note: Mapped[str | None] = mapped_column(Text)

    move = Move(
        LineOld,
        Line,
        name="lines",
        key={LineOld.order_nr: Line.order_id, LineOld.place: Line.line},
        columns={Line.quantity: LineOld.amount, Line.unit: Default(LineOld.unit, "piece")},
    )
    return Case(
        Moves(move),
        Base.metadata,
        [
            {"order_nr": number, "place": place, "amount": number, "unit": None if number == 9 else "kg"}
            for number in (-1, 9, 10, 2**63 - 1)
            for place in PLACES
        ],
        {"order_nr": 10, "place": "new {n}", "amount": 1, "unit": None},
        {
            "legacy": [
                "INSERT INTO lines_old VALUES (5, '\"', 5, NULL)",
                "UPDATE lines_old SET amount = 77 WHERE order_nr = 9 AND place = '10'",
                "UPDATE lines_old SET place = 'moved' WHERE order_nr = 9 AND place = 'B'",
                "DELETE FROM lines_old WHERE order_nr = 10 AND place = '[1]'",
            ],
            "normalized": [
                "INSERT INTO lines (order_id, line, quantity, unit) VALUES (5, '', 5, 'box')",
                "UPDATE lines SET quantity = 78, unit = 'kg' WHERE order_id = 9 AND line = '10'",
                "UPDATE lines SET order_id = 11 WHERE order_id = 10 AND line = 'é'",
                "DELETE FROM lines WHERE order_id = 9 AND line = 'moved'",
            ],
        },
    )


def association() -> Case:
    """A table of nothing but its key."""

    class Base(DeclarativeBase):
        pass

    class PlaylistTrack(Base):
        __tablename__ = "PlaylistTrack"
        playlist_id: Mapped[int] = mapped_column("PlaylistId", Integer, primary_key=True)
        track_id: Mapped[int] = mapped_column("TrackId", Integer, primary_key=True)

    class Entry(Base):
        __tablename__ = "playlist_entries"
        playlist_id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
        track_id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)

    move = Move(
        PlaylistTrack,
        Entry,
        key={PlaylistTrack.playlist_id: Entry.playlist_id, PlaylistTrack.track_id: Entry.track_id},
        columns={},
    )
    return Case(
        Moves(move),
        Base.metadata,
        [{"PlaylistId": 1, "TrackId": 10}, {"PlaylistId": 1, "TrackId": 9}, {"PlaylistId": 2, "TrackId": 9}],
        {"playlist_id": 3, "track_id": ...},
        {
            "legacy": [
                'INSERT INTO "PlaylistTrack" VALUES (4, 1)',
                'UPDATE "PlaylistTrack" SET "TrackId" = 8 WHERE "PlaylistId" = 2',
                'DELETE FROM "PlaylistTrack" WHERE "TrackId" = 10',
            ],
            "normalized": [
                "INSERT INTO playlist_entries VALUES (4, 2)",
                "UPDATE playlist_entries SET playlist_id = 5 WHERE playlist_id = 2",
                "DELETE FROM playlist_entries WHERE track_id = 1",
            ],
        },
    )


def uuid_key() -> Case:
    """A key that the application makes."""

    class Base(DeclarativeBase):
        pass

    class TokenOld(Base):
        __tablename__ = "tokens_old"
        uid: Mapped[UUID] = mapped_column(Uuid, primary_key=True, default=uuid4)
        holder: Mapped[str | None] = mapped_column(Text)
        price: Mapped[float | None] = mapped_column(Float)

    class Token(Base):
        __tablename__ = "tokens"
        id: Mapped[UUID] = mapped_column(Uuid, primary_key=True, default=uuid4)
        owner: Mapped[str | None] = mapped_column(Text)
        cents: Mapped[int | None] = mapped_column(BIG)

    cents = cast(func.round(TokenOld.price * 100), BIG)
    move = Move(
        TokenOld,
        Token,
        name="tokens",
        key={TokenOld.uid: Token.id},
        columns={
            Token.owner: TokenOld.holder,
            Token.cents: Convert(TokenOld.price, up=cents, down=cast(Token.cents, Float) / 100.0, keep=True),
        },
    )
    return Case(
        Moves(move),
        Base.metadata,
        [{"uid": each, "holder": str(n), "price": 0.007 * n} for n, each in enumerate((ONE, TWO, THREE, UUID(int=0)))],
        {"holder": "new {n}", "price": 1.5},
        {
            "legacy": ["UPDATE tokens_old SET price = 0.333 WHERE holder = '1'"],
            "normalized": [
                "UPDATE tokens SET cents = 5 WHERE owner = '2'",
                "DELETE FROM tokens WHERE owner = '3'",
                "INSERT INTO tokens (id, owner, cents) VALUES ('0123456789abcdef0123456789abcdef', 'other', 7)",
            ],
        },
    )


def uuid_key_with_parts() -> Case:
    """A key that the application makes, to which a part and a table of items refer."""

    class Base(DeclarativeBase):
        pass

    class DeviceOld(Base):
        __tablename__ = "devices_old"
        uid: Mapped[UUID] = mapped_column(Uuid, primary_key=True, default=uuid4)
        name: Mapped[str] = mapped_column(Text)
        room: Mapped[str | None] = mapped_column(Text)
        labels: Mapped[str | None] = mapped_column(Text)

    class Device(Base):
        __tablename__ = "devices"
        id: Mapped[UUID] = mapped_column(Uuid, primary_key=True, default=uuid4)
        name: Mapped[str] = mapped_column(Text)

    class Location(Base):
        __tablename__ = "locations"
        device_id: Mapped[UUID] = mapped_column(ForeignKey("devices.id"), primary_key=True)
        room: Mapped[str | None] = mapped_column(Text)
        letters: Mapped[int | None] = mapped_column(BIG)

    class Label(Base):
        __tablename__ = "labels"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        device_id: Mapped[UUID] = mapped_column(ForeignKey("devices.id"), index=True)
        position: Mapped[int] = mapped_column(Integer)
        text: Mapped[str] = mapped_column(Text)

    move = Move(
        DeviceOld,
        Device,
        name="devices",
        key={DeviceOld.uid: Device.id},
        columns={Device.name: DeviceOld.name},
        parts=[
            Part(
                Location,
                by=Location.device_id,
                columns={Location.room: DeviceOld.room, Location.letters: Computed(func.length(DeviceOld.room))},
            ),
            Many(Label, by=Label.device_id, position=Label.position, item=Label.text, items=Split(DeviceOld.labels)),
        ],
    )
    return Case(
        Moves(move),
        Base.metadata,
        [
            {"uid": ONE, "name": "a", "room": "hall", "labels": "x,y"}, {"uid": TWO, "name": "b", "room": None},
            {"uid": THREE, "name": "c", "room": "", "labels": "z"},
        ],
        {"name": "new {n}", "room": "r", "labels": "n,{n}"},
        {
            "legacy": [
                "UPDATE devices_old SET room = NULL, labels = 'y,z' WHERE name = 'a'",
                "UPDATE devices_old SET room = 'attic' WHERE name = 'b'",
                "DELETE FROM devices_old WHERE name = 'c'",
            ],
            "normalized": [
                "UPDATE locations SET room = 'cellar' WHERE room = 'attic'",
                "INSERT INTO locations (device_id, room) SELECT id, 'first' FROM devices WHERE name = 'a'",
                "UPDATE labels SET text = 'w' WHERE text = 'z'",
                "INSERT INTO devices (id, name) VALUES ('0123456789abcdef0123456789abcdef', 'other')",
                """INSERT INTO labels (id, device_id, position, text)
                VALUES (900, '0123456789abcdef0123456789abcdef', 0, 'alone')""",
            ],
        },
    )  # fmt: skip


def composite_keys_into_one() -> Case:
    """Two tables whose keys have two columns become one, which tells them apart by a constant."""

    class Base(DeclarativeBase):
        pass

    class Sale(Base):
        __tablename__ = "sales"
        shop: Mapped[int] = mapped_column(BIG, primary_key=True, autoincrement=False)
        number: Mapped[str] = mapped_column(Text, primary_key=True)
        amount: Mapped[int | None] = mapped_column(BIG)

    class Refund(Base):
        __tablename__ = "refunds"
        shop: Mapped[int] = mapped_column(BIG, primary_key=True, autoincrement=False)
        number: Mapped[str] = mapped_column(Text, primary_key=True)
        amount: Mapped[int | None] = mapped_column(BIG)

    class Booking(Base):
        __tablename__ = "bookings"
        __table_args__ = (UniqueConstraint("kind", "shop_id", "number"),)
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        kind: Mapped[str] = mapped_column(String(10))
        shop_id: Mapped[int] = mapped_column(BIG)
        number: Mapped[str] = mapped_column(Text)
        amount: Mapped[int | None] = mapped_column(BIG)

    sales, refunds = (
        Move(
            model,
            Booking,
            key={model.shop: Booking.shop_id, model.number: Booking.number},
            columns={Booking.amount: model.amount},
            only={Booking.kind: model.__tablename__},
        )
        for model in (Sale, Refund)
    )
    return Case(
        Moves(sales, refunds),
        Base.metadata,
        {
            "sales": [{"shop": 1, "number": "a", "amount": 1}, {"shop": 1, "number": "b"}, {"shop": 2, "number": "a"}],
            "refunds": [{"shop": 1, "number": "a", "amount": 2}, {"shop": 10, "number": "", "amount": 3}],
        },
        {
            "sales": {"shop": 9, "number": "new {n}", "amount": 4},
            "refunds": {"shop": 9, "number": "new {n}", "amount": 5},
        },
        {
            "legacy": [
                "UPDATE sales SET amount = 7 WHERE number = 'b'",
                "UPDATE refunds SET number = 'moved' WHERE shop = 10",
                "INSERT INTO refunds VALUES (3, 'foreign', NULL)",
                "DELETE FROM sales WHERE shop = 2",
            ],
            "normalized": [
                "INSERT INTO bookings (kind, shop_id, number, amount) VALUES ('sales', 3, 'foreign', 8)",
                "UPDATE bookings SET amount = 9 WHERE kind = 'refunds' AND number = 'a'",
                "DELETE FROM bookings WHERE kind = 'refunds' AND number = 'moved'",
            ],
        },
    )


def single_table_child() -> Case:
    """A column that only one kind of row has belongs to a subclass in the same table."""

    class Base(DeclarativeBase):
        pass

    class StaffFlat(Base):
        __tablename__ = "staff_flat"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        role: Mapped[str] = mapped_column(Text)
        name: Mapped[str] = mapped_column(Text)
        budget: Mapped[int | None] = mapped_column(BIG)

    class Employee(Base):
        __tablename__ = "staff"
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "employee"}  # noqa: RUF012 - SQLAlchemy's
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        kind: Mapped[str] = mapped_column(Text)
        name: Mapped[str] = mapped_column(Text)

    class Manager(Employee):
        __mapper_args__ = {"polymorphic_identity": "manager"}  # noqa: RUF012
        budget: Mapped[int | None] = mapped_column(BIG)

    move = Move(
        StaffFlat,
        Employee,
        name="staff",
        key={StaffFlat.id: Employee.id},
        columns={Employee.kind: StaffFlat.role, Employee.name: StaffFlat.name, Manager.budget: StaffFlat.budget},
    )
    return Case(
        Moves(move),
        Base.metadata,
        [{"role": "manager", "name": "Ada", "budget": 9}, {"role": "employee", "name": "Bob"}],
        {"role": "manager", "name": "new {n}", "budget": ...},
        {
            "legacy": ["UPDATE staff_flat SET role = 'manager', budget = 1 WHERE name = 'Bob'"],
            "normalized": [
                "INSERT INTO staff (kind, name) VALUES ('employee', 'other')",
                "DELETE FROM staff WHERE id = 1",
            ],
        },
    )


def text_date_to_date() -> Case:
    """A date that was written as a text becomes a date; a text that is none is kept, and has no date."""

    class Base(DeclarativeBase):
        pass

    class BillOld(Base):
        __tablename__ = "bills_old"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        due: Mapped[str | None] = mapped_column(Text)

    class Bill(Base):
        __tablename__ = "bills"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        due_on: Mapped[date | None]

    due_on = case((BillOld.due.like("____-__-__"), func.date(BillOld.due, type_=Date)), else_=None)
    move = Move(
        BillOld,
        Bill,
        name="bills",
        key={BillOld.id: Bill.id},
        columns={Bill.due_on: Convert(BillOld.due, up=due_on, down=cast(Bill.due_on, Text), keep=True)},
    )
    return Case(
        Moves(move),
        Base.metadata,
        [{"due": "2026-02-28"}, {"due": None}, {"due": "soon"}, {"due": ""}, {"due": "2026-12-1"}],
        {"due": "2026-11-1{n}"},
        {
            "legacy": ["UPDATE bills_old SET due = '2026-03-01' WHERE due = 'soon'"],
            "normalized": ["UPDATE bills SET due_on = '2027-01-01' WHERE due_on = '2026-02-28'"],
        },
        judged={"normalized": {"SELECT count(*) FROM bills WHERE due_on IS NULL AND id = 5": 1}},
    )


def self_reference() -> Case:
    """Rows refer to others of their table: to later ones, in a circle, and to themselves."""

    class Base(DeclarativeBase):
        pass

    class EmployeeOld(Base):
        __tablename__ = "employees_old"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        name: Mapped[str] = mapped_column(Text)
        manager_id: Mapped[int | None] = mapped_column(ForeignKey("employees_old.id"), index=True)

    class Employee(Base):
        __tablename__ = "employees"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        full_name: Mapped[str] = mapped_column(Text)
        boss_id: Mapped[int | None] = mapped_column(ForeignKey("employees.id"), index=True)

    move = Move(
        EmployeeOld,
        Employee,
        name="employees",
        key={EmployeeOld.id: Employee.id},
        columns={Employee.full_name: EmployeeOld.name, Employee.boss_id: EmployeeOld.manager_id},
    )
    return Case(
        Moves(move),
        Base.metadata,
        [{"name": name} for name in ("Ada", "Bob", "Cyd", "Dan", "Eve", "Fay", "Gus")],
        {"name": "new {n}", "manager_id": 6},
        {
            "before": [
                "UPDATE employees_old SET manager_id = CASE id WHEN 6 THEN 7 WHEN 5 THEN 4 WHEN 4 THEN 5 END",
                "UPDATE employees_old SET manager_id = CASE id WHEN 1 THEN 1 WHEN 2 THEN 6 ELSE 2 END WHERE id < 4",
            ],
            "legacy": [
                "INSERT INTO employees_old (name, manager_id) VALUES ('foreign', 2)",
                "UPDATE employees_old SET manager_id = 6 WHERE name = 'Ada'",
                "UPDATE employees_old SET manager_id = NULL WHERE name = 'Eve'",
                "DELETE FROM employees_old WHERE name IN ('Cyd', 'Dan')",
            ],
            "normalized": [
                "INSERT INTO employees (full_name, boss_id) VALUES ('other', 5)",
                "UPDATE employees SET boss_id = 1 WHERE full_name = 'Gus'",
                "DELETE FROM employees WHERE full_name = 'foreign'",
            ],
        },
        judged={"normalized": {"SELECT count(*) FROM employees WHERE boss_id = 6 AND full_name IN ('Ada', 'Bob')": 2}},
    )


def composite_self_reference() -> Case:
    """Answers refer to comments of their page, by both columns of the key, and go with them."""

    class Base(DeclarativeBase):
        pass

    class CommentOld(Base):
        __tablename__ = "comments_old"
        __table_args__ = (
            ForeignKeyConstraint(["page", "answers"], ["comments_old.page", "comments_old.nr"], ondelete="CASCADE"),
        )
        page: Mapped[str] = mapped_column(Text, primary_key=True)
        nr: Mapped[int] = mapped_column(BIG, primary_key=True, autoincrement=False)
        answers: Mapped[int | None] = mapped_column(BIG)
        text: Mapped[str | None] = mapped_column(Text)

    class Comment(Base):
        __tablename__ = "comments"
        __table_args__ = (
            ForeignKeyConstraint(["page", "parent"], ["comments.page", "comments.number"], ondelete="CASCADE"),
        )
        number: Mapped[int] = mapped_column(BIG, primary_key=True, autoincrement=False)
        page: Mapped[str] = mapped_column(Text, primary_key=True)
        parent: Mapped[int | None] = mapped_column(BIG)
        text: Mapped[str] = mapped_column(Text)

    move = Move(
        CommentOld,
        Comment,
        name="comments",
        key={CommentOld.page: Comment.page, CommentOld.nr: Comment.number},
        columns={Comment.parent: CommentOld.answers, Comment.text: Default(CommentOld.text, "-")},
    )
    rows = [{"page": page, "nr": nr} for page in ("a", "b") for nr in range(1, 5)]
    return Case(
        Moves(move),
        Base.metadata,
        rows,
        {"page": "a", "nr": ..., "answers": 104, "text": "new"},
        {
            "before": [
                "UPDATE comments_old SET nr = nr + 100",
                "UPDATE comments_old SET answers = CASE nr WHEN 101 THEN 104 WHEN 104 THEN 103 WHEN 102 THEN 101 END",
            ],
            "legacy": [
                "INSERT INTO comments_old VALUES ('b', 1, 102, 'foreign')",
                "UPDATE comments_old SET answers = 104 WHERE page = 'b' AND nr = 102",
            ],
            "normalized": [
                "INSERT INTO comments (page, number, parent, text) VALUES ('b', 2, 1, 'other')",
                "DELETE FROM comments WHERE page = 'a' AND number = 102",
                "UPDATE comments SET parent = NULL WHERE parent = 103",
            ],
        },
        judged={"normalized": {"SELECT count(*) FROM comments WHERE page = 'b' AND parent = 104": 2}},
    )


def column_types() -> Case:
    """Columns of all types, a default of the server, and generated columns on either side."""

    class Base(DeclarativeBase):
        pass

    class Sample:
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        price: Mapped[Decimal | None] = mapped_column(Numeric(10, 2))
        day: Mapped[date | None]
        at: Mapped[datetime | None] = mapped_column(DateTime)
        instant: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
        clock: Mapped[time | None]
        lasts: Mapped[timedelta | None] = mapped_column(Interval)
        code: Mapped[UUID | None]
        done: Mapped[bool | None]
        content: Mapped[bytes | None] = mapped_column(LargeBinary)
        facts: Mapped[Any] = mapped_column(JSON, nullable=True)
        more: Mapped[Any] = mapped_column(JSON().with_variant(JSONB(), "postgresql"), nullable=True)
        places: Mapped[Any] = mapped_column(JSON().with_variant(ARRAY(Integer), "postgresql"), nullable=True)
        color: Mapped[str | None] = mapped_column(Enum("red", "green", name="colors", native_enum=False))
        state: Mapped[str] = mapped_column(Text, server_default="new")

    class SampleOld(Sample, Base):
        __tablename__ = "samples_old"
        cents: Mapped[int | None] = mapped_column(BIG, Generated("price * 100"))

    class SampleNew(Sample, Base):
        __tablename__ = "samples"
        letters: Mapped[int | None] = mapped_column(Integer, Generated("length(state)"))
        note: Mapped[str] = mapped_column(Text, server_default="-")

    carried = [of.name for of in SampleOld.__table__.c if of.name not in {"id", "cents"}]
    move = Move(
        SampleOld,
        SampleNew,
        name="samples",
        key={SampleOld.id: SampleNew.id},
        columns={getattr(SampleNew, name): getattr(SampleOld, name) for name in carried},
        without={SampleOld.cents: "the database computes it"},
    )
    noon = datetime(2026, 3, 29, 12, 0, 0, 7)
    full = {
        "price": Decimal("20.25"), "day": noon.date(), "at": noon, "instant": noon.replace(tzinfo=UTC),
        "clock": noon.time(), "lasts": timedelta(days=-1, microseconds=3), "code": ONE,
        "done": False, "content": b"\x00\xff", "facts": {"b": [1.5, None], "a": "é"}, "more": {"k": []},
        "places": [3, 1], "color": "green",
    }  # fmt: skip
    return Case(Moves(move), Base.metadata, [full, dict.fromkeys(full)], full | {"state": "made"})


CASES = {
    "rename": renamed_columns,
    "shared parent": shared_parent,
    "shared parent with NULLs": shared_parent_with_nulls,
    "several parents": several_parents,
    "values": states,
    "kept values": defaults,
    "text key": text_key,
    "two tables into one": one_of_two,
    "one table into two": two_of_one,
    "flag to archive": archive,
    "JSON to columns": json_to_columns,
    "vertical split": vertical_split,
    "joined subclass": joined_subclass,
    "list to children": list_to_children,
    "list to tags": list_to_tags,
    "composite key": composite_key,
    "association": association,
    "single-table child": single_table_child,
    "text date to date": text_date_to_date,
    "UUID key": uuid_key,
    "UUID key with parts": uuid_key_with_parts,
    "composite keys into one": composite_keys_into_one,
    "self-reference": self_reference,
    "self-reference by a composite key": composite_self_reference,
}
"""What makes each case: its tables are declared anew, so that no two tests share a class."""
