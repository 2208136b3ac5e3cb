"""The command group `consensus-orm`: its options, its exit codes, and how it reports errors."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any, NoReturn

import click
from click.exceptions import NoArgsIsHelpError

from consensus_orm._version import __version__
from consensus_orm.cli import process
from consensus_orm.cli.commands import EXAMPLES, MODULES, SECTIONS
from consensus_orm.cli.events import Notifier, words_of
from consensus_orm.cli.mapping import moves_named, of_project
from consensus_orm.cli.output import one_line, plain, say
from consensus_orm.errors import (
    ConsensusError,
    GateClosedError,
    OutOfMemoryError,
    OutputError,
    SchemaError,
    StorageError,
    UnexpectedError,
)
from consensus_orm.phase import Phase

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from consensus_orm.consensus.store import ConsensusStore
    from consensus_orm.databases.base import Transaction
    from consensus_orm.events import Event
    from consensus_orm.unit_of_work.unit import UnitOfWork, Written

__all__ = [
    "App",
    "Interrupted",
    "Refused",
    "app_command",
    "create_option",
    "json_option",
    "main",
    "numbers_argument",
    "on_event_option",
    "phase_argument",
    "table_option",
    "whole_number",
    "without_password",
]


URL_VARIABLE = "CONSENSUS_ORM_URL"
"""The variable of the environment that is the setting `url`."""

MISSING = "check the URL; `consensus-orm upgrade --create` makes a new database"
"""The hint where there is no database."""

FOREIGN = (
    "nothing was changed; name its moves: --mapping package.module:MOVES; or have the consensus tables made beside its"
    " own: consensus-orm upgrade --create"
)
"""The hint where a database was never one of the consensus data."""


class App:
    """The database of a command, and its moves.

    Args:
        url: As typed; None leaves it to the settings.
        mapping: The name of the moves, as typed; None are those of the project, or the consensus tables.
        create: Whether a missing database is made. Otherwise a command with a mistyped path would make a new one, and
            report no problem.
    """

    def __init__(self, url: str | None = None, mapping: str | None = None, *, create: bool = False) -> None:
        self.url = url
        self.mapping = mapping
        self.create = create
        self.on_event: list[str] | None = None
        self._notifier: Notifier | None = None
        self._waiting = ""

    @contextlib.contextmanager
    def store(self, *, replica: bool = True, missing: str = MISSING, **changed: object) -> Iterator[ConsensusStore]:
        """Open the database until the block ends.

        Args:
            missing: The hint if it does not exist.
            replica: Whether the read replica of the settings belongs to this database.
            **changed: Settings that are others for this command, or that it takes as options.

        Raises:
            StorageError: There is no such file, or it cannot be read.
        """
        from consensus_orm.consensus.store import ConsensusStore  # here, because it takes a while
        from consensus_orm.databases.engine import translated
        from consensus_orm.settings import Settings

        settings = Settings().model_copy(update=changed if replica else {"read_url": None} | changed)
        moves = moves_named(self.mapping if self.mapping is not None else of_project())
        with ConsensusStore.open(self.url, settings=settings, moves=moves) as store, translated(store.engine):
            store._units.before_commit(_record, _is_mirrored)  # a command may write rows, too
            if not self.create and store.path is not None and not store.path.exists():
                raise StorageError(f"{store.path} does not exist", hint=missing)
            if not self.create and self.is_foreign(store):
                raise SchemaError(f"{store.name} holds tables, and none of the consensus data", hint=FOREIGN)
            store.telemetry.add_hook(self._show_waiting)
            if self.on_event is None:
                yield store
                return
            with Notifier(self.on_event, store.name) as self._notifier:
                from consensus_orm.telemetry import listen

                listen(store, self._notifier.hear)
                yield store

    def _show_waiting(self, event: Event) -> None:
        """Tell on stderr, while a command waits, for whom; once, however many workers wait."""
        from consensus_orm.events import BlockedEvent, WaitingEvent

        if isinstance(event, BlockedEvent | WaitingEvent) and (told := str(event)) != self._waiting:
            self._waiting = told
            click.echo(f"consensus-orm: {one_line(self.spelled(told))}", err=True)

    @staticmethod
    def is_foreign(store: ConsensusStore) -> bool:
        """Whether a database that is taken for one of the consensus data, for want of --mapping, is another one.

        To make the consensus tables in it would keep its own moves out of it.
        """
        from consensus_orm.consensus.application import APPLICATION
        from consensus_orm.schema import revisions

        if store.application is not APPLICATION or (store.path is not None and not store.path.exists()):
            return False
        return revisions.inspect(store.engine, store.application).is_foreign

    def tell(self, event: str, **facts: object) -> None:
        """Have the command of --on-event run, if there is one; see `Notifier.tell`."""
        if self._notifier is not None:
            self._notifier.tell(event, **facts)

    def spelled(self, text: str) -> str:
        """A text with --url and --mapping of this call in each of its commands, so that they can be pasted."""
        given = []
        if self.url is not None:
            try:
                given += self._url_again(self.url)
            except ConsensusError:
                return text
        if self.mapping is not None and self.mapping != of_project():
            given += ["--mapping", shlex.quote(self.mapping)]
        return text.replace("consensus-orm ", f"consensus-orm {' '.join(given)} ") if given else text

    def _url_again(self, url: str) -> list[str]:
        """The option --url as a shell reads it; a URL with a password is taken from the environment."""
        if "://" not in url:
            return ["--url", shlex.quote(url)]
        from consensus_orm.databases.opening import has_secret, parse_url  # here, because it takes a while

        if not has_secret(parse_url(url)):
            return ["--url", shlex.quote(url)]
        return [] if os.environ.get(URL_VARIABLE) == url else ["--url", f'"${URL_VARIABLE}"']

    @property
    def warning(self) -> str | None:
        """What the user should know of the URL as it was typed."""
        if self.url is None or "@" not in self.url:
            return None
        with contextlib.suppress(ConsensusError):
            if f'"${URL_VARIABLE}"' in self._url_again(self.url):
                return (
                    "the password in --url is visible to other users of this machine; the commands printed here take"
                    f" the URL from {URL_VARIABLE} instead: export it"
                )
        return None


def _record(uow: UnitOfWork, written: Written) -> Sequence[tuple[str, Any]]:
    """Write the outbox of external stores; what that takes is imported when a command writes rows."""
    from consensus_orm.external.outbox import record

    return record(uow, written)


def _is_mirrored(uow: Transaction) -> bool:
    """Whether there is an outbox to write."""
    from consensus_orm.external.outbox import is_mirrored

    return is_mirrored(uow)


def without_password(url: str) -> str:
    """A URL that can be shown.

    Raises:
        ValueError: It is none.
    """
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        return make_url(url).render_as_string()
    except ArgumentError as error:
        raise ValueError(*error.args) from error


class Interrupted(click.Abort):
    """Ctrl-C in a command that must be called again with further words."""

    def __init__(self, *words: str) -> None:
        super().__init__()
        self.words = words


class Refused(Exception):
    """An error of a command, with further facts for the JSON document."""

    def __init__(self, error: ConsensusError, **facts: Any) -> None:
        super().__init__(str(error))
        self.error = error
        self.facts = facts


def _given(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    """Keep an option that stands behind the command."""
    if value is not None and (app := ctx.find_object(App)) is not None:  # there is none during shell completion
        setattr(app, str(param.name), value)


_SHARED = {
    "url": ("URL", "A SQLAlchemy URL or a path; CONSENSUS_ORM_URL where left out."),
    "mapping": (
        "MODULE:MOVES",
        "The moves of your own tables; `mapping` of [tool.consensus_orm] in pyproject.toml where left out.",
    ),
}
"""The options that stand before a command or behind it."""


class _Parsed(click.Command):
    """A command that may print its help or its version while its words are parsed."""

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        """Parse the words.

        Raises:
            OutputError: What was asked for cannot be written.
        """
        try:
            return super().make_context(*args, **extra)
        except OSError as error:
            raise OutputError(
                f"the output could not be written: {error.strerror}", hint="no command was run; give it another stdout"
            ) from error


class _Command(_Parsed):
    """A command that takes the options of the group, too, and shows examples.

    Args:
        *args: For click.
        examples: Words of examples, without the name of the program.
        shared: Which options of the group it takes.
        **kwargs: For click.
    """

    def __init__(
        self, *args: Any, examples: Sequence[str] = (), shared: Sequence[str] = tuple(_SHARED), **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.examples = [f"consensus-orm {words}" for words in examples]
        for name in shared:
            metavar, text = _SHARED[name]
            self.params.append(
                click.Option([f"--{name}"], metavar=metavar, help=text, expose_value=False, callback=_given)
            )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the words; an error names this command, which click leaves out where an option lacks its argument."""
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; with --json nothing but its document reaches the standard output."""
        if ctx.params.get("as_json"):
            process.reserve_output()
        return super().invoke(ctx)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the examples."""
        if self.examples:
            with formatter.section("Examples"):
                formatter.write("".join(f"  {example}\n" for example in self.examples))


class _SubGroup(_Command, click.Group):
    """A command with commands of its own."""

    command_class = _Command
    group_class = type  # its own class: groups within it are like it


class _Group(_Parsed, click.Group):
    """A group that reports each error in one line, without a traceback, and with --json in one document.

    A command is imported when it is called.
    """

    command_class = _Command
    group_class = _SubGroup

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of all commands."""
        return list(MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        if cmd_name in MODULES:
            importlib.import_module(f"consensus_orm.cli.{MODULES[cmd_name]}")
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write all commands by what they are for, each with its whole sentence, and examples."""
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, sentence) for name, (_, sentence) in commands.items()], col_max=12)
        with formatter.section("Examples"):
            formatter.write("".join(f"  {example}\n" for example in EXAMPLES))

    def main(  # type: ignore[override]  # click's has overloads for its standalone mode
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> NoReturn:
        """Run the command line and end the process.

        Args:
            args: The arguments; those of the process where left out.
            prog_name: The name shown in the usage.
            **extra: For click.
        """
        typed = list(sys.argv[1:] if args is None else args)
        app = App()
        _prepare_streams()
        try:
            with process.interruptible():
                code = super().main(typed, prog_name, **{**extra, "standalone_mode": False, "obj": app}) or 0
        except (Exception, KeyboardInterrupt) as error:
            code = _complain(app, typed, error)
        sys.exit(process.finish(code))


def _prepare_streams() -> None:
    # Text of agents and operators may hold characters that the terminal cannot encode.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    # Commands report by themselves; without a handler, warnings of the library would be printed in between.
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(logging.NullHandler())


def _complain(app: App, typed: list[str], error: BaseException) -> int:
    """Report an error: in one line on stderr, and with --json in the document of the command.

    For people the reasons why a gate is shut follow, one in a line.
    """
    if isinstance(error, NoArgsIsHelpError):
        error.show()
        return error.exit_code
    told, more = (error.error, error.facts) if isinstance(error, Refused) else (error, {})
    failure, as_json = _failure(app, typed, told), process.asks_for_json(typed)
    if not isinstance(told, OutputError) or not isinstance(told.__cause__, BrokenPipeError):  # a reader like `head`
        with contextlib.suppress(OSError):
            click.echo("\n".join(failure.lines(one=as_json)), err=True)
    if as_json and not isinstance(told, OutputError):
        with contextlib.suppress(OutputError):
            say(failure.document(**more))
    return failure.code


@dataclass(frozen=True)
class _Failure:
    """An error as it is reported: `code` is the exit code, `explained` the code for `consensus-orm explain`."""

    name: str
    code: int
    message: str
    hint: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    explained: str = ""
    reasons: Sequence[str] = ()

    def lines(self, *, one: bool) -> Iterator[str]:
        """The error in one line, or with its reasons in a line each."""
        listed = self.reasons and not one
        told = f"{self.message}: {self.hint}" if self.hint and not listed else self.message
        yield f"consensus-orm: {one_line(f'{told} ({self.explained})' if self.explained else told)}"
        for reason in self.reasons if listed else ():
            yield f"  - {one_line(reason)}"

    def document(self, **more: Any) -> str:
        """The error as a JSON document, with further facts of the command."""
        return process.error_document(
            self.name, self.code, self.message, self.hint, plain(self.facts), self.explained, **plain(more)
        )


def _failure(app: App, typed: list[str], error: BaseException) -> _Failure:
    match error:
        case click.UsageError():
            command = error.ctx.command_path if error.ctx else "consensus-orm"
            message = error.format_message().rstrip(".")
            return _Failure("UsageError", error.exit_code, f"{message}; see: {command} --help")
        case click.ClickException():
            return _Failure(type(error).__name__, error.exit_code, error.format_message())
        case click.Abort() | KeyboardInterrupt():
            words = [*_command(typed), *(error.words if isinstance(error, Interrupted) else ())]
            again = app.spelled(f"consensus-orm {shlex.join(words)}")
            message = "interrupted: everything stands as after the last finished chunk"
            return _Failure("Interrupted", process.INTERRUPTED, f"{message}; go on with: {again}")
    mine = _mine(error)
    message, hint = app.spelled(mine.message), app.spelled(mine.hint)
    reasons = [app.spelled(reason) for reason in mine.reasons] if isinstance(mine, GateClosedError) else []
    return _Failure(type(mine).__name__, mine.exit_code, message, hint, {**mine.facts}, mine.code, reasons)


def _mine(error: BaseException) -> ConsensusError:
    """An error as one of this package; an unexpected one is reported by type and place, without its message."""
    match error:
        case ConsensusError():
            return error
        case MemoryError():
            return OutOfMemoryError()
        case OSError():
            where = f"{error.filename}: " if error.filename else ""
            return StorageError(f"{where}{error.strerror or type(error).__name__}", path=error.filename)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return UnexpectedError(f"unexpected {type(error).__name__} at {frame.filename}:{frame.lineno}")


def _command(typed: list[str]) -> list[str]:
    """The words of the call from the name of the command on, without the options of the group."""
    words = next((typed[at:] for at, word in enumerate(typed) if word in MODULES), typed)
    options = [f"--{name}" for name in _SHARED]
    kept: list[str] = []
    for word in words:
        if kept and kept[-1] in options:
            kept.pop()
        elif word.partition("=")[0] not in options or "=" not in word:
            kept.append(word)
    return kept


class PhaseType(click.ParamType):  # type: ignore[type-arg]  # older releases of click refuse the argument
    """A phase, by name or number."""

    name = "phase"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Phase:
        """Read a phase.

        Raises:
            InvalidValueError: There is no such phase.
        """
        return Phase.parse(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The phases that begin with what was typed."""
        from click.shell_completion import CompletionItem

        names = (phase.name.lower() for phase in Phase)
        return [CompletionItem(name) for name in names if name.startswith(incomplete.lower())]


class NumbersType(click.ParamType):  # type: ignore[type-arg]  # as above
    """The number of an entry, or a range of them: 7, or 3-12."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | range:
        """Read a number or a range."""
        low, dash, high = str(value).partition("-")
        first, last = whole_number(low), whole_number(high if dash else low)
        if not first or last is None:
            self.fail(f"{value!r:.40} is neither a number nor a range such as 3-12", param, ctx)
        if last < first:
            self.fail(f"{value!r:.40} ends before it begins", param, ctx)
        return range(first, last + 1) if dash else first


def whole_number(text: str) -> int | None:
    """The number in a text; None where it is not one, or one that no database holds (`int` fails above 4300 digits)."""
    return int(text) if text.isdecimal() and len(text) < len(str(2**63)) else None


class WaitType(click.ParamType):  # type: ignore[type-arg]  # as above
    """How long to wait: `90`, `90s`, `30min`, `2h`, `7d`, or until a time, `2026-12-01T06:00`."""

    name = "wait"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """Read a duration, or a time, of this machine where it has no zone."""
        if isinstance(value, timedelta):
            return value
        if (found := re.fullmatch(r"(\d{1,9})\s*(s|min|h|d)?", str(value).strip())) is not None:
            return int(found[1]) * timedelta(seconds={"s": 1, "min": 60, "h": 3600, "d": 86400}[found[2] or "s"])
        try:
            return max(datetime.fromisoformat(str(value)).astimezone() - datetime.now().astimezone(), timedelta(0))
        except (ValueError, OverflowError):
            self.fail(f"{value!r:.40} is neither a duration such as 2h nor a time such as 2026-12-01T06:00", param, ctx)


app_command = click.make_pass_decorator(App)
numbers_argument = click.argument("numbers", metavar="[ID|FIRST-LAST]...", nargs=-1, type=NumbersType())
table_option = click.option("--table", metavar="TABLE", help="All open ones of a move or of one of its tables.")
phase_argument = click.argument("phase", type=PhaseType(), required=False)
Option = Callable[[Callable[..., Any]], Callable[..., Any]]


def _let_create(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if (app := ctx.find_object(App)) is not None:
        app.create = value


create_option: Option = click.option(
    "--create",
    is_flag=True,
    expose_value=False,
    callback=_let_create,
    help="Create the database if it does not exist, or the consensus tables in one that holds other tables; otherwise"
    " that is an error.",
)


def _run_on_event(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    if value is None or (app := ctx.find_object(App)) is None:
        return
    try:
        app.on_event = words_of(value)
    except ValueError as error:
        raise click.BadParameter(str(error), ctx, param) from error


on_event_option: Option = click.option(
    "--on-event",
    metavar="COMMAND",
    expose_value=False,
    callback=_run_on_event,
    help="Run COMMAND, without a shell, for each change of phase, mismatch, reject, alarm and finished step; it gets"
    " the event as JSON on stdin.",
)
json_option: Option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")


@click.group(
    "consensus-orm",
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    no_args_is_help=True,
)
@click.version_option(__version__, prog_name="consensus-orm", message="%(prog)s %(version)s")
@click.option("--url", metavar=_SHARED["url"][0], help=_SHARED["url"][1])
@click.option("--mapping", metavar=_SHARED["mapping"][0], help=_SHARED["mapping"][1])
@click.pass_context
def main(ctx: click.Context, url: str | None, mapping: str | None) -> None:
    """Move a database in use from its legacy schema to the normalized one, and back.

    Begin with `consensus-orm demo`, then `status`: it always names the next command.

    --url and --mapping stand before the command or behind it.

    Exit codes: 0 done and clean, 1 refused, or mismatches or rejects found, 2 wrong usage, 130 interrupted.
    """
    app = ctx.ensure_object(App)
    app.url, app.mapping = url, mapping
    if any(name.upper().startswith("CONSENSUS_ORM_") for name in os.environ):
        from consensus_orm.settings import unknown_variables  # here, because it takes a while

        for sentence in unknown_variables(os.environ):
            click.echo(f"consensus-orm: warning: {one_line(sentence)}", err=True)
    if app.warning is not None:
        click.echo(f"consensus-orm: warning: {one_line(app.warning)}", err=True)
