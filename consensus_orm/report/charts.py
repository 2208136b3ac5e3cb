"""The charts of the report: inline SVG by pygal, in the colours of the page, without script."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from consensus_orm import errors
from consensus_orm.phase import Phase

__all__ = ["Series", "bars", "over_time", "phases", "require_pygal"]

Series = Sequence[tuple[datetime, float]]
"""Moments and values, in order."""

COLOURS = tuple(f"var(--series-{number})" for number in range(1, 5))
"""Defined by the style sheet, for light and dark mode."""

TICKS = 5

HEIGHT_OF_A_BAR = 22
MARGIN_OF_A_LABEL = 60
"""For the last label of an axis, which is centred at its end."""


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


def _options(title: str, **more: Any) -> dict[str, Any]:
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
        "width": 900,
        "height": 260,
        "margin": 12,
        "legend_at_bottom": True,
        "legend_box_size": 12,
        "disable_xml_declaration": True,
        "dynamic_print_values": False,
        "classes": ("chart",),
        **more,
    }


def _drawn(chart: Any, label: str) -> str:
    chart.add_xml_filter(_without_script)
    svg: str = chart.render(is_unicode=True)
    # A screen reader reads it as one picture with a name; the numbers are in the table below it.
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1).replace(
        "<title>Pygal</title>", f"<title>{label}</title>", 1
    )


def _without_script(root: Any) -> Any:
    """Remove pygal's scripts for tooltips."""
    for parent in list(root.iter()):
        for child in [each for each in parent if str(each.tag).rpartition("}")[2] == "script"]:
            parent.remove(child)
    return root


def over_time(label: str, lines: Mapping[str, Series], **options: Any) -> str:
    """Draw values over time.

    Args:
        label: What the chart shows; trusted text.
        lines: Names and values.
        **options: Further options of pygal.
    """
    moments = sorted(at.timestamp() for series in lines.values() for at, _ in series)
    first, last = moments[0], max(moments[-1], moments[0] + 1)
    shape = "%Y-%m-%d" if last - first > 3 * 86400 else "%m-%d %H:%M:%S"
    chart = require_pygal().XY(
        **_options(
            label,
            x_labels=[first + (last - first) * tick / (TICKS - 1) for tick in range(TICKS)],
            x_value_formatter=lambda at: datetime.fromtimestamp(at, UTC).strftime(shape),
            show_dots=False,
            margin_right=MARGIN_OF_A_LABEL,
            **options,
        )
    )
    for name, series in lines.items():
        chart.add(name, [(at.timestamp(), value) for at, value in series])
    return _drawn(chart, label)


def phases(label: str, changes: Series) -> str:
    """Draw the phase over time, in steps, from the times at which phases began; the last entry is now."""
    steps = [changes[0]]
    for (_, before), (at, after) in itertools.pairwise(changes):
        steps += [(at, before), (at, after)]
    labels = [{"value": phase.value, "label": phase.name} for phase in Phase]
    return over_time(label, {"phase": steps}, y_labels=labels, range=(1, 5), show_legend=False)


def _measured(value: float, unit: str) -> str:
    """A value of an axis in a few characters."""
    for name, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if unit == "bytes" and value >= size:
            return f"{value / size:,.4g} {name}"
    return f"{value:,.0f} {unit}" if value >= 1000 else f"{value:.3g} {unit}"


def bars(
    label: str,
    names: Sequence[str],
    groups: Mapping[str, Iterable[float | None]],
    *,
    unit: str,
    stacked: bool = False,
) -> str:
    """Draw grouped horizontal bars.

    Args:
        label: What the chart shows; trusted text.
        names: The groups of bars, from the top.
        groups: Series: a name, and a value for each of `names`.
        unit: The unit of the values.
        stacked: Draw the values of a name in one bar.
    """
    pygal = require_pygal()
    draw = pygal.HorizontalStackedBar if stacked else pygal.HorizontalBar
    chart = draw(
        **_options(
            label,
            height=90 + HEIGHT_OF_A_BAR * len(names) * (1 if stacked else len(groups)),
            x_labels=list(reversed(names)),
            value_formatter=lambda value: _measured(value, unit),
            max_scale=TICKS * 2,
            margin_right=MARGIN_OF_A_LABEL,
            truncate_legend=-1,
            truncate_label=-1,
            show_legend=len(groups) > 1,
        )
    )
    for name, values in groups.items():
        chart.add(name, list(values)[::-1])
    return _drawn(chart, label)
