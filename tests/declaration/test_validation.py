"""What moves must say: each fault that can be known from the declaration is refused when it is made, by name."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Float, ForeignKey, Integer, Text, UniqueConstraint, column, func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from consensus_orm import Computed, Convert, Default, Earliest, EnumMap, Latest, Move, Moves, Parent
from consensus_orm.errors import ConfigurationError


class Base(DeclarativeBase):
    pass


class Old(Base):
    __tablename__ = "old"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    city: Mapped[str | None] = mapped_column(Text)
    price: Mapped[float | None] = mapped_column(Float)


class Place(Base):
    __tablename__ = "places"
    __table_args__ = (UniqueConstraint("city"),)
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    city: Mapped[str | None] = mapped_column(Text)
    size: Mapped[int | None] = mapped_column(Integer)


class New(Base):
    __tablename__ = "new"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    place_id: Mapped[int] = mapped_column(ForeignKey("places.id"))
    name: Mapped[str] = mapped_column(Text)
    price: Mapped[float | None] = mapped_column(Float)
    cents: Mapped[int | None] = mapped_column(Integer)


class Two(Base):
    __tablename__ = "two"
    a: Mapped[int] = mapped_column(Integer, primary_key=True)
    b: Mapped[int] = mapped_column(Integer, primary_key=True)


def parent(**more: Any) -> Parent:
    return Parent(Place, **({"link": New.place_id, "by": {Place.city: Old.city}} | more))


def move(columns: dict[Any, Any] | None = None, **more: Any) -> Move:
    said: dict[str, Any] = {"key": {Old.id: New.id}, "parts": [parent()], "name": "rows"}
    return Move(Old, New, columns={New.name: Old.name, New.price: Old.price} | (columns or {}), **(said | more))


def without(name: Any) -> dict[Any, Any]:
    """The columns of the move but one."""
    return {target: source for target, source in ((New.name, Old.name), (New.price, Old.price)) if target is not name}


def only(columns: dict[Any, Any], **more: Any) -> Move:
    return Move(Old, New, key={Old.id: New.id}, columns=columns, parts=[parent()], name="rows", **more)


def test_a_whole_declaration_is_taken() -> None:
    """The move that the others break in one place each."""
    assert [each.name for each in Moves(move())] == ["rows"]
    assert Moves(only(without(New.price), without={Old.price: "nobody asks for it"}))["rows"].without


FAULTS: dict[str, tuple[Any, str]] = {
    "a column that nobody carries": (lambda: only(without(New.price)), "nothing says where old.price goes"),
    "an unknown legacy column": (
        lambda: Move("places=tests.declaration.test_validation:Place", New, key={"id": New.id}, columns={}),
        "nothing fills new.place_id",
    ),
    "a name that is no column": (lambda: move({New.cents: column("colour")}), "old has no column 'colour'"),
    "a NOT NULL column that nothing fills": (lambda: only(without(New.name)), "nothing fills new.name"),
    "another type": (lambda: only({New.name: Old.name, New.cents: Old.price}), "sqlite would store another value"),
    "a rule of the wrong side": (lambda: move({New.cents: Computed(New.price * 100)}), "is on the normalized side"),
    "a way back of the wrong side": (
        lambda: only({New.name: Old.name, New.price: Convert(Old.price, up=Old.price, down=Old.price)}),
        "the way back of price speaks of price",
    ),
    "too many values": (
        lambda: only({New.name: Old.name, New.price: Convert(Old.price, up=(Old.price, Old.price), down=New.price)}),
        "2 values for 1 columns",
    ),
    "one value for two": (lambda: move({New.cents: EnumMap(Old.price, {1: 1, 2: 1})}), "no way back"),
    "no key": (lambda: move(key={}), "no key is declared"),
    "a key whose image is not unique": (
        lambda: move(key={Old.id: New.id, Old.name: New.name}),
        "id, name of new, the image of its key, is not declared unique",
    ),
    "another key": (lambda: move(key={Old.name: New.id}), "the key of old is declared as id"),
    "an attribute that is none": (lambda: move({New.cents: func.length(Old.name)}), "is no mapped column"),
    "a parent without a unique index": (
        lambda: move(parts=[parent(by={Place.city: Old.city, Place.size: Computed(func.length(Old.city))})]),
        "places has no unique index",
    ),
    "a link of another table": (lambda: move(parts=[parent(link=Place.size)]), "is no column of new"),
    "a column of a stranger": (lambda: move({Two.a: Computed(func.length(Old.name))}), "neither a column of new"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_refused_when_it_is_declared(fault: str) -> None:
    """Before a database is opened, with what to do about it."""
    make, match = FAULTS[fault]
    with pytest.raises(ConfigurationError, match=match) as refused:
        Moves(make())
    assert refused.value.hint


class Other(Base):
    __tablename__ = "other"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    place_id: Mapped[int] = mapped_column(ForeignKey("places.id"))
    name: Mapped[str] = mapped_column(Text)


def another(normalized: Any = Other, *, name: str = "other", **more: Any) -> Move:
    table = "third=tests.declaration.test_validation:Old"
    of_parent = parent(link=normalized.place_id, **more)
    return Move(
        table, normalized, name=name, key={"id": normalized.id}, columns={normalized.name: "name"}, parts=[of_parent]
    )


TOGETHER: dict[str, tuple[Any, str]] = {
    "one name": (lambda: (move(), another(name="rows")), "2 moves are called 'rows'"),
    "one table": (lambda: (move(), another(New)), "2 moves have the normalized table new"),
    "one legacy table": (lambda: (move(), move(name="again")), "have the normalized table"),
    "a parent seen in two ways": (
        lambda: (move(), another(derived={Place.size: Latest("rows", column("price"))})),
        "share the parent places and say different",
    ),
    "derived from nothing": (
        lambda: (move(parts=[parent(derived={Place.size: Latest("rest", column("price"))})]),),
        "derived from the move 'rest'",
    ),
}


@pytest.mark.parametrize("fault", TOGETHER)
def test_moves_that_do_not_go_together_are_refused(fault: str) -> None:
    """Names both, and the table."""
    make, match = TOGETHER[fault]
    with pytest.raises(ConfigurationError, match=match):
        Moves(*make())


def test_a_default_and_a_map_say_what_they_mean() -> None:
    """Both are rules with a way back; what a Default cannot say is kept."""
    made = only({New.name: Old.name, New.price: Default(Old.price, 1.0), New.cents: Computed(func.length(Old.name))})
    assert [rule.sources for rule in made.lossy] == [("price",)]
    assert made.originals is not None
    assert [of.name for of in made.originals.columns] == ["key", "price"]
    assert Earliest() == Earliest()
