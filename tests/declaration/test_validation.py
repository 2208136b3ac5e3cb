"""What moves must say: each fault that can be known from the declaration is refused when it is made, by name."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import JSON, Date, Float, ForeignKey, Integer, Text, UniqueConstraint, column, func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from consensus_orm import (
    Computed,
    Convert,
    Default,
    Earliest,
    EnumMap,
    Explode,
    Latest,
    Many,
    Move,
    Moves,
    Parent,
    Part,
    Split,
    original,
)
from consensus_orm.errors import ConfigurationError


class Base(DeclarativeBase):
    pass


class Old(Base):
    __tablename__ = "olds"
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
    __tablename__ = "news"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    place_id: Mapped[int] = mapped_column(ForeignKey("places.id"))
    name: Mapped[str] = mapped_column(Text)
    price: Mapped[float | None] = mapped_column(Float)
    cents: Mapped[int | None] = mapped_column(Integer)


class Anything(Base):
    __tablename__ = "anything"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)


OTHERS = (Old.name, Old.city, Old.price)


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


class Wide(Base):
    __tablename__ = "wide"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    note: Mapped[str | None] = mapped_column(Text)


class Main(Base):
    __tablename__ = "main"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    name: Mapped[str] = mapped_column(Text)


class Extra(Base):
    __tablename__ = "extras"
    main_id: Mapped[int] = mapped_column(ForeignKey("main.id"), primary_key=True)
    note: Mapped[str] = mapped_column(Text)
    size: Mapped[int | None] = mapped_column(Integer)


class Loose(Base):
    __tablename__ = "loose"
    __table_args__ = (UniqueConstraint("id", "main_id"),)
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    main_id: Mapped[int] = mapped_column(ForeignKey("main.id"))
    note: Mapped[str | None] = mapped_column(Text)


def split(model: Any = Extra, *, without: Any = None, **more: Any) -> Move:
    said: dict[str, Any] = {"by": Extra.main_id, "columns": {Extra.note: Wide.note}} | more
    parts = [Part(model, **said)]
    return Move(
        Wide, Main, name="wide", key={Wide.id: Main.id}, columns={Main.name: Wide.name}, parts=parts, without=without
    )


class Item(Base):
    __tablename__ = "items"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    main_id: Mapped[int] = mapped_column(ForeignKey("main.id"))
    owner_id: Mapped[int | None] = mapped_column(ForeignKey("main.id"), index=True)
    place: Mapped[int] = mapped_column(Integer)
    text: Mapped[str] = mapped_column(Text)
    tag_id: Mapped[int | None] = mapped_column(ForeignKey("tags.id"))


class Line(Base):
    __tablename__ = "lines"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    main_id: Mapped[int] = mapped_column(ForeignKey("main.id"), index=True)
    place: Mapped[int] = mapped_column(Integer)
    text: Mapped[str] = mapped_column(Text)


class Remark(Base):
    __tablename__ = "remarks"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    line_id: Mapped[int] = mapped_column(ForeignKey("lines.id"))


class Tag(Base):
    __tablename__ = "tags"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    name: Mapped[str] = mapped_column(Text, unique=True)
    kind: Mapped[str | None] = mapped_column(Text)


def listed(model: Any = Item, **more: Any) -> Move:
    said: dict[str, Any] = {
        "by": Item.owner_id,
        "position": Item.place,
        "item": Item.text,
        "items": Split(Wide.note),
    } | more
    columns = {Main.name: Wide.name}
    return Move(Wide, Main, key={Wide.id: Main.id}, columns=columns, parts=[Many(model, **said)])


def tag(by: Any = None) -> Parent:
    return Parent(Tag, link=Item.tag_id, by=by or {Tag.name: Wide.note})


def tagged(*parents: Parent) -> Move:
    return listed(item=Tag.name, parents=parents)


def test_a_part_stands_for_one_row() -> None:
    """A part is taken where it is found by the key; two moves, or two parts, do not share one."""
    assert Moves(split())["wide"].parts
    with pytest.raises(ConfigurationError, match="the part extras is named twice"):
        Moves(
            Move(
                Wide,
                Main,
                key={Wide.id: Main.id},
                columns={Main.name: Wide.name},
                parts=[
                    Part(Extra, by=Extra.main_id, columns={Extra.note: Wide.note}),
                    Part(Extra, by=Extra.main_id, columns={Extra.size: Computed(func.length(Wide.note))}),
                ],
            )
        )


class Doc(Base):
    __tablename__ = "docs"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    body: Mapped[Any | None] = mapped_column(JSON)
    note: Mapped[str | None] = mapped_column(Text)


class Page(Base):
    __tablename__ = "pages"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    a: Mapped[str | None] = mapped_column(Text)
    day: Mapped[Any] = mapped_column(Date, nullable=True)


def exploded(target: Any, *paths: str, of: Any = Doc.body) -> Move:
    given_up = {Doc.note if of is Doc.body else Doc.body: "nobody reads it"}
    return Move(Doc, Page, key={Doc.id: Page.id}, columns={target: Explode(of, *paths)}, without=given_up)


def test_moves_are_declared_for_the_databases_that_they_are_for() -> None:
    """What one kind of database cannot do is no fault of moves for the other one; an unknown kind is."""
    assert Moves(exploded(Page.a, "a", of=Doc.note), dialects=["sqlite"]).dialects == ("sqlite",)
    with pytest.raises(ConfigurationError, match="mysql"):
        Moves(exploded(Page.a, "a"), dialects=["mysql"])


def called(table: str) -> Move[Any]:
    class Own(DeclarativeBase):
        pass

    class Named(Own):
        __tablename__ = table
        id: Mapped[int] = mapped_column(Integer, primary_key=True)

    return Move(Place, Named, key={Place.id: Named.id}, columns={}, without={Place.city: "no", Place.size: "no"})


FAULTS: dict[str, tuple[Any, str]] = {
    "a table with the name of a row of a trigger": (lambda: called("New"), "SQL takes the name New for a row"),
    "a table with the name of a row of an upsert": (lambda: called("excluded"), "SQL takes the name excluded"),
    "a column that nobody carries": (lambda: only(without(New.price)), "nothing says where olds.price goes"),
    "an unknown legacy column": (
        lambda: Move("places=tests.declaration.test_validation:Place", New, key={"id": New.id}, columns={}),
        "nothing fills news.place_id",
    ),
    "a name that is no column": (lambda: move({New.cents: column("colour")}), "olds has no column 'colour'"),
    "a NOT NULL column that nothing fills": (lambda: only(without(New.name)), "nothing fills news.name"),
    "another type": (lambda: only({New.name: Old.name, New.cents: Old.price}), "sqlite would store another value"),
    "a rule of the wrong side": (lambda: move({New.cents: Computed(New.price * 100)}), "is on the normalized side"),
    "a way back of the wrong side": (
        lambda: only({New.name: Old.name, New.price: Convert(Old.price, up=Old.price, down=Old.price)}),
        "the way back of price speaks of price",
    ),
    "one value for two columns": (lambda: move({(New.cents, New.price): Old.price}), "one value is declared for 2"),
    "an order by what no legacy column fills": (lambda: move(newest=New.cents), "rows are ordered by news.cents"),
    "an adoption of what is not carried": (lambda: move(adopted={New.cents: New.price}), "carries no legacy column"),
    "a column that must be there is given up": (
        lambda: Move(
            Old, Anything, name="rows", key={Old.id: Anything.id}, columns={}, without=dict.fromkeys(OTHERS, "x")
        ),
        "olds.name is given up and NOT NULL",
    ),
    "too many values": (
        lambda: only({New.name: Old.name, New.price: Convert(Old.price, up=(Old.price, Old.price), down=New.price)}),
        "2 values for 1 columns",
    ),
    "one value for two": (lambda: move({New.cents: EnumMap(Old.price, {1: 1, 2: 1})}), "no way back"),
    "no key": (lambda: move(key={}), "no key is declared"),
    "a key whose image is not unique": (
        lambda: move(key={Old.id: New.id, Old.name: New.name}),
        "id, name of news, the image of its key, is not declared unique",
    ),
    "another key": (lambda: move(key={Old.name: New.id}), "the key of olds is declared as id"),
    "an attribute that is none": (lambda: move({New.cents: func.length(Old.name)}), "is no mapped column"),
    "a parent without a unique index": (
        lambda: move(parts=[parent(by={Place.city: Old.city, Place.size: Computed(func.length(Old.city))})]),
        "places has no unique index",
    ),
    "a link of another table": (lambda: move(parts=[parent(link=Place.size)]), "is no column of news"),
    "items without an index": (lambda: listed(by=Item.main_id), "no index begins with items.main_id"),
    "items by another column": (lambda: listed(by=Item.place), "items.place is no column of items that refers to"),
    "items in no order": (lambda: listed(position=Item.text), "items.text is no number in items"),
    "items that are no texts": (lambda: listed(item=Item.place), "items.place is no text in items"),
    "items in another table": (lambda: listed(item=Place.city), "places.city is no text in items"),
    "items that others refer to": (
        lambda: listed(Line, by=Line.main_id, item=Line.text, position=Line.place),
        "remarks refers to",
    ),
    "items of two parents": (lambda: tagged(tag(), tag()), "the items of note have several parents"),
    "items found by more": (
        lambda: tagged(tag(by={Tag.name: Wide.note, Tag.kind: Wide.note})),
        "by more than the item",
    ),
    "a separator of letters": (lambda: Split(Wide.note, "and"), "cannot separate items"),
    "no separator": (lambda: Split(Wide.note, ""), "cannot separate items"),
    "a part of rows with a key of two columns": (
        lambda: Move(
            Wide,
            Loose,
            key={Wide.id: Loose.id, Wide.name: Loose.main_id},
            columns={Loose.note: Wide.note},
            parts=[Part(Extra, by=Extra.main_id, columns={Extra.note: Wide.note})],
        ),
        "it has parts, which refer to their row by one column, and a key of 2",
    ),
    "two parents by one link": (lambda: move(parts=[parent(), parent()]), "refers to two parents"),
    "what is no part": (lambda: move(parts=[parent(), Place]), "is no part"),
    "a part by another column": (lambda: split(by=Extra.note), "extras.note does not refer to main.id"),
    "a part by a column of another table": (lambda: split(by=Main.id), "is no column of extras"),
    "a part that is not unique": (
        lambda: split(Loose, by=Loose.main_id, columns={Loose.note: Wide.note}),
        "is not unique",
    ),
    "a part that fills another table": (lambda: split(columns={Main.name: Wide.note}), "is filled by the part extras"),
    "a part with a column that nothing fills": (
        lambda: split(columns={Extra.size: Computed(func.length(Wide.note))}, without={Wide.note: "no"}),
        "nothing fills extras.note",
    ),
    "a condition of the wrong side": (lambda: split(when=Extra.note == "a"), "is on the normalized side"),
    "a condition of an unknown column": (lambda: split(when=column("colour") == 1), "wide has no column 'colour'"),
    "JSON in a text, on a server": (lambda: exploded(Page.a, "a", of=Doc.note), "note is Text"),
    "more paths than columns": (lambda: exploded(Page.a, "a", "b"), "Explode gives 2 values for 1 columns"),
    "a path that is none": (lambda: exploded(Page.a, 'a."b"'), "is no path of names"),
    "a type that is none of JSON": (lambda: exploded(Page.day, "a"), "no type of a value in JSON"),
    "an original that is not kept": (
        lambda: only({New.name: Convert(Old.name, up=Old.name, down=func.coalesce(original(Old.name), New.name))}),
        "the way back of name speaks of original of name",
    ),
    "an image of the key that is not unique": (
        lambda: flagged("a", key={Flagged.id: Kind.former}, columns={Kind.name: Flagged.name}),
        "former of kinds, the image of its key, is not declared unique",
    ),
    "a constant that is filled, too": (
        lambda: flagged("a", columns={Kind.name: Flagged.name, Kind.kind: Computed(Flagged.id)}),
        "kinds.kind is both in `only` and filled",
    ),
    "a constant that is carried, too": (
        lambda: flagged("a", columns={Kind.name: Flagged.name, Kind.former: Flagged.flag}),
        "flag holds one constant in all rows",
    ),
    "a constant of an unknown column": (
        lambda: flagged("a", only={"colour": 1, Flagged.flag: 1, Kind.kind: 1}),
        "flagged has no column 'colour'",
    ),
    "a column of a stranger": (lambda: move({Two.a: Computed(func.length(Old.name))}), "two.a is no column of news"),
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


class Flagged(Base):
    __tablename__ = "flagged"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    flag: Mapped[int] = mapped_column(Integer)


class Kind(Base):
    __tablename__ = "kinds"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    former: Mapped[int] = mapped_column(Integer)
    name: Mapped[str] = mapped_column(Text)
    kind: Mapped[int] = mapped_column(Integer)


def flagged(name: str, legacy: Any = Flagged, *, value: int = 0, **more: Any) -> Move:
    by_name = legacy if isinstance(legacy, type) else None
    said: dict[str, Any] = {
        "key": {"id": Kind.id},
        "columns": {Kind.name: "name", Kind.former: Computed(column("id"))},
        "only": {("flag" if by_name is None else Flagged.flag): 0, Kind.kind: value},
        "name": name,
    }
    return Move(legacy, Kind, **(said | more))


def test_a_move_of_some_rows_is_taken() -> None:
    """Rows of one table are told apart by a constant of either side."""
    assert len(Moves(flagged("a"), flagged("b", value=1, only={Flagged.flag: 1, Kind.kind: 1}))) == 2


def another(normalized: Any = Other, *, name: str = "other", **more: Any) -> Move:
    table = "third=tests.declaration.test_validation:Old"
    of_parent = parent(link=normalized.place_id, **more)
    return Move(
        table, normalized, name=name, key={"id": normalized.id}, columns={normalized.name: "name"}, parts=[of_parent]
    )


TOGETHER: dict[str, tuple[Any, str]] = {
    "one name": (lambda: (move(), another(name="rows")), "2 moves are called 'rows'"),
    "one table": (lambda: (move(), another(New)), "moves .rows. and .other. have the normalized table news"),
    "one legacy table": (lambda: (move(), move(name="again")), "have the legacy table olds, and nothing tells"),
    "one constant for both": (
        lambda: (flagged("a"), flagged("b", value=0)),
        "the legacy table flagged, and nothing",
    ),
    "keys of two tables in one column": (
        lambda: (flagged("a"), flagged("b", "more=tests.declaration.test_validation:Flagged", value=1)),
        "holds keys of flagged and of more, which may be equal",
    ),
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
