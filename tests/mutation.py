"""The campaign of mutations: does a test fail when a line is wrong? Not part of the suite, since it takes hours.

    pip install -e '.[dev,mutation]'
    python -m tests.mutation                          # of each module a sample, the same each time
    python -m tests.mutation backup pool --mutants 0  # all mutants of two modules
    python -m tests.mutation --seed 2                 # another sample

Each module is mutated in a copy of the checkout, by mutmut, and only the tests named here for it are run, of them only
those that come by the mutated function. What survives is told with its edit. An edit that changes nothing that can be
seen is listed in `equivalent_mutants.toml`, with the reason, and does not count.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

CHECKOUT = Path(__file__).parent.parent
EQUIVALENT = Path(__file__).with_name("equivalent_mutants.toml")
COPIED = ("consensus_orm", "alembic", "tests", "benchmarks", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE")
FILES = ("-k", "not postgresql")
"""Tests of files alone: those of a server take several times as long, and find the same in what both share."""

MIGRATION = (
    *(f"tests/migration/test_{name}.py" for name in ("gates", "migration", "mismatches", "rejects", "stale_looks")),
    "tests/test_rules.py",
    *FILES,
)

MODULES: dict[str, tuple[str, ...]] = {
    "unit_of_work/unit": (
        "tests/unit_of_work",
        "tests/databases/test_session_guard.py",
        "tests/test_rules.py",
        *FILES,
    ),
    "repository/dual_write": (
        "tests/repository/test_dual_write.py",
        "tests/consensus/test_artifacts.py",
        "tests/consensus/test_syntheses.py",
        "tests/test_rules.py",
        *FILES,
    ),
    "repository/routed_reads": (
        "tests/consensus/test_artifacts.py",
        "tests/repository/test_dual_write.py",
        "tests/ledgers/test_alarm.py",
        "tests/test_rules.py",
        *FILES,
    ),
    "ledgers/mismatches": ("tests/ledgers/test_alarm.py", *MIGRATION),
    "databases/sqlite/backup": (
        "tests/databases/sqlite/test_backup.py",
        "tests/test_files.py",
        "tests/faults/test_written_through.py",
        *FILES,
    ),
    "databases/fair_queue": ("tests/databases/test_fair_queue.py", "tests/databases/test_engine.py", *FILES),
    "databases/pool": ("tests/databases/test_engine.py", "tests/unit_of_work", *FILES),
    "migration/pace": ("tests/migration/test_backfill.py", *FILES),
    "migration/backfill": ("tests/migration/test_backfill.py", *MIGRATION),
    "migration/carrying": ("tests/migration/test_backfill.py", "tests/declaration/test_second_pair.py", *MIGRATION),
    "ledgers/rejects": MIGRATION,
    "migration/contraction": MIGRATION,
    "migration/settling": MIGRATION,
    "migration/way_back": MIGRATION,
    "migration/flip": MIGRATION,
    "migration/gates": MIGRATION,
    "migration/reconcile": MIGRATION,
    "migration/verify": ("tests/migration/test_verify.py", *MIGRATION),
    "migration/steps": MIGRATION,
    "migration/agreement": MIGRATION,
    "migration/decisions": MIGRATION,
    "databases/postgresql/fence": ("tests/concurrency/test_postgresql_fence.py",),
    "copying/sweeps": ("tests/copying",),
    "copying/target": ("tests/copying",),
    "copying/finish": ("tests/copying",),
}
"""The modules, and the tests that have to hold them."""

NOT_SEEN = ("survived", "no tests")
"""What mutmut says of a mutant that no test has noticed."""

UNTRIED = "not checked"
"""What it says of one that it has not come to."""

TRIES = 3


@dataclass
class Result:
    """How the mutants of a module fared.

    Attributes:
        module: The module.
        there: How many there are.
        fates: How many of those tried were killed, survived and so on, in mutmut's words.
        survivors: Names and edits of those that no test noticed.
        equivalent: How many of these are known to change nothing.
        seconds: How long it took.
    """

    module: str
    there: int = 0
    fates: Counter[str] = field(default_factory=Counter)
    survivors: list[tuple[str, str]] = field(default_factory=list)
    equivalent: int = 0
    seconds: float = 0.0

    @property
    def tried(self) -> int:
        """How many count."""
        return self.fates.total() - self.fates[UNTRIED] - self.equivalent

    @property
    def killed(self) -> int:
        """How many of them a test noticed, be it by hanging."""
        return self.fates.total() - sum(self.fates[fate] for fate in (*NOT_SEEN, UNTRIED))


def main() -> int:
    """Run the campaign; the exit code is 1 where less than the wanted share was killed."""
    asked = _arguments()
    known = _equivalent()
    results = []
    with tempfile.TemporaryDirectory(prefix="mutation-") as scratch:
        for module in asked.modules or MODULES:
            folder = Path(asked.folder or scratch) / module.replace("/", ".")
            results.append(_mutate(module, folder, asked.mutants, asked.seed, asked.minutes, known))
            _tell(results[-1])
    tried, killed = sum(r.tried for r in results), sum(r.killed for r in results)
    there, equivalent = sum(r.there for r in results), sum(r.equivalent for r in results)
    share = killed / tried if tried else 0.0
    print(f"\nof {there} mutants {tried + equivalent} were tried, {equivalent} of them change nothing;")
    print(f"of {tried} {killed} were killed: {share:.1%}")
    return 0 if share >= asked.share else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"all where left out: {', '.join(MODULES)}")
    parser.add_argument("--mutants", type=int, default=20, help="of each module at most (20); 0 for all")
    parser.add_argument("--seed", type=int, default=1, help="of the sample (1)")
    parser.add_argument("--minutes", type=float, default=30, help="of each module at most (30)")
    parser.add_argument("--share", type=float, default=0.95, help="that has to be killed (0.95)")
    parser.add_argument("--folder", help="where copies are made and kept, for `mutmut show`; they go where left out")
    asked = parser.parse_args()
    if unknown := [module for module in asked.modules if module not in MODULES]:
        parser.error(f"no such module: {', '.join(unknown)}")
    return asked


def _mutate(module: str, folder: Path, most: int, seed: int, minutes: float, known: set[str]) -> Result:
    started, result = time.monotonic(), Result(module)
    _copy(module, folder)
    mutmut = _Mutmut(folder, started + 60 * minutes)
    mutmut.run("nothing at all")  # which makes the mutants, and finds out which tests come by which function
    names = [name for name, _ in mutmut.results()]
    result.there = len(names)
    chosen = sorted(names if not most else random.Random(f"{seed} {module}").sample(names, min(most, len(names))))
    fates = dict.fromkeys(chosen, UNTRIED)
    for _ in range(TRIES):  # a test of times may fail without any mutant: then none is tried
        if left := [name for name in chosen if fates[name] == UNTRIED]:
            mutmut.run(*left)
            fates |= {name: fate for name, fate in mutmut.results() if name in fates}
    result.fates = Counter(fates.values())
    for name in chosen:
        if fates[name] in NOT_SEEN:
            edit = mutmut.edit(name)
            result.equivalent += edit in known
            result.survivors += [] if edit in known else [(name, edit)]
    result.seconds = time.monotonic() - started
    return result


def _copy(module: str, folder: Path) -> None:
    """Copy the checkout, with mutmut's settings for one module."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        source = CHECKOUT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, folder / name, ignore=ignored, dirs_exist_ok=True)
        else:
            shutil.copy(source, folder / name)
    settings = folder / "pyproject.toml"
    text = settings.read_text(encoding="utf-8")
    for key, value in (
        ("only_mutate", [f"consensus_orm/{module}.py"]),
        ("pytest_add_cli_args_test_selection", list(MODULES[module])),
    ):
        text, count = re.subn(rf"(?ms)^{key} = \[.*?^\]$", f"{key} = {value!r}".replace("'", '"'), text)
        assert count == 1, f"[tool.mutmut] has no {key}"
    settings.write_text(text, encoding="utf-8")


class _Mutmut:
    def __init__(self, folder: Path, deadline: float) -> None:
        self.folder = folder
        self.deadline = deadline

    def _call(self, *words: str) -> str:
        command = [sys.executable, "-m", "mutmut", *words]
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=True).stdout

    def run(self, *names: str) -> None:
        """Try mutants, for as long as there is time; what was tried by then stays."""
        if time.monotonic() > self.deadline:
            return
        with (self.folder / "run.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "mutmut", "run", *names],
                cwd=self.folder,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                process.wait(self.deadline - time.monotonic())
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGINT)
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()

    def results(self) -> list[tuple[str, str]]:
        """Names of the mutants, and what became of them."""
        said = self._call("results", "--all", "true").splitlines()
        return [(name, fate) for line in said if line.startswith("    ") for name, fate in [line.strip().split(": ")]]

    def edit(self, name: str) -> str:
        """The lines that a mutant takes away, and those it puts in their place."""
        lines = self._call("show", name).splitlines()
        return "\n".join(line for line in lines if re.match(r"[+-](?![+-]{2} )", line))


def _equivalent() -> set[str]:
    if not EQUIVALENT.exists():
        return set()
    listed = tomllib.loads(EQUIVALENT.read_text(encoding="utf-8"))
    return {entry["edit"].strip("\n") for entry in listed["mutant"]}


def _tell(result: Result) -> None:
    fates = ", ".join(f"{count} {fate}" for fate, count in sorted(result.fates.items()))
    print(
        f"{result.module}: {result.there} mutants; {fates}; {result.equivalent} change nothing; {result.seconds:.0f} s"
    )
    for line in _survivors(result):
        print(line)
    sys.stdout.flush()


def _survivors(result: Result) -> Iterator[str]:
    for name, edit in result.survivors:
        yield f"  {name}"
        yield from (f"    {line}" for line in edit.splitlines())


if __name__ == "__main__":
    raise SystemExit(main())
