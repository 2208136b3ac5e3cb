"""The output of commands: text, tables, JSON, and progress bars."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, Any, Self, TypeVar

import click

from consensus_orm.cli import process
from consensus_orm.errors import OutputError
from consensus_orm.formats import duration, moment
from consensus_orm.progress import Progress, of_pages

if TYPE_CHECKING:  # imported where it is used: it takes a while, and a command may do without
    import rich.progress
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

__all__ = [
    "Bars",
    "State",
    "exit_with",
    "fields",
    "key",
    "line",
    "listed",
    "one_line",
    "plain",
    "say",
    "show_entries",
    "show_json",
    "table",
]

E = TypeVar("E")

PIPE_WIDTH = 10_000
"""The width of output to a pipe or file, so that nothing is wrapped or cut."""

PATIENCE = 0.5
"""Seconds before a bar appears."""


# JSON -----------------------------------------------------------------------------------------------------


def plain(value: object) -> Any:
    """A value in terms of JSON: phases and stages by name, times in ISO 8601, durations in seconds."""
    if isinstance(value, IntEnum):
        return value.name
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if (of_model := getattr(type(value), "model_fields", None)) is not None:
        return {name: plain(getattr(value, name)) for name in of_model}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return value if isinstance(value, str | int | float | None) else str(value)


def show_json(value: object) -> None:
    """Print the JSON document of a command in ASCII, for every encoding."""
    say(json.dumps(plain(value), indent=2))


# Text -----------------------------------------------------------------------------------------------------


def one_line(text: object) -> str:
    """A text in one line, without characters that control a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(str(text).split()))


def say(text: str = "", *, color: bool | None = None) -> None:
    """Print a line.

    Args:
        text: The line.
        color: Whether its colours are kept; only on a terminal where left out.

    Raises:
        OutputError: The output cannot be written.
    """
    try:
        click.echo(text, file=process.output(), color=color)
    except (OSError, ValueError) as error:  # ValueError: the stream was closed in this process
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise OutputError(f"the output could not be written: {reason}") from error


@dataclasses.dataclass(frozen=True)
class State:
    """A state in words, with a colour on a terminal; the words say everything.

    Attributes:
        text: The words.
        well: Whether nothing has to be done; None for neither.
    """

    text: str
    well: bool | None

    @property
    def colour(self) -> str:
        """Its colour."""
        return {True: "green", False: "red", None: "yellow"}[self.well]

    def __str__(self) -> str:
        return self.text


_MOMENT = re.compile(r"(\d{4}-\d\d-\d\d) (\d\d:\d\d:\d\d) (UTC)")
_TIED = "\ue000"
"""Stands for a space at which no line is broken, until the text is printed."""


def key(value: object) -> str | None:
    """The key of a row as a cell, without grouping of digits."""
    return None if value is None else str(value)


def _cell(value: object) -> Text:
    from rich.text import Text

    if value is None:
        return Text("-")
    if isinstance(value, datetime):
        value = moment(value)
    text = one_line(f"{value:,}" if isinstance(value, int) and not isinstance(value, bool | Enum) else value)
    tied = _MOMENT.sub(lambda found: _TIED.join(found.groups()), text)
    return Text(tied, style=value.colour if isinstance(value, State) else "")


def _console(*, stderr: bool = False) -> Console:
    from rich.console import Console

    made = Console(stderr=stderr, markup=False, highlight=False, emoji=False)
    if not made.is_terminal:
        made = Console(stderr=stderr, markup=False, highlight=False, emoji=False, width=PIPE_WIDTH, color_system=None)
    return made


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table, with numbers to the right and `-` for None."""
    from rich import box
    from rich.table import Table

    listed = [list(row) for row in rows]
    console = _console()
    made = Table(box=box.SIMPLE_HEAD if console.is_terminal else None, pad_edge=False, header_style="bold")
    for at, heading in enumerate(columns):
        numeric = any(isinstance(row[at], int | float) for row in listed)
        whole = any(isinstance(row[at], datetime) for row in listed)  # a time is never broken
        made.add_column(heading, justify="right" if numeric else "left", overflow="fold", no_wrap=whole)
    for row in listed:
        made.add_row(*map(_cell, row))
    _print(console, made)


def listed(columns: Sequence[str], rows: Sequence[Sequence[object]], most: int) -> None:
    """Print the first `most` rows as a table, and count the others."""
    if rows:
        table(columns, rows[:most])
    if (more := len(rows) - most) > 0:
        say(f"and {more:,} more")


def show_entries(
    entries: Sequence[E],
    none: str,
    columns: Sequence[str],
    row: Callable[[E], Sequence[object]],
    *,
    as_json: bool,
    most: int = sys.maxsize,
) -> None:
    """Print the entries of a ledger as JSON or as a table; `none` where there are none."""
    if as_json:
        show_json(entries)
    elif entries:
        listed(columns, list(map(row, entries)), most)
    else:
        say(none)


def line(label: str, state: State) -> None:
    """Print a label and a state in a line."""
    console = _console()
    say(f"{label}{click.style(state.text, fg=state.colour) if console.color_system else state.text}")


def exit_with(found: object) -> None:
    """End the command with exit code 1 if something was found."""
    if found:
        click.get_current_context().exit(1)


def fields(pairs: Iterable[tuple[str, object]]) -> None:
    """Print names and values, one pair in a line."""
    from rich.table import Table

    made = Table.grid(padding=(0, 2))
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in pairs:
        made.add_row(name, _cell(value))
    _print(_console(), made)


def _print(console: Console, made: Table) -> None:
    color, rendered = console.is_terminal, io.StringIO()
    console.file = rendered  # rich would end the process at a broken pipe
    console.print(made)
    for line in rendered.getvalue().replace(_TIED, " ").strip("\n").splitlines():
        say(line.rstrip(), color=color)


# Progress -------------------------------------------------------------------------------------------------


class Bars:
    """Progress bars on stderr, only on a terminal, for steps that take a while.

    A bar shows rate and time left of what is counted; before that, and for what cannot be counted, it only moves.

    Args:
        label: The name of the step.
        quiet: Show nothing.
    """

    def __init__(self, label: str, *, quiet: bool = False) -> None:
        self._label = label
        self._shown = False
        if not quiet:
            self._console = _console(stderr=True)
            self._shown = self._console.is_terminal
        self._lock = threading.Lock()
        self._progress: rich.progress.Progress | None = None
        self._task: tuple[str, rich.progress.TaskID] | None = None
        self._timer: threading.Timer | None = None
        self._since = 0.0

    @property
    def rows(self) -> Callable[[Progress], None] | None:
        """The callback of a step that reports progress; None if nothing is shown, which saves the counting."""
        return self._update if self._shown else None

    @property
    def pages(self) -> Callable[[int, int], None] | None:
        """The callback of a step that counts pages of the file; None if nothing is shown."""
        return of_pages(self.rows, self._label)

    def clear(self) -> None:
        """Remove the bars, before text is printed; the next step shows its own."""
        self._stop()
        self._start()

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Show nothing until the block ends, in which a question is asked."""
        self._stop()
        try:
            yield
        finally:
            self._start()

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop()

    def _start(self) -> None:
        self._since = time.monotonic()
        if self._shown:
            self._timer = threading.Timer(PATIENCE, self._move)
            self._timer.daemon = True
            self._timer.start()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()
        with self._lock:
            if self._progress is not None:
                with contextlib.suppress(OSError):  # the terminal is gone
                    self._progress.stop()
            self._progress = self._task = self._timer = None

    def _move(self) -> None:
        """Show a bar that only moves; called on a thread of its own."""
        with self._lock, contextlib.suppress(OSError):
            if self._progress is None:
                self._show(self._label)

    def _update(self, seen: Progress) -> None:
        if time.monotonic() - self._since < PATIENCE:
            return
        with self._lock, contextlib.suppress(OSError):
            progress, task = self._show(seen.pair)
            left = seen.seconds_left
            end = "finishing" if seen.done >= seen.total else f"{duration(left or 0)} left"
            facts = f"{seen.done:,} of {seen.total:,} {seen.unit}, {seen.rate:,.0f} a second, {end}"
            progress.update(task, completed=seen.done, total=seen.total, facts=facts)

    def _show(self, label: str) -> tuple[rich.progress.Progress, rich.progress.TaskID]:
        """The bar of a label, in the place of the one before."""
        if self._progress is None:
            self._progress = _progress(self._console)
            self._progress.start()
        if self._task is None or self._task[0] != label:
            if self._task is not None:
                self._progress.remove_task(self._task[1])
            self._task = label, self._progress.add_task(label, total=None, facts="")
        return self._progress, self._task[1]


def _progress(console: Console) -> rich.progress.Progress:
    import rich.progress

    column = rich.progress.TextColumn
    return rich.progress.Progress(
        column("{task.description}", markup=False),
        rich.progress.BarColumn(),
        column("{task.fields[facts]}", markup=False),
        rich.progress.TimeElapsedColumn(),
        console=console,
        transient=True,
        redirect_stdout=False,  # otherwise stdout would go to stderr
        redirect_stderr=False,
    )
