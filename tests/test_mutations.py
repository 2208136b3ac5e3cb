"""Each rule of correctness has a test that fails when it is broken: broken here on purpose, one at a time.

A mutation is one edit of the package's source in a copy of the checkout, and the tests that must see it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

CHECKOUT = Path(__file__).parent.parent


NEEDED = ("consensus_orm", "alembic", "tests/field", "tests/support")
NEEDED_FILES = ("pyproject.toml", "tests/__init__.py", "tests/conftest.py", "tests/test_rules.py")


@dataclass(frozen=True)
class Mutation:
    """One edit, and the test of `test_rules` that must notice."""

    rule: str
    file: str
    before: str
    after: str
    noticed_by: str
    kind: str = "sqlite"

    def __str__(self) -> str:
        return self.rule.replace(" ", "-")


MUTATIONS = (
    Mutation(
        "1 a column is forgotten in the mapping",
        "consensus/declaration.py",
        '        AgentOutput.response_text: "response_text",\n',
        "",
        "rule_1",
    ),
    Mutation(
        "3 ids come from the normalized side alone",
        "databases/sqlite/rendering.py",
        "keys = (pair.legacy_table.c[pair.legacy_keys[0]], pair.keys[0])",
        "keys = (pair.keys[0],)",
        "rule_3",
    ),
    Mutation(
        "4 a NULL run id is an empty one",
        "consensus/expressions.py",
        "    run, at = arguments(element, compiler, **kw)\n",
        "    run, at = arguments(element, compiler, **kw)\n    run = f\"coalesce({run}, '')\"\n",
        "rule_4",
    ),
    Mutation(
        "5 the write is not compared",
        "repository/dual_write.py",
        "fetchone()[0] != 1:",
        "fetchone()[0] == 99:",
        "rule_5",
    ),
    Mutation(
        "5 values are compared as texts",
        "databases/sqlite/expressions.py",
        "def _same(element: Any, compiler: Any, **kw: Any) -> str:\n    a, b = arguments(element, compiler, **kw)\n",
        "def _same(element: Any, compiler: Any, **kw: Any) -> str:\n    a, b = arguments(element, compiler, **kw)\n"
        '    a, b = f"CAST({a} AS TEXT)", f"CAST({b} AS TEXT)"\n',
        "rule_5",
    ),
    Mutation(
        "6 a failing shadow takes the write with it",
        "repository/dual_write.py",
        "if side is self.uow.phase.truth or whole:",
        "if True:",
        "rule_6_a_failing",
    ),
    Mutation(
        "6 what stands on the other side alone is deleted",
        "migration/planning.py",
        "return (truth, Why.KEPT) if kept else (shadow, Why.MISSING)",
        "return truth, Why.KEPT",
        "rule_6_a_row",
    ),
    Mutation(
        "7 a row that cannot be carried is passed over",
        "migration/carrying.py",
        "sum(rejects.reject(uow, pair, key, source, reasons.get(key, reason)) for key in keys)",
        "0",
        "rule_7",
    ),
    Mutation(
        "8 a transient error is not repeated",
        "unit_of_work/factory.py",
        "return self.retrier.call(once, cancel",
        "return once() if True else self.retrier.call(once, cancel",
        "rule_8",
    ),
    Mutation(
        "9 memory comes before the database",
        "unit_of_work/unit.py",
        'self._after_commit.append(check.callback("callback", callback))',
        "callback()",
        "rule_9",
    ),
    Mutation(
        "10 the session goes unguarded",
        "databases/sqlite/session_guard.py",
        "return sqlite3.SQLITE_DENY",
        "return sqlite3.SQLITE_OK",
        "rule_10",
    ),
    Mutation(
        "fence: writers begin deferred",
        "databases/sqlite/connection.py",
        "BEGIN IMMEDIATE",
        "BEGIN DEFERRED",
        "fence_a_writer",
    ),
    Mutation(
        "fence: the phase is remembered between units of work",
        "databases/base.py",
        "self._phase, self._epoch = Phase(row[0]), row[1]",
        'self._phase, self._epoch = self.statements.__dict__.setdefault("seen", (Phase(row[0]), row[1]))',
        "fence_the_phase",
    ),
    Mutation(
        "backfill: the chunk is committed before its checkpoint",
        "migration/backfill.py",
        "        backfill_progress.move(",
        "        uow._connected.commit()\n        uow._connected.begin_writing()\n        backfill_progress.move(",
        "backfill",
    ),
    Mutation(
        "backfill: the checkpoint passes over rows that were not compared",
        "migration/backfill.py",
        "backfill_progress.move(uow, self.pair, after,",
        "backfill_progress.move(uow, self.pair, of.last if of else after,",
        "backfill",
    ),
    Mutation(
        "gate: a foreign write leaves the certificate valid",
        "migration/gates.py",
        "uow.catalog.last_change(uow) != seen.changes",
        "False",
        "gate",
    ),
    Mutation(
        "notice: a write to the legacy side alone is not seen",
        "databases/sqlite/triggers.py",
        'yield self._notice(Side.LEGACY, "insert", self._unequal_legacy)',
        "yield from ()",
        "gate",
    ),
    Mutation(
        "freeze: a legacy program goes on writing",
        "databases/sqlite/triggers.py",
        "yield from printed.freeze_legacy()",
        "yield from ()",
        "freeze",
    ),
    Mutation(
        "PostgreSQL 4 a NULL run id is an empty one",
        "consensus/expressions.py",
        "    run, at = arguments(element, compiler, **kw)\n",
        "    run, at = arguments(element, compiler, **kw)\n    run = f\"coalesce({run}, '')\"\n",
        "rule_4",
        "postgresql",
    ),
    Mutation(
        "PostgreSQL 5 the comparison looks past the case of letters",
        "databases/postgresql/expressions.py",
        'CAST({a} AS TEXT) COLLATE "C" IS NOT DISTINCT FROM CAST({b} AS TEXT)',
        'lower(CAST({a} AS TEXT)) COLLATE "C" IS NOT DISTINCT FROM lower(CAST({b} AS TEXT))',
        "rule_5",
        "postgresql",
    ),
    Mutation(
        "PostgreSQL fence: a writer takes no lock",
        "databases/postgresql/fence.py",
        'Lock.WRITE: "ROW SHARE"',
        'Lock.WRITE: "ACCESS SHARE"',
        "fence",
        "postgresql",
    ),
    Mutation(
        "PostgreSQL notice: a write to the legacy side alone is not seen",
        "databases/postgresql/triggers.py",
        "yield _note(statements[pair], Side.LEGACY, EACH, NOT_WRITTEN_BY_US, of_sessions=True)",
        "yield from ()",
        "gate",
        "postgresql",
    ),
    Mutation(
        "PostgreSQL freeze: a legacy program goes on writing",
        "databases/postgresql/triggers.py",
        "            yield from _freeze(pair)\n",
        "",
        "freeze",
        "postgresql",
    ),
)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_a_broken_rule_makes_a_test_fail(mutation: Mutation, tmp_path: Path) -> None:
    """The test that is said to hold a rule fails when the rule is broken."""
    copy = tmp_path / "checkout"
    for name in NEEDED:
        shutil.copytree(CHECKOUT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in NEEDED_FILES:
        shutil.copy(CHECKOUT / name, copy / name)
    source = copy / "consensus_orm" / mutation.file
    text = source.read_text(encoding="utf-8")
    assert mutation.before in text, "the edit no longer fits the source"
    source.write_text(text.replace(mutation.before, mutation.after), encoding="utf-8")

    selected = f"{mutation.noticed_by} and {mutation.kind}"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-x",
            "-q",
            "-n",
            "0",
            "-m",
            "not soak",
            "tests/test_rules.py",
            "-k",
            selected,
        ],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1, done.stdout[-3000:]  # 1: tests ran, and one failed
    assert "1 failed" in done.stdout
