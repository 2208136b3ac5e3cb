"""What people and programs read: tables, JSON, and progress bars."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from enum import Enum
from typing import Any, Self

import click
import rich.progress
from pydantic import BaseModel
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from consensus_orm.migration.backfill import Progress
from consensus_orm.phase import Phase

__all__ = ["Bars", "fields", "key", "one_line", "plain", "say", "show_json", "span", "table", "when"]

PIPE_WIDTH = 10_000
"""Columns of what is no terminal: nothing is wrapped or cut for the program that reads it."""

PATIENCE = 0.5
"""Seconds before a bar appears; what is over sooner needs none."""


# JSON -----------------------------------------------------------------------------------------------------


def plain(value: Any) -> Any:
    """A value in terms of JSON: phases by name, times in ISO 8601, durations in seconds."""
    if isinstance(value, Phase):
        return value.name
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, BaseModel):
        return {name: plain(getattr(value, name)) for name in type(value).model_fields}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return value if isinstance(value, str | int | float | None) else str(value)


def show_json(value: Any) -> None:
    """Print the one document of a command; ASCII, so that it survives every encoding."""
    click.echo(json.dumps(plain(value), indent=2))


# Text -----------------------------------------------------------------------------------------------------


def one_line(text: object) -> str:
    """A text in one line, without control characters: what others wrote must not steer a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(str(text).split()))


def say(text: str = "") -> None:
    """Print a line."""
    click.echo(text)


def span(duration: timedelta) -> str:
    """A duration in its two largest units: `6 d 23 h`."""
    left = max(math.ceil(duration.total_seconds()), 0)
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or parts:
            parts.append(f"{count} {unit}" if count else "")
    return " ".join(filter(None, parts[:2])) or "0 s"


def when(moment: datetime | None) -> str:
    """A time for people."""
    return "" if moment is None else f"{moment:%Y-%m-%d %H:%M:%S} UTC"


def key(value: object) -> str | None:
    """The key of a row as a cell: no number to be grouped, and `-` where there is none."""
    return None if value is None else str(value)


def _cell(value: object) -> Text:
    if value is None:
        return Text("-")
    text = one_line(f"{value:,}" if isinstance(value, int) and not isinstance(value, bool | Enum) else value)
    return Text(text)


def _console(*, stderr: bool = False) -> Console:
    made = Console(stderr=stderr, markup=False, highlight=False, emoji=False)
    if not made.is_terminal:
        made = Console(stderr=stderr, markup=False, highlight=False, emoji=False, width=PIPE_WIDTH, color_system=None)
    return made


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; numbers stand to the right.

    Args:
        columns: The headings.
        rows: The cells; None is shown as `-`.
    """
    listed = [list(row) for row in rows]
    console = _console()
    made = Table(box=box.SIMPLE_HEAD if console.is_terminal else None, pad_edge=False, header_style="bold")
    for at, heading in enumerate(columns):
        numeric = any(isinstance(row[at], int | float) for row in listed)
        made.add_column(heading, justify="right" if numeric else "left", overflow="fold")
    for row in listed:
        made.add_row(*map(_cell, row))
    _print(console, made)


def fields(pairs: Iterable[tuple[str, object]]) -> None:
    """Print names with their values, one below the other."""
    made = Table.grid(padding=(0, 2))
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in pairs:
        made.add_row(name, _cell(value))
    _print(_console(), made)


def _print(console: Console, made: Table) -> None:
    with console.capture() as captured:
        console.print(made)
    for line in captured.get().strip("\n").splitlines():
        click.echo(line.rstrip(), file=sys.stdout, color=console.is_terminal)


# Progress -------------------------------------------------------------------------------------------------


class Bars:
    """Progress bars with rate and time left, on stderr: on a terminal only, for what takes a while.

    Args:
        quiet: Show none, whatever stderr is.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._console = _console(stderr=True)
        self._shown = self._console.is_terminal and not quiet
        self._progress: rich.progress.Progress | None = None
        self._tasks: dict[str, rich.progress.TaskID] = {}
        self._started = time.monotonic()

    @property
    def rows(self) -> Callable[[Progress], None] | None:
        """For what counts rows; None where nothing is shown, which spares the counting."""
        return self._rows if self._shown else None

    def pages(self, label: str) -> Callable[[int, int], None] | None:
        """For what counts pages of the file; None where nothing is shown.

        Args:
            label: What is done with them.
        """
        started = time.monotonic()

        def update(done: int, total: int) -> None:
            self._update(label, "pages", done, total, done / max(time.monotonic() - started, 1e-6))

        return update if self._shown else None

    def clear(self) -> None:
        """Take the bars away, as for text that follows; the next step shows its own."""
        if self._progress is not None:
            self._progress.stop()
        self._progress, self._tasks, self._started = None, {}, time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.clear()

    def _rows(self, seen: Progress) -> None:
        self._update(seen.pair, "rows", seen.done, seen.total, seen.rate)

    def _update(self, label: str, unit: str, done: int, total: int, rate: float) -> None:
        if time.monotonic() - self._started < PATIENCE:
            return
        if self._progress is None:
            self._progress = _progress(self._console)
            self._progress.start()
        left = span(timedelta(seconds=(total - done) / rate)) if rate else "?"
        facts = f"{done:,} of {total:,} {unit}, {rate:,.0f} a second, {left} left"
        if label not in self._tasks:
            self._tasks[label] = self._progress.add_task(label, facts="")
        self._progress.update(self._tasks[label], completed=done, total=total, facts=facts)


def _progress(console: Console) -> rich.progress.Progress:
    column = rich.progress.TextColumn
    return rich.progress.Progress(
        column("{task.description}", markup=False),
        rich.progress.BarColumn(),
        column("{task.fields[facts]}", markup=False),
        console=console,
        transient=True,
        redirect_stdout=False,  # it would send what belongs to stdout to stderr
        redirect_stderr=False,
    )
