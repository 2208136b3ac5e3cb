"""What the pages of the documentation say of errors, settings and commands: made from the code."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import pairwise

import click

from consensus_orm.cli.app import main
from consensus_orm.cli.commands import SECTIONS
from consensus_orm.cli.explain import kinds, meaning
from consensus_orm.formats import duration

__all__ = ["REFERENCES"]


def _errors() -> Iterator[str]:
    """Every error with what it means and what to do, from its class."""
    yield "## Every error"
    for code, kind in sorted(kinds().items()):
        yield f"### {code}"
        yield f"`{kind.__name__}`: " + "\n".join(meaning(kind))
        yield f"What to do: {kind.hint or 'see the text of the error'}."


def _settings() -> Iterator[str]:
    """Every setting with its default and its meaning, from `Settings`."""
    from consensus_orm.settings import Settings  # here, because it takes a while

    texts = _attribute_texts(Settings)
    rows = [
        f"| `{name.upper()}` | {_spelled(field.default)} | {texts[name]} |"
        for name, field in Settings.model_fields.items()
        if not field.exclude  # functions, which no variable can name
    ]
    yield "\n".join(["| setting | default | meaning |", "|---|---|---|", *rows])


def _attribute_texts(kind: type) -> dict[str, str]:
    """The text below each attribute of a class, by the name of the attribute."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    texts = {}
    for attribute, below in pairwise(definition.body if isinstance(definition, ast.ClassDef) else ()):
        match attribute, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                texts[name] = " ".join(text.split())
    return texts


def _spelled(default: object) -> str:
    if isinstance(default, timedelta):
        return duration(default)
    return str(default).lower() if default is None or isinstance(default, bool) else str(default)


def _commands() -> Iterator[str]:
    """Every command with its help, by what it is for."""
    context = click.Context(main, info_name="consensus-orm")
    for title, section in SECTIONS.items():
        yield f"## {title}"
        for name in section:
            if (command := main.get_command(context, name)) is not None:
                yield from _help(command, context, name)


def _help(command: click.Command, parent: click.Context, name: str) -> Iterator[str]:
    context = click.Context(command, parent, name, terminal_width=100, max_content_width=100)
    yield f"### {context.command_path.removeprefix('consensus-orm ')}"
    yield f"```text\n{command.get_help(context)}\n```"
    if isinstance(command, click.Group):
        for each in command.list_commands(context):
            if (inner := command.get_command(context, each)) is not None:
                yield from _help(inner, context, each)


def _metrics() -> Iterator[str]:
    """Every metric with its kind, unit and attributes, from the instruments."""
    from consensus_orm.telemetry.instruments import INSTRUMENTS, Instrument  # here, because it takes a while
    from consensus_orm.telemetry.readings import READINGS, Reading

    every: list[Instrument | Reading] = [*INSTRUMENTS, *READINGS]
    rows = [
        f"| `{each.name}` | {each.kind}, {each.unit} | {each.description}"
        f" | {', '.join(f'`{name}`' for name in each.attributes)} |"
        for each in sorted(every, key=lambda each: each.name)
    ]
    yield "\n".join(["| metric | kind, unit | what it measures | attributes |", "|---|---|---|---|", *rows])


def _api() -> Iterator[str]:
    """Every public class and function."""
    from consensus_orm.cli.api_reference import api  # here, because it imports all of the package

    yield from api()


REFERENCES: dict[str, Callable[[], Iterator[str]]] = {
    "api": _api,
    "commands": _commands,
    "metrics": _metrics,
    "settings": _settings,
    "troubleshoot": _errors,
}
"""The paragraphs that follow the text of a page, by the name of the page."""
