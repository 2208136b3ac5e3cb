"""The end of a copy: one transaction in the target, which makes it a store like its source."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import Table, bindparam, insert, select

from consensus_orm.copying.definitions import ABROAD, Definition
from consensus_orm.copying.report import Unfit
from consensus_orm.copying.source import Source, State
from consensus_orm.copying.tables import Copied, normalized
from consensus_orm.copying.target import CHECKPOINTS, Target
from consensus_orm.databases import guard_record, saved_schema
from consensus_orm.databases.base import Cells
from consensus_orm.databases.engine import translated
from consensus_orm.databases.saved_rows import IMAGE, ROWS, cells, dropped
from consensus_orm.databases.saved_rows import image as image_of
from consensus_orm.databases.saved_schema import Entry
from consensus_orm.databases.sqlite.saved_schema import make
from consensus_orm.databases.state import moved
from consensus_orm.declaration.row_keys import encoded
from consensus_orm.ledgers import audit, rejects, signs
from consensus_orm.ledgers.binding import among, bound, milliseconds, stored
from consensus_orm.models.control import MigrationState, Reject
from consensus_orm.phase import Side
from consensus_orm.repository.carrying import settle
from consensus_orm.schema.application import Protection
from consensus_orm.statements.rendering import quoted
from consensus_orm.unit_of_work.unit import UnitOfWork

if TYPE_CHECKING:
    import sqlite3

__all__ = ["Remainder", "finish", "remainder", "set_phase"]

SAVED_ROWS = (
    select(Reject.pair, Reject.key, Reject.table_name, Reject.image)
    .where(Reject.state != "resolved", Reject.key.is_not(None))
    .order_by(Reject.id)
)


@dataclass(frozen=True)
class Remainder:
    """What is not copied row by row, read in the last snapshot of the source.

    Attributes:
        state: Where the migration stands.
        sequences: The highest id that each table has given.
        definitions: SQLite's definitions of the tables of other programs.
        saved: The saved definitions.
        left_behind: Rows that become rejects, each with its image.
    """

    state: State
    sequences: dict[str, int]
    definitions: list[Definition]
    saved: list[Entry]
    left_behind: list[tuple[Unfit, str]]


def remainder(
    source: Source, state: State, tables: list[Copied], definitions: list[Definition], unfit: list[Unfit]
) -> Remainder:
    """Read what is not copied row by row."""
    by_name = {table.name: table for table in tables}
    images = [(odd, image) for odd in unfit for image in source.images(by_name[odd.table], odd.key)]
    saved: list[Entry] = []
    if state.prepared:
        saved = saved_schema.entries(source)
    return Remainder(state, _sequences(source, state, tables, saved), definitions, saved, images)


def _sequences(source: Source, state: State, tables: list[Copied], saved: list[Entry]) -> dict[str, int]:
    """The highest id that each table has given; the same for both sides where these share a sequence."""
    names = [table.name for table in tables if table.is_numbered]
    given = {name: source.catalog.sequence(source, name) for name in names}
    kept = {entry.name.lower(): entry.sequence for entry in saved if entry.sequence is not None}
    for pair in source.statements.moves if state.phase.writes_normalized else ():
        own, legacy = pair.table.name, pair.legacy_name
        others = [given.get(own), given.get(legacy), kept.get(legacy.lower())]
        others.append(source.catalog.sequence(source, dropped(legacy)))
        highest = max((value for value in others if value is not None), default=None)
        given |= {name: highest for name in (own, legacy) if name in given or name == legacy}
    return {name: value for name, value in given.items() if value is not None and value > 0}


def finish(target: Target, source: Source, rest: Remainder, tables: list[Copied], facts: dict[str, Any]) -> None:
    """Make a store of the target, which holds all rows; `facts` go into the audit."""
    state = rest.state
    with target.unit(durable=True) as uow:
        restored = target.restored(uow)
        set_phase(uow, state, _user_version(uow, state, target.units.application.protection))
        rejected = list(_reject(uow, rest))
        _derive_again(uow, rest)
        _keep_definitions(uow, target, source, rest)
        for statement in restored:
            uow._execute(statement)
        _set_sequences(uow, target, rest)
        guard_record.install(uow, state.phase)
        if target.kind == "sqlite":
            _make_triggers(uow, rest, target.units.application.unmapped)
        if not state.phase.has_legacy:
            signs.put_up(uow)
        elif state.phase.writes_normalized:
            uow.catalog.legacy.remember(uow)
        audit.add(uow, "copy", **facts, rejects=len(rejected))
        uow._execute(f"DROP TABLE {CHECKPOINTS}")


def _user_version(uow: UnitOfWork, state: State, protection: Protection | None) -> int | None:
    """The user_version that a downgrade restores, of the target or of a copy back to SQLite: that of the source."""
    if protection is None:
        return None
    known = state.user_version if state.user_version in protection.older else None
    if uow.statements.rendering.name == "sqlite":
        protected = uow._rows("PRAGMA user_version")[0][0] == protection.version
        return (known or 0) if protected else None
    return known


_BEGIN = (
    insert(MigrationState)
    .inline()
    .values(**bound("id", "phase", "epoch", "since", "mapping", "soak", "certificate_max_age", "user_version", "moves"))
)


def set_phase(uow: UnitOfWork, state: State, user_version: int | None = None) -> None:
    """Open the database in the phase of its source."""
    facts = {
        "id": 1,
        "phase": state.phase.value,
        "epoch": state.epoch,
        "since": milliseconds(uow) if state.since is None else state.since,
        "mapping": guard_record.made_from(uow, state.phase),
        "soak": state.soak,
        "certificate_max_age": state.certificate_max_age,
        "user_version": user_version,
        "moves": moved(uow),
    }
    uow._execute(_BEGIN, facts)


_KNOWN = select(Reject.id).where(
    Reject.pair == bindparam("pair"),
    Reject.key == bindparam("key"),
    Reject.table_name == bindparam("table_name"),
    Reject.state == "open",
)
_LEFT_BEHIND = (
    insert(Reject)
    .inline()
    .values(**bound("id", "pair", "key", "table_name", "reason", "image", "found_at"), state="open")
)


def _reject(uow: UnitOfWork, rest: Remainder) -> Iterator[Unfit]:
    """Record the rows that were left behind as rejects, with their images."""
    number = max(rejects.newest(uow), rest.sequences.get("consensus_orm_rejects", 0))
    for odd, image in rest.left_behind:
        key = stored(uow, _pairs_key(uow, odd))
        if key is not None and uow._rows(_KNOWN, {"pair": odd.pair, "key": key, "table_name": odd.table}):
            continue  # it is a reject already
        number += 1
        facts = {"id": number, "pair": odd.pair, "key": key, "table_name": odd.table, "image": image}
        facts |= {"reason": f"{odd.column}: {odd.reason}", "found_at": milliseconds(uow)}
        uow._execute(_LEFT_BEHIND, facts)
        yield odd
    if number:
        uow.catalog.set_sequence(uow, "consensus_orm_rejects", number)


def _pairs_key(uow: UnitOfWork, odd: Unfit) -> Any:
    """The key of a row of a pair, as its ledgers have it; None of a row of another table."""
    pair = uow.statements.moves[odd.pair]
    for side in Side:
        if odd.table == pair.table_name(side) and odd.key is not None:
            if len(pair.keys) == 1:
                return odd.key
            table = pair.legacy_table if side is Side.LEGACY else pair.table
            values = dict(zip((of.name for of in table.primary_key.columns), odd.key, strict=True))
            return encoded([values[name] for name in pair.key_names(side)])
    return None


def _derive_again(uow: UnitOfWork, rest: Remainder) -> None:
    """Derive the parents of rows that were left behind again, from the rows that are there."""
    if not rest.state.prepared:
        return
    left = {parent for odd, _ in rest.left_behind for parent in odd.parents}
    settle(uow, uow.statements.parents.values(), left)


# Saved definitions ------------------------------------------------------------------------------------------


def _keep_definitions(uow: UnitOfWork, target: Target, source: Source, rest: Remainder) -> None:
    """Save the definitions that a rollback from CONTRACT, or a copy back, needs."""
    if target.kind == source.kind:
        kept: list[tuple[Any, ...]] = [*rest.saved]
    elif target.kind == "postgresql":
        abroad = [(ABROAD + d.type, d.name, d.table, d.sql, None) for d in rest.definitions]
        kept = [(place - len(abroad), *values) for place, values in enumerate(abroad)]
        kept += [(n, *values) for n, values in enumerate(_own_definitions(uow, rest), 1)]
    else:
        kept = [(n, *values) for n, values in enumerate(_definitions_back(uow, rest), 1)]
    for entry in kept:
        saved_schema.add(uow, Entry(*entry))


def _own_definitions(uow: UnitOfWork, rest: Remainder) -> Iterator[tuple[Any, ...]]:
    """The entries for PostgreSQL, where the renamed tables serve as definitions."""
    if rest.state.phase.has_legacy or not rest.state.reversible:
        return
    for pair in uow.statements.moves.of_tables(Side.LEGACY):
        name = pair.legacy_name
        yield "table", name, name, quoted(dropped(name)), rest.sequences.get(name)
    for name, row in _rows_aside(uow):
        yield IMAGE, name, name, image_of(row), None


def _definitions_back(uow: UnitOfWork, rest: Remainder) -> Iterator[tuple[Any, ...]]:
    """The entries for SQLite: the original definitions, with the highest ids of today."""
    if rest.state.phase.has_legacy or not rest.state.reversible:
        return
    legacy = {pair.legacy_name for pair in uow.statements.moves}
    there: list[Cells] = []
    for d in (d for d in rest.definitions if d.table in legacy):
        if d.type in ROWS:
            there.append(cells(d.type, d.table, d.sql))
        yield d.type, d.name, d.table, d.sql, rest.sequences.get(d.table) if d.type == "table" else None
    for name, row in _rows_aside(uow):
        if row not in there:
            yield IMAGE, name, name, image_of(row), None


def _rows_aside(uow: UnitOfWork) -> Iterator[tuple[str, Cells]]:
    """The images of rows that stand on the legacy side alone."""
    for name, key, table, kept in uow._rows(SAVED_ROWS):
        pair = uow.statements.moves[name]
        if table != pair.legacy_name or uow._rows(uow.statements[pair].present(Side.NORMALIZED), among([key])):
            continue
        wanted = {*pair.legacy_columns, *pair.only[Side.LEGACY]}
        row = {column: cell for column, cell in cells(IMAGE, table, kept).items() if column in wanted}
        if uow.statements.rendering.name == "sqlite" or all(_is_plain(*cell) for cell in row.values()):
            yield table, row


def _is_plain(kind: str, value: str) -> bool:
    """Whether every database can hold a value of an image; others stay in the image."""
    if kind == "text":
        data = bytes.fromhex(value)
        return b"\0" not in data and data.decode("utf-8", "replace").encode() == data
    return kind in ("null", "integer")


# Sequences and triggers -------------------------------------------------------------------------------------


def _set_sequences(uow: UnitOfWork, target: Target, rest: Remainder) -> None:
    there = {name.lower() for name in uow.catalog.tables(uow)}
    for name, highest in rest.sequences.items():
        if name == "consensus_orm_rejects":
            continue  # set by `_reject`
        for table in (name, dropped(name)):
            if table.lower() in there:
                uow.catalog.set_sequence(uow, table, highest)
    if target.kind == "postgresql" and rest.state.phase.has_legacy:
        uow.catalog.level_sequences(uow)


def _make_triggers(uow: UnitOfWork, rest: Remainder, unmapped: Iterable[Table]) -> None:
    """Recreate the triggers of other programs, now that all rows are there."""
    live = {pair.legacy_name.lower() for pair in uow.statements.moves} if rest.state.phase.has_legacy else set()
    known = live | {table.name.lower() for table in (*unmapped, *normalized(uow.statements.moves))}
    for d in rest.definitions:
        if d.type == "trigger" and d.table.lower() in known:
            with translated(uow.engine):
                make(cast("sqlite3.Connection", uow._connected), d.type, d.table, d.sql)
