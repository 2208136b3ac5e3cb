"""What moves must say before anything is made of them: what can be known here is never found later.

Each fault is a `ConfigurationError` that names the move and the column. What depends on a live database is looked at by
the gate of EXPAND; what a database cannot say in SQL is refused when the statements are made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from sqlalchemy import JSON, Boolean, Column, Enum, Float, Integer, String, Table
from sqlalchemy.sql.elements import ColumnClause
from sqlalchemy.types import NullType

from consensus_orm import errors
from consensus_orm.declaration.attributes import column_of, leads_an_index, unique_sets
from consensus_orm.declaration.expressions import json_at
from consensus_orm.declaration.move import Move
from consensus_orm.declaration.parts import Many, Parent
from consensus_orm.declaration.rules import Latest, columns_of, expression, original_name, spelled
from consensus_orm.declaration.stored_types import DIALECTS
from consensus_orm.phase import Side

__all__ = ["has_value", "validate"]


def validate(moves: Sequence[Move], dialects: Sequence[str]) -> None:
    """Refuse moves that cannot be made as they are declared.

    Args:
        moves: All moves of a database.
        dialects: The kinds of databases that they are for.

    Raises:
        ConfigurationError: One cannot be made; the message names it, and the column.
    """
    if unknown := sorted({*dialects} - {*DIALECTS}) or not dialects:
        raise errors.ConfigurationError(
            f"moves are declared for the databases {unknown or 'of no kind'}",
            hint=f"name some of: {', '.join(DIALECTS)}",
        )
    _names(moves)
    for move in moves:
        _called(move)
        _key(move)
        _constants(move)
        _parts(move)
        _items(move)
        _rules(move)
        for parent in move.parents:
            _parent(move, parent)
        _filled(move)
        _ordered(move)
        _json(move, dialects)
        if move.knows_legacy:
            _ = move.legacy_table  # which is checked where it is first asked for
        _references(move)
    _shared(moves)
    _order(moves)


# One declaration ------------------------------------------------------------------------------------------


def _references(move: Move) -> None:
    """Refuse references of rows to others of their table that cannot be carried, or not back."""
    found = {side: {of.columns[side]: of for of in move.references(side)} for side in Side if _knows(move, side)}
    for side in found:
        for names, of in found[side].items():
            other = found.get(side.other, {}).get(of.columns[side.other])
            theirs = ("NO ACTION", "NO ACTION") if other is None else (other.on_delete, other.on_update)
            if side.other in found and (of.on_delete, of.on_update) != theirs:
                raise move.fault(
                    names[0],
                    f"a row that {', '.join(names)} of {move.table_name(side)} refers to is deleted or gets another key"
                    f" with another effect than on the {side.other} side",
                    "declare one ON DELETE and one ON UPDATE on both sides",
                )
    for part in move.parts:
        for key in part.table.foreign_keys:
            if key.column.table is move.table and key.parent is not part.by:
                raise move.fault(
                    key.parent.name,
                    f"{key.parent} of a part refers to other rows of {move.table.name}, which may be carried later",
                    "leave this foreign key out until CONTRACT, and add it then",
                )


def _knows(move: Move, side: Side) -> bool:
    return side is Side.NORMALIZED or move.knows_legacy


def _names(moves: Sequence[Move]) -> None:
    for name, times in Counter(move.name for move in moves).items():
        if times > 1:
            raise errors.ConfigurationError(
                f"{times} moves are called {name!r}", hint="give each move a name of its own: Move(..., name=...)"
            )


def _called(move: Move) -> None:
    """Refuse a table that is called what rows are called in a trigger or an upsert: there it would be taken for one."""
    beside = [part.table.name for part in move.parts] + [many.table.name for many in move.children]
    for name in (move.legacy_name, move.table.name, *(parent.table.name for parent in move.parents), *beside):
        if name.lower() in ("new", "old", "excluded"):
            raise move.fault(
                "", f"SQL takes the name {name} for a row of a trigger or an upsert", "give that table another name"
            )


def _order(moves: Sequence[Move]) -> None:
    """Refuse a move whose tables refer to those of a later one: rows are carried in the order of the moves."""
    for number, move in enumerate(moves):
        tables = [move.table, *([move.legacy_table] if move.knows_legacy else [])]
        referred = {key.column.table for table in tables for key in table.foreign_keys}
        for later in moves[number + 1 :]:
            if not referred.isdisjoint({later.table, *([later.legacy_table] if later.knows_legacy else [])}):
                raise move.fault(
                    later.name,
                    f"its rows refer to rows of {later.name}, which is carried after them",
                    f"declare {later.name} before {move.name}",
                )


def _constants(move: Move) -> None:
    """Refuse a column of `only` that no row can have, or that is said to hold something else too."""
    own, legacy = move.only[Side.NORMALIZED], move.only[Side.LEGACY]
    rules = (*move.computed.values(), *move.above.values(), *move.beside.values())
    spoken = {of.name for rule in rules for of in columns_of(rule)}
    filled = {of.name for of in (*move.keys, *move.carried.values(), *move.computed) if of.table is move.table}
    for name in own:
        if name in filled:
            raise move.fault(name, f"{move.table.name}.{name} is both in `only` and filled", "name it in one place")
    for name in legacy:
        if name in {*move.legacy_columns, *move.without, *spoken}:
            raise move.fault(
                name,
                f"{name} holds one constant in all rows, by `only`, and is named by another rule, too",
                "write the constant there instead",
            )


def _key(move: Move) -> None:
    """Refuse a key whose image may name several rows."""
    first = move.keys[0].name
    if any(of.table is not move.table for of in move.keys):
        raise move.fault(first, f"its key is not in {move.table.name}", "declare columns of the normalized class")
    if not move.unique:
        names = ", ".join(of.name for of in move.keys)
        wanted = ", ".join([names, *sorted(move.only[Side.NORMALIZED])])
        raise move.fault(
            first,
            f"{names} of {move.table.name}, the image of its key, is not declared unique",
            f"declare it as primary key, or a UniqueConstraint of exactly these columns: {wanted}",
        )
    if move.beside_rows and len(move.keys) > 1:
        raise move.fault(
            first,
            f"it has parts, which refer to their row by one column, and a key of {len(move.keys)}",
            "let its rows have a key of one column, or carry these columns in the table itself",
        )


def _rules(move: Move) -> None:
    """Refuse rules that speak of the wrong side."""
    parents = [parent.at for parent in move.parents]
    parts = [part.table for part in move.parts]
    ours = {table.name for table in (move.table, *(parent.table for parent in move.parents), *parts)}
    conditions = [(part.by, expression(part.when)) for part in move.parts if part.when is not None]
    for target, rule in (*move.computed.items(), *move.above.items(), *move.beside.items(), *conditions):
        for of in columns_of(rule):
            if (table := _table(of)) in ours and table != move.legacy_name:
                raise move.fault(
                    target.name,
                    f"the rule of {target.name} speaks of {table}.{of.name}, which is on the normalized side",
                    "say with legacy columns what a normalized column holds",
                )
    for name, rule in (*move.restored.items(), *move.adopted.items()):
        kept = {original_name(kept) for kept in move.lossy_columns}
        for of in columns_of(rule):
            if _table(of) not in {move.table.name, *(table.name for table in parts)} and of.name not in kept:
                raise move.fault(
                    name,
                    f"the way back of {name} speaks of {of.name}, which is no column of {move.table.name}",
                    "say with normalized attributes what a legacy column holds",
                )
    for target in (*move.computed, *move.carried.values(), *move.above, *move.beside):
        if target.table not in (move.table, *parents, *parts):
            raise move.fault(
                target.name,
                f"{target.table.name}.{target.name} is no column of {move.table.name}, its parents or its parts",
                "fill columns of the normalized class in `columns`, and those of a parent or a part there",
            )


def _parts(move: Move) -> None:
    """Refuse parts that are not found by the key of their row, or that fill columns of another table."""
    referred = [move.keys[0]]  # or the key of a part that is written before: classes may inherit in several levels
    for part in move.parts:
        name, key = part.by.name, f"{move.table.name}.{move.keys[0].name}"
        if part.by.table is not part.table:
            raise move.fault(name, f"{part.by} is no column of {part.table.name}", "name one of its own in `by`")
        if not any(each.column is key_of for each in part.by.foreign_keys for key_of in referred):
            raise move.fault(
                name,
                f"{part.table.name}.{name} does not refer to {key}, the key of its row",
                f"declare a foreign key: ForeignKey({key!r})",
            )
        if not _is_unique(part.table, {name}):
            raise move.fault(
                name,
                f"{part.table.name}.{name} is not unique, so a row may have several of this part",
                "make it the primary key, or declare it unique",
            )
        referred.append(part.by)
        for targets in part.columns:
            for target in targets if isinstance(targets, tuple) else (targets,):
                if (of := column_of(target)).table is not part.table or of is part.by:
                    hint = "fill its own columns in a Part, and no others"
                    raise move.fault(of.name, f"{of} is filled by the part {part.table.name}", hint)


def _json(move: Move, dialects: Sequence[str]) -> None:
    """Refuse paths and types of JSON that a database cannot read exactly."""
    for target, rule in (*move.computed.items(), *move.beside.items()):
        if not isinstance(rule, json_at):
            continue
        of = next(iter(rule.clauses))
        if not isinstance(target.type, String | Integer | Float | Boolean | JSON) or isinstance(target.type, Enum):
            raise move.fault(
                target.name,
                f"{target.table.name}.{target.name} is {target.type!r}, and no type of a value in JSON",
                "let it be a text, an integer, a float, a boolean or JSON",
            )
        if any(not name or set(name) & {*'"\\', *map(chr, range(32))} for name in rule.path):
            raise move.fault(target.name, f"{'.'.join(rule.path)!r} is no path of names", "write a.b without quotes")
        if "postgresql" in dialects and not isinstance(of.type, JSON | NullType):
            raise move.fault(
                of.name,
                f"{of.name} is {of.type!r}, in which postgresql cannot tell JSON from other texts",
                'declare it as JSON, or the moves for one database: Moves(..., dialects=["sqlite"])',
            )


def _items(move: Move) -> None:
    """Refuse tables of items that cannot be found by the key of their row, or hold no texts in an order."""
    for source, many in move.listed.items():
        name, key = many.by.name, f"{move.table.name}.{move.keys[0].name}"
        if many.by.table is not many.table or not any(each.column is move.keys[0] for each in many.by.foreign_keys):
            raise move.fault(
                name,
                f"{many.by} is no column of {many.table.name} that refers to {key}, the key of its row",
                f"declare a foreign key: ForeignKey({key!r})",
            )
        if not leads_an_index(many.by):
            raise move.fault(
                name,
                f"no index begins with {many.by}, so the items of each row are looked for in the whole table",
                "declare it with index=True",
            )
        if len(many.table.primary_key) != 1:
            raise move.fault(
                name,
                f"the key of {many.table.name} has {len(many.table.primary_key)} columns; backups name rows by one",
                "give it a key of its own, and make the other columns unique together",
            )
        if many.position.table is not many.table or not isinstance(many.position.type, Integer):
            raise move.fault(many.position.name, f"{many.position} is no number in {many.table.name}", "let it be one")
        _item(move, source, many)
        for table in many.table.metadata.tables.values():
            if table is not many.table and any(each.column.table is many.table for each in table.foreign_keys):
                raise move.fault(
                    name,
                    f"{table.name} refers to {many.table.name}, whose rows are replaced where items change",
                    "let it refer to the row that has the items",
                )


def _item(move: Move, source: str, many: Many) -> None:
    holder = many.table if many.parent is None else many.parent.table
    if len(many.parents) > 1:
        raise move.fault(many.item.name, f"the items of {source} have several parents", "give one Parent")
    if many.item.table is not holder or not isinstance(many.item.type, String) or isinstance(many.item.type, Enum):
        raise move.fault(many.item.name, f"{many.item} is no text in {holder.name}", "name the column of the items")
    if many.parent is None:
        return
    if [*many.parent.identity] != [many.item] or many.parent.columns or many.parent.derived:
        raise move.fault(many.item.name, f"{holder.name} is found by more than the item", "give it `by` the item alone")
    if not _is_unique(holder, {many.item.name}):
        raise move.fault(many.item.name, f"{many.item} is not unique", "declare it unique")
    if many.link is None or many.link.table is not many.table:
        raise move.fault(many.item.name, f"{many.link} is no column of {many.table.name}", "link a column of it")


def _filled(move: Move) -> None:
    """Refuse a table with a column that must hold a value, and that nothing fills."""
    filled = {*move.keys, *move.links, move.marker, move.own_id, *move.carried.values(), *move.computed, *move.above}
    filled |= {move.table.c[name] for name in move.only[Side.NORMALIZED]}
    filled |= {*move.beside, *(part.by for part in move.beside_rows)}
    filled |= {of for many in move.children for of in (many.position, many.item, many.link)}
    filled |= {table.autoincrement_column for table in move.tables_beside}
    wanted = [of for table in (move.table, *move.tables_beside) for of in table.columns if of not in filled]
    for parent in move.parents:
        made = {parent.key, *parent.derived_columns}
        wanted += [of for of in parent.table.columns if of not in made and parent.standing(of) not in filled]
    for of in wanted:
        if of.nullable or has_value(of):
            continue
        raise move.fault(
            of.name,
            f"nothing fills {of.table.name}.{of.name}, which is NOT NULL",
            "fill it in `columns`, or give it a server_default",
        )


def has_value(of: Column[Any]) -> bool:
    """Whether a column holds a value that nobody gives."""
    is_constant = of.default is not None and of.default.is_scalar
    return is_constant or of.server_default is not None or of.computed is not None


def _ordered(move: Move) -> None:
    """Refuse an order of rows by a column that does not follow from the legacy row, and so has none on that side."""
    newest = move.newest
    if newest is not None and newest not in {*move.carried.values(), *move.computed}:
        raise move.fault(
            newest.name,
            f"rows are ordered by {newest.table.name}.{newest.name}, which no legacy column fills",
            "name a column that `columns` fills",
        )


def _parent(move: Move, parent: Parent) -> None:
    if parent.refers.table is not move.table:
        raise move.fault(
            parent.link.key, f"{parent.link} is no column of {move.table.name}", "link a column of the move"
        )
    if move.links.count(parent.refers) > 1:
        raise move.fault(parent.link.key, f"{parent.link} refers to two parents", "give each parent a link of its own")
    wanted = {of.name for of in parent.identity}
    if not _is_unique(parent.table, wanted):
        raise move.fault(
            ", ".join(sorted(wanted)),
            f"{parent.table.name} has no unique index of the columns that tell its rows apart: {sorted(wanted)}",
            "declare a UniqueConstraint of exactly the columns in `by`",
        )


def _shared(moves: Sequence[Move]) -> None:
    """Refuse moves that write one table without telling their rows apart, or see one parent in two ways."""
    for one, other in combinations(moves, 2):
        for side in Side:
            if one.table_name(side) == other.table_name(side):
                _told_apart(one, other, side)
    for move in moves:
        if move.legacy_name in (move.table.name, *(parent.table.name for parent in move.parents)):
            raise errors.ConfigurationError(
                f"both sides of {move.name!r} have a table {move.legacy_name}, which schemas do not tell apart",
                hint="give the normalized table a name of its own",
                table=move.legacy_name,
            )
    tables = Counter(part.table.name for move in moves for part in move.beside_rows)
    tables.update({move.table.name for move in moves} | {of.table.name for move in moves for of in move.parents})
    for owner, part in ((move, part) for move in moves for part in move.beside_rows):
        if tables[part.table.name] > 1:
            raise owner.fault(
                part.by.name,
                f"the part {part.table.name} is named twice, or is the table of another move",
                "let each part have a table of its own",
            )
    seen: dict[str, tuple[Move, Any]] = {}
    parents = [(move, parent) for move in moves for parent in move.parents]
    for move, parent in parents:
        first, said = seen.setdefault(parent.table.name, (move, _said(parent)))
        if said != _said(parent):
            raise errors.ConfigurationError(
                f"moves {first.name!r} and {move.name!r} share the parent {parent.table.name} and say different"
                " things of it",
                hint="let both tell its rows apart by the same columns, and derive the same columns",
                table=parent.table.name,
            )
    names = {move.name for move in moves}
    for move, parent in parents:
        for of, rule in parent.derived_columns.items():
            if isinstance(rule, Latest) and rule.move not in names:
                raise move.fault(
                    of.name,
                    f"{of.table.name}.{of.name} is derived from the move {rule.move!r}, which is not declared",
                    "declare that move too, or derive the column from another one",
                )


def _told_apart(one: Move, other: Move, side: Side) -> None:
    table = one.table_name(side)
    differ = [
        name
        for name, value in one.only[side].items()
        if name in other.only[side] and not value.compare(other.only[side][name])
    ]
    if not differ:
        raise errors.ConfigurationError(
            f"moves {one.name!r} and {other.name!r} have the {side} table {table}, and nothing tells their rows apart",
            hint="give both `only` with the column whose value does, or declare one move for it",
            table=table,
        )
    key = {of.name for of in one.keys}
    if side is Side.NORMALIZED and one.legacy_name != other.legacy_name and _is_unique(one.table, key):
        names = ", ".join(of.name for of in one.keys)
        raise one.fault(
            one.keys[0].name,
            f"{table}.{names} holds keys of {one.legacy_name} and of {other.legacy_name}, which may be equal",
            f"let another column hold them, with a UniqueConstraint of it and {', '.join(sorted(differ))}",
        )


# What is read off it --------------------------------------------------------------------------------------


def _said(parent: Parent) -> Any:
    derived = {
        of.name: [rule.move, spelled(expression(rule.value)), rule.otherwise] if isinstance(rule, Latest) else []
        for of, rule in parent.derived_columns.items()
    }
    return {of.name for of in parent.identity}, derived


def _table(of: ColumnClause[Any]) -> str | None:
    return getattr(of.table, "name", None)


def _is_unique(table: Table, names: set[str]) -> bool:
    return any({of.name for of in columns} == names for columns in unique_sets(table))
