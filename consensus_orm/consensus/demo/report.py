"""The report of the demo: what happened in each phase, and which checks failed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field

from consensus_orm.consensus.demo.judge import Verdict
from consensus_orm.phase import Phase

__all__ = ["DemoReport", "Leg", "Problem", "faults"]

WANTED = 12
"""Rows that each thread has to write in each phase: two rounds."""

REPORT = "report it with the output of: consensus-orm demo --json"
CALMER = f"run the demo again while the machine has less to do; if it happens again, {REPORT}"


@dataclass(frozen=True)
class Problem:
    """A check that failed.

    Attributes:
        where: The phase in which it failed, or "at the end".
        check: What was checked.
        found: What was found instead.
        hint: What to do.
    """

    where: str
    check: str
    found: str
    hint: str

    def __str__(self) -> str:
        return f"{self.where}: {self.check}: {self.found}; {self.hint}"


@dataclass
class Leg:
    """One phase of the demo.

    Attributes:
        phase: The phase.
        forward: Whether it was reached by `advance`; else by `rollback`.
        legacy_rows: Rows on the legacy side at its end; None where the tables are gone.
        normalized_rows: Rows on the normalized side at its end; None where there are no tables yet.
        writes: Rows the threads wrote in it.
        writes_before: Rows they wrote in the phase before it, while the step that led here was being taken.
        writes_by_thread: Rows of `writes`, by thread.
        slowest_write: Seconds of their longest unit of work.
        mismatches: Mismatches found since the start, settled ones included.
        rejects: Rejects found since the start.
        seconds: How long it took, the step that led to it included.
        load: The system's load average of the last minute; None where the system has none.
        notes: What was done in it.
        problems: The checks that failed.
    """

    phase: Phase
    forward: bool
    legacy_rows: int | None = None
    normalized_rows: int | None = None
    writes: int = 0
    writes_before: int = 0
    writes_by_thread: list[int] = field(default_factory=list)
    slowest_write: float = 0.0
    mismatches: int = 0
    rejects: int = 0
    seconds: float = 0.0
    load: float | None = None
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The number and name of the phase."""
        return f"{self.phase.value} {self.phase.name}" + ("" if self.forward else ", on the way back")

    def blame(self, check: str, found: str, hint: str = REPORT) -> None:
        """Record that a check failed."""
        self.problems.append(Problem(self.name, check, found, hint))

    def judge_writers(self) -> None:
        """Require that each thread wrote in this phase."""
        for number, rows in enumerate(self.writes_by_thread):
            if rows < WANTED:
                load = "" if self.load is None else f", load {self.load:.1f} on {os.cpu_count()} processors"
                self.blame(
                    "each thread goes on writing",
                    f"thread {number} wrote {rows} of {WANTED} rows in {self.seconds:.1f} s"
                    f" (the longest unit of work of all threads took {self.slowest_write:.1f} s{load})",
                    CALMER,
                )


@dataclass(frozen=True)
class DemoReport:
    """What happened in a demo.

    Attributes:
        legs: Its phases, in order.
        verdict: The result of comparing the rows at the end.
        writes: Rows the writers wrote.
        deleted: Rows they deleted again.
        mismatches: Mismatches found in all.
        rejects: Rejects found in all.
        seconds: How long it took.
    """

    legs: list[Leg]
    verdict: Verdict
    writes: int
    deleted: int
    mismatches: int
    rejects: int
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether every check passed."""
        return not self.problems

    @property
    def problems(self) -> list[Problem]:
        """The checks that failed."""
        found = [problem for leg in self.legs for problem in leg.problems]
        return found + [Problem("at the end", check, said, REPORT) for check, said in faults(self.verdict)]


def faults(verdict: Verdict) -> Iterator[tuple[str, str]]:
    """The checks of a verdict that failed: what was checked, and what was found instead."""
    if verdict.unchanged != verdict.original:
        yield "every legacy row is what it was", f"{verdict.original - verdict.unchanged:,} of {verdict.original:,} not"
    if verdict.found != verdict.added:
        missing = f"{verdict.added - verdict.found:,} of {verdict.added:,} missing or changed"
        yield "every row added meanwhile is there", missing
    if verdict.surplus:
        yield "no row is there that was not written", f"{verdict.surplus:,} are"
    if not verdict.schema_restored:
        yield "tables, indexes and triggers are defined as before", "they are not"
    if not verdict.ids_continue:
        yield "no id is given twice", "sqlite_sequence is lower than an id that was given"
