"""A small move of an application: notes, whose body becomes their text. The legacy name has capital letters."""

from __future__ import annotations

from sqlalchemy import Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from consensus_orm import Move, Moves
from consensus_orm.models.base import BIG

__all__ = ["MOVES", "Base", "Flat", "Note"]


class Base(DeclarativeBase):
    pass


class Flat(Base):
    __tablename__ = "Notes_Flat"

    id: Mapped[int] = mapped_column(BIG, primary_key=True)
    body: Mapped[str | None] = mapped_column(Text)


class Note(Base):
    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(BIG, primary_key=True)
    text: Mapped[str | None] = mapped_column(Text)


MOVES = Moves(Move(Flat, Note, name="notes", key={Flat.id: Note.id}, columns={Note.text: Flat.body}))
