"""The contraction, the step to CONTRACT: the legacy tables are put away, emptied in chunks, and dropped.

The flip saves their definitions and renames them out of the way, which takes milliseconds. The next call continues an
emptying that was interrupted. `way_back` makes the tables again exactly.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from consensus_orm.databases import saved_schema, state
from consensus_orm.databases.saved_rows import DROPPED, IMAGE
from consensus_orm.databases.saved_schema import Entry
from consensus_orm.declaration.move import Move
from consensus_orm.ledgers import changes, rejects, signs
from consensus_orm.migration import keyless
from consensus_orm.migration.flip import flip
from consensus_orm.migration.pace import in_chunks
from consensus_orm.migration.transactions import Transactions
from consensus_orm.phase import Phase, Side
from consensus_orm.progress import Tally, Watch
from consensus_orm.statements.rendering import quoted
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["contract", "empty_dropped"]


def contract(uow: UnitOfWork, *, reason: str | None, forced: bool, **detail: object) -> None:
    """Put the legacy tables away and flip to CONTRACT; the gate of NORMALIZED is open, under the same lock."""
    _save_schema(uow)
    flip(uow, Phase.CONTRACT, action="advance", reason=reason, forced=forced, **detail)
    for pair in uow.statements.mapping.of_tables(Side.LEGACY):
        uow.catalog.legacy.put_away(uow, pair)
    signs.put_up(uow)
    # What was recorded for the way back has no legacy side to go to any more.
    changes.forget_all(uow)
    state.put_step(uow, state.EMPTYING)


def _save_schema(uow: UnitOfWork) -> None:
    """Save the definitions and sequences of the legacy tables, and the rows that the normalized side does not have."""
    saved_schema.forget(uow)
    position = 0
    mapping = uow.statements.mapping
    for pair in mapping.of_tables(Side.LEGACY):
        table = pair.legacy_table.name
        saved: list[tuple[str, str, str, int | None]] = uow.catalog.legacy.save(uow, pair)
        saved += [
            (IMAGE, table, row, None) for of in mapping.sharing(pair, Side.LEGACY) for row in _of_legacy_alone(uow, of)
        ]
        for kind, name, sql, sequence in saved:
            position += 1
            saved_schema.add(uow, Entry(position, kind, name, table, sql, sequence))


def _of_legacy_alone(uow: UnitOfWork, pair: Move) -> Iterator[str]:
    """The rows that only the legacy side has, whole: those that could not be carried, or have no usable key."""
    names, sql = uow.statements[pair].image(Side.LEGACY)
    alone = sorted(rejects.on_one_side(uow, pair, Side.LEGACY), key=str)
    found = [rejects.as_image(names, uow._execute(sql, {"_key": key}).fetchone()) for key in alone]
    for image in (*found, *keyless.images(uow, pair, Side.LEGACY)):
        yield json.dumps({name: image[name] for name in (*pair.legacy_columns, *pair.only[Side.LEGACY])})


def empty_dropped(writing: Transactions, progress: Watch = None) -> None:
    """Empty the tables that were put away in chunks, then drop them; does nothing where there are none."""
    while (name := writing.run(_next_away)) is not None:
        tally = Tally(progress, f"emptying {name.removeprefix(DROPPED)}")

        def chunk(uow: UnitOfWork, size: int, name: str = name, tally: Tally = tally) -> tuple[None, int] | None:
            if name not in uow.catalog.legacy.away(uow):
                return None
            tally.expect(lambda: uow._rows(f"SELECT count(*) FROM {quoted(name)}")[0][0])
            return None, uow.catalog.legacy.empty(uow, name, size)

        for _ in in_chunks(writing, tally, chunk):
            pass


def _next_away(uow: UnitOfWork) -> str | None:
    """A table that was put away; where there is none left, the step is over."""
    names = uow.catalog.legacy.away(uow)
    if not names and state.step(uow) == state.EMPTYING:
        state.put_step(uow, None)
    return names[0] if names else None
