"""The command group: its one option, its exit codes, and how it says that something went wrong."""

from __future__ import annotations

import contextlib
import logging
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from io import TextIOWrapper
from typing import Any, NoReturn

import click
from click.exceptions import NoArgsIsHelpError
from click.shell_completion import CompletionItem
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from consensus_orm import ConsensusError, ConsensusStore, Phase, __version__
from consensus_orm.cli.output import one_line
from consensus_orm.engine import translated
from consensus_orm.errors import StorageError
from consensus_orm.settings import from_environment

__all__ = ["App", "Interrupted", "app_command", "json_option", "main", "phase_argument"]

INTERRUPTED = 130
"""The exit code of a program that Ctrl-C ended, as shells have it."""


class App:
    """What every command is given: the database asked for.

    Args:
        url: As typed; None leaves it to the settings.
    """

    def __init__(self, url: str | None) -> None:
        self.url = url

    @contextlib.contextmanager
    def store(self, *, may_be_missing: bool = False, replica: bool = True) -> Iterator[ConsensusStore]:
        """Open the database for one command.

        Args:
            may_be_missing: Go on where there is no such file. Otherwise a mistyped path would make a new
                database and report that all is well with it.
            replica: Whether the read replica of the settings is one of this database.

        Yields:
            The store; closed at the end.

        Raises:
            StorageError: There is no such file, or it cannot be read.
        """
        settings = None if replica else from_environment().model_copy(update={"read_url": None})
        with ConsensusStore.open(self.url, settings=settings) as store, translated(store.engine):
            if not may_be_missing and store.path is not None and not store.path.exists():
                raise StorageError(
                    f"{store.path} does not exist", hint="check --url; `consensus-orm upgrade` makes a new database"
                )
            yield store

    def spelled(self, text: str) -> str:
        """A text whose commands work as they stand: the --url of this call is put into each of them.

        Otherwise whoever copies one would run it on the default database.
        """
        if self.url is None:
            return text
        try:
            shown = make_url(self.url).render_as_string() if "://" in self.url else self.url
        except (ArgumentError, ValueError):
            return text
        return text.replace("consensus-orm ", f"consensus-orm --url {shlex.quote(shown)} ")


class Interrupted(click.Abort):
    """Ctrl-C in a command that is not to be called again just as it was typed.

    Args:
        *words: What is to be typed besides.
    """

    def __init__(self, *words: str) -> None:
        super().__init__()
        self.words = words


class _Group(click.Group):
    """A group that says each error in one line, without a traceback."""

    def main(  # type: ignore[override]
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
            code = super().main(typed, prog_name, **{**extra, "standalone_mode": False})
        except NoArgsIsHelpError as error:
            error.show()
            code = error.exit_code
        except click.UsageError as error:
            command = error.ctx.command_path if error.ctx else "consensus-orm"
            code = _complain(f"{error.format_message().rstrip('.')}; see: {command} --help", error.exit_code)
        except click.ClickException as error:
            code = _complain(error.format_message(), error.exit_code)
        except ConsensusError as error:
            code = _complain(_app(typed).spelled(str(error)), error.exit_code)
        except click.Abort as abort:
            words = [*_command(typed), *(abort.words if isinstance(abort, Interrupted) else ())]
            again = _app(typed).spelled(f"consensus-orm {shlex.join(words)}")
            code = _complain(
                f"interrupted: everything stands as after the last finished chunk; go on with: {again}", INTERRUPTED
            )
        sys.exit(code or 0)


def _prepare_streams() -> None:
    # What an agent or an operator wrote may hold characters that a terminal does not have.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")
    # Commands say what happened themselves; without a handler, warnings of the library would be printed between.
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(logging.NullHandler())


def _app(typed: list[str]) -> App:
    """The app of a call that has failed, wherever it failed."""
    url = None
    with contextlib.suppress(click.ClickException):
        url = main.make_context("consensus-orm", list(typed), resilient_parsing=True).params.get("url")
    return App(url)


def _command(typed: list[str]) -> list[str]:
    """What was typed, from the name of the command on."""
    return next((typed[at:] for at, word in enumerate(typed) if word in main.commands), typed)


def _complain(message: str, code: int) -> int:
    click.echo(f"consensus-orm: {one_line(message)}", err=True)
    return code


class PhaseType(click.ParamType):  # type: ignore[type-arg]  # older releases of click refuse the argument
    """A phase, by name or number."""

    name = "phase"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Phase:
        """Read a phase.

        Raises:
            InvalidValueError: There is no such phase.
        """
        return Phase.parse(value)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        """The phases that begin with what was typed."""
        names = (phase.name.lower() for phase in Phase)
        return [CompletionItem(name) for name in names if name.startswith(incomplete.lower())]


app_command = click.make_pass_decorator(App)
phase_argument = click.argument("phase", type=PhaseType(), required=False)
Option = Callable[[Callable[..., Any]], Callable[..., Any]]
json_option: Option = click.option("--json", "as_json", is_flag=True, help="One JSON document instead of text.")


@click.group(
    "consensus-orm",
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    no_args_is_help=True,
)
@click.version_option(__version__, prog_name="consensus-orm", message="%(prog)s %(version)s")
@click.option("--url", metavar="URL", help="A SQLAlchemy URL or a path; CONSENSUS_ORM_URL where left out.")
@click.pass_context
def main(ctx: click.Context, url: str | None) -> None:
    """Move a database in use from its legacy schema to the normalized one, and back.

    Begin with `consensus-orm demo`, then `status`: it always names the next command.

    Exit codes: 0 done and clean, 1 refused, or mismatches or rejects found, 2 wrong usage.
    """
    ctx.obj = App(url)
