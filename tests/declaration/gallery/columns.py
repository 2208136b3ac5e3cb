"""Columns of the gallery: other names, other types, other values, and what a JSON text holds."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from sqlalchemy import (
    JSON,
    Boolean,
    Date,
    DateTime,
    Enum,
    Float,
    Integer,
    Interval,
    LargeBinary,
    Numeric,
    String,
    Text,
    case,
    cast,
    func,
)
from sqlalchemy import Computed as Generated
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from consensus_orm import Convert, Default, EnumMap, Explode, Move, Moves
from consensus_orm.models.base import BIG
from tests.declaration.gallery.case import ONE, Case


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
