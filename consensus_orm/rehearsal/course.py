"""The course of a rehearsal: the copy, the way there and back, and the proofs at its turning points."""

from __future__ import annotations

import contextlib
import logging
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consensus_orm import errors
from consensus_orm._version import __version__
from consensus_orm.consensus import CONSENSUS
from consensus_orm.engine import source_of
from consensus_orm.mapping import Mapping, Pair
from consensus_orm.migration.backfill import BackfillReport
from consensus_orm.migration.journey import Step
from consensus_orm.migration.progress import Watch, of_pages
from consensus_orm.migration.reconcile import ReconcileReport
from consensus_orm.migration.verify import VerifyReport
from consensus_orm.phase import Phase, Side
from consensus_orm.rehearsal import image
from consensus_orm.rehearsal.evidence import evidence_path, write
from consensus_orm.rehearsal.image import Image
from consensus_orm.rehearsal.records import Identity, Proof, RehearsalReport, RehearsalStep, WritersReport
from consensus_orm.rehearsal.writers import COLUMNS, Writers
from consensus_orm.turns import Turns

if TYPE_CHECKING:
    from consensus_orm.store import ConsensusStore

__all__ = ["rehearse"]

log = logging.getLogger("consensus_orm")

ROOM = 5
"""Times the size of the database that a rehearsal may take: the copy, the normalized side, the log of both,
and the backup before CONTRACT of all that. Checked before anything is copied."""

REASON = "rehearsal"

Tell = Callable[[RehearsalStep], object]


def rehearse(
    store: ConsensusStore,
    *,
    keep: Path | str | None = None,
    writers: int = 0,
    progress: Watch = None,
    tell: Tell | None = None,
) -> RehearsalReport:
    """Take a copy of a database through all phases and back, and prove that its rows come out as they went in.

    From EXPAND to NORMALIZED the copy goes on to CONTRACT and then back to EXPAND; at CONTRACT it goes back to
    EXPAND and then to CONTRACT again. Soak times are skipped, gates are not: one that refuses ends the way
    forward, and is what the real migration would meet. The database itself is read once and never written.

    Args:
        store: The store whose database is copied.
        keep: A folder for the copy as it is at the end, and for a second copy of the evidence; in a temporary
            folder that is removed where left out.
        writers: Threads that write to the copy through the public API all the while.
        progress: Called after each chunk.
        tell: Called after each step.

    Returns:
        What was found; also kept as JSON beside the database, where that folder can be written.

    Raises:
        MigrationError: The database never had legacy tables, so there is nothing to rehearse; or it is on a server.
        InvalidValueError: Writers were asked for, and the mapping is not that of the consensus tables.
        StorageError: There is not room enough for it, or the copy could not be made.
    """
    if store.engine.dialect.name != "sqlite":
        raise errors.MigrationError(
            "a rehearsal is of a file", hint="copy this database to one with the command copy, and rehearse that"
        )
    with store._on_primary(read_only=True) as uow:
        mapping = uow.statements.mapping
        if writers and mapping is not CONSENSUS:
            raise errors.InvalidValueError(
                "writers know the consensus tables only", hint="rehearse without writers", field="writers"
            )
        if image.identity(uow._rows, mapping).schema_hash is None:
            raise errors.MigrationError(
                "this database never had legacy tables, so there is nothing to rehearse", hint="it is where it ends"
            )
    with _folder(store, keep) as folder:
        copy = folder / f"{Path(_name(store)).name}.rehearsed"
        store.maintenance.backup(copy, progress=of_pages(progress, "copy"))
        others = {"backup_dir": folder, "alarm_falls_back": False, "read_url": None}
        settings = store.settings.model_copy(update=others)
        with type(store).open(copy, settings=settings, mapping=mapping) as opened:
            report = _Course(opened, copy, mapping, progress, tell).run(writers)
        notes = (*report.notes, *_notes(store, copy))
        kept = copy if keep is not None else None
        report = report.model_copy(update={"database": _name(store), "notes": notes, "kept": kept})
        return _keep(report, store, folder if keep is not None else None)


@contextlib.contextmanager
def _folder(store: ConsensusStore, keep: Path | str | None) -> Iterator[Path]:
    """The folder the copy is made in, with room for it."""
    with contextlib.ExitStack() as stack:
        if keep is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="consensus_orm-rehearsal-")))
        else:
            folder = Path(keep).expanduser().absolute()
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise errors.StorageError(f"{folder} cannot be made: {error.strerror}", hint="give another") from error
        wanted = ROOM * store.maintenance.stats().disk.total
        if (free := shutil.disk_usage(folder).free) < wanted:
            raise errors.DatabaseFullError(
                f"a rehearsal takes up to {wanted:,} bytes, and {folder} has {free:,}",
                hint="give a folder on a disk with more room: --keep DIR, or TMPDIR in the environment",
            )
        yield folder


def _name(store: ConsensusStore) -> str:
    return str(store.path or ":memory:")


def _notes(store: ConsensusStore, copy: Path) -> Iterator[str]:
    mode = store.maintenance.stats().journal_mode
    if store.path is None:
        return
    if mode != "wal":
        yield f"the copy works in WAL, and the database is in {mode}: until it is in WAL, writers wait for readers too"
    if store.path.stat().st_dev != copy.stat().st_dev:
        yield "the copy is on another file system than the database, which may be faster or slower (see --keep)"


def _keep(report: RehearsalReport, store: ConsensusStore, folder: Path | None) -> RehearsalReport:
    """Write the evidence where it is looked for, and where it was asked for."""
    beside = [] if store.path is None else [store.path]
    asked_for = [] if folder is None else [folder / Path(report.database).name]
    written = []
    for place in dict.fromkeys(map(evidence_path, beside + asked_for)):
        try:
            write(report, place)
            written.append(place)
        except OSError as error:
            log.warning("the evidence of the rehearsal cannot be kept at %s: %s", place, error.strerror)
    return report.model_copy(update={"evidence": tuple(written)})


class _Stopwatch(Turns):
    """The turns of the copy's writers, which remember how long the rehearsal itself held one.

    Every write of a process takes a turn for as long as it has the write lock; so this is how long a writer of
    another process could not begin.
    """

    __slots__ = ("_mine", "_since", "_thread", "longest")

    def __init__(self) -> None:
        super().__init__(1)
        self.longest = 0.0
        self._since = 0.0
        self._thread = threading.get_ident()
        self._mine = False

    def acquire(self, timeout: float) -> bool:
        """Take the turn."""
        taken = super().acquire(timeout)
        if taken:
            self._mine = threading.get_ident() == self._thread
            self._since = time.perf_counter()
        return taken

    def release(self) -> None:
        """Give the turn back."""
        if self._mine:
            self.longest = max(self.longest, time.perf_counter() - self._since)
        super().release()

    def reset(self) -> float:
        """The longest turn since the last call."""
        longest, self.longest = self.longest, 0.0
        return longest


class _Course:
    """One rehearsal on one copy."""

    def __init__(self, store: ConsensusStore, copy: Path, mapping: Mapping, progress: Watch, tell: Tell | None) -> None:
        self.store = store
        self.migration = store.migration
        self.copy = copy
        self.mapping = mapping
        self.progress = progress
        self.tell = tell
        self.stopwatch = source_of(store.engine).writers = _Stopwatch()
        self.began = self.reached = self.now = self.migration.phase
        self.bytes = self.peak = self._bytes()
        self.steps: list[RehearsalStep] = []
        self.proofs: list[Proof] = []
        self.refused: list[str] = []
        self.adopted = 0
        self.wanted: dict[str, Image] = {}
        self.whole: dict[str, Image] = {}
        self.left_out: dict[str, set[Any]] = {}

    def run(self, threads: int) -> RehearsalReport:
        """Go all the way, and sum up."""
        at = self.store.settings.clock()
        with self._raw() as connection:
            before = _objects(connection, self.mapping)
            known = _identity(connection, self.mapping)
        self._prepare()
        with Writers(self.store, threads) as writers:
            self._travel()
        with self._raw() as connection:
            unexplained, missing = self._extra(connection, writers)
            schema_equal = before <= _objects(connection, self.mapping)
        wrote = sum(map(len, writers.wrote.values()))
        settings = self.store.settings
        return RehearsalReport(
            at=at,
            build=__version__,
            database=str(self.copy),
            identity=known,
            mapping=self._fingerprint(),
            began=self.began,
            reached=self.reached,
            ended=self.now,
            steps=tuple(self.steps),
            proofs=tuple(self.proofs),
            schema_equal=schema_equal,
            unexplained=max(unexplained - self.adopted, 0),
            refused=tuple(self.refused),
            writers=WritersReport(
                threads=threads, rows=wrote, missing=missing, errors=dict(writers.errors), latency=writers.summary()
            )
            if threads
            else None,
            bytes=self.bytes,
            peak_bytes=self.peak,
            backup_bytes=sum(path.stat().st_size for path in self._files() if ".before-contract-" in path.name),
            soak=settings.soak_dual_write + settings.soak_cutover + settings.soak_normalized,
            notes=() if any(known.rows.values()) else ("there is no row in it, so nothing was proved about rows",),
        )

    # The way --------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Bring the copy up to date, and remember what is in it: the truth, with nothing pending."""
        if self.began.compares and self._pending():
            self._step("reconcile", lambda: self.migration.reconcile(progress=self.progress))
        if self.began.truth is Side.LEGACY:
            self._remember(Side.LEGACY)  # before the upgrade, which must not change it either
        self._step("upgrade", partial(self.migration.upgrade, self.progress))
        if self.began.truth is Side.NORMALIZED:
            self._remember(Side.NORMALIZED)

    def _pending(self) -> int:
        status = self.migration.status()
        return status.foreign_writes + status.mismatches

    def _travel(self) -> None:
        ways = (self._back, self._forth) if not self.began.has_legacy else (self._forth, self._back)
        for way in ways:
            try:
                way()
            except errors.GateClosedError as error:
                self.refused += error.reasons
            self._prove()

    def _forth(self) -> None:
        self.migration.migrate(Phase.CONTRACT, soak=False, reason=REASON, progress=self.progress, tell=self._note_step)

    def _back(self) -> None:
        while (now := self.migration.phase).previous is not None:
            before = now.previous
            rows = None if now.has_legacy else sum(each.rows for each in self.wanted.values())
            back = partial(self.migration.rollback, before, reason=REASON, progress=self.progress)
            self._step("rollback", back, rows=rows)

    def _step(self, action: str, work: Callable[[], Any], *, rows: int | None = None) -> None:
        started = time.perf_counter()
        result = work()
        taken = Step(action, self.migration.phase, result, time.perf_counter() - started)
        self._note_step(taken, rows=rows)

    def _note_step(self, step: Step, *, rows: int | None = None) -> None:
        if isinstance(step.result, BackfillReport | ReconcileReport):
            self.adopted += step.result.adopted
        before, self.now = self.now, step.phase
        self.reached = max(self.reached, self.now)
        self.peak = max(self.peak, self._bytes())
        if step.result == []:  # an upgrade that found nothing to do
            return
        taken = RehearsalStep(
            action=step.action,
            before=before,
            after=self.now,
            seconds=step.seconds,
            longest_lock=self.stopwatch.reset(),
            rows=_rows_of(step) if rows is None else rows,
            bytes=self._bytes(),
        )
        self.steps.append(taken)
        if self.tell is not None:
            self.tell(taken)

    # Proofs ---------------------------------------------------------------------------------------------

    def _remember(self, side: Side) -> None:
        with self._raw() as connection:
            for pair in self.mapping.pairs:
                rejected = self.left_out[pair.name] = _rejected(connection, pair)
                self.wanted[pair.name] = image.take(connection, pair, side, skip=rejected)
                if side is Side.LEGACY:
                    self.whole[pair.name] = image.take(connection, pair, side, undeclared=True)

    def _prove(self) -> None:
        """Compare what is there now, on the side that answers, with what was there at the beginning."""
        side = self.now.truth
        with self._raw() as connection:
            connection.execute("BEGIN")  # one snapshot, whatever writers do meanwhile
            for pair in self.mapping.pairs:
                whole = side is Side.LEGACY and bool(self.whole)
                wanted = (self.whole if whole else self.wanted)[pair.name]
                # What no pair carries, and rejects that were accepted, stand on the legacy side alone.
                skip = set() if whole else self.left_out[pair.name]
                found = Image()
                if wanted.parts:  # into an empty table nothing came back; what is in it now is counted as extra
                    found = image.take(connection, pair, side, skip=skip, until=wanted.last, undeclared=whole)
                self.proofs.append(
                    Proof(
                        phase=self.now,
                        table=_table(pair, side),
                        side=side,
                        rows=found.rows,
                        digest=found.digest,
                        difference=wanted.difference(found),
                    )
                )

    def _extra(self, connection: sqlite3.Connection, writers: Writers) -> tuple[int, int]:
        """Rows above those of the beginning: how many no writer knows of, and how many of the writers' are missing."""
        unexplained = missing = 0
        for pair in self.mapping.pairs:
            wrote = writers.wrote.get(pair.name, {})
            column = COLUMNS[pair.name] if wrote else pair.key.name
            found = image.select(connection, pair, self.now.truth, column, after=self.wanted[pair.name].last)
            unexplained += len(found.keys() - wrote.keys() - self.left_out[pair.name])
            missing += sum(found.get(key) != text for key, text in wrote.items())
        return unexplained, missing

    # The copy -------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _raw(self) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(self.copy, isolation_level=None)) as connection:
            yield connection

    def _fingerprint(self) -> str:
        with self.store.unit_of_work(read_only=True) as uow:
            return uow.statements.fingerprint

    def _files(self) -> list[Path]:
        return [path for path in self.copy.parent.iterdir() if path.name.startswith(self.copy.name)]

    def _bytes(self) -> int:
        return sum(path.stat().st_size for path in self._files())


def _rows_of(step: Step) -> int | None:
    if isinstance(step.result, BackfillReport):
        return step.result.rows
    return step.result.compared if isinstance(step.result, VerifyReport) else None


def _table(pair: Pair, side: Side) -> str:
    return pair.legacy_name if side is Side.LEGACY else pair.table.name


def _rejected(connection: sqlite3.Connection, pair: Pair) -> set[Any]:
    """Keys of the rows that were accepted as rejects: they stand on the legacy side alone."""
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'consensus_orm_rejects'").fetchone():
        return set()
    sql = (
        "SELECT key FROM consensus_orm_rejects WHERE pair = ? AND table_name = ? COLLATE NOCASE AND state <> 'resolved'"
    )
    return {key for (key,) in connection.execute(sql, (pair.name, pair.legacy_name))}


def _objects(connection: sqlite3.Connection, mapping: Mapping) -> frozenset[tuple[str, str, str]]:
    return image.schema_objects(lambda sql: connection.execute(sql).fetchall(), mapping)


def _identity(connection: sqlite3.Connection, mapping: Mapping) -> Identity:
    return image.identity(lambda sql: connection.execute(sql).fetchall(), mapping)
