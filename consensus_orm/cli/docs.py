"""The command docs, which shows the documentation that the package ships."""

from __future__ import annotations

import difflib
import sys
from importlib import resources

import click

from consensus_orm.cli.app import json_option, main
from consensus_orm.cli.output import say, show_json
from consensus_orm.cli.reference import REFERENCES
from consensus_orm.errors import InvalidValueError

__all__: list[str] = []


@main.command(shared=[], examples=["docs", "docs phases", "docs troubleshoot"])
@click.argument("topic", required=False)
@json_option
def docs(topic: str | None, as_json: bool) -> None:
    """Show a page of the documentation, or list the pages.

    The pages are Markdown: formatted on a terminal, as they are in a pipe or file.
    """
    if topic is None:
        titles = {name: _text(name).partition("\n")[0].lstrip("# ") for name in _topics()}
        if as_json:
            show_json([{"topic": name, "title": title} for name, title in titles.items()])
            return
        for name, title in titles.items():
            say(f"{name:16}{title}")
        return
    name = _known(topic)
    if as_json:
        show_json({"topic": name, "text": _page(name)})
    else:
        _show(_page(name))


def _topics() -> list[str]:
    pages = resources.files("consensus_orm.docs").iterdir()
    return sorted(page.name.removesuffix(".md") for page in pages if page.name.endswith(".md"))


def _known(topic: str) -> str:
    """The name of a page.

    Raises:
        InvalidValueError: There is no such page.
    """
    topics, wanted = _topics(), topic.lower().removesuffix(".md")
    if wanted in topics:
        return wanted
    near = "".join(f"the nearest one is {each}; " for each in difflib.get_close_matches(wanted, topics, 1))
    raise InvalidValueError(f"there is no page {topic!r:.40}", hint=f"{near}see: consensus-orm docs", field="topic")


def _text(name: str) -> str:
    return resources.files("consensus_orm.docs").joinpath(f"{name}.md").read_text(encoding="utf-8")


def _page(name: str) -> str:
    """The text of a page, and what is made from the code for it."""
    made = REFERENCES[name]() if name in REFERENCES else ()
    return "\n\n".join([_text(name).rstrip("\n"), *made]) + "\n"


def _show(text: str) -> None:
    if not sys.stdout.isatty():
        say(text.rstrip("\n"))
        return
    from rich.console import Console
    from rich.markdown import Markdown

    Console().print(Markdown(text))
