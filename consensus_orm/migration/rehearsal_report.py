"""The report of a rehearsal, as values that can be stored as JSON; it has no contents of rows."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, PlainSerializer

from consensus_orm.phase import Phase, Side

__all__ = ["Estimate", "Identity", "Latency", "Proof", "RehearsalReport", "RehearsalStep", "WritersReport"]

PhaseName = Annotated[Phase, BeforeValidator(Phase.parse), PlainSerializer(lambda phase: phase.name, when_used="json")]
"""A phase, in JSON by its name, so that a reader of the evidence need not know the numbers."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, defer_build=True)


class Identity(_Record):
    """What identifies a database: the DDL of its legacy side, and its numbers of rows.

    `schema_hash` covers the legacy tables with their indexes and the triggers of other programs; at CONTRACT
    as they were saved before the drop, so that it stays the same in every phase. None where a database never
    had legacy tables. `rows` counts the rows of each table on either side that exists.
    """

    schema_hash: str | None
    rows: dict[str, int]


class RehearsalStep(_Record):
    """One step on the copy.

    `seconds` is its whole time, `longest_lock` the longest it held the write lock without a break. `rows` are
    those it worked through, None where it touches none. `bytes` are on disk after it, the write-ahead log and
    the backup before CONTRACT included.
    """

    action: str
    before: PhaseName
    after: PhaseName
    seconds: float
    longest_lock: float
    rows: int | None
    bytes: int


class Proof(_Record):
    """The result of reading a table back by raw SQL, compared in type and bytes with what went in.

    `digest` is a SHA-256 over key, typeof and bytes of every value, in the order of keys. `difference` says
    which rows are not what they were; None where all are.
    """

    phase: PhaseName
    table: str
    side: Side
    rows: int
    digest: str
    difference: str | None

    @property
    def equal(self) -> bool:
        """Whether the rows are what they were."""
        return self.difference is None


class Latency(_Record):
    """How long some operations took, in seconds."""

    count: int
    median: float
    p99: float
    longest: float

    @classmethod
    def of(cls, seconds: list[float]) -> Latency:
        """Summarize single measurements.

        Args:
            seconds: At least one.
        """
        ordered = sorted(seconds)
        count = len(ordered)
        return cls(count=count, median=ordered[count // 2], p99=ordered[count * 99 // 100], longest=ordered[-1])


class WritersReport(_Record):
    """What the writers did during the rehearsal.

    `rows` were acknowledged to them and found at the end; `missing` were acknowledged and then not found as
    they were written. `errors` counts failed units of work by their type; `latency` is by phase.
    """

    threads: int
    rows: int
    missing: int
    errors: dict[str, int]
    latency: dict[str, Latency]


class Estimate(_Record):
    """An estimate of the real migration.

    `seconds` of work, without the soak times, which are `soak`; `longest_lock` is the longest a writer waits
    at a time. `disk` is the room it needs at its peak beyond what the database takes now, `backup` the part of
    it that goes to where backups go.
    """

    rows: int
    seconds: float
    longest_lock: float
    disk: int
    backup: int
    soak: timedelta


class RehearsalReport(_Record):
    """A rehearsal: where it began, what it took, what it proved, and where it was stopped.

    `mapping` is the fingerprint of the declaration it was made with, `bytes` and `peak_bytes` are those of the
    copy, `refused` the reasons of a gate that stayed shut, `unexplained` rows that no known writer has
    written. `notes` say in what the copy differs from the database.
    """

    at: datetime
    build: str
    database: str
    identity: Identity
    mapping: str
    began: PhaseName
    reached: PhaseName
    ended: PhaseName
    steps: tuple[RehearsalStep, ...]
    proofs: tuple[Proof, ...]
    schema_equal: bool
    unexplained: int
    refused: tuple[str, ...]
    writers: WritersReport | None
    bytes: int
    peak_bytes: int
    backup_bytes: int
    soak: timedelta
    notes: tuple[str, ...]
    kept: Path | None = None
    evidence: tuple[Path, ...] = ()

    @property
    def equal(self) -> bool:
        """Whether every row came out, byte for byte, and the legacy schema with it."""
        return all(p.equal for p in self.proofs) and self.schema_equal and not self.unexplained

    @property
    def passed(self) -> bool:
        """Whether it went all the way and back with every row, and no writer failed or lost a row."""
        harmed = self.writers is not None and bool(self.writers.errors or self.writers.missing)
        return self.equal and not self.refused and not harmed

    @property
    def seconds(self) -> float:
        """All steps together."""
        return sum(step.seconds for step in self.steps)

    @property
    def rows(self) -> int:
        """Rows that were proved, at the end of the way."""
        return sum(p.rows for p in self.proofs if p.phase is self.ended)

    def estimate(self, rows: int | None = None) -> Estimate:
        """What the way forward will take on the real database.

        Args:
            rows: Rows it has by then; as many as were rehearsed where left out. Times and room grow with
                them. Locks do not: long work is done in chunks that are cut to a time.
        """
        factor = 1.0 if not rows or not self.rows else rows / self.rows
        ahead = [step for step in self.steps if step.after >= step.before]
        return Estimate(
            rows=rows or self.rows,
            seconds=factor * sum(step.seconds for step in ahead),
            longest_lock=max((step.longest_lock for step in ahead), default=0.0),
            disk=int(factor * (self.peak_bytes - self.bytes)),
            backup=int(factor * self.backup_bytes),
            soak=self.soak,
        )

    def facts(self) -> dict[str, Any]:
        """Everything as JSON, with the values derived from it."""
        return {
            **self.model_dump(mode="json"),
            "passed": self.passed,
            "equal": self.equal,
            "seconds": self.seconds,
            "estimate": self.estimate().model_dump(mode="json"),
        }
