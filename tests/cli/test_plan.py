"""The command plan: the steps ahead, their times by the rehearsal, and their statements."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from consensus_orm import ConsensusStore, Phase
from consensus_orm.cli import main
from consensus_orm.testing import count_queries, take_to
from tests.migration.steps import BASE
from tests.support.commands import without_settings
from tests.support.databases import Database, build_legacy

pytestmark = pytest.mark.long


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    without_settings(monkeypatch)
    monkeypatch.setenv("CONSENSUS_ORM_BACKUP_DIR", str(tmp_path))


def call(database: Database, *words: str) -> Result:
    result = CliRunner().invoke(main, ["--url", str(database.where), *words])
    assert result.exit_code == 0, result.output
    return result


def test_plan_lists_the_steps_that_migrate_takes(new_database: Database, tmp_path: Path) -> None:
    """The same, in the same order; with times once it was rehearsed; nothing is written."""
    build_legacy(new_database.where)
    settings = BASE.model_copy(update={"backup_dir": tmp_path})
    before = new_database.everything()
    steps: list[dict[str, Any]] = json.loads(call(new_database, "plan", "--json").stdout)
    assert "none of this database is on record" in call(new_database, "plan").stdout
    assert {step["seconds"] for step in steps} == {None}
    assert {tuple(step["sql"]) for step in steps} == {()}
    with ConsensusStore.open(new_database.where, settings=settings) as store:
        assert store.migration.rehearse().passed
    rehearsed = json.loads(call(new_database, "plan", "--json").stdout)
    assert [step["action"] for step in rehearsed] == [step["action"] for step in steps]
    assert all(step["seconds"] > 0 for step in rehearsed if step["action"] != "upgrade")
    assert [step["soak"] for step in rehearsed if step["action"] == "advance contract"] == [14 * 86400]
    assert new_database.everything() == before
    with ConsensusStore.open(new_database.where, settings=settings) as store:
        taken = store.migration.migrate()
    names = [f"{s.action} {s.phase.name.lower()}" if s.action == "advance" else s.action for s in taken]
    assert names == [step["action"] for step in steps]
    assert "nothing is ahead" in call(new_database, "plan").stdout


def test_plan_prints_the_statements(new_database: Database) -> None:
    """Those that carry and compare rows, of this kind of database, as they will be run."""
    build_legacy(new_database.where)
    with ConsensusStore.open(new_database.where, settings=BASE) as store:
        store.migration.migrate(Phase.DUAL_WRITE)
    printed = call(new_database, "plan", "--to", "cutover", "--sql").stdout
    assert "-- backfill in DUAL_WRITE" in printed
    carries = printed.partition("-- backfill in DUAL_WRITE")[2].partition("-- ")[0]
    assert "INSERT" in carries
    assert "consensus_runs" in carries
    assert "-- verify in DUAL_WRITE" in printed
    assert "advance normalized" not in printed


def test_what_a_plan_prints_of_a_flip_is_what_the_flip_sends(new_database: Database, tmp_path: Path) -> None:
    """The triggers of each phase, and the tables that CONTRACT renames; the order within a step aside."""
    build_legacy(new_database.where)
    settings = BASE.model_copy(update={"backup_dir": tmp_path})
    with ConsensusStore.open(new_database.where, settings=settings) as store:
        store.migration.upgrade()
        steps: list[dict[str, Any]] = json.loads(call(new_database, "plan", "--sql", "--json").stdout)
        planned = {step["action"]: step["sql"] for step in steps if step["action"].startswith("advance")}
        for phase in (Phase.DUAL_WRITE, Phase.CUTOVER, Phase.NORMALIZED, Phase.CONTRACT):
            with count_queries(store) as queries:
                take_to(store, phase)
            sent = " ".join("\n".join(map(str, queries)).replace('"', "").split())
            sql = planned[f"advance {phase.name.lower()}"]
            assert [text for text in sql if " ".join(text.replace('"', "").split()) not in sent] == []
            assert any("CREATE" in text and "TRIGGER" in text for text in sql) or not phase.has_legacy
    assert [text.split()[0] for text in planned["advance contract"][-2:]] == ["ALTER", "ALTER"]
