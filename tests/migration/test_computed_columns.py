"""Columns that a database computes belong to their tables as others do."""

from __future__ import annotations

from sqlalchemy import Computed, Integer, Text, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from consensus_orm import Move, Moves, Phase, Side, Store
from consensus_orm.databases.opening import parse_url
from consensus_orm.models.base import BIG
from tests.support.databases import Database
from tests.support.keyed import SETTINGS


class Base(DeclarativeBase):
    pass


class Price(Base):
    __tablename__ = "prices_old"
    id: Mapped[int] = mapped_column(BIG, primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    letters: Mapped[int | None] = mapped_column(Integer, Computed("length(name)"))


class Amount(Base):
    __tablename__ = "amounts"
    id: Mapped[int] = mapped_column(BIG, primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    size: Mapped[int | None] = mapped_column(Integer, Computed("length(name) * 2"))


MOVES = Moves(
    Move(
        Price,
        Amount,
        name="prices",
        key={Price.id: Amount.id},
        columns={Amount.name: Price.name},
        without={Price.letters: "the database computes it"},
    )
)


def test_a_side_with_computed_columns_is_made_again(new_database: Database) -> None:
    """Both sides, after another program has dropped them; and the gates find no column missing."""
    engine = create_engine(parse_url(new_database.where))
    Base.metadata.create_all(engine)
    new_database.script("INSERT INTO prices_old (id, name) VALUES (1, 'a'), (2, 'bcd')")
    with Store.open(new_database.where, moves=MOVES, settings=SETTINGS) as store:
        store.upgrade()
        store.migration.migrate(Phase.CUTOVER)
        for side, table in ((Side.LEGACY, Price), (Side.NORMALIZED, Amount)):
            if side is Side.NORMALIZED:
                store.migration.rollback()
            cascade = "CASCADE" if new_database.kind == "postgresql" else ""  # they share a sequence
            new_database.script(f"DROP TABLE {table.__tablename__} {cascade}")
            Base.metadata.create_all(engine, [Base.metadata.tables[table.__tablename__]])
            store.migration.reconcile(rebuild=side, reason="it was dropped")
            assert store.migration.verify().clean
        assert store.migration.status().guards == []
    engine.dispose()
    assert new_database.rows_of("SELECT id, name, letters FROM prices_old ORDER BY id") == [(1, "a", 1), (2, "bcd", 3)]
    assert new_database.rows_of("SELECT id, name, size FROM amounts ORDER BY id") == [(1, "a", 2), (2, "bcd", 6)]
