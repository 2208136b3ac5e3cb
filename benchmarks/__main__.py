"""The command line of the benchmarks."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from benchmarks import report
from benchmarks.harness import Bench, run
from benchmarks.suites import NAMES, groups_of

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmarks.

    Args:
        arguments: Those of the command line where left out.

    Returns:
        0; with `--check`, 1 where a ratio is worse than before.
    """
    parser = _parser()
    given = parser.parse_args(arguments)
    for suite in given.suite:
        if suite not in NAMES:
            parser.error(f"there is no suite {suite!r}; there are {', '.join(NAMES)}")
    if given.url:
        os.environ["CONSENSUS_ORM_BENCH_POSTGRES"] = given.url
    facts = report.machine()
    for name, value in facts.items():
        print(f"{name:24} {value}")
    results = []
    for suite in given.suite or NAMES:
        with tempfile.TemporaryDirectory(prefix="benchmark-", dir=given.folder) as folder:
            for group in groups_of(suite):
                measured = run(group, Bench(Path(folder), given.rows, given.scale), given.rounds)
                report.print_group(measured)
                sys.stdout.flush()
                results.append((suite, measured))
    report.print_targets([measured for _, measured in results], given.rows)
    found = report.as_json(results, facts, given.rows)
    if given.json:
        report.save(given.json, found)
    if given.plot:
        report.plot(given.plot, [measured for _, measured in results])
    if given.check is None:
        return 0
    lines = report.worse(found, json.loads(given.check.read_text(encoding="utf-8")), given.tolerance)
    print("\n" + ("\n".join(["Worse than before:", *lines]) if lines else "Nothing is worse than before."))
    return 1 if lines else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("suite", nargs="*", help=f"one or more of {', '.join(NAMES)}; all where left out")
    parser.add_argument("--rows", type=int, default=100_000, help="rows of the large tables (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds that count (default %(default)s)")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the operations of a round (for a smoke run)")
    parser.add_argument("--folder", type=Path, default=os.environ.get("TMPDIR"), help="where the files go")
    parser.add_argument("--url", help="of a PostgreSQL server for the suite postgresql; one of its own where left out")
    parser.add_argument("--json", type=Path, help="write what was measured to FILE", metavar="FILE")
    parser.add_argument("--plot", type=Path, help="draw the ratios to FILE (needs matplotlib)", metavar="FILE")
    parser.add_argument("--check", type=Path, help="fail where a ratio is worse than in FILE", metavar="FILE")
    parser.add_argument("--tolerance", type=float, default=1.1, help="how much worse it may be (default %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
