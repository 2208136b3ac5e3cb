"""An application whose sessions are carried: its models on both sides, its store in a phase, and what it writes."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    ForeignKey,
    Text,
    UniqueConstraint,
    create_engine,
    delete,
    insert,
    text,
    update,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from consensus_orm import Move, Moves, Parent, Phase, Store
from consensus_orm.databases.opening import parse_url
from consensus_orm.models.base import BIG
from consensus_orm.settings import Settings
from tests.support import databases
from tests.support.databases import Database

SETTINGS = Settings(soak_dual_write=0, soak_cutover=0, soak_normalized=0)


class Base(DeclarativeBase):
    pass


class Person(Base):
    """The legacy class: it repeats an address in each row."""

    __tablename__ = "persons"

    id: Mapped[int] = mapped_column(BIG, primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    city: Mapped[str] = mapped_column(Text)
    version: Mapped[int] = mapped_column(BIG)
    orders: Mapped[list[Order]] = relationship(back_populates="person", cascade="all, delete-orphan")

    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(BIG, primary_key=True)
    person_id: Mapped[int] = mapped_column(ForeignKey("persons.id"), index=True)
    what: Mapped[str] = mapped_column(Text)
    person: Mapped[Person] = relationship(back_populates="orders")


class City(Base):
    __tablename__ = "cities"
    __table_args__ = (UniqueConstraint("name"),)

    id: Mapped[int] = mapped_column(BIG, primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    citizens: Mapped[list[Citizen]] = relationship(back_populates="city")


class Citizen(Base):
    """The normalized class: it refers to its city."""

    __tablename__ = "citizens"

    id: Mapped[int] = mapped_column(BIG, primary_key=True)
    city_id: Mapped[int] = mapped_column(ForeignKey("cities.id"), index=True)
    full_name: Mapped[str] = mapped_column(Text)
    version: Mapped[int] = mapped_column(BIG)
    city: Mapped[City] = relationship(back_populates="citizens")
    purchases: Mapped[list[Purchase]] = relationship(back_populates="citizen", cascade="all, delete-orphan")

    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012


class Purchase(Base):
    __tablename__ = "purchases"

    id: Mapped[int] = mapped_column(BIG, primary_key=True)
    citizen_id: Mapped[int] = mapped_column(ForeignKey("citizens.id"), index=True)
    item: Mapped[str] = mapped_column(Text)
    citizen: Mapped[Citizen] = relationship(back_populates="purchases")


PERSONS = Move(
    Person,
    Citizen,
    name="persons",
    key={Person.id: Citizen.id},
    columns={Citizen.full_name: Person.name, Citizen.version: Person.version},
    parts=[Parent(City, link=Citizen.city_id, by={City.name: Person.city})],
)
ORDERS = Move(
    Order,
    Purchase,
    name="orders",
    key={Order.id: Purchase.id},
    columns={Purchase.citizen_id: Order.person_id, Purchase.item: Order.what},
)
MOVES = Moves(PERSONS, ORDERS)
OLD = (
    "SELECT id, name, city, version FROM persons ORDER BY id",
    "SELECT id, person_id, what FROM orders ORDER BY id",
)
NEW = (
    "SELECT p.id, full_name, c.name, version FROM citizens AS p JOIN cities AS c ON c.id = city_id ORDER BY p.id",
    "SELECT id, citizen_id, item FROM purchases ORDER BY id",
)


@dataclass
class World:
    """A store in a phase, and its database."""

    store: Store
    database: Database

    def sides(self) -> tuple[list[Any], list[Any]]:
        """What the legacy tables hold, and what the normalized ones do, in the same terms."""
        old, new = ([self.database.rows_of(sql) for sql in side] for side in (OLD, NEW))
        return old, new

    def same(self) -> list[Any]:
        """The rows of both sides, which are equal, with no parent that has no rows."""
        old, new = self.sides()
        assert old == new
        childless = "SELECT * FROM cities WHERE id NOT IN (SELECT city_id FROM citizens)"
        assert self.database.rows_of(childless) == []
        assert self.database.rows_of("SELECT count(*) FROM consensus_orm_changes") == [(0,)]
        return old


def at_a_phase(where: str | Path, phase: Phase) -> None:
    """Two persons with orders; the last ids stay in use, as nobody's autoincrement would keep them."""
    engine = create_engine(parse_url(where))
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add(Person(name="Ada", city="Bern", orders=[Order(what="tea"), Order(what="ink")]))
        session.add(Person(name="Bob", city="Bern", orders=[Order(what="cup")]))
    engine.dispose()
    with Store.open(where, moves=MOVES, settings=SETTINGS) as store:
        store.upgrade()
        store.migration.migrate(phase, soak=False)
        if phase.compares:
            store.migration.backfill()


@contextlib.contextmanager
def world_in(phase: Phase, kind: str, tmp_path: Path, templates: pytest.TempPathFactory) -> Iterator[World]:
    settings = SETTINGS.model_copy(update={"backup_dir": tmp_path})
    name, build = f"persons_{phase.name.lower()}", partial(at_a_phase, phase=phase)
    with (
        databases.copied(kind, name, build, tmp_path / "new.db", templates.getbasetemp()) as database,
        Store.open(database.where, moves=MOVES, settings=settings) as store,
    ):
        yield World(store, database)


def add_old(session: Session) -> None:
    session.add(Person(name="Cyd", city="Chur", orders=[Order(what="pen")]))


def add_new(session: Session) -> None:
    session.add(Citizen(full_name="Cyd", city=City(name="Chur"), purchases=[Purchase(item="pen")]))


def change_old(session: Session) -> None:
    person = session.get_one(Person, 1)
    person.name, person.city = "Ada L.", "Thun"
    person.orders[0].what = "coffee"


def change_new(session: Session) -> None:
    citizen = session.get_one(Citizen, 1)
    citizen.full_name, citizen.city = "Ada L.", City(name="Thun")
    citizen.purchases[0].item = "coffee"


def delete_old(session: Session) -> None:
    session.delete(session.get_one(Person, 1))


def delete_new(session: Session) -> None:
    session.delete(session.get_one(Citizen, 1))


def exchange_old(session: Session) -> None:
    """One flush that adds, changes and deletes rows that refer to each other."""
    session.delete(session.get_one(Person, 1))
    two = session.get_one(Person, 2)
    two.orders.append(Order(what="chalk"))
    session.flush()
    session.add(Person(name="Dan", city="Bern", orders=[Order(what="tea")]))


def exchange_new(session: Session) -> None:
    session.delete(session.get_one(Citizen, 1))
    two = session.get_one(Citizen, 2)
    two.purchases.append(Purchase(item="chalk"))
    session.flush()
    session.add(Citizen(full_name="Dan", city=two.city, purchases=[Purchase(item="tea")]))


def bulk_old(session: Session) -> None:
    session.execute(update(Person).where(Person.city == "Bern").values(city="Biel", version=Person.version + 1))
    session.execute(insert(Order), [{"person_id": 2, "what": f"pin {n}"} for n in range(3)])
    session.execute(delete(Order).where(Order.what == "tea"))


def bulk_new(session: Session) -> None:
    session.execute(update(City).where(City.name == "Bern").values(name="Biel"))
    session.execute(update(Citizen).values(version=Citizen.version + 1))
    session.execute(insert(Purchase), [{"citizen_id": 2, "item": f"pin {n}"} for n in range(3)])
    session.execute(delete(Purchase).where(Purchase.item == "tea"))


def text_old(session: Session) -> None:
    session.execute(text("UPDATE persons SET city = :city WHERE id = 2"), {"city": "Sion"})
    session.connection().exec_driver_sql("DELETE FROM orders WHERE what = 'ink'")


def text_new(session: Session) -> None:
    session.execute(text("INSERT INTO cities (id, name) VALUES (77, 'Sion')"))
    session.execute(text("UPDATE citizens SET city_id = 77 WHERE id = 2"))
    session.connection().exec_driver_sql("DELETE FROM purchases WHERE item = 'ink'")


WRITES: dict[str, tuple[Callable[[Session], None], Callable[[Session], None], list[Any]]] = {
    "add": (
        add_old,
        add_new,
        [
            [(1, "Ada", "Bern", 1), (2, "Bob", "Bern", 1), (3, "Cyd", "Chur", 1)],
            [(1, 1, "tea"), (2, 1, "ink"), (3, 2, "cup"), (4, 3, "pen")],
        ],
    ),
    "change": (
        change_old,
        change_new,
        [[(1, "Ada L.", "Thun", 2), (2, "Bob", "Bern", 1)], [(1, 1, "coffee"), (2, 1, "ink"), (3, 2, "cup")]],
    ),
    "delete": (delete_old, delete_new, [[(2, "Bob", "Bern", 1)], [(3, 2, "cup")]]),
    "exchange": (
        exchange_old,
        exchange_new,
        [[(2, "Bob", "Bern", 1), (3, "Dan", "Bern", 1)], [(3, 2, "cup"), (4, 2, "chalk"), (5, 3, "tea")]],
    ),
    "bulk": (
        bulk_old,
        bulk_new,
        [
            [(1, "Ada", "Biel", 2), (2, "Bob", "Biel", 2)],
            [(2, 1, "ink"), (3, 2, "cup"), (4, 2, "pin 0"), (5, 2, "pin 1"), (6, 2, "pin 2")],
        ],
    ),
    "text": (text_old, text_new, [[(1, "Ada", "Bern", 1), (2, "Bob", "Sion", 1)], [(1, 1, "tea"), (3, 2, "cup")]]),
}
