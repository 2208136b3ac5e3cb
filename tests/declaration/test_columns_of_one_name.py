"""Columns of the two sides may have one name and hold different things: every comparison counts."""

from __future__ import annotations

from sqlalchemy import Text, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from consensus_orm import EnumMap, Move, Moves, Store
from consensus_orm.databases.opening import parse_url
from consensus_orm.models.base import BIG
from tests.support.databases import Database
from tests.support.keyed import SETTINGS


class Base(DeclarativeBase):
    pass


class Old(Base):
    __tablename__ = "olds"
    id: Mapped[int] = mapped_column(BIG, primary_key=True)
    kind: Mapped[int] = mapped_column(BIG)
    a: Mapped[int] = mapped_column(BIG)
    b: Mapped[str] = mapped_column(Text)


class New(Base):
    __tablename__ = "news"
    id: Mapped[int] = mapped_column(BIG, primary_key=True)
    kind: Mapped[str | None] = mapped_column(Text)
    a: Mapped[str] = mapped_column(Text)
    c: Mapped[str | None] = mapped_column(Text)


MOVES = Moves(
    Move(
        Old,
        New,
        name="rows",
        key={Old.id: New.id},
        columns={New.kind: EnumMap(Old.kind, {0: "x"}), New.a: Old.b, New.c: EnumMap(Old.a, {0: "y"})},
    )
)


def test_no_comparison_hides_another_one(new_database: Database) -> None:
    """A value without a word on the other side makes its row a reject, and a carried one that differs is found."""
    engine = create_engine(parse_url(new_database.where))
    Base.metadata.create_all(engine)
    engine.dispose()
    new_database.script("INSERT INTO olds VALUES (1, 9, 0, 't'), (2, 0, 9, 't'), (3, 0, 0, 't')")
    with Store.open(new_database.where, moves=MOVES, settings=SETTINGS) as store:
        store.upgrade()
        store.migration.advance()
        store.migration.backfill()
        assert sorted(each.key for each in store.migration.rejects()) == [1, 2]
        new_database.unnoticed("UPDATE news SET a = 'other' WHERE id = 3")
        assert [each.key for each in store.migration.verify().differences] == [3]
