"""What a run says: printed, as JSON, as a plot; and whether it is worse than an earlier one."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.harness import Measured, Spread

__all__ = ["as_json", "machine", "plot", "print_group", "print_targets", "save", "worse"]

PACKAGES = (
    "consensus-orm",
    "SQLAlchemy",
    "pydantic",
    "laboratory",
    "launchdarkly-server-sdk",
    "peewee",
    "Django",
    "sqlmodel",
)
OURS = (
    "ours",
    "own",
    "of_run",
    "add_many",
    "our_",
    "beside_",
    "threads",
    "in_processes",
    "advance",
    "rollback",
    "write_",
    "repository_",
    "session_",
    "telemetry",
    "read_",
    "memory",
)
"""How the names of our own cases begin."""


def machine() -> dict[str, str]:
    """What it was measured on, and with which versions."""
    facts = {
        "at": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": "python -m benchmarks " + " ".join(sys.argv[1:]),
        "commit": _commit(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "load before": f"{os.getloadavg()[0]:.1f}",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
    }
    for package in PACKAGES:
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            facts[package] = "not installed"
    return facts


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def print_group(measured: Measured) -> None:
    """The cases of a group, each with its time, its rate and its ratio to the baseline."""
    group = measured.group
    print(f"\n{group.title}; ratio to {group.baseline}: median (quartiles)")
    width = max(len(case.label) for case in group.cases)
    for case in group.cases:
        if case.name not in measured.seconds:
            print(f"  {case.label:{width}}  SKIPPED: {measured.skipped.get(case.name, 'not measured')}")
            continue
        each = Spread.of(measured.seconds[case.name])
        print(
            f"  {case.label:{width}}  {each.median * 1e6:12,.1f} us/{group.unit}  {1 / each.median:11,.0f}/s"
            f"  {_ratio(measured.ratio(case.name))}{_extras(measured, case.name)}"
        )


def _ratio(spread: Spread) -> str:
    return f"{spread.median:6.2f} ({spread.low:.2f} to {spread.high:.2f})"


def _extras(measured: Measured, case: str) -> str:
    names = {name: None for extras in measured.extras[case] for name in extras}
    parts = []
    for name in names:
        values = [extras[name] for extras in measured.extras[case]]
        value = max(values) if name.startswith("longest") else Spread.of(values).median
        parts.append(f"{name} {value:,.1f}")
    return "  " + ", ".join(parts) if parts else ""


def print_targets(results: list[Measured], rows: int) -> None:
    """Each target beside what was measured, and whether it is met."""
    print("\nTargets: limit, median (quartiles; of the longest, the worst)")
    for measured in results:
        for target in measured.group.targets:
            spread = target.measured(measured)
            words = "at least" if target.at_least else "at most"
            found = "" if spread is None else f"{spread.median:12,.2f} ({spread.low:,.2f} to {spread.high:,.2f})"
            print(f"  {target.text:62} {words:8} {target.limit:>9,g}  {found:38} {target.verdict(spread, rows)}")


def as_json(results: list[tuple[str, Measured]], facts: dict[str, str], rows: int) -> dict[str, Any]:
    """Everything that was measured."""
    return {
        "machine": facts,
        "rows": rows,
        "groups": {
            f"{suite}: {measured.group.title}": {
                "baseline": measured.group.baseline,
                "unit": measured.group.unit,
                "cases": {
                    case.name: {
                        "label": case.label,
                        "seconds": measured.seconds[case.name],
                        "ratio": vars(measured.ratio(case.name)),
                        "extras": measured.extras[case.name],
                    }
                    for case in measured.group.cases
                    if case.name in measured.seconds
                },
                "skipped": measured.skipped,
                "targets": [
                    {
                        "text": target.text,
                        "limit": target.limit,
                        "at_least": target.at_least,
                        "measured": spread and vars(spread),
                        "verdict": target.verdict(spread, rows),
                    }
                    for target in measured.group.targets
                    for spread in [target.measured(measured)]
                ],
            }
            for suite, measured in results
        },
    }


def worse(now: dict[str, Any], before: dict[str, Any], tolerance: float) -> list[str]:
    """Our own cases whose ratio to the baseline is worse than in an earlier run, beyond tolerance and spread.

    Many rounds spread as wide as few and know their median better: 1.57 times the distance of the quartiles, by the
    root of their number, is the notch of a box plot (McGill, Tukey and Larsen 1978).

    Args:
        now: What `as_json` gives.
        before: What it gave earlier.
        tolerance: A ratio may become so many times as large before it counts as worse.

    Returns:
        One line for each; groups and cases that only one run has are left out.
    """
    found = []
    for title, group in now["groups"].items():
        earlier = before["groups"].get(title, {}).get("cases", {})
        for name, case in group["cases"].items():
            if name == group["baseline"] or name not in earlier or not name.startswith(OURS):
                continue
            new, old = Spread(**case["ratio"]), Spread(**earlier[name]["ratio"])
            notches = _notch(new, len(case["seconds"])) + _notch(old, len(earlier[name]["seconds"]))
            if new.median > old.median * tolerance and new.median - old.median > notches:
                found.append(f"{title}: {case['label']}: {_ratio(new).strip()}, was {_ratio(old).strip()}")
    return found


def _notch(spread: Spread, rounds: int) -> float:
    """How far the median of so many rounds may be from the true one."""
    return 1.57 * (spread.high - spread.low) / math.sqrt(rounds)


def save(path: Path, found: dict[str, Any]) -> None:
    """Write a run as JSON."""
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def plot(path: Path, results: list[Measured]) -> None:
    """Draw the ratios of every group, with their spread."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(results), 1, figsize=(10, sum(0.32 * len(r.seconds) + 1.1 for r in results)), squeeze=False,
        height_ratios=[len(r.seconds) + 2 for r in results], layout="constrained",
    )  # fmt: skip
    for axis, measured in zip(axes[:, 0], results, strict=True):
        cases = [case for case in measured.group.cases if case.name in measured.seconds][::-1]
        ratios = [measured.ratio(case.name) for case in cases]
        errors = [[r.median - r.low for r in ratios], [r.high - r.median for r in ratios]]
        colors = ["#2a6f97" if case.name.startswith(OURS) else "#b8b8b8" for case in cases]
        axis.barh([case.label for case in cases], [r.median for r in ratios], xerr=errors, color=colors)
        axis.axvline(1.0, color="black", linewidth=0.8)
        axis.set_title(f"{measured.group.title}: time, as a multiple of {measured.group.baseline}", fontsize=9)
        axis.tick_params(labelsize=8)
    figure.savefig(path)
    pyplot.close(figure)
