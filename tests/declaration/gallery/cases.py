"""The gallery: refactorings that applications make, each as two schemas, a declaration and rows.

Models are written as an application would write them: none has a column for this package.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import (
    BigInteger,
    Float,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    Uuid,
    cast,
    func,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from consensus_orm import Convert, Default, EnumMap, Move, Moves, Parent

__all__ = ["CASES", "Case"]

BIG = BigInteger().with_variant(Integer(), "sqlite")


@dataclass(frozen=True)
class Case:
    """One refactoring.

    Attributes:
        moves: Its declaration.
        metadata: The tables of both sides.
        rows: Legacy rows, by column, as any program may have written them.
        new: A row for the repository; `{n}` in a text, and `...` as a key, are replaced by a number that goes up.
        foreign: Statements of another program, by side: what it writes on the one that it knows.
        rejected: How many of the rows cannot be carried.
        judged: What queries of another program give in phases that write a side.
    """

    moves: Moves
    metadata: MetaData
    rows: Sequence[dict[str, Any]]
    new: dict[str, Any]
    foreign: dict[str, Sequence[str]] = field(default_factory=dict)
    rejected: int = 0
    judged: dict[str, dict[str, Any]] = field(default_factory=dict)


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
    places = ["a", "B", "é", '"', "\\", "[1]", "a b", "'", "", "\n", "\U0001f600", "10", "9"]
    return Case(
        Moves(move),
        Base.metadata,
        [
            {"order_nr": number, "place": place, "amount": number, "unit": None if number == 9 else "kg"}
            for number in (-1, 9, 10, 2**63 - 1)
            for place in places
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
    one, two, three = (UUID(int=number << 100) for number in (1, 0xABCDEF, 3))
    return Case(
        Moves(move),
        Base.metadata,
        [{"uid": each, "holder": str(n), "price": 0.007 * n} for n, each in enumerate((one, two, three, UUID(int=0)))],
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


CASES = {
    "rename": renamed_columns,
    "shared parent": shared_parent,
    "shared parent with NULLs": shared_parent_with_nulls,
    "values": states,
    "kept values": defaults,
    "text key": text_key,
    "composite key": composite_key,
    "association": association,
    "uuid key": uuid_key,
}
"""What makes each case: its tables are declared anew, so that no two tests share a class."""
