"""Verify: the comparison of both sides, every row and column, in both directions; and the certificate of what it saw.

The rows are read in one snapshot, in ranges of keys, without keeping writers waiting. What seems to differ is read
again under the lock before it counts. A certificate says how much was compared, so that a verify that compared nothing
certifies nothing; and each table is also counted without ranges in the same snapshot, so that a row which lies in none
of them is reported as missed.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from consensus_orm import errors
from consensus_orm._version import __version__
from consensus_orm.declaration.move import Move
from consensus_orm.declaration.parts import Parent
from consensus_orm.events import ComparisonEvent
from consensus_orm.ledgers import backfill_progress, certificates, guards, mismatches, rejects
from consensus_orm.ledgers.binding import Key, among, keys_of, milliseconds
from consensus_orm.ledgers.selection import Selection
from consensus_orm.migration import keyless
from consensus_orm.migration.ranges import Counted, Look, Ranges, Readers, TableStatements
from consensus_orm.migration.transactions import Transactions, connections
from consensus_orm.phase import Phase, Side
from consensus_orm.progress import Tally, Watch
from consensus_orm.statements.pairs import PairStatements
from consensus_orm.statements.parents import ParentStatements
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["Counted", "Difference", "Seen", "VerifyReport", "require_two_sides", "scan", "verify"]

READERS = min(2, os.cpu_count() or 1)
"""Units of work that compare at the same time; beside writers, more than two gain nothing on two cores (measured)."""


@dataclass(frozen=True)
class Difference:
    """One row that differs.

    Attributes:
        pair: Its pair, or the name of a parent table.
        key: Its key.
        columns: The differing columns; empty where the row as a whole is missing on one side.
        kind: different, missing_legacy, missing_normalized, or derived (of a parent).
    """

    pair: str
    key: Key
    columns: tuple[str, ...]
    kind: str


@dataclass(frozen=True)
class VerifyReport:
    """What a verify saw.

    Attributes:
        phase: The phase it saw.
        legacy_rows: Rows on the legacy side.
        normalized_rows: Rows on the normalized side.
        compared: Rows compared column by column.
        differences: The rows that differ, confirmed under the lock.
        not_carried: Legacy rows that the backfill has not reached yet: they do not differ, and are not compared.
        missed: Tables with rows that the verify cannot account for: they were not compared, and are no rejects.
        rejects: Rejects that await a decision.
        certificate: Number of the certificate.
        seconds: How long it took.
    """

    phase: Phase
    legacy_rows: int
    normalized_rows: int
    compared: int
    differences: tuple[Difference, ...]
    not_carried: int
    missed: tuple[Counted, ...]
    rejects: int
    certificate: int
    seconds: float

    @property
    def clean(self) -> bool:
        """Whether nothing differs, and every row was compared; on the way back rejected rows count as missed, too."""
        left_behind = self.rejects if self.phase.truth is Side.NORMALIZED else 0
        return not (self.differences or self.not_carried or self.missed or left_behind)


Counting = str | tuple[str, Side]
"""What is counted: the rows of a move on a side, or the table of a parent."""


@dataclass
class Seen:
    """What a scan counted, and the keys of rows and of parents that seem to differ."""

    changes: int = 0
    epoch: int = 0
    last_mismatch: int = 0
    last_reject: int = 0
    counted: dict[Counting, Counted] = field(default_factory=dict)
    aside: dict[str, dict[Side, set[Key]]] = field(default_factory=dict)
    doubtful: dict[str, list[Key]] = field(default_factory=dict)
    parents: dict[str, list[Key]] = field(default_factory=dict)

    @property
    def missed(self) -> tuple[Counted, ...]:
        """The tables with rows that the scan cannot account for."""
        return tuple(table for table in self.counted.values() if table.missed)

    def of(self, moves: Iterable[Move], side: Side) -> list[Counted]:
        """What was counted of the rows of some moves on a side; tables that do not exist are left out."""
        return [self.counted[move.name, side] for move in moves if (move.name, side) in self.counted]


def verify(reading: Transactions, writing: Transactions, progress: Watch = None) -> VerifyReport:
    """Compare both sides whole, record what differs, and certify what was seen; see `Migration.verify`.

    Raises:
        WrongPhaseError: There are no two sides to compare.
        PhaseChangedError: The phase changed meanwhile; what was seen counts no more.
        GuardsBrokenError: A guard of the phase is not in place: writes go unnoticed, so nothing can be certified.
    """
    started = time.monotonic()
    seen = reading.repeat(lambda: scan(reading, progress))
    return writing.run(lambda uow: _conclude(uow, seen, started))


def scan(reading: Transactions, progress: Watch = None, selection: Selection | None = None) -> Seen:
    """Compare both sides in one snapshot, and write nothing; refuses a phase without two sides.

    Args:
        reading: Opens a reading unit of work.
        progress: Called after each chunk.
        selection: Its table is compared, without parents; otherwise both sides whole.
    """
    with reading() as uow:
        require_two_sides(uow.phase)
        seen = Seen(
            changes=uow.catalog.last_change(uow),
            epoch=uow.epoch,
            last_mismatch=mismatches.newest(uow),
            last_reject=rejects.newest(uow),
        )
        for pair in uow.statements.moves:
            if uow.phase.has_legacy:
                seen.aside[pair.name] = {side: rejects.on_one_side(uow, pair, side) for side in Side}
            else:
                seen.counted[pair.name, Side.NORMALIZED] = _alone(uow, pair)
        tables = _Tables(uow, selection.pairs(uow) if selection and selection.table is not None else None)
        if not uow.catalog.keeps_writers_waiting(uow):
            with _several(reading, uow) as others:
                readers = Readers(others, lambda: contextlib.nullcontext(uow._rows))
                _look_through(uow, tables, readers, seen, progress)
            return seen
        tables.look_ahead()

    # Without WAL no writer can commit past a reader. So each statement has a snapshot of its own: it sees both rows of
    # a pair, a write in between is compared by its writer or recorded by a trigger, and differences are confirmed.
    def look(sql: str, parameters: Any = ()) -> list[tuple[Any, ...]]:
        with reading() as alone:
            return alone._rows(sql, parameters)

    @contextlib.contextmanager
    def moment() -> Iterator[Look]:
        with reading() as alone:
            yield alone._rows

    _look_through(uow, tables, Readers([look] * READERS, moment), seen, progress)
    return seen


def _alone(uow: UnitOfWork, pair: Move) -> Counted:
    """The rows of a normalized side without a legacy side: those that can be read, and the others."""
    sql = uow.statements[pair]
    rows, readable = (uow._rows(count)[0][0] for count in (sql.all_rows(Side.NORMALIZED), sql.readable_rows))
    left_out = keyless.count(uow, pair, Side.NORMALIZED) if rows != readable else 0
    return Counted(pair.table.name, rows, readable, left_out)


@contextlib.contextmanager
def _several(reading: Transactions, uow: UnitOfWork) -> Iterator[list[Look]]:
    """Units of work that compare at the same time: SQLite releases the interpreter lock while it works.

    On PostgreSQL all see the snapshot of the first. On SQLite their snapshots may differ by a write, and nothing is
    lost by that: a row and its counterpart are compared in the same one, and a write in between is compared by the
    repositories, or recorded by a trigger.
    """
    with contextlib.ExitStack() as stack:
        others = [stack.enter_context(reading()) for _ in range(min(READERS, connections(uow.engine) - 1))]
        uow.catalog.begin_scan(uow, others)
        yield [other._rows for other in others]


class _Tables:
    """Every table that is compared, as of one snapshot."""

    def __init__(self, uow: UnitOfWork, only: Sequence[str] | None = None) -> None:
        moves = uow.statements.moves if uow.phase.has_legacy else ()
        self.pairs = [pair for pair in moves if only is None or pair.name in only]
        frozen = uow.phase.freezes_legacy
        self.sides = {
            (pair.name, side): Ranges(uow._rows, _on_side(uow.statements[pair], side, frozen))
            for pair in self.pairs
            for side in Side
        }
        parents = uow.statements.parents if only is None else {}
        self.parents = {name: Ranges(uow._rows, _on_parents(sql)) for name, sql in parents.items()}

    def look_ahead(self) -> None:
        """Find all ranges now, while the snapshot lasts."""
        for ranges in (*self.sides.values(), *self.parents.values()):
            ranges.look_ahead()


def _on_side(sql: PairStatements, side: Side, frozen: bool) -> TableStatements:
    return TableStatements(
        sql.pair.table_name(side),
        sql.next_chunk(side),
        sql.compare_range(side, but_recorded=frozen),
        sql.rows_in_range(side),
        sql.all_rows(side),
        sql.keyless_rows(side),
    )


def _on_parents(sql: ParentStatements) -> TableStatements:
    return TableStatements(sql.parent.table.name, sql.next_chunk, sql.compare_range, sql.rows_in_range, sql.all_rows)


def _look_through(uow: UnitOfWork, tables: _Tables, readers: Readers, seen: Seen, progress: Watch) -> None:
    for pair in tables.pairs:
        _compare(tables, readers, pair, seen, progress)
    for name, ranges in tables.parents.items():
        seen.parents[name] = [key for wrong, _ in readers.compare(ranges) for key in wrong]
        seen.counted[name] = ranges.counted


def _compare(tables: _Tables, readers: Readers, pair: Move, seen: Seen, progress: Watch) -> None:
    """Compare the rows of one pair, those of each side with the other one."""
    tally, aside = Tally(progress, pair.name), seen.aside[pair.name]
    tally.expect(lambda: sum(tables.sides[pair.name, side].rows for side in Side))
    left_out = {Side.LEGACY: aside[Side.LEGACY], Side.NORMALIZED: aside[Side.LEGACY] | aside[Side.NORMALIZED]}
    doubtful = seen.doubtful[pair.name] = []
    for side in Side:
        ranges = tables.sides[pair.name, side]
        for wrong, count in readers.compare(ranges):
            doubtful += [key for key in wrong if key not in left_out[side]]
            tally.add(count)
        seen.counted[pair.name, side] = ranges.counted


def require_two_sides(phase: Phase) -> None:
    """Refuse a phase in which there is nothing to compare."""
    if not phase.writes_normalized:
        raise errors.WrongPhaseError(
            f"this compares two sides, and in {phase.name} there is only one",
            hint="run: consensus-orm advance dual_write",
            phase=phase,
        )


def _conclude(uow: UnitOfWork, seen: Seen, started: float) -> VerifyReport:
    """Read again under the lock what seemed to differ, record what still does, and certify."""
    guards.require(uow)
    require_epoch(uow, seen)
    moves = uow.statements.moves
    since = rejects.newest(uow)
    for pair in moves:
        _reject_keyless(uow, pair, seen)
    not_carried = {pair.name: _not_carried(uow, pair, seen.doubtful.get(pair.name, [])) for pair in moves}
    differences = [
        difference
        for pair in moves
        for difference in _confirmed(uow, pair, seen.doubtful.get(pair.name, []), not_carried[pair.name])
    ]
    for parent in moves.parents:
        differences += _confirmed_parents(uow, parent, seen.parents[parent.table.name])
    if since == seen.last_reject:  # otherwise another process rejected a row meanwhile, which this scan did not see
        seen.last_reject = rejects.newest(uow)
    for pair in moves:
        if (counted := seen.counted.get((pair.name, Side.LEGACY))) is not None:
            uow._tell(ComparisonEvent(pair.name, "verify", counted.looked_at - len(not_carried[pair.name])))
    legacy = seen.of(moves, Side.LEGACY)
    normalized = seen.of(moves, Side.NORMALIZED)
    report = VerifyReport(
        phase=uow.phase,
        legacy_rows=sum(table.rows for table in legacy),
        normalized_rows=sum(table.rows for table in normalized),
        compared=sum(table.looked_at for table in legacy) - sum(map(len, not_carried.values())),
        differences=tuple(differences),
        not_carried=sum(map(len, not_carried.values())),
        missed=seen.missed,
        rejects=rejects.count_open(uow),
        certificate=0,
        seconds=time.monotonic() - started,
    )
    return replace(report, certificate=_certify(uow, seen, report))


def _reject_keyless(uow: UnitOfWork, pair: Move, seen: Seen) -> None:
    """Reject the rows that no range contained because they have no usable key."""
    for side in Side:
        if any(table.keyless for table in seen.of([pair], side)):
            keyless.reject(uow, pair, side)


def require_epoch(uow: UnitOfWork, seen: Seen) -> None:
    """Refuse to go on from a scan of a phase that is over."""
    if uow.epoch != seen.epoch:
        raise errors.PhaseChangedError(
            f"the phase changed to {uow.phase.name}, or what guards it was mended, while the sides were compared",
            phase=uow.phase,
        )


def _certify(uow: UnitOfWork, seen: Seen, report: VerifyReport) -> int:
    return certificates.add(
        uow,
        at=milliseconds(uow),
        build=__version__,
        mapping=uow.statements.fingerprint,
        epoch=uow.epoch,
        legacy_rows=_named(seen.of(uow.statements.moves, Side.LEGACY)),
        normalized_rows=_named(seen.of(uow.statements.moves, Side.NORMALIZED)),
        compared=report.compared,
        differences=len(report.differences),
        missed=sum(table.missed for table in report.missed) + report.not_carried,
        rejects=report.rejects,
        changes=seen.changes,
        last_mismatch=seen.last_mismatch,
        last_reject=seen.last_reject,
    )


def _named(tables: Iterable[Counted]) -> int:
    """Rows of some tables that have a usable key."""
    return sum(table.rows - table.keyless for table in tables)


def _not_carried(uow: UnitOfWork, pair: Move, doubtful: list[Key]) -> set[Key]:
    """Those of the doubtful rows that the backfill has not reached yet."""
    if not doubtful or uow.phase.truth is not Side.LEGACY:
        return set()
    progress = backfill_progress.of(uow, pair)
    if progress.finished:
        return set()
    sql = uow.statements[pair].not_carried(begun=progress.last_key is not None)
    return set(keys_of(uow, sql, {"_after": progress.last_key, **among(doubtful)}))


def _confirmed(uow: UnitOfWork, pair: Move, doubtful: list[Key], not_carried: set[Key]) -> Iterator[Difference]:
    left_out = set(not_carried)
    if doubtful and uow.phase.has_legacy:
        left_out = left_out.union(*(rejects.on_one_side(uow, pair, side) for side in Side))
    for key in doubtful:
        found = [] if key in left_out else mismatches.differences(uow, pair, key)
        for column, kind in found:
            mismatches.record(uow, pair, key, column, kind, found_by="verify")
        if found:
            columns = tuple(column for column, _ in found if column is not None)
            yield Difference(pair.name, key, columns, found[0][1])


def _confirmed_parents(uow: UnitOfWork, parent: Parent, doubtful: list[Key]) -> Iterator[Difference]:
    sql = uow.statements.parents[parent.table.name]
    for key in doubtful:
        ((_, wrong),) = uow._rows(sql.compare_range, {"_first": key, "_last": key})
        if json.loads(wrong or "[]"):
            yield Difference(parent.table.name, key, (), "derived")
