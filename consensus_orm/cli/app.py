"""The command group `consensus-orm`: its options, its exit codes, and how it reports errors."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import TextIOWrapper
from typing import Any, NoReturn

import click
from click.exceptions import NoArgsIsHelpError
from click.shell_completion import CompletionItem

from consensus_orm import ConsensusError, ConsensusStore, Phase, __version__
from consensus_orm.cli import process
from consensus_orm.cli.mapping import moves_named, of_project
from consensus_orm.cli.output import one_line, plain, say
from consensus_orm.databases.engine import translated
from consensus_orm.databases.opening import has_secret, parse_url
from consensus_orm.errors import OutOfMemoryError, OutputError, StorageError, UnexpectedError
from consensus_orm.events import BlockedEvent, Event
from consensus_orm.settings import Settings, unknown_variables

__all__ = [
    "App",
    "Interrupted",
    "Refused",
    "app_command",
    "create_option",
    "json_option",
    "main",
    "phase_argument",
]


URL_VARIABLE = "CONSENSUS_ORM_URL"
"""The variable of the environment that is the setting `url`."""

MISSING = "check the URL; `consensus-orm upgrade --create` makes a new database"
"""The hint where there is no database."""


class App:
    """The database of a command, and its moves.

    Args:
        url: As typed; None leaves it to the settings.
        mapping: The name of the moves, as typed or as the project has it; None are the consensus tables.
        create: Whether a missing database is made. Otherwise a command with a mistyped path would make a new one, and
            report no problem.
    """

    def __init__(self, url: str | None, mapping: str | None, *, create: bool = False) -> None:
        self.url = url
        self.mapping = mapping
        self.create = create

    @contextlib.contextmanager
    def store(self, *, replica: bool = True, missing: str = MISSING) -> Iterator[ConsensusStore]:
        """Open the database until the block ends.

        Args:
            missing: The hint if it does not exist.
            replica: Whether the read replica of the settings belongs to this database.

        Raises:
            StorageError: There is no such file, or it cannot be read.
        """
        settings = Settings() if replica else Settings().model_copy(update={"read_url": None})
        moves = moves_named(self.mapping)
        with ConsensusStore.open(self.url, settings=settings, moves=moves) as store, translated(store.engine):
            if not self.create and store.path is not None and not store.path.exists():
                raise StorageError(f"{store.path} does not exist", hint=missing)
            store.telemetry.add_hook(_show_blockers)
            yield store

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
        if "://" not in url or not has_secret(parse_url(url)):
            return ["--url", shlex.quote(url)]
        return [] if os.environ.get(URL_VARIABLE) == url else ["--url", f'"${URL_VARIABLE}"']

    @property
    def warning(self) -> str | None:
        """What the user should know of the URL as it was typed."""
        with contextlib.suppress(ConsensusError):
            if self.url is not None and f'"${URL_VARIABLE}"' in self._url_again(self.url):
                return (
                    "the password in --url is visible to other users of this machine; the commands printed here take"
                    f" the URL from {URL_VARIABLE} instead: export it"
                )
        return None


def _show_blockers(event: Event) -> None:
    """Tell on stderr, while a command waits, for whom."""
    if isinstance(event, BlockedEvent):
        click.echo(f"consensus-orm: {one_line(event)}", err=True)


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


class _Group(click.Group):
    """A group that reports each error in one line, without a traceback, and with --json in one document."""

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
        _prepare_streams()
        try:
            with process.interruptible():
                code = super().main(typed, prog_name, **{**extra, "standalone_mode": False}) or 0
        except (Exception, KeyboardInterrupt) as error:
            code = _complain(typed, error)
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


def _complain(typed: list[str], error: BaseException) -> int:
    """Report an error: in one line on stderr, and with --json in the document of the command."""
    if isinstance(error, NoArgsIsHelpError):
        error.show()
        return error.exit_code
    told, more = (error.error, error.facts) if isinstance(error, Refused) else (error, {})
    failure = _failure(typed, told)
    if not isinstance(told, OutputError) or not isinstance(told.__cause__, BrokenPipeError):  # a reader like `head`
        with contextlib.suppress(OSError):
            click.echo(f"consensus-orm: {one_line(failure)}", err=True)
    if process.asks_for_json(typed) and not isinstance(told, OutputError):
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

    def __str__(self) -> str:
        told = f"{self.message}: {self.hint}" if self.hint else self.message
        return f"{told} ({self.explained})" if self.explained else told

    def document(self, **more: Any) -> str:
        """The error as a JSON document, with further facts of the command."""
        return process.error_document(
            self.name, self.code, self.message, self.hint, plain(self.facts), self.explained, **plain(more)
        )


def _failure(typed: list[str], error: BaseException) -> _Failure:
    app = _app(typed)
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
    return _Failure(type(mine).__name__, mine.exit_code, message, hint, {**mine.facts}, mine.code)


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


def _app(typed: list[str]) -> App:
    """The app of a call that failed, maybe before there was one."""
    given: dict[str, Any] = {}
    with contextlib.suppress(click.ClickException):
        given = main.make_context("consensus-orm", list(typed), resilient_parsing=True).params
    return App(given.get("url"), given.get("mapping"))


def _command(typed: list[str]) -> list[str]:
    """The words of the call from the name of the command on."""
    return next((typed[at:] for at, word in enumerate(typed) if word in main.commands), typed)


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
        names = (phase.name.lower() for phase in Phase)
        return [CompletionItem(name) for name in names if name.startswith(incomplete.lower())]


app_command = click.make_pass_decorator(App)
phase_argument = click.argument("phase", type=PhaseType(), required=False)
Option = Callable[[Callable[..., Any]], Callable[..., Any]]


def _let_create(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if (app := ctx.find_object(App)) is not None:  # there is none during shell completion
        app.create = value


create_option: Option = click.option(
    "--create",
    is_flag=True,
    expose_value=False,
    callback=_let_create,
    help="Create the database if it does not exist; otherwise a missing file is an error.",
)
json_option: Option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text.")


@click.group(
    "consensus-orm",
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    no_args_is_help=True,
)
@click.version_option(__version__, prog_name="consensus-orm", message="%(prog)s %(version)s")
@click.option("--url", metavar="URL", help="A SQLAlchemy URL or a path; CONSENSUS_ORM_URL where left out.")
@click.option(
    "--mapping",
    metavar="MODULE:MOVES",
    help="The moves of your own tables; `mapping` of [tool.consensus_orm] in pyproject.toml where left out.",
)
@click.pass_context
def main(ctx: click.Context, url: str | None, mapping: str | None) -> None:
    """Move a database in use from its legacy schema to the normalized one, and back.

    Begin with `consensus-orm demo`, then `status`: it always names the next command.

    Exit codes: 0 done and clean, 1 refused, or mismatches or rejects found, 2 wrong usage.
    """
    ctx.obj = app = App(url, mapping if mapping is not None else of_project())
    for sentence in [*unknown_variables(os.environ), *filter(None, [app.warning])]:
        click.echo(f"consensus-orm: warning: {one_line(sentence)}", err=True)
