"""Tables of a page: sortable where scripts run, each to be downloaded as CSV and as JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias
from urllib.parse import quote

from consensus_orm.formats import moment, size
from consensus_orm.report.html import Child, Html, anchor, joined, tag

__all__ = ["FORMATS", "Bytes", "Link", "Table", "as_data", "number"]

LISTED = 200
"""Rows shown before the rest is only counted; downloads have all of them."""

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""How texts begin that a spreadsheet would run."""

Link: TypeAlias = "Callable[[Table, str], str]"
"""Where a table can be downloaded in one of the `FORMATS`."""


class Bytes(int):
    """A number of bytes, shown as a size."""

    __slots__ = ()


def number(value: float) -> str:
    """A number for people: whole ones as they are, others with three significant digits."""
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 100 else f"{value:.3g}"


@dataclass(frozen=True)
class Table:
    """A table of a page.

    Attributes:
        title: Its name, unique on the page; trusted text.
        headings: The names of the columns.
        rows: The values, oldest first.
        pages: The address of a page about a row by the value of its first column, where there are such pages.
    """

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[Any]]
    pages: str = ""

    @property
    def name(self) -> str:
        """Its title as the name of a file, without suffix."""
        return anchor(self.title)

    def csv(self) -> str:
        """All rows as CSV; a text that a spreadsheet would run as a formula begins with an apostrophe."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.headings)
        writer.writerows([_harmless(_plain(value)) for value in row] for row in self.rows)
        return text.getvalue()

    def json(self) -> str:
        """All rows as a JSON array of objects."""
        rows = [dict(zip(self.headings, map(_plain, row), strict=True)) for row in self.rows]
        return json.dumps(rows, indent=1)

    def html(self, link: Link) -> Html:
        """The table, within a region that can be scrolled, and its downloads.

        Args:
            link: Where it can be downloaded.
        """
        shown = self.rows[-LISTED:]
        numeric = [all(_is_number(row[at]) for row in shown) for at in range(len(self.headings))]
        classes = ["number" if each else "text" for each in numeric]
        head = [tag("th", text, class_=c, scope="col") for text, c in zip(self.headings, classes, strict=True)]
        body = [tag("tr", *map(self._cell, row, classes, range(len(row)))) for row in shown]
        caption = tag("caption", self.title, class_="hidden")
        table = tag("table", caption, tag("thead", tag("tr", *head)), tag("tbody", *body))
        region = tag("div", table, class_="table", role="region", aria_label=f"{self.title}, table", tabindex="0")
        left_out = len(self.rows) - len(shown)
        more = f"and {left_out:,} earlier ones, in the downloads; " if left_out else "download "
        links = [
            tag(
                "a",
                kind.upper(),
                href=link(self, kind),
                download=f"{self.name}.{kind}",
                aria_label=f"{self.title} as {kind.upper()}",
            )
            for kind in FORMATS
        ]
        return joined([region, tag("p", more, links[0], " or ", links[1], class_="note links")])

    def _cell(self, value: Any, class_: str, at: int) -> Html:
        shown, key = _shown(value)
        if at == 0 and self.pages:
            shown = tag("a", shown, href=f"{self.pages}{value}")
        return tag("td", shown, class_=class_, **({} if key is None else {"data_key": key}))


FORMATS: Mapping[str, tuple[str, Callable[[Table], str]]] = {
    "csv": ("text/csv", Table.csv),
    "json": ("application/json", Table.json),
}
"""The formats of downloads: the type, and what makes the text."""


def as_data(table: Table, kind: str) -> str:
    """The address that contains a whole download, for a page that stands alone."""
    media_type, made = FORMATS[kind]
    return f"data:{media_type};charset=utf-8,{quote(made(table), safe='')}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | None) and not isinstance(value, bool)


def _shown(value: Any) -> tuple[Child, str | None]:
    """A value for people, and what it is sorted by where that is not what is shown."""
    match value:
        case bool():
            return "yes" if value else "no", None
        case Bytes():
            return size(value), str(int(value))
        case int() | float():
            return number(value), repr(value)
        case datetime():
            return tag("time", moment(value), datetime=value.isoformat()), value.isoformat()
    return value, None


def _plain(value: Any) -> Any:
    """A value for programs."""
    return value.isoformat() if isinstance(value, datetime) else value


def _harmless(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
