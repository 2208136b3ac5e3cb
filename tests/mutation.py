"""The campaign of mutations: does a test fail when a line is wrong? By hand alone, never in CI: it takes hours.

    pip install -e '.[dev,mutation]'
    python -m tests.mutation                             # a sample over all modules, the same each time
    python -m tests.mutation --seed 2                    # another one
    python -m tests.mutation migration/pace --mutants 0  # all mutants of a module

mutmut writes all mutants of the modules named in `[tool.mutmut]` into a copy of the checkout. Which tests come by which
function is found out by one run of the suite, and kept; only files of tests that have changed are run again for it.
Each mutant of the sample is judged by the tests that come by its function, the fastest first, for `--seconds`; one that
no test comes by has survived. What was killed stays killed the next time, survivors are judged again. An edit that
changes nothing that can be seen is listed in `equivalent_mutants.toml`, with the reason.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import gc
import hashlib
import json
import multiprocessing
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
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).parent.parent
COPIED = ("consensus_orm", "alembic", "tests", "benchmarks", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE")
QUIETLY = ("-q", "-n", "0", "-p", "no:cacheprovider", "--tb=no", "-m", "not packaging and not soak")
SELECTED = ("-k", "test_postgresql_fence or not (postgresql or servers)")
"""Tests of files: those of servers take several times as long, and find the same in what both share."""

LEFT_OUT = re.compile(
    r"tests/(asyncio|cli|consensus/(demo|test_tracker|test_executions)|faults|packaging|property|rehearsal|report|retrying"
    r"|support|telemetry|testing)|concurrency/(?!test_postgresql_fence)|on_servers|session_guard|field/test_programs"
    r"|test_(acceptance|benchmarks|demo|explain|expressions|hostile_arguments|leftovers|mutations|plans|readme|records"
    r"|restore|settings|surface|vacuum|validation)\b"
)
"""Files of tests that take long, start programs of their own, whose ways nobody sees, or are about other modules."""

ALLOWED = 120.0
"""Seconds that any judgement may take, beside ten times as long as its tests took: a mutant may hang."""

FIRST = 20
"""Tests that a mutant is judged by at first: most die by these, and to collect few costs little."""

Tests = dict[str, list[tuple[float, str]]]
"""Of each function the tests that come by it, and their seconds; the fastest first."""


@dataclass(frozen=True)
class Mutant:
    """One edit of a function.

    Attributes:
        module: The module, as one asks for it.
        function: The function, as the statistics name it.
        number: Which mutant of the function it is.
        line: Where in the function it differs.
        edit: The lines that it takes away, and those it puts in their place.
    """

    module: str
    function: str
    number: int
    line: str
    edit: str

    @property
    def name(self) -> str:
        """What mutmut's trampolines know it by."""
        return f"{self.function}__mutmut_{self.number}"

    @property
    def key(self) -> str:
        """What it stays known by when others come and go."""
        return f"{self.function}\n{self.line}\n{self.edit}"


@dataclass
class Seen:
    """A plugin of pytest: which tests failed, and of each how long it took and which functions it came by."""

    failed: list[str] = field(default_factory=list)
    seconds: Counter[str] = field(default_factory=Counter)
    functions: dict[str, list[str]] = field(default_factory=dict)
    code: int = 0

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds[report.nodeid] += report.duration
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        from mutmut.state import state  # pyright: ignore[reportMissingImports] # an extra

        self.functions[nodeid] = sorted(state()._stats)
        state()._stats.clear()


def main() -> int:
    """Run the campaign; the exit code is 1 where less than the wanted share was killed."""
    asked = _arguments()
    folder = Path(asked.folder).resolve()
    if folder == Path.cwd():
        return _campaign(asked)
    from tests.support import servers

    folder.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        if (CHECKOUT / name).is_dir():
            shutil.rmtree(folder / name, ignore_errors=True)
            shutil.copytree(CHECKOUT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(CHECKOUT / name, folder / name)
    environment = os.environ | {
        "PYTHONPATH": str(folder),
        "CONSENSUS_ORM_TEST_POSTGRES": servers.shared()[0],  # it outlives all forks, and goes with this process
        "PYTEST_XDIST_TESTRUNUID": servers.RUN,
    }
    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, cwd=CHECKOUT, capture_output=True, text=True, check=False).stdout.strip()
    print(f"{time.strftime('%Y-%m-%d')}, commit {commit}: python -m tests.mutation", *sys.argv[1:], flush=True)
    command = [sys.executable, "-m", "tests.mutation", *sys.argv[1:], "--folder", str(folder)]
    return subprocess.run(command, cwd=folder, env=environment, check=False).returncode


def _arguments() -> argparse.Namespace:
    default = Path(tempfile.gettempdir(), "consensus-orm-mutation")
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__.splitlines()[0])
    parser.add_argument("modules", nargs="*", metavar="MODULE", help="as migration/pace; all where left out")
    parser.add_argument("--mutants", type=int, default=250, help="of the sample (250); 0 for all")
    parser.add_argument("--seed", type=int, default=1, help="of the sample (1)")
    parser.add_argument("--seconds", type=float, default=120, help="of tests that a mutant has to survive (120)")
    parser.add_argument("--jobs", type=int, default=1, help="mutants judged at the same time (1)")
    parser.add_argument("--share", type=float, default=0.95, help="that has to be killed (0.95)")
    parser.add_argument("--folder", default=default, help=f"where the copy is made and kept ({default})")
    return parser.parse_args()


def _campaign(asked: argparse.Namespace) -> int:
    settings = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["tool"]["mutmut"]
    paths = sorted({path for pattern in settings["only_mutate"] for path in Path().glob(pattern)})
    mutants = [one for path in paths for one in _mutants(path) if not asked.modules or one.module in asked.modules]
    sample = _sample(mutants, asked.mutants, asked.seed)
    _warm()
    tests = _statistics()
    verdicts = _load("verdicts.json")
    known = tomllib.loads(Path("tests/equivalent_mutants.toml").read_text(encoding="utf-8"))["mutant"]
    unseen = {(entry["module"], entry["edit"].strip()) for entry in known}
    equivalent = {one for one in sample if (one.module, one.edit) in unseen}
    waiting = [one for one in sample if one not in equivalent and not verdicts.get(one.key)]
    random.Random(asked.seed).shuffle(waiting)  # so that a run that is stopped has judged a sample, too
    with ThreadPoolExecutor(asked.jobs) as threads:
        judged = {threads.submit(_judge, one, tests, asked.seconds): one for one in waiting}
        for number, future in enumerate(as_completed(judged), 1):
            verdicts[judged[future].key] = future.result()
            _save("verdicts.json", verdicts)
            print(f"{number}/{len(waiting)} {judged[future].name}: {future.result() or 'SURVIVED'}", flush=True)
    killers = sorted({verdict for one in sample if "::" in (verdict := verdicts.get(one.key, ""))})
    for wrong in _forked(killers, "", 3600).failed if killers else ():
        print(f"fails without any mutant, so that its verdicts do not count: {wrong}")
        verdicts = {key: "" if verdict == wrong else verdict for key, verdict in verdicts.items()}
    _save("verdicts.json", verdicts)
    left = [one for one in sample if one not in equivalent and not verdicts[one.key]]
    _tell(mutants, sample, equivalent, left)
    share = 1 - len(left) / len(sample)
    print(f"\n{share:.1%} of {len(sample)} are killed or equivalent")
    return 0 if share >= asked.share else 1


# Mutants --------------------------------------------------------------------------------------------------


def _mutants(path: Path) -> Iterator[Mutant]:
    """Write all mutants of a module into it, as mutmut makes them; made once for each text of a module."""
    from mutmut.mutation.file_mutation import mutate_file_contents  # pyright: ignore[reportMissingImports] # an extra

    text = path.read_text(encoding="utf-8")
    made = Path("made", hashlib.sha256(text.encode()).hexdigest())
    if not made.exists():
        made.parent.mkdir(exist_ok=True)
        made.write_text(mutate_file_contents(str(path), text).code, encoding="utf-8")
    shutil.copy(made, path)
    text = made.read_text(encoding="utf-8")
    lines = text.split("\n")
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
    texts = {node.name: lines[node.lineno - 1 : node.end_lineno] for node in nodes}
    package = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    for name in texts:
        function, _, number = name.rpartition("__mutmut_")
        if number.isdigit():
            before = [line.replace("__mutmut_orig", "") for line in texts[f"{function}__mutmut_orig"]]
            after = [line.replace(f"__mutmut_{number}", "") for line in texts[name]]
            _, _, place, *edit = difflib.unified_diff(before, after, lineterm="", n=0)
            shown = "\n".join(line for line in edit if not line.startswith("@@"))
            module = path.with_suffix("").as_posix().removeprefix("consensus_orm/")
            yield Mutant(module, f"{package}.{function}", int(number), place, shown.strip())


def _sample(mutants: Sequence[Mutant], most: int, seed: int) -> list[Mutant]:
    """Some mutants, of each module in proportion."""
    dice = random.Random(seed)
    mixed = sorted(mutants, key=lambda mutant: (mutant.module, dice.random()))
    step = max(1.0, len(mixed) / (most or len(mixed)))
    return [mixed[int(step * (number + dice.random()))] for number in range(int(len(mixed) / step + 0.5))]


# Tests ----------------------------------------------------------------------------------------------------


def _files() -> list[str]:
    return [str(path) for path in sorted(Path("tests").rglob("test_*.py")) if not LEFT_OUT.search(str(path))]


def _warm() -> None:
    """Import all tests, so that the forks of this process need not."""
    import pytest
    from mutmut.configuration import config  # pyright: ignore[reportMissingImports] # an extra
    from mutmut.mutation.trampoline import set_mutant_under_test  # pyright: ignore[reportMissingImports] # an extra

    config()
    set_mutant_under_test("")
    with Path("imports.log").open("w", encoding="utf-8") as log, redirect_stdout(log):
        code = pytest.main([*QUIETLY, "--collect-only", *_files()])
    assert code == 0, "the tests cannot be imported: see imports.log"
    gc.freeze()


def _statistics() -> Tests:
    """Which tests come by which function; found out anew for the files of tests that have changed."""
    known = _load("statistics.json")
    tests = defaultdict(list)
    for file in _files():
        text = hashlib.sha256(Path(file).read_bytes() + repr(SELECTED).encode()).hexdigest()
        if known.get(file, {}).get("text") != text:
            seen = _forked([*SELECTED, file], "stats", 3600)
            print(f"{file}: {len(seen.seconds)} tests, {seen.seconds.total():.0f} s, failed: {seen.failed}", flush=True)
            good = {test: found for test, found in seen.functions.items() if test not in seen.failed}
            known[file] = {"text": text, "tests": {test: [seen.seconds[test], good[test]] for test in good}}
            _save("statistics.json", known)
        for test, (seconds, functions) in known[file]["tests"].items():
            for function in functions:
                tests[function].append((seconds, test))
    return {function: sorted(found) for function, found in tests.items()}


def _judge(mutant: Mutant, tests: Tests, most: float) -> str:
    """The test that kills a mutant, or how it dies otherwise; nothing where it survives."""
    chosen, total = [], 0.0
    for seconds, test in tests.get(mutant.function, ()):
        if total + seconds < most:
            chosen.append(test)
            total += seconds
    for some in filter(None, (chosen[:FIRST], chosen[FIRST:])):
        seen = _forked(["-x", *some], mutant.name, ALLOWED + 10 * total)
        if seen.failed or seen.code:
            return seen.failed[0] if seen.failed else f"exit code {seen.code}"
    return ""


def _forked(arguments: Sequence[str], mutant: str, limit: float) -> Seen:
    """Run tests in a fork of this process, with a mutant."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(arguments, mutant, there))
    process.start()
    there.close()
    try:
        return here.recv() if here.poll(limit) else Seen(code=signal.SIGXCPU)
    except EOFError:
        return Seen(code=signal.SIGSEGV)
    finally:
        process.join(1)
        with suppress(ProcessLookupError):
            os.killpg(process.pid or 0, signal.SIGKILL)
        process.join()


def _run(arguments: Sequence[str], mutant: str, there: Connection) -> None:
    import pytest
    from mutmut.mutation.trampoline import set_mutant_under_test  # pyright: ignore[reportMissingImports] # an extra

    os.setsid()
    set_mutant_under_test(mutant)
    seen = Seen()
    with Path("run.log").open("w", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
        seen.code = int(pytest.main([*QUIETLY, *arguments], plugins=[seen]))
    there.send(seen)


# What is kept and told ------------------------------------------------------------------------------------


def _load(name: str) -> dict[str, Any]:
    return json.loads(Path(name).read_text(encoding="utf-8")) if Path(name).exists() else {}


def _save(name: str, what: dict[str, Any]) -> None:
    Path(name).write_text(json.dumps(what, indent=1), encoding="utf-8")


def _tell(mutants: Sequence[Mutant], sample: Sequence[Mutant], same: set[Mutant], left: Sequence[Mutant]) -> None:
    for one in left:
        print(f"\n{one.name}\n{one.edit}")
    counts = [Counter(one.module for one in those) for those in (mutants, sample, same, left)]
    print(f"\n{'module':<32}{'mutants':>9}{'tried':>9}{'killed':>9}{'equivalent':>12}{'survived':>10}")
    for module in (*counts[1], "all"):
        there, tried, equal, alive = (count.total() if module == "all" else count[module] for count in counts)
        print(f"{module:<32}{there:>9}{tried:>9}{tried - equal - alive:>9}{equal:>12}{alive:>10}")


if __name__ == "__main__":
    raise SystemExit(main())
