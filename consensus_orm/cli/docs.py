"""The command docs, which shows the documentation that the package ships."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources

import click

from consensus_orm.cli.app import json_option, main
from consensus_orm.cli.output import exit_with, say, show_json
from consensus_orm.cli.reference import REFERENCES
from consensus_orm.errors import InvalidValueError

__all__: list[str] = []


MOST_FOUND = 12
"""Sections that a search lists; `--json` lists all."""

_COMMON = {
    "a",
    "an",
    "and",
    "can",
    "do",
    "does",
    "for",
    "how",
    "i",
    "in",
    "is",
    "it",
    "my",
    "of",
    "the",
    "to",
    "what",
    "why",
}
"""Words of questions that say nothing about a section."""

_WIDE = 76
"""Characters of the line that a search shows of a section."""


@dataclass(frozen=True)
class _Section:
    """A section of a page that was found, and the line of it that has most of the words."""

    topic: str
    heading: str
    line: str


@main.command(shared=[], examples=["docs", "docs phases", "docs --search 'another program'"])
@click.argument("topic", required=False)
@click.option("--search", metavar="WORDS", help="List the sections with all of these words, or most of them.")
@json_option
def docs(topic: str | None, search: str | None, as_json: bool) -> None:
    """Show a page of the documentation, or list the pages.

    The pages are Markdown: formatted on a terminal, as they are in a pipe or file. The exit code is 1 where a search
    finds nothing.
    """
    if search is not None:
        if topic is not None or not search.strip():
            raise click.UsageError("give a TOPIC, or --search WORDS")
        _show_found(_search(_words(search)), search, as_json=as_json)
        return
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


def _show_found(found: list[_Section], search: str, *, as_json: bool) -> None:
    if as_json:
        show_json(found)
    else:
        for section in found[:MOST_FOUND]:
            say(f"{section.topic:16}{section.heading}")
            say(f"{'':16}{section.line[:_WIDE]}")
        if len(found) > MOST_FOUND:
            say(f"and {len(found) - MOST_FOUND} more; give more words")
        say("see: consensus-orm docs TOPIC" if found else f"no section has any of: {search}")
    exit_with(not found)


def _words(search: str) -> list[str]:
    """The words of a search, without those that a question has and every page, too."""
    words = search.strip(" ?").split()
    return [word for word in words if word.lower() not in _COMMON] or words


def _search(words: list[str]) -> list[_Section]:
    """The sections that have all words, or else most of them.

    First those with most of them in their heading, then those with most in all.
    """
    wanted = [re.compile(rf"(?<!\w){re.escape(word)}", re.IGNORECASE) for word in words]

    def held(text: str) -> int:
        return sum(word.search(text) is not None for word in wanted)

    found: list[tuple[int, int, int, _Section]] = []
    for topic in _topics():
        for heading, lines in _sections(_page(topic)):
            text = "\n".join([topic, heading, *lines])
            if has := held(text):
                best = max(lines, key=held, default="")  # the first of them
                uses = sum(len(word.findall(text)) for word in wanted)
                found.append((has, held(heading), uses, _Section(topic, heading, best.strip())))
    most = max((has for has, *_ in found), default=0)
    found = [each for each in found if each[0] == most]
    return [section for *_, section in sorted(found, key=lambda each: each[:3], reverse=True)]


def _sections(page: str) -> Iterator[tuple[str, list[str]]]:
    """The headings of a page, each with its lines."""
    heading, lines, in_code = "", list[str](), False
    for line in page.splitlines():
        in_code ^= line.lstrip().startswith("```")
        if line.startswith("#") and not in_code:
            if heading:
                yield heading, lines
            heading, lines = line.lstrip("# "), []
        else:
            lines.append(line)
    yield heading, lines


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
    raise InvalidValueError(
        f"there is no page {topic!r:.40}", hint=f"{near}see: consensus-orm docs --search WORDS", field="topic"
    )


def _text(name: str) -> str:
    return resources.files("consensus_orm.docs").joinpath(f"{name}.md").read_text(encoding="utf-8")


@cache
def _page(name: str) -> str:
    """The text of a page, and what is made from the code for it, which takes a second for all."""
    made = REFERENCES[name]() if name in REFERENCES else ()
    return "\n\n".join([_text(name).rstrip("\n"), *made]) + "\n"


def _show(text: str) -> None:
    if not sys.stdout.isatty():
        say(text.rstrip("\n"))
        return
    from rich.console import Console
    from rich.markdown import Markdown

    Console().print(Markdown(text))
