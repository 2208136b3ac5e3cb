"""The charts of the report: lines over time by pygal, and bars in HTML, in the colours of the page, without script."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from consensus_orm import errors
from consensus_orm.formats import size
from consensus_orm.phase import Phase
from consensus_orm.report.html import Html, joined, tag
from consensus_orm.report.tables import number

__all__ = ["Series", "bars", "counts", "over_time", "phases", "progress", "require_pygal"]

Series = Sequence[tuple[datetime, float]]
"""Moments and values, in order."""

COLOURS = tuple(f"var(--series-{each})" for each in range(1, 5))
"""Defined by the style sheet, for light and dark mode."""

WIDTHS = {"wide": (900, 5), "narrow": (360, 3)}
"""Each chart is drawn for two widths of the page, with so many ticks, since letters shrink with a chart."""

HEIGHT = 240
MOST_STEPS = 5
"""Of the scale of counts."""


def require_pygal() -> Any:
    """Import pygal.

    Raises:
        ConfigurationError: The extra `report` is not installed.
    """
    try:
        import pygal
    except ImportError:
        raise errors.ConfigurationError(
            "the report draws with pygal, which is not installed", hint="run: pip install 'consensus-orm[report]'"
        ) from None
    # It adds an importer for maps without find_spec, of which every later import would warn.
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, pygal.PluginImportFixer)]
    return pygal


# Lines over time ------------------------------------------------------------------------------------------


def _options(**more: Any) -> dict[str, Any]:
    from pygal.style import Style

    style = Style(
        background="transparent",
        plot_background="transparent",
        foreground="var(--ink)",
        foreground_strong="var(--ink)",
        foreground_subtle="var(--faint)",
        guide_stroke_color="var(--line)",
        major_guide_stroke_color="var(--line)",
        font_family="inherit",
        label_font_size=12,
        major_label_font_size=12,
        value_font_size=12,
        value_label_font_size=12,
        legend_font_size=12,
        title_font_size=14,
        opacity="1",
        stroke_opacity="1",
        stroke_width="2",
        transition="0s",
        colors=COLOURS,
        value_colors=("var(--ink)",) * len(COLOURS),
    )
    return {
        "style": style,
        "title": None,
        "js": (),
        "height": HEIGHT,
        "margin": 12,
        "legend_at_bottom": True,
        "legend_box_size": 12,
        "disable_xml_declaration": True,
        "dynamic_print_values": False,
        "classes": ("chart",),
        **more,
    }


def _drawn(chart: Any, label: str) -> str:
    chart.add_xml_filter(_still)
    svg: str = chart.render(is_unicode=True)
    # A screen reader reads it as one picture with a name; the numbers are in the table below it.
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1).replace(
        "<title>Pygal</title>", f"<title>{label}</title>", 1
    )


def _still(root: Any) -> Any:
    """Remove pygal's scripts for tooltips, and the ids for them, which are the same in each chart."""
    for parent in list(root.iter()):
        if parent.get("id", "").startswith("activate-serie"):
            del parent.attrib["id"]
        for child in [each for each in parent if str(each.tag).rpartition("}")[2] == "script"]:
            parent.remove(child)
    return root


def _shape(seconds: float, width: str) -> str:
    """How moments are written on an axis of so many seconds."""
    if seconds > 3 * 86400:
        return "%Y-%m-%d" if width == "wide" else "%m-%d"
    return "%m-%d %H:%M" if seconds > 3600 else "%H:%M:%S"


def over_time(label: str, lines: Mapping[str, Series], **options: Any) -> Html:
    """Draw values over time.

    Args:
        label: What the chart shows; trusted text.
        lines: Names and values.
        **options: Further options of pygal.
    """
    moments = sorted(at.timestamp() for series in lines.values() for at, _ in series)
    first, last = moments[0], max(moments[-1], moments[0] + 1)
    drawn = []
    for width, (pixels, ticks) in WIDTHS.items():
        shape = _shape(last - first, width)
        chart = require_pygal().XY(
            **_options(
                width=pixels,
                x_labels=[first + (last - first) * tick / (ticks - 1) for tick in range(ticks)],
                x_value_formatter=lambda at, shape=shape: datetime.fromtimestamp(at, UTC).strftime(shape),
                show_dots=any(len(series) == 1 for series in lines.values()),  # a line needs two points
                # The last label is centred at the end of the axis.
                margin_right=12 + 4 * len(datetime.now(UTC).strftime(shape)),
                include_x_axis=True,
                value_formatter=number,
                **options,
            )
        )
        for name, series in lines.items():
            chart.add(name, [(at.timestamp(), value) for at, value in series])
        drawn.append(tag("div", Html(_drawn(chart, label)), class_=width))
    return _figure(label, *drawn)


def _figure(label: str, *drawn: Html) -> Html:
    return tag("figure", tag("figcaption", label), *drawn)


def phases(label: str, changes: Series) -> Html:
    """Draw the phase over time, in steps, from the times at which phases began; the last entry is now."""
    steps = [changes[0]]
    for (_, before), (at, after) in itertools.pairwise(changes):
        steps += [(at, before), (at, after)]
    labels = [{"value": phase.value, "label": phase.name} for phase in Phase]
    return over_time(label, {"phase": steps}, y_labels=labels, range=(1, 5), show_legend=False)


def counts(label: str, moments: Mapping[str, Sequence[datetime]], start: datetime, end: datetime) -> Html:
    """Draw how many moments there were so far, in steps.

    Args:
        label: What the chart shows; trusted text.
        moments: Names and moments, in order.
        start: Where the axis begins.
        end: Where it ends.
    """
    lines: dict[str, Series] = {}
    for name, each in moments.items():
        steps = [step for number_, at in enumerate(each, 1) for step in ((at, number_ - 1.0), (at, float(number_)))]
        lines[name] = [(start, 0.0), *steps, (end, float(len(each)))]
    most = max(map(len, moments.values()))
    every = max(math.ceil(most / MOST_STEPS), 1)
    labels = [{"value": value, "label": number(value)} for value in range(0, most + every, every)]
    return over_time(label, lines, y_labels=labels, range=(0, labels[-1]["value"]))


# Bars -----------------------------------------------------------------------------------------------------


def _measured(value: float, unit: str) -> str:
    return size(value) if unit == "bytes" else f"{number(value)} {unit}"


def bars(label: str, names: Sequence[str], groups: Mapping[str, Iterable[float | None]], *, unit: str) -> Html:
    """Draw horizontal bars, each with its value beside it.

    Args:
        label: What the chart shows; trusted text.
        names: What each value is about, from the top.
        groups: Series: a name, and a value for each of `names`; None draws no bar.
        unit: The unit of the values.
    """
    columns = {group: list(values) for group, values in groups.items()}
    longest = max((value for values in columns.values() for value in values if value is not None), default=0) or 1
    items = []
    for at, name in enumerate(names):
        found = [(n, group, values[at]) for n, (group, values) in enumerate(columns.items(), 1)]
        drawn = [_bar(n, group, value, longest, unit) for n, group, value in found if value is not None]
        items.append(tag("li", tag("span", name, class_="name"), *drawn))
    return _figure(label, tag("ul", *items, class_="bars"))


def _bar(series: int, group: str, value: float, longest: float, unit: str) -> Html:
    width = f"{max(100 * value / longest, 0.5):.1f}%"
    drawn = tag("svg", tag("rect", width=width, height="100%", fill=COLOURS[series - 1]), aria_hidden="true")
    return tag("span", drawn, tag("span", f"{group} {_measured(value, unit)}"), class_="bar")


def progress(label: str, done: float, total: float, text: str) -> Html:
    """Draw how much of something is done.

    Args:
        label: What is done; trusted text.
        done: How much.
        total: Of how much.
        text: The same in words, with what is left.
    """
    share = min(max(done / total, 0), 1) if total else 1
    bar = tag("progress", max="1", value=f"{share:.4f}", aria_label=label)
    return tag("p", joined([bar, " ", tag("span", text)]), class_="progress")
