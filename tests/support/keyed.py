"""A small move whose tables are made by each test: things with a key of one kind or another, in boxes or without.

The legacy table is `things_flat`, the normalized one `things`; what is in `box` stands in a parent of its own.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Boolean, ForeignKey, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from consensus_orm import ConsensusStore
from consensus_orm.declaration.move import Move
from consensus_orm.declaration.moves import Moves
from consensus_orm.declaration.parts import Parent
from consensus_orm.models.base import BIG
from consensus_orm.settings import Settings
from tests.support.databases import Database

__all__ = ["BOXED", "BY_NUMBER", "BY_TEXT", "SETTINGS", "opened", "stored"]


SETTINGS = Settings(soak_dual_write=0, soak_cutover=0, soak_normalized=0, chunk_rows=2, chunk_pause=0)


class Base(DeclarativeBase):
    pass


class Named(DeclarativeBase):
    pass


class Packed(DeclarativeBase):
    pass


class ThingFlat(Base):
    __tablename__ = "things_flat"

    id: Mapped[int] = mapped_column(BIG, primary_key=True)
    what: Mapped[str | None] = mapped_column(Text)


class Thing(Base):
    __tablename__ = "things"

    id: Mapped[int] = mapped_column(BIG, primary_key=True)
    what: Mapped[str | None] = mapped_column(Text)
    ours: Mapped[bool] = mapped_column(Boolean)


class NamedFlat(Named):
    __tablename__ = "things_flat"

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    what: Mapped[str | None] = mapped_column(Text)


class NamedThing(Named):
    __tablename__ = "things"

    id: Mapped[str] = mapped_column(Text, primary_key=True)
    what: Mapped[str | None] = mapped_column(Text)
    ours: Mapped[bool] = mapped_column(Boolean)


class PackedFlat(Packed):
    __tablename__ = "things_flat"

    id: Mapped[int] = mapped_column(BIG, primary_key=True)
    what: Mapped[str | None] = mapped_column(Text)


class Box(Packed):
    __tablename__ = "boxes"
    __table_args__ = (UniqueConstraint("what"),)

    id: Mapped[int] = mapped_column(BIG, primary_key=True)
    what: Mapped[str | None] = mapped_column(Text)


class PackedThing(Packed):
    __tablename__ = "things"

    id: Mapped[int] = mapped_column(BIG, primary_key=True)
    box: Mapped[int] = mapped_column(ForeignKey("boxes.id"))
    ours: Mapped[bool] = mapped_column(Boolean)


def _move(flat: str, model: Any, columns: Any, **more: Any) -> Moves:
    legacy = f"things_flat={__name__}:{flat}"
    return Moves(Move(legacy, model, name="things", key={"id": model.id}, columns=columns, marker=model.ours, **more))


BY_NUMBER = _move("ThingFlat", Thing, {Thing.what: "what"})
BY_TEXT = _move("NamedFlat", NamedThing, {NamedThing.what: "what"})
BOXED = _move("PackedFlat", PackedThing, {}, parts=[Parent(Box, link=PackedThing.box, by={Box.what: "what"})])


@contextlib.contextmanager
def opened(database: Database, moves: Moves = BY_NUMBER, **settings: Any) -> Iterator[ConsensusStore]:
    """A store of one of these moves, without soaks; its backups go when it is closed."""
    with tempfile.TemporaryDirectory() as folder:
        chosen = SETTINGS.model_copy(update={"backup_dir": Path(folder), **settings})
        with ConsensusStore.open(database.where, settings=chosen, moves=moves) as store:
            yield store


def stored(database: Database, table: str, columns: str = "id, what") -> list[tuple[Any, ...]]:
    """Rows of a table by raw SQL, every cell in type and bytes, in no order that a key would give."""
    names = [name.strip() for name in columns.split(",")]
    with database.judge.reading(database.where) as connection:
        found: list[tuple[Any, ...]] = database.judge.query(connection, names, f'FROM "{table}"')
        return sorted(found)
