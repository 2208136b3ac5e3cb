"""Elements of a page: `tag` escapes every value of the database."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

__all__ = ["Child", "Html", "anchor", "joined", "note", "tag"]


class Html(str):
    """Text that is HTML, and not escaped again."""

    __slots__ = ()


Child = object
"""What an element holds: `Html` as it is, anything else as text."""


def tag(name: str, *children: Child, **attributes: str) -> Html:
    """An element with attributes (`class_` for `class`, `_` for `-`); its children are escaped unless they are HTML."""
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(_visible(value))}"' for key, value in attributes.items()
    )
    return Html(f"<{name}{given}>{joined(children)}</{name}>")


def joined(children: Iterable[Child]) -> Html:
    """Children one after another, escaped unless they are HTML."""
    return Html("".join(child if isinstance(child, Html) else html.escape(_visible(child)) for child in children))


def _visible(value: Child) -> str:
    """A value as text, without control characters; None is a dash."""
    text = "–" if value is None else str(value)
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def note(*children: Child) -> Html:
    """A remark below what it is about."""
    return tag("p", *children, class_="note")


def anchor(title: str) -> str:
    """A title as an id, and as the name of a file."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
