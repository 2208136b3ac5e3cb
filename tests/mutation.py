"""The campaign of mutations: does a test fail when a line is wrong? By hand alone, never in CI: it takes an hour.

    pip install -e '.[dev,mutation]'
    python -m tests.mutation                             # a sample over all modules, the same each time
    python -m tests.mutation --seed 2                    # another one
    python -m tests.mutation migration/pace --mutants 0  # all mutants of a module

mutmut writes all mutants of the modules named in `[tool.mutmut]` into a copy of the checkout. Which tests come by which
line is found out by one run of the suite, and kept; only files of tests that have changed are run again for it. Each
mutant of the sample is judged by the tests that come by its line, the fastest of each file first, for `--seconds`; one
that no test comes by has survived. What was killed stays killed the next time, survivors are judged again.

No mutants are edits that change nothing but letters in the words of a `raise` or of an obstacle (mutmut's XX, upper and
lower case). An edit that changes nothing that can be seen is listed in `equivalent_mutants.toml`, with the reason.
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
import uuid
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, zip_longest
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import coverage  # pyright: ignore[reportMissingImports] # an extra
import pytest

CHECKOUT = Path(__file__).parent.parent
COPIED = ("consensus_orm", "alembic", "tests", "benchmarks", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE")
SHORT = "not long and not packaging and not soak"
QUIETLY = ("-q", "-p", "no:cacheprovider", "--tb=no", "-k", "fence or backup or not (postgresql or servers)")
"""Tests of files, but for what servers alone have: the others take several times as long, and find the same."""

LEFT_OUT = re.compile(
    r"tests/(asyncio|cli/test_(?!health|plan|explain|steps)|concurrency|consensus/test_demo"
    r"|databases/(postgresql|sqlite/test_vacuum|test_(engine|session_guard))|declaration/(?!test_second_pair|test_row_keys)"
    r"|external/test_(?!relay)|faults|field/test_(?!adoption|tables)|integrations|packaging|property|rehearsal|report|retrying"
    r"|schema/test_(?!upgrades)|statements|support|telemetry|testing|test_([a-eg-qstv]|readme))"
)
"""Files of tests that are about other modules, take long, or start programs of their own."""


WORDS = re.compile(r"raise |yield Obstacle")
"""How statements begin whose words are for people."""

ALLOWED = 60.0
"""Seconds that any judgement may take, beside five times as long as its tests took: a mutant may hang."""

Tests = dict[str, list[tuple[float, str]]]
"""Of each line the tests that come by it, and their seconds; the fastest first."""


@dataclass(frozen=True)
class Mutant:
    """One edit of a function.

    Attributes:
        module: The module, as one asks for it.
        name: What mutmut's trampolines know it by.
        edit: The lines that it takes away, and those it puts in their place.
        lines: Those of the statement, as `_line` knows them.
    """

    module: str
    name: str
    edit: str
    lines: tuple[str, ...]

    @property
    def key(self) -> str:
        """What it stays known by when others come and go."""
        return "\n".join((*self.lines, self.edit))


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
        "PYTHONPATH": os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH")))),
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
    parser.add_argument("--mutants", type=int, default=220, help="of the sample (220); 0 for all")
    parser.add_argument("--seed", type=int, default=1, help="of the sample (1)")
    parser.add_argument("--seconds", type=float, default=60, help="of tests that a mutant has to survive (60)")
    parser.add_argument("--long", metavar="TESTS", nargs="+", help="files or folders, and their long tests, alone")
    parser.add_argument("--jobs", type=int, default=1, help="processes at the same time (1)")
    parser.add_argument("--share", type=float, default=0.95, help="that has to be killed (0.95)")
    parser.add_argument("--folder", default=default, help=f"where the copy is made and kept ({default})")
    return parser.parse_args()


def _campaign(asked: argparse.Namespace) -> int:
    files = [str(path) for path in sorted(Path("tests").rglob("test_*.py"))]
    if asked.long:
        files = [file for file in files if file.startswith(tuple(asked.long))]
    else:
        files = [file for file in files if not LEFT_OUT.match(file)]
    marks = "not packaging and not soak" if asked.long else SHORT
    tests = _statistics(files, marks, asked.jobs)
    _leave_alone()
    mutants = [one for path in _modules() for one in _mutants(path)]
    asked_for = [one for one in mutants if not asked.modules or one.module in asked.modules]
    sample = _sample(asked_for, asked.mutants, asked.seed)
    judge = Judge(sample, tests, asked)
    code = pytest.main([*QUIETLY, "-s", "-n", "0", "-m", marks, *files], plugins=[judge])
    assert code in (0, 5), f"pytest ended with {code}"
    share = 1 - len(judge.left) / len(sample)
    _tell(asked_for, sample, judge.equivalent, judge.left)
    print(f"\n{share:.1%} of {len(sample)} are killed or equivalent")
    return 0 if share >= asked.share else 1


def _leave_alone() -> None:
    """Keep the package from checking the arguments of mutants: their names look like those of public methods."""
    path, before = Path("consensus_orm/validation.py"), 'if not name.startswith("_")'
    text = path.read_text(encoding="utf-8")
    assert before in text
    path.write_text(text.replace(before, 'if not name.startswith(("_", "xǁ"))'), encoding="utf-8")


def _modules() -> list[Path]:
    settings = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["tool"]["mutmut"]
    return sorted({path for pattern in settings["only_mutate"] for path in Path().glob(pattern)})


# Mutants --------------------------------------------------------------------------------------------------


def _functions(path: Path) -> Iterator[tuple[str, ast.FunctionDef, list[str]]]:
    """The functions and methods of a module: as mutmut names them, what they are, and their lines."""
    text = path.read_text(encoding="utf-8")
    lines = text.split("\n")
    tree = ast.parse(text)
    parents: list[ast.Module | ast.ClassDef] = [tree]
    parents += [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    for parent in parents:
        prefix = f"xǁ{parent.name}ǁ" if isinstance(parent, ast.ClassDef) else "x_"
        for node in parent.body:
            if isinstance(node, ast.FunctionDef):
                name = node.name if "__mutmut_" in node.name else prefix + node.name
                yield name, node, lines[node.lineno - 1 : node.end_lineno]


def _mutants(path: Path) -> Iterator[Mutant]:
    """Write all mutants of a module into it, as mutmut makes them; made once for each text of a module."""
    from mutmut.mutation.file_mutation import mutate_file_contents  # pyright: ignore[reportMissingImports] # an extra

    text = path.read_text(encoding="utf-8")
    made = Path("made", hashlib.sha256(text.encode()).hexdigest())
    if not made.exists():
        made.parent.mkdir(exist_ok=True)
        made.write_text(mutate_file_contents(str(path), text).code, encoding="utf-8")
    originals = {name: (node, lines) for name, node, lines in _functions(path)}
    shutil.copy(made, path)
    package = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
    for mangled, _, lines in _functions(path):
        name, _, number = mangled.rpartition("__mutmut_")
        if number.isdigit():
            node, before = originals[name]
            after = [re.sub(rf"\bdef {mangled}\b", f"def {node.name}", lines[0]), *lines[1:]]
            _, _, place, *edit = difflib.unified_diff(before, after, lineterm="", n=0)
            statement = _statement(node, before, int(place.split()[1].partition(",")[0][1:]))
            edit = [line for line in edit if not line.startswith("@@")]
            if not (WORDS.match(statement[0]) and _letters(edit, "-") == _letters(edit, "+")):
                module = path.with_suffix("").as_posix().removeprefix("consensus_orm/")
                of = tuple(_line(path, name, text) for text in statement)
                yield Mutant(module, f"{package}.{mangled}", "\n".join(edit).strip(), of)


def _statement(function: ast.FunctionDef, lines: Sequence[str], line: int) -> list[str]:
    """The lines of the smallest statement around a line of a function, without the statements in it."""
    at = line + function.lineno - 1
    *_, found = (node for node in ast.walk(function) if isinstance(node, ast.stmt) and _holds(node, at))
    ends = [node.lineno for node in ast.walk(found) if isinstance(node, ast.stmt) and node is not found]
    last = min(ends, default=(found.end_lineno or 0) + 1) - function.lineno
    return [text.strip() for text in lines[found.lineno - function.lineno : max(last, line)]]


def _holds(node: ast.stmt, line: int) -> bool:
    return node.lineno <= line <= (node.end_lineno or 0)


def _letters(edit: Sequence[str], sign: str) -> str:
    return "".join(line[1:] for line in edit if line[0] == sign).replace("XX", "").casefold()


def _sample(mutants: Sequence[Mutant], most: int, seed: int) -> list[Mutant]:
    """Some mutants, of each module in proportion."""
    dice = random.Random(seed)
    mixed = sorted(mutants, key=lambda mutant: (mutant.module, dice.random()))
    step = max(1.0, len(mixed) / (most or len(mixed)))
    return [mixed[int(step * (number + dice.random()))] for number in range(int(len(mixed) / step + 0.5))]


# Tests ----------------------------------------------------------------------------------------------------


class Lines:
    """A plugin of pytest: which lines each test comes by, and how long it takes."""

    def __init__(self) -> None:
        self.coverage = coverage.Coverage(data_file=None, config_file=False, include=[*map(str, _modules())])
        self.coverage.start()
        self.seconds = defaultdict[str, float](float)
        self.failed: set[str] = set()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        self.coverage.switch_context(item.nodeid)
        return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration
        if report.failed:
            self.failed.add(report.nodeid)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self.coverage.stop()
        data = self.coverage.get_data()
        good = {test: number for number, test in enumerate(self.seconds) if test not in self.failed}
        found = defaultdict[str, set[int]](set)
        for path in _modules():
            tests = data.contexts_by_lineno(str(path.resolve()))
            for name, node, lines in _functions(path):
                for number, text in enumerate(lines, node.lineno):
                    found[_line(path, name, text)] |= {good[test] for test in tests.get(number, ()) if test in good}
        config = session.config
        seen = {
            "files": {file: _digest(file, config.option.markexpr) for file in config.args},
            "tests": list(self.seconds.items()),
            "lines": {line: sorted(tests) for line, tests in found.items() if tests},
        }
        Path("seen").mkdir(exist_ok=True)
        Path("seen", f"{uuid.uuid4().hex}.json").write_text(json.dumps(seen), encoding="utf-8")


def pytest_configure(config: pytest.Config) -> None:
    """Of this module as a plugin."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses"):
        config.pluginmanager.register(Lines())


def _digest(file: str, marks: str) -> str:
    return hashlib.sha256(f"{marks}\n{Path(file).read_text(encoding='utf-8')}".encode()).hexdigest()


def _line(path: Path, function: str, text: str) -> str:
    return f"{path}:{function}:{text.strip()}"


def _statistics(files: Sequence[str], marks: str, jobs: int) -> Tests:
    """Which tests come by which line; found out anew for the files of tests that have changed."""
    now = {file: _digest(file, marks) for file in files}
    new = sorted(now.items() - {item for seen in _seen() for item in seen["files"].items()})
    for at in range(0, len(new), 20):  # what is interrupted keeps what it has
        some = [file for file, _ in new[at : at + 20]]
        command = [
            sys.executable,
            "-m",
            "pytest",
            *QUIETLY,
            "-p",
            "tests.mutation",
            "-n",
            str(jobs),
            "-m",
            marks,
            *some,
        ]
        subprocess.run(command, check=False)
    found = defaultdict[str, list[tuple[float, str]]](list)
    for seen in _seen():
        good = {file for file, digest in seen["files"].items() if now.get(file) == digest}
        for line, tests in seen["lines"].items():
            those = (seen["tests"][number] for number in tests)
            found[line] += [(seconds, test) for test, seconds in those if test.partition("::")[0] in good]
    return {line: sorted(set(tests)) for line, tests in found.items()}


def _seen() -> Iterator[dict[str, Any]]:
    for path in sorted(Path("seen").glob("*.json")):
        yield json.loads(path.read_text(encoding="utf-8"))


class Judge:
    """A plugin of pytest: runs tests not once, but for each mutant some, in forks of the process that has them all.

    Args:
        sample: What is to be judged.
        tests: Which tests come by which line.
        asked: How long, and how many at the same time.

    Attributes:
        equivalent: The mutants that nobody can see.
        left: Those that survived.
    """

    def __init__(self, sample: Sequence[Mutant], tests: Tests, asked: argparse.Namespace) -> None:
        known = tomllib.loads(Path("tests/equivalent_mutants.toml").read_text(encoding="utf-8"))["mutant"]
        unseen = {(entry["module"], entry["edit"].strip()) for entry in known}
        self.sample, self.tests, self.asked = sample, tests, asked
        self.equivalent = {one for one in sample if (one.module, one.edit) in unseen}
        self.left: list[Mutant] = []
        self.items: dict[str, pytest.Item] = {}
        self.failed = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed = report.nodeid

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self.items = {item.nodeid: item for item in session.items}
        gc.freeze()
        file = Path("verdicts.json")
        verdicts: dict[str, str] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        waiting = [one for one in self.sample if one not in self.equivalent and not verdicts.get(one.key)]
        random.Random(self.asked.seed).shuffle(waiting)  # so that a run that is stopped has judged a sample, too
        with ThreadPoolExecutor(self.asked.jobs) as threads:
            judged = {threads.submit(self._judge, one): one for one in waiting}
            for number, future in enumerate(as_completed(judged), 1):
                verdicts[judged[future].key] = future.result()
                file.write_text(json.dumps(verdicts, indent=1), encoding="utf-8")
                print(f"{number}/{len(waiting)} {judged[future].name}: {future.result() or 'SURVIVED'}", flush=True)
        killers = {verdict for one in self.sample if (verdict := verdicts.get(one.key)) in self.items}
        for wrong in sorted(test for test in killers if self._forked([test], "", 600)):
            print(f"fails without any mutant, so that its verdicts do not count: {wrong}")
            verdicts = {key: "" if verdict == wrong else verdict for key, verdict in verdicts.items()}
        file.write_text(json.dumps(verdicts, indent=1), encoding="utf-8")
        self.left = [one for one in self.sample if one not in self.equivalent and not verdicts[one.key]]
        return True

    def _judge(self, mutant: Mutant) -> str:
        """The test that kills a mutant, or how it dies otherwise; nothing where it survives."""
        of_files = defaultdict[str, list[tuple[float, str]]](list)
        for seconds, test in sorted({found for line in mutant.lines for found in self.tests.get(line, ())}):
            of_files[test.partition("::")[0]].append((seconds, test))
        chosen, total = [], 0.0
        for seconds, test in filter(None, chain.from_iterable(zip_longest(*of_files.values()))):
            if total + seconds < self.asked.seconds and test in self.items:
                chosen.append(test)
                total += seconds
        return self._forked(chosen, mutant.name, ALLOWED + 5 * total) if chosen else ""

    def _forked(self, tests: Sequence[str], mutant: str, limit: float) -> str:
        """Run tests in a fork of this process, with a mutant, until one fails; say which."""
        context = multiprocessing.get_context("fork")
        here, there = context.Pipe(duplex=False)
        with tempfile.TemporaryDirectory(prefix="mutant-", ignore_cleanup_errors=True) as folder:
            process = context.Process(target=self._run, args=(tests, mutant, there, folder))
            process.start()
            there.close()
            try:
                return here.recv() if here.poll(limit) else "it hangs"
            except EOFError:
                return "it dies"
            finally:
                process.join(5)
                with suppress(ProcessLookupError):
                    os.killpg(process.pid or 0, signal.SIGKILL)
                process.join()

    def _run(self, tests: Sequence[str], mutant: str, there: Connection, folder: str) -> None:
        from mutmut.mutation.trampoline import set_mutant_under_test  # pyright: ignore[reportMissingImports] # an extra

        os.setsid()
        os.environ["PYTEST_DEBUG_TEMPROOT"] = folder
        log = os.open("run.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        set_mutant_under_test(mutant)
        items = [self.items[test] for test in tests]
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if self.failed:
                there.send(self.failed)
                item.session._setupstate.teardown_exact(None)
                return
        there.send("")


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
