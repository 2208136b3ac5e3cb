"""Verify: both sides whole, in both directions, every column, in SQL; and the certificate of what was seen.

The rows are read in one snapshot, in chunks by key, without keeping writers waiting. What seems to differ is
read again under the lock before it counts. A certificate says how much was compared, so that a verify that
saw nothing certifies nothing.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from consensus_orm import errors, ledger, phase_guards
from consensus_orm._version import __version__
from consensus_orm.mapping import Pair, Parent
from consensus_orm.migration.backfill import is_finished, set_aside
from consensus_orm.migration.progress import Tally, Watch
from consensus_orm.migration.units import Units
from consensus_orm.phase import Phase, Side
from consensus_orm.telemetry.events import ComparisonEvent
from consensus_orm.unit_of_work import UnitOfWork

__all__ = ["Difference", "Seen", "VerifyReport", "require_two_sides", "scan", "verify"]

READERS = min(2, os.cpu_count() or 1)
"""Units of work that compare at the same time; beside writers, more than two gain nothing on two cores."""

CHUNK_ROWS = 5000
"""Rows compared by one statement; between 1000 and 10,000 the rate is the same (measured)."""


Look = Callable[..., list[tuple[Any, ...]]]
"""Runs a statement and gives its rows: in one snapshot, or each by itself."""


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
    key: Any
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
        rejects: Rejects that nobody has decided on.
        certificate: Number of the certificate.
        seconds: How long it took.
    """

    phase: Phase
    legacy_rows: int
    normalized_rows: int
    compared: int
    differences: tuple[Difference, ...]
    rejects: int
    certificate: int
    seconds: float

    @property
    def clean(self) -> bool:
        """Whether nothing differs."""
        return not self.differences


@dataclass
class Seen:
    """What a scan counted, and the keys of rows and of parents that seem to differ."""

    legacy: int = 0
    normalized: int = 0
    compared: int = 0
    changes: int = 0
    epoch: int = 0
    aside: dict[str, dict[Side, set[Any]]] = field(default_factory=dict)
    doubtful: dict[str, list[Any]] = field(default_factory=dict)
    parents: dict[str, list[Any]] = field(default_factory=dict)


def verify(
    reading: Units,
    writing: Units,
    progress: Watch = None,
) -> VerifyReport:
    """Compare both sides whole, record what differs, and certify what was seen.

    Args:
        reading: Opens a read-only unit of work.
        writing: Opens a writing one.
        progress: Called after each chunk.

    Returns:
        What was seen.

    Raises:
        WrongPhaseError: There are no two sides to compare.
        PhaseChangedError: The phase changed meanwhile; what was seen counts no more.
        GuardsBrokenError: A trigger or a table that guards the phase is not in place: what is written now is
            noticed by nobody, so nothing can be certified.
    """
    started = time.monotonic()
    reading.run(phase_guards.require)
    seen = reading.repeat(lambda: scan(reading, progress))
    return writing.run(lambda uow: _conclude(uow, seen, started))


def scan(reading: Units, progress: Watch = None) -> Seen:
    """Compare both sides whole in one snapshot, and write nothing.

    Args:
        reading: Opens a read-only unit of work.
        progress: Called after each chunk.

    Returns:
        What was counted, and which rows seem to differ.

    Raises:
        WrongPhaseError: There are no two sides to compare.
    """
    with reading() as uow:
        require_two_sides(uow.phase)
        seen = Seen(changes=uow.catalog.last_change(uow), epoch=uow.epoch)
        for pair in uow.statements.mapping.pairs if uow.phase.has_legacy else ():
            seen.aside[pair.name] = {side: set_aside(uow, pair, side) for side in Side}
        if not uow.catalog.keeps_writers_waiting(uow):
            with _several(reading, uow) as others:
                _look_through(uow, _Readers(uow._rows, others), seen, progress)
            return seen

    # Without WAL nobody can commit past a reader. So each statement looks for itself: a pair of rows is one
    # statement's, what is written meanwhile is compared by its writer or noticed, and differences are confirmed.
    def look(sql: str, parameters: Any = ()) -> list[tuple[Any, ...]]:
        with reading() as alone:
            return alone._rows(sql, parameters)

    _look_through(uow, _Readers(look, [look] * READERS), seen, progress)
    return seen


@contextlib.contextmanager
def _several(reading: Units, uow: UnitOfWork) -> Iterator[list[Look]]:
    """Units of work that compare at the same time: SQLite lets go of the interpreter while it works.

    On PostgreSQL all see the snapshot of the first. On SQLite theirs may differ by a write, and that loses
    nothing: a row and its counterpart are compared in one of them, and who writes meanwhile is compared by the
    repositories, or noticed and counted.
    """
    most: int = uow.engine.pool.size() - 1  # type: ignore[attr-defined]
    with contextlib.ExitStack() as stack:
        others = [stack.enter_context(reading()) for _ in range(min(READERS, most))]
        uow.catalog.begin_scan(uow, others)
        yield [other._rows for other in others]


class _Readers:
    """Who looks at a table chunk by chunk: one tells where the chunks lie, the others look, several at a time."""

    def __init__(self, look: Look, others: list[Look]) -> None:
        self.look = look
        self._others = others or [look]

    def everywhere(self, bounds: tuple[str, str], sql: str) -> Iterator[tuple[list[tuple[Any, ...]], int]]:
        """Run a statement on every chunk; its rows, and how many it looked at."""
        free: SimpleQueue[Look] = SimpleQueue()
        for look in self._others:
            free.put(look)

        def run(chunk: dict[str, Any]) -> list[tuple[Any, ...]]:
            look = free.get()
            try:
                return look(sql, chunk)
            finally:
                free.put(look)

        if self._others == [self.look]:
            yield from ((run(chunk), count) for chunk, count in chunks(self.look, bounds))
            return
        with ThreadPoolExecutor(len(self._others)) as pool:
            ahead: deque[tuple[Future[list[tuple[Any, ...]]], int]] = deque()
            for chunk, count in chunks(self.look, bounds):
                ahead.append((pool.submit(run, chunk), count))
                if len(ahead) > 2 * len(self._others):
                    done, rows = ahead.popleft()
                    yield done.result(), rows
            yield from ((done.result(), rows) for done, rows in ahead)


def _look_through(uow: UnitOfWork, readers: _Readers, seen: Seen, progress: Watch) -> None:
    for pair in uow.statements.mapping.pairs:
        before = seen.legacy
        _Comparison(uow, readers, pair, seen, progress).run()
        uow._tell(ComparisonEvent(pair.name, "verify", seen.legacy - before))
    for parent in uow.statements.mapping.parents:
        sql = uow.statements.parents[parent.table.name]
        found = readers.everywhere(sql.next_chunk, sql.differing)
        seen.parents[parent.table.name] = [key for wrong, _ in found for (key,) in wrong]


def require_two_sides(phase: Phase) -> None:
    """Refuse a phase in which there is nothing to compare."""
    if not phase.writes_normalized:
        raise errors.WrongPhaseError(
            f"this compares two sides, and in {phase.name} there is only one",
            hint="run: consensus-orm advance dual_write",
            phase=phase,
        )


class _Comparison:
    """The rows of one pair."""

    def __init__(
        self,
        uow: UnitOfWork,
        readers: _Readers,
        pair: Pair,
        seen: Seen,
        progress: Watch,
    ) -> None:
        self.phase = uow.phase
        self.look = readers.look
        self.readers = readers
        self.pair = pair
        self.seen = seen
        self.tally = Tally(progress, pair.name)
        self.sql = uow.statements[pair]

    def run(self) -> None:
        frozen = self.phase.freezes_legacy
        doubtful: list[Any] = []
        if self.phase.has_legacy:
            left_out = self.seen.aside[self.pair.name][Side.LEGACY]
            self.tally.expect(lambda: sum(self.look(self.sql.count(side, ()))[0][0] for side in Side))
            for found, count in self._everywhere(Side.LEGACY, self.sql.unequal_in_range(but_recorded=frozen)):
                doubtful += [key for (key,) in found if key not in left_out]
                self.seen.legacy += count
                self.tally.add(count)
            left_out = left_out | self.seen.aside[self.pair.name][Side.NORMALIZED]
            for unmatched, count in self._everywhere(Side.NORMALIZED, self.sql.unmatched_in_range(but_recorded=frozen)):
                doubtful += [key for (key,) in unmatched if key not in left_out]
                self.seen.normalized += count
                self.tally.add(count)
        else:
            self.seen.normalized += self.look(self.sql.count(Side.NORMALIZED, ()))[0][0]
        self.seen.compared = self.seen.legacy  # of every pair so far
        self.seen.doubtful[self.pair.name] = doubtful

    def _everywhere(self, side: Side, sql: str) -> Iterator[tuple[list[tuple[Any, ...]], int]]:
        return self.readers.everywhere(self.sql.next_chunk(side), sql)


def chunks(look: Look, bounds: tuple[str, str]) -> Iterator[tuple[dict[str, Any], int]]:
    """Ranges of keys that together cover a table, and the number of rows in each."""
    sql, after = bounds[0], None
    while True:
        first, last, count = look(sql, {"_after": after, "_rows": CHUNK_ROWS})[0]
        if not count:
            return
        yield {"_first": first, "_last": last}, count
        sql, after = bounds[1], last


def _conclude(uow: UnitOfWork, seen: Seen, started: float) -> VerifyReport:
    """Read again under the lock what seemed to differ, record what still does, and certify."""
    phase_guards.require(uow)
    require_epoch(uow, seen)
    differences = [
        difference
        for pair in uow.statements.mapping.pairs
        for difference in _confirmed(uow, pair, seen.doubtful[pair.name])
    ]
    for parent in uow.statements.mapping.parents:
        differences += _confirmed_parents(uow, parent, seen.parents[parent.table.name])
    rejects = ledger.open_rejects(uow)
    return VerifyReport(
        phase=uow.phase,
        legacy_rows=seen.legacy,
        normalized_rows=seen.normalized,
        compared=seen.compared,
        differences=tuple(differences),
        rejects=rejects,
        certificate=_certify(uow, seen, len(differences), rejects),
        seconds=time.monotonic() - started,
    )


def require_epoch(uow: UnitOfWork, seen: Seen) -> None:
    """Refuse to go on from a scan of a phase that is over."""
    if uow.epoch != seen.epoch:
        raise errors.PhaseChangedError(
            f"the phase changed to {uow.phase.name}, or what guards it was mended, while the sides were compared",
            phase=uow.phase,
        )


def _certify(uow: UnitOfWork, seen: Seen, differences: int, rejects: int) -> int:
    facts = {
        "at": ledger.milliseconds(uow),
        "build": __version__,
        "mapping": uow.statements.fingerprint,
        "epoch": uow.epoch,
        "legacy_rows": seen.legacy,
        "normalized_rows": seen.normalized,
        "compared": seen.compared,
        "differences": differences,
        "rejects": rejects,
        "changes": seen.changes,
    }
    values = ", ".join(f":{name}" for name in facts)
    sql = f"INSERT INTO consensus_orm_certificates ({', '.join(facts)}) VALUES ({values}) RETURNING id"
    return int(uow._execute(sql, facts).fetchone()[0])


def _confirmed(uow: UnitOfWork, pair: Pair, doubtful: list[Any]) -> Iterator[Difference]:
    left_out: set[Any] = set()
    if doubtful and uow.phase.has_legacy:
        left_out = set_aside(uow, pair, Side.LEGACY) | set_aside(uow, pair, Side.NORMALIZED)
    to_come = uow.phase.truth is Side.LEGACY and not is_finished(uow, pair)
    for key in doubtful:
        found = [] if key in left_out else ledger.differences(uow, pair, key)
        for column, kind in found:
            if to_come and kind == f"missing_{Side.NORMALIZED}":
                continue  # the backfill has not come to it yet: a difference, and nobody's mistake
            ledger.record(uow, pair, key, column, kind, found_by="verify")
        if found:
            columns = tuple(column for column, _ in found if column is not None)
            yield Difference(pair.name, key, columns, found[0][1])


def _confirmed_parents(uow: UnitOfWork, parent: Parent, doubtful: list[Any]) -> Iterator[Difference]:
    sql = uow.statements.parents[parent.table.name]
    for key in doubtful:
        if uow._rows(sql.differing, {"_first": key, "_last": key}):
            yield Difference(parent.table.name, key, (), "derived")
