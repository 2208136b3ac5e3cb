"""The question before a command drops, rewrites or overwrites something; asked on a terminal only."""

from __future__ import annotations

import sys
from collections.abc import Callable

import click

from consensus_orm.cli.output import one_line

__all__ = ["confirm", "is_confirmed", "yes_option"]

yes_option = click.option("--yes", is_flag=True, help="Do not ask before something is dropped or overwritten.")


def confirm(consequence: str | Callable[[], str | None] | None, *, yes: bool, as_json: bool = False) -> None:
    """Tell what will happen, and ask; without a terminal, with --yes and with --json nothing is asked.

    Args:
        consequence: What will be dropped, rewritten or overwritten, as a sentence; None where nothing will. A function
            is called only where the question is asked.
        yes: Whether the answer was given with the command.
        as_json: Whether a program calls it.

    Raises:
        ClickException: The answer is no.
    """
    if yes or as_json or not _on_terminal():
        return
    told = consequence() if callable(consequence) else consequence
    if told is not None and not is_confirmed(told):
        raise click.ClickException("not confirmed: nothing was changed")


def is_confirmed(consequence: str) -> bool:
    """Ask on a terminal; elsewhere the answer is no."""
    if not _on_terminal():
        return False
    click.echo(f"{one_line(consequence)}.", err=True)
    return click.confirm("Go on?", default=False, err=True)


def _on_terminal() -> bool:
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stderr))
