"""What a benchmark is made of, and the interleaved rounds in which it is measured.

Absolute times drift with whatever else the machine does. So the cases of a group take turns, round by round,
and what counts is the ratio of two cases of the same round: its median, and its quartiles as the spread.
"""

from __future__ import annotations

import contextlib
import gc
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

__all__ = ["Bench", "Case", "Group", "Measured", "Spread", "Target", "Work", "run"]

Extras = Mapping[str, float]
"""What a case measured besides its time; `seconds` stands for the time itself where only a part counts."""

Work = Callable[[int], Extras | None]
"""One round of a case, given the number of the round."""

Setup = Callable[..., Iterator[Work]]


@dataclass(frozen=True)
class Bench:
    """What every case is given.

    Attributes:
        folder: Where its files go.
        rows: Rows of the large tables.
        scale: Share of the operations of a round that are made; below 1 for a smoke run.
    """

    folder: Path
    rows: int = 100_000
    scale: float = 1.0

    def file(self, name: str) -> Path:
        """A path that no other case uses."""
        number = sum(1 for _ in self.folder.glob("*.db"))  # what stands beside a database comes and goes
        return self.folder / f"{number:03d}_{name}.db"

    def times(self, count: int) -> int:
        """How many operations a round makes."""
        return max(1, int(count * self.scale))


@dataclass(frozen=True)
class Spread:
    """A median with its quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """The spread of values; of one value, that value."""
        if len(values) < 2:
            return cls(values[0], values[0], values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high)


@dataclass(frozen=True)
class Case:
    """One rung of the ladder: its name, its label and what sets it up."""

    name: str
    label: str
    setup: Callable[[Bench], contextlib.AbstractContextManager[Work]]


@dataclass(frozen=True)
class Target:
    """What a case is to reach.

    Attributes:
        text: The target in words.
        case: The case it speaks of.
        limit: The number to reach.
        than: The case it is compared with: times per operation, or rates where `at_least`.
        extra: A value the case measured besides its time; of names that begin with "longest" the worst counts.
        at_least: Whether more is better.
        rows: Rows of the large table that the target speaks of; a run with fewer says so.
    """

    text: str
    case: str
    limit: float
    than: str | None = None
    extra: str | None = None
    at_least: bool = False
    rows: int = 0

    def measured(self, result: Measured) -> Spread | None:
        """What was reached; None where the case did not run."""
        if self.case not in result.seconds or (self.than or self.case) not in result.seconds:
            return None
        if self.extra is None:
            assert self.than is not None
            pair = (self.than, self.case) if self.at_least else (self.case, self.than)
            return Spread.of(result.ratios(*pair))
        values = [extras[self.extra] for extras in result.extras[self.case] if self.extra in extras]
        if not values:
            return None
        worst = max(values)
        return Spread(worst, min(values), worst) if self.extra.startswith("longest") else Spread.of(values)

    def met(self, spread: Spread) -> bool:
        """Whether that is enough."""
        return self._reached(spread.median)

    def verdict(self, spread: Spread | None, rows: int) -> str:
        """Whether it is met, in words: by the median alone, or with fewer rows than it speaks of, is less than met."""
        if spread is None:
            return "not measured"
        words = "met" if self.met(spread) else "NOT MET"
        if self.met(spread) and not self._reached(spread.low if self.at_least else spread.high):
            words += ", but the spread crosses the limit"
        return f"{words}, at {rows:,} of {self.rows:,} rows" if rows < self.rows else words

    def _reached(self, value: float) -> bool:
        return value >= self.limit if self.at_least else value <= self.limit


@dataclass
class Group:
    """Cases that do the same work, and are compared with one of them.

    Attributes:
        title: The work, in words.
        unit: What one operation is.
        count: Operations in a round; None where each is the whole table.
        baseline: The case that is 1.0.
        targets: What is to be reached.
        clock: What measures a round, in seconds: time, or the CPU time of this process.
    """

    title: str
    unit: str
    count: int | None
    baseline: str
    targets: tuple[Target, ...] = ()
    clock: Callable[[], float] = time.perf_counter
    cases: list[Case] = field(default_factory=list)

    def case(self, *parameters: Any) -> Callable[[Setup], Setup]:
        """Register a generator that sets up, yields the work and cleans up; its docstring is the label.

        Args:
            *parameters: Make one case of each; the label may show it as `{}`.
        """

        def register(setup: Setup) -> Setup:
            manager = contextlib.contextmanager(setup)
            label = (setup.__doc__ or setup.__name__).strip()
            for value in parameters or (None,):
                name = setup.__name__ if value is None else f"{setup.__name__}_{_word(value)}"
                given = () if value is None else (value,)
                self.cases.append(Case(name, label.format(_word(value)), lambda bench, a=given: manager(bench, *a)))  # type: ignore[misc]
            return setup

        return register

    def in_cpu_time(self, baseline: str, *names: str) -> Group:
        """Some of the cases beside a baseline, measured by the CPU time of this process.

        Other programs of the machine disturb it less than they disturb time. Their use of its caches still makes Python
        slower than the copies of bytes that a raw driver spends its time on: compare Python with Python.
        """
        cases = [case for case in self.cases if case.name in (baseline, *names)]
        there = {case.name for case in cases}
        targets = tuple(each for each in self.targets if {each.case, each.than or each.case} <= there)
        title = f"{self.title}, CPU time"
        return replace(self, title=title, baseline=baseline, targets=targets, clock=time.process_time, cases=cases)

    def operations(self, bench: Bench) -> int:
        """Operations in one round."""
        return bench.rows if self.count is None else bench.times(self.count)


def _word(value: Any) -> str:
    name = getattr(value, "name", None)
    return str(value) if name is None else str(name).lower()


@dataclass
class Measured:
    """What a group measured: for each case the seconds per operation and the extras, round by round."""

    group: Group
    seconds: dict[str, list[float]] = field(default_factory=dict)
    extras: dict[str, list[Extras]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def ratios(self, case: str, than: str) -> list[float]:
        """How many times as long as another case, round by round."""
        return [a / b for a, b in zip(self.seconds[case], self.seconds[than], strict=True)]

    def ratio(self, case: str) -> Spread:
        """How many times as long as the baseline."""
        return Spread.of(self.ratios(case, self.group.baseline))


def run(group: Group, bench: Bench, rounds: int) -> Measured:
    """Measure a group, its cases taking turns.

    Args:
        group: What to measure.
        bench: What the cases are given.
        rounds: How many rounds count; one more comes before them, to warm up.

    Returns:
        What was measured; a case whose library is missing is skipped, loudly.
    """
    measured = Measured(group)
    with contextlib.ExitStack() as stack:
        works: dict[str, Work] = {}
        for case in group.cases:
            try:
                works[case.name] = stack.enter_context(case.setup(bench))
            except ModuleNotFoundError as error:
                measured.skipped[case.name] = f"{error.name} is not installed; pip install 'consensus-orm[bench]'"
                print(f"!!! SKIPPED {case.label}: {measured.skipped[case.name]}", file=sys.stderr)
        operations = group.operations(bench)
        gc.freeze()  # what is there before the first round is not looked at between the rounds
        stack.callback(gc.unfreeze)
        for number in range(-1, rounds):
            for name, work in works.items():
                gc.collect()
                started = group.clock()
                extras = dict(work(number) or {})
                seconds = extras.pop("seconds", group.clock() - started)
                if number >= 0:
                    measured.seconds.setdefault(name, []).append(seconds / operations)
                    measured.extras.setdefault(name, []).append(extras)
    return measured
