"""The tables of a store that are copied, parents before the tables that refer to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Table

from consensus_orm import errors
from consensus_orm.copying.values import Field, Held, Values, field_of
from consensus_orm.databases.guard_record import normalized_tables
from consensus_orm.declaration.attributes import table_of
from consensus_orm.declaration.move import Move
from consensus_orm.declaration.moves import Moves
from consensus_orm.declaration.parts import Parent
from consensus_orm.models import control
from consensus_orm.phase import Side
from consensus_orm.schema.application import Application
from consensus_orm.statements.rendering import quoted
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["Copied", "inventory", "made_elsewhere", "normalized"]

LEDGERS = (
    control.PhaseChange,
    control.Mismatch,
    control.Reject,
    control.RowImage,
    control.BackfillCheckpoint,
    control.Change,
)
"""The control tables that are copied row by row. Phase and saved definitions are set at the end; certificates are not
copied, since they apply to the database in which they were issued."""


@dataclass(frozen=True)
class Copied:
    """A table that is copied.

    Attributes:
        name: Its name.
        fields: Its columns, those of the key first.
        pair: The pair under which its rejects are listed.
        width: How many columns the key has.
        links: The indexes of the columns that refer to parents, each with the table that it refers to.
    """

    name: str
    fields: tuple[Field, ...]
    pair: str
    width: int = 1
    links: tuple[tuple[int, str], ...] = ()

    @property
    def key(self) -> tuple[Field, ...]:
        """The columns of the key."""
        return self.fields[: self.width]

    @property
    def is_numbered(self) -> bool:
        """Whether the key is a number, of which a table gives the next."""
        return self.width == 1 and self.fields[0].held is Held.INTEGER

    def key_of(self, row: Values) -> Any:
        """The key of a row: its value, or several as a tuple."""
        return row[0] if self.width == 1 else row[: self.width]

    def key_values(self, key: Any) -> tuple[Any, ...]:
        """The values of the columns of a key."""
        return (key,) if self.width == 1 else tuple(key)

    @property
    def columns(self) -> str:
        """The quoted columns, separated by commas."""
        return ", ".join(quoted(field.name) for field in self.fields)


def inventory(source: UnitOfWork, *, prepared: bool, unmapped: Sequence[Table], extras: bool) -> list[Copied]:
    """List the tables of a store.

    Args:
        source: Reads the catalog.
        prepared: Whether there are other tables than the legacy ones.
        unmapped: The tables of the application that are not in the moves.
        extras: Whether the target accepts unknown columns.

    Raises:
        CopyError: A column has no place in the target.
    """
    moves, there = source.statements.moves, {name.lower() for name in source.catalog.tables(source)}
    found: list[Copied] = []
    if prepared:
        found += [_parents_table(parent, moves) for parent in moves.parents]
        found += [_pairs_table(pair) for pair in moves.of_tables(Side.NORMALIZED)]
        beside = {table: pair.name for pair in moves for table in pair.tables_beside}
        found += [Copied(table.name, _fields(table), name) for table, name in beside.items()]
        found += [_originals_of(pair, table) for pair in moves if (table := pair.originals) is not None]
        found = [table for table in found if table.name.lower() in there]
    for pair in moves.of_tables(Side.LEGACY) if source.phase.has_legacy else ():
        if pair.legacy_name.lower() in there:
            fields = _fields_there(source, pair.legacy_table, extras=extras)
            found.append(Copied(pair.legacy_name, fields, pair.name, _width(pair.legacy_table)))
    for table in (table for table in unmapped if table.name.lower() in there):
        fields = _fields_there(source, table, extras=extras, unused=False)
        found.append(_listed_under_first(moves, table, fields))
    if prepared:
        found += [_listed_under_first(moves, t, _fields(t)) for t in map(table_of, LEDGERS)]
    return found


def normalized(moves: Moves) -> list[Table]:
    """The normalized tables, parents first, and the originals that belong to their rows."""
    return [*normalized_tables(moves), *moves.originals]


def made_elsewhere(application: Application, moves: Moves) -> list[Table]:
    """The tables beside the legacy ones that other programs make or alter, so that revisions do not define them."""
    return [*application.unmapped, *(() if application.is_known_to_revisions else normalized(moves))]


def _listed_under_first(moves: Moves, table: Table, fields: tuple[Field, ...]) -> Copied:
    return Copied(table.name, fields, next(iter(moves)).name, _width(table))


def _width(table: Table) -> int:
    """How many columns tell the rows of a table apart, which come first."""
    return max(1, len(table.primary_key.columns))


def _parents_table(parent: Parent, moves: Moves) -> Copied:
    return Copied(parent.table.name, _fields(parent.table), moves.members(parent)[0].name)


def _originals_of(pair: Move, table: Table) -> Copied:
    return Copied(table.name, _fields(table), pair.name, _width(table))


def _pairs_table(pair: Move) -> Copied:
    fields = _fields(pair.table)
    places = {field.name: place for place, field in enumerate(fields)}
    links = tuple((places[parent.refers.name], parent.table.name) for parent in pair.parents)
    return Copied(pair.table.name, fields, pair.name, _width(pair.table), links=links)


def _fields(table: Table) -> tuple[Field, ...]:
    return tuple(sorted(map(field_of, table.columns), key=lambda field: not table.columns[field.name].primary_key))


def _fields_there(source: UnitOfWork, table: Table, *, extras: bool, unused: bool = True) -> tuple[Field, ...]:
    """The existing columns of a table that other programs made or altered; without `unused`, those that hold values."""
    there = {source.catalog.folded(name): name for name in source.catalog.columns(source, table.name)}
    names = {source.catalog.folded(field.name): field for field in _fields(table)}
    known = [field for name, field in names.items() if name in there]
    unknown = sorted(own for name, own in there.items() if name not in names)
    if unknown and not extras:
        raise errors.CopyError(
            f"{table.name} has a column {unknown[0]!r:.60} that is not declared: the target has no place for it",
            hint="nothing was written; drop the column; only a file is copied with it, to a file",
            table=table.name,
            column=unknown[0],
        )
    used = [field for field in known if extras or unused or _is_used(source, table, field)]
    return (*used, *(Field(name, Held.ANYTHING) for name in unknown))


def _is_used(source: UnitOfWork, table: Table, field: Field) -> bool:
    """Whether a column holds a value, or must."""
    if field.required:
        return True
    return bool(source._rows(f"SELECT 1 FROM {quoted(table.name)} WHERE {quoted(field.name)} IS NOT NULL LIMIT 1"))
