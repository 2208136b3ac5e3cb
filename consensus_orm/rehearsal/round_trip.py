"""The course of a rehearsal: it makes the copy, moves it to CONTRACT and back, and compares its rows at both ends."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from consensus_orm import errors, files
from consensus_orm._version import __version__
from consensus_orm.declaration.move import Move
from consensus_orm.declaration.moves import Moves
from consensus_orm.migration.backfill import BackfillReport
from consensus_orm.migration.reconcile import ReconcileReport
from consensus_orm.migration.rehearsal_report import (
    Identity,
    Latency,
    Proof,
    RehearsalReport,
    RehearsalStep,
    WritersReport,
)
from consensus_orm.migration.steps import Step
from consensus_orm.migration.verify import VerifyReport
from consensus_orm.phase import Phase, Side
from consensus_orm.progress import Watch
from consensus_orm.rehearsal import copies, digest
from consensus_orm.rehearsal.application import Rehearsed
from consensus_orm.rehearsal.copies import Copy
from consensus_orm.rehearsal.digest import Image
from consensus_orm.rehearsal.evidence import evidence_in, evidence_path, write
from consensus_orm.rehearsal.raw_sql import FileLook, Look, look_of
from consensus_orm.rehearsal.subject import Subject
from consensus_orm.rehearsal.writers import Additions, Writers
from consensus_orm.schema.application import Rewrite
from consensus_orm.unit_of_work.factory import UnitOfWorkFactory

__all__ = ["rehearse"]

log = logging.getLogger("consensus_orm")

REASON = "rehearsal"

Tell = Callable[[RehearsalStep], object]


def rehearse(
    subject: Subject,
    *,
    keep: Path | str | None = None,
    writers: int = 0,
    progress: Watch = None,
    tell: Tell | None = None,
) -> RehearsalReport:
    """Migrate a copy of a database through all phases and back, and prove that its rows come out as they went in.

    The copy of a file is a file; that of a server is another database on it, with the tables that move. Before
    CONTRACT the copy goes on to CONTRACT and then back to EXPAND; at CONTRACT it goes back to EXPAND and then to
    CONTRACT again. An upgrade that recreates tables of another program is part of it; a file of the final build,
    which never had legacy tables, is upgraded, and its rows are compared with what they were. Soak times are skipped,
    gates are not: one that refuses ends the way forward, as it would in the real migration. The database itself is
    read once and never written.

    Args:
        subject: The database that is copied.
        keep: A folder that keeps the copy and a second report; a temporary folder where left out. The copy of a
            server stays on the server.
        writers: Threads that write to the copy through the public API meanwhile.
        progress: Called after each chunk.
        tell: Called after each step.

    Returns:
        What was found; also kept as JSON beside the database (of a server, where its backups go) if that folder can
        be written.

    Raises:
        MigrationError: The database never had legacy tables, and its upgrade is over: nothing is left to rehearse.
        InvalidValueError: Writers were asked for, and no way to write these tables is known.
        StorageError: There is not enough room, or the copy could not be made.
        CopyError: A column on a server cannot be copied.
    """
    units = subject.units
    rewrite = subject.upgrade.pending_rewrite()
    moves = units.statements.moves
    if writers and subject.rehearsed is None:
        raise errors.InvalidValueError(
            "how these tables are written is not known", hint="rehearse without writers", field="writers"
        )
    known = units.look(lambda uow: digest.identity(look_of(units.engine.dialect.name, uow._rows), moves))
    if known.schema_hash is None and rewrite is None:
        raise errors.MigrationError(
            "this database never had legacy tables, so there is nothing to rehearse", hint="it is where it ends"
        )
    with _folder(keep) as folder, copies.made(subject, folder, keep=keep is not None, progress=progress) as copy:
        settings = units.settings.model_copy(update={"backup_dir": folder, "alarm_falls_back": False})
        with subject.beside(copy.where, settings) as opened:
            report = _Course(opened, copy, moves, progress, tell).run(writers)
        facts = {
            "database": units.name,
            "identity": report.identity.model_copy(update={"schema_hash": known.schema_hash}),
            "notes": (*report.notes, *_notes(rewrite), *copy.notes(subject)),
            "kept": copy.path if copy.keep else None,
        }
        return _keep(report.model_copy(update=facts), units, folder if keep is not None else None)


def _notes(rewrite: Rewrite | None) -> Iterator[str]:
    if rewrite is not None:
        yield f"{rewrite.made_by}: it made {' and '.join(rewrite.rows)}, and fails on them after the upgrade"


@contextlib.contextmanager
def _folder(keep: Path | str | None) -> Iterator[Path]:
    """The folder for the files of a rehearsal."""
    if keep is None:
        with files.own_folder(Path(tempfile.gettempdir()), "rehearsal") as folder:
            yield folder
        return
    asked_for = files.resolved(keep)
    try:
        asked_for.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise errors.StorageError(f"{asked_for} cannot be made: {error.strerror}", hint="give another") from error
    yield asked_for


def _keep(report: RehearsalReport, units: UnitOfWorkFactory[Any], folder: Path | None) -> RehearsalReport:
    """Write the report where it is looked for, and where it was asked for."""
    place = evidence_path(units)
    places = [] if place is None else [place]
    if folder is not None:
        places.append(evidence_in(folder, units))
    written = []
    for place in dict.fromkeys(places):
        try:
            write(report, place)
            written.append(place)
        except OSError as error:
            log.warning("the evidence of the rehearsal cannot be kept at %s: %s", place, error.strerror)
    return report.model_copy(update={"evidence": tuple(written)})


class _Course:
    """One rehearsal on one copy."""

    def __init__(self, subject: Subject, copy: Copy, moves: Moves, progress: Watch, tell: Tell | None) -> None:
        self.units = subject.units
        self.migration = subject.migration
        self.rehearsed = subject.rehearsed
        self.copy = copy
        self.moves = moves
        self.progress = progress
        self.tell = tell
        self.longest_lock = copy.watch(subject)
        self.began = self.reached = self.now = self.migration.phase
        self.bytes = self.peak = copy.bytes()
        self.steps: list[RehearsalStep] = []
        self.proofs: list[Proof] = []
        self.refused: list[str] = []
        self.adopted = 0
        self.wanted: dict[str, Image] = {}
        self.whole: dict[str, Image] = {}
        self.left_out: dict[str, set[str]] = {}
        self.depends: list[str] = []

    def run(self, threads: int) -> RehearsalReport:
        """Migrate the copy there and back, and report."""
        at = self.units.settings.clock()
        with self.copy.look() as look:
            before = digest.schema_objects(look, self.moves)
            known = digest.identity(look, self.moves)
        self._prepare()
        additions = Additions(self.rehearsed)
        with Writers(self.units, additions.rounds(threads)) as writers:
            if known.schema_hash is None and self.rehearsed is not None:
                self._prove_adoption(self.rehearsed)
            else:
                self._travel()
        with self.copy.look() as look:
            unexplained, missing = self._extra(look, additions)
            schema_equal = before <= digest.schema_objects(look, self.moves)
        settings = self.units.settings
        return RehearsalReport(
            at=at,
            build=__version__,
            database=self.units.name,
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
            writers=_told(writers, additions, threads, missing) if threads else None,
            bytes=self.bytes,
            peak_bytes=self.peak,
            backup_bytes=self.copy.backup_bytes,
            soak=settings.soak_dual_write + settings.soak_cutover + settings.soak_normalized,
            notes=tuple(self._notes(known)),
        )

    def _notes(self, known: Identity) -> Iterator[str]:
        if not any(known.rows.values()):
            yield "there is no row in it, so nothing was proved about rows"
        if self.depends:
            yield f"a gate will be shut until these are gone or accepted: {', '.join(self.depends)}"
        if known.schema_hash is None and (rejects := len(self.migration.rejects())):
            yield f"{rejects:,} of its rows cannot be carried by the upgrade: they are kept whole, as rejects"

    # The way --------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Upgrade the copy, and take the digests of its source of truth."""
        if self.began.compares and self._pending():
            self._step("reconcile", lambda: self.migration.reconcile(progress=self.progress))
        if self.began.truth is Side.LEGACY:
            self._remember(Side.LEGACY)  # before the upgrade, which must not change it either
        self._step("upgrade", partial(self.migration.upgrade, self.progress, rewrite=True))
        self._accept_dependencies()
        if self.began.truth is Side.NORMALIZED:
            self._remember(Side.NORMALIZED)

    def _accept_dependencies(self) -> None:
        """Accept, on the copy, what others use of its legacy tables: it would shut the gates of the database itself."""
        found = [each for each in self.migration.dependencies() if each.accepted is None and not each.remedy]
        self.depends = [f"{each.kind} {each.name}" for each in found]
        if found:
            self.migration.accept_dependencies(self.depends, reason=REASON)

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
        self.peak = max(self.peak, self.copy.bytes())
        if step.result == []:  # an upgrade that found nothing to do
            return
        taken = RehearsalStep(
            action=step.action,
            before=before,
            after=self.now,
            seconds=step.seconds,
            longest_lock=self.longest_lock(),
            rows=_rows_of(step) if rows is None else rows,
            bytes=self.copy.bytes(),
        )
        self.steps.append(taken)
        if self.tell is not None:
            self.tell(taken)

    # Proofs ---------------------------------------------------------------------------------------------

    def _remember(self, side: Side) -> None:
        with self.copy.look() as look:
            for pair in self.moves:
                rejected = self.left_out[pair.name] = _rejected(look, pair)
                self.wanted[pair.name] = digest.take(look, pair, side, skip=rejected)
                if side is Side.LEGACY:
                    self.whole[pair.name] = digest.take(look, pair, side, undeclared=True)

    def _prove(self) -> None:
        """Compare the side that is the source of truth now with what was there at the beginning."""
        side = self.now.truth
        with self.copy.look() as look, look.snapshot():
            for pair in self.moves:
                whole = side is Side.LEGACY and bool(self.whole)
                wanted = (self.whole if whole else self.wanted)[pair.name]
                # Columns of no pair, and accepted rejects, stand on the legacy side alone.
                skip = set() if whole else self.left_out[pair.name]
                found = Image()
                if wanted.parts:  # what is in a table that was empty is counted as extra
                    found = digest.take(look, pair, side, skip=skip, until=wanted.last, undeclared=whole)
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

    def _prove_adoption(self, rehearsed: Rehearsed) -> None:
        """Compare a file without a legacy side with what it was before its upgrade."""
        (backup,) = (path for path in self.copy.folder.iterdir() if ".before-upgrade-" in path.name)
        with FileLook.at(backup) as before, self.copy.look() as after:
            self.proofs += rehearsed.prove(before, after, self.now)

    def _extra(self, look: Look, additions: Additions) -> tuple[int, int]:
        """Count rows after those of the beginning: those that no writer added, and those of writers that are gone."""
        unexplained = missing = 0
        for pair in self.moves:
            wrote = additions.acknowledged.get(pair.name, {})
            column = additions.columns[pair.name] if wrote else pair.legacy_keys[0]
            found = digest.select(look, pair, self.now.truth, column, after=self.wanted[pair.name].last)
            unexplained += sum(str(key) not in self.left_out[pair.name] for key in found.keys() - wrote.keys())
            missing += sum(found.get(key) != text for key, text in wrote.items())
        return unexplained, missing

    def _fingerprint(self) -> str:
        return self.units.statements.fingerprint


def _told(writers: Writers, additions: Additions, threads: int, missing: int) -> WritersReport:
    return WritersReport(
        threads=threads,
        rows=sum(map(len, additions.acknowledged.values())),
        missing=missing,
        errors=Counter(type(error).__name__ for _, error in writers.errors),
        latency={phase.name: Latency.of(writers.latency[phase]) for phase in sorted(writers.latency)},
    )


def _rows_of(step: Step) -> int | None:
    if isinstance(step.result, BackfillReport):
        return step.result.rows
    return step.result.compared if isinstance(step.result, VerifyReport) else None


def _table(pair: Move, side: Side) -> str:
    return pair.legacy_name if side is Side.LEGACY else pair.table.name


def _rejected(look: Look, pair: Move) -> set[str]:
    """Keys of unresolved rejects: their rows stand on the legacy side alone."""
    if "consensus_orm_rejects" not in look.tables():
        return set()
    key = "key" if look.dialect == "sqlite" else "CAST(key AS JSONB)"
    rejects = look.rows(f"SELECT pair, lower(table_name), {key}, state FROM consensus_orm_rejects")
    mine = (pair.name, pair.legacy_name.lower())
    return {str(key) for name, table, key, state in rejects if (name, table) == mine and state != "resolved"}
