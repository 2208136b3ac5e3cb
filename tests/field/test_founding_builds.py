"""The two builds that had normalized tables: nothing of theirs is lost, and the right side is the truth."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import ColumnElement, literal_column, select
from sqlalchemy.dialects import sqlite

from consensus_orm.consensus.application import APPLICATION
from consensus_orm.consensus.expressions import run_key
from consensus_orm.declaration.expressions import milliseconds
from consensus_orm.schema import revisions
from consensus_orm.settings import Settings
from tests.conftest import Open
from tests.field import builders
from tests.support import oracle

SETTINGS = Settings()

OUTPUTS = ["id", "run_id", "agent_name", "model_version", "content", "output_timestamp"]
RUNS = ["id", "spec_id", "stage", "run_timestamp", "consensus_ok", "degraded", "synthesis_json"]


def cells(path: Path, names: list[str], rest: str) -> list[oracle.Row]:
    with oracle.reading(path) as connection:
        return oracle.query(connection, names, rest)


def rejects(path: Path) -> list[dict[str, Any]]:
    """The rejects with their images read as cells of the oracle."""
    with oracle.reading(path) as connection:
        connection.row_factory = sqlite3.Row
        found = [dict(row) for row in connection.execute("SELECT * FROM consensus_orm_rejects ORDER BY id")]
    for row in found:
        row["image"] = {name: tuple(cell) for name, cell in json.loads(row["image"]).items()}
    return found


def rejected_ids(path: Path, table: str, **where: str) -> list[int]:
    return [
        int(bytes.fromhex(row["image"]["id"][1]))
        for row in rejects(path)
        if row["table_name"] == table and all(row[name] == value for name, value in where.items())
    ]


def upgraded(path: Path, open_engine: Open) -> None:
    revisions.upgrade(open_engine(path), SETTINGS, APPLICATION, rewrite=True)


# The dual-write build


def test_a_consistent_dual_write_file_leaves_no_reject(path: Path, open_engine: Open) -> None:
    """Rows whose counterpart stands on the legacy side need no copy; the normalized side starts empty."""
    builders.dual_write_build(path)

    upgraded(path, open_engine)

    assert rejects(path) == []
    assert oracle.normalized(path) == {"artifacts": [], "syntheses": []}


@pytest.mark.parametrize("build", [builders.half_written_dual_writes, builders.shared])
def test_what_only_the_normalized_side_knew_is_quarantined(
    build: builders.Builder, path: Path, open_engine: Open
) -> None:
    """Rows without a legacy counterpart, pairing equals one to one, are open rejects, and nothing else is."""
    build(path)

    upgraded(path, open_engine)

    # 2002 has its twin on the legacy side; 2004 differs in type alone; 2005 has a model_version; 2009 no run.
    assert rejected_ids(path, "agent_outputs", state="open") == [2001, 2003, 2004, 2005, 2009]
    assert rejected_ids(path, "consensus_runs", state="open") == [1006, 1007, 1008]
    assert all(row["key"] is None and row["settled_at"] is None for row in rejects(path))
    assert oracle.normalized(path) == {"artifacts": [], "syntheses": []}


def test_a_quarantined_row_can_be_rebuilt_exactly(path: Path, open_engine: Open) -> None:
    """The image of a reject holds every cell of the output and of its run in type and bytes."""
    builders.half_written_dual_writes(path)
    outputs = {row[0]: row for row in cells(path, OUTPUTS, "FROM agent_outputs")}
    runs = {row[0]: row for row in cells(path, RUNS, "FROM consensus_runs")}

    upgraded(path, open_engine)

    for reject in rejects(path):
        image = reject["image"]
        if reject["table_name"] == "agent_outputs":
            assert tuple(image[name] for name in OUTPUTS) == outputs[image["id"]]
            run = tuple(image[f"run.{name}"] for name in RUNS)
            assert run == runs.get(image["run_id"], (("null", ""),) * len(RUNS))
        else:
            assert tuple(image[name] for name in RUNS) == runs[image["id"]]


@pytest.mark.parametrize("build", [builders.half_written_dual_writes, builders.final_build, builders.odd_final_build])
def test_no_id_of_a_founding_table_is_given_again(build: builders.Builder, path: Path, open_engine: Open) -> None:
    """The sequences go on where the founding ones stood, deleted rows included."""
    build(path)
    before = oracle.sequences(path)

    upgraded(path, open_engine)

    after = oracle.sequences(path)
    assert after["agent_outputs"] >= before["agent_outputs"]
    assert after["consensus_runs"] >= before["consensus_runs"]
    assert after["consensus_syntheses"] >= before["consensus_runs"]


# The final build


def test_every_output_of_the_final_build_is_carried(path: Path, open_engine: Open) -> None:
    """Outputs keep id, agent, model and content in type and bytes; one without a run is a reject instead."""
    builders.odd_final_build(path)
    kept = ["id", "agent_name", "model_version", "content"]
    marked = ["mirrored", "response_text"]
    before = cells(path, kept, "FROM agent_outputs ORDER BY id")

    upgraded(path, open_engine)

    after = cells(path, kept, "FROM agent_outputs ORDER BY id")
    orphan = [row for row in before if row[0] == ("integer", b"206".hex())]
    assert Counter(after) + Counter(orphan) == Counter(before)
    assert rejected_ids(path, "agent_outputs") == [206]
    # Adopted means vouched for: no later phase takes them for rows of a foreign program.
    assert set(cells(path, marked, "FROM agent_outputs")) == {(("integer", b"1".hex()), ("null", ""))}


def test_runs_are_one_per_identity(path: Path, open_engine: Open) -> None:
    """Founding runs of the same spec, stage and second become one run, and other ones stay apart (rule 4)."""
    builders.final_build(path)

    upgraded(path, open_engine)

    with oracle.reading(path) as connection:
        runs = connection.execute(
            "SELECT spec_id, stage, run_id, run_key, run_timestamp, consensus_ok, degraded,"
            " (SELECT group_concat(id) FROM (SELECT * FROM agent_outputs ORDER BY id) WHERE run_id = r.id),"
            " (SELECT group_concat(id) FROM (SELECT * FROM consensus_syntheses ORDER BY id)"
            " WHERE run_id = r.id) FROM consensus_runs AS r ORDER BY id"
        ).fetchall()
    plan, second = ("SPEC-KIT-900", "spec-plan", None), 1_762_222_238_000
    assert runs == [
        (*plan, "at:2025-11-04 02:10:38", second, 1, 1, "1,2,7", "6,7"),
        (*plan, "at:2025-11-04 02:10:39", second + 1000, 1, 0, "8", None),
        ("SPEC-KIT-900", "spec-tasks", None, "at:2025-11-04 02:10:39", second + 1000, 1, 0, "9", None),
        ("SPEC-KIT-901", "plan", None, "at:2025-11-04 02:10:40", second + 2000, 0, 0, None, "8"),
    ]


def test_syntheses_of_the_final_build_come_out_of_their_json(path: Path, open_engine: Open) -> None:
    """A run with synthesis_json becomes a synthesis with its id; the latest stands in its new run."""
    builders.final_build(path)

    upgraded(path, open_engine)

    with oracle.reading(path) as connection:
        syntheses = connection.execute(
            "SELECT id, output_markdown, output_path, status, artifacts_count, agreements, conflicts,"
            " degraded, created_at, synthesis_timestamp, mirrored FROM consensus_syntheses ORDER BY id"
        ).fetchall()
        latest = connection.execute("SELECT synthesis_json FROM consensus_runs WHERE degraded = 1").fetchall()
    at, ms = "2025-11-04 02:10:", 1_762_222_238_000
    assert syntheses == [
        (6, "# first ‑ \u2011", None, "ok", 3, '["a"]', "[]", 0, f"{at}38.500", ms + 500, 1),
        (7, "# second", "/tmp/x.md", "Degraded", None, None, None, 1, f"{at}38.600", ms + 600, 1),
        (8, "none", None, "FAILED", 0, None, None, 0, f"{at}40", ms + 2000, 1),
    ]
    assert [list(json.loads(text).items()) for (text,) in latest] == [
        [
            ("output_markdown", "# second"),
            ("output_path", "/tmp/x.md"),
            ("status", "Degraded"),
            ("artifacts_count", None),
            ("agreements", None),
            ("conflicts", None),
        ]
    ]


def test_what_the_final_build_cannot_hand_over_is_rejected_whole(path: Path, open_engine: Open) -> None:
    """JSON of another shape, runs without content and flags without a synthesis are kept with their image."""
    builders.odd_final_build(path)
    runs = {row[0]: row for row in cells(path, RUNS, "FROM consensus_runs")}

    upgraded(path, open_engine)

    assert rejected_ids(path, "consensus_runs", state="open") == [*builders.ODD_SYNTHESES, 201, 202, 203, 204]
    # The time of a run that differs from its output's is kept for the record, in nobody's way.
    assert rejected_ids(path, "consensus_runs", state="accepted") == [205]
    for reject in rejects(path):
        if reject["table_name"] == "consensus_runs":
            assert tuple(reject["image"][name] for name in RUNS) == runs[reject["image"]["id"]]


def test_every_founding_run_is_accounted_for(path: Path, open_engine: Open) -> None:
    """Each founding run is a reject, a synthesis, or says nothing that its output does not."""
    builders.odd_final_build(path)
    before = cells(path, RUNS, "FROM consensus_runs")
    times = {row[0]: row[1] for row in cells(path, ["run_id", "output_timestamp"], "FROM agent_outputs")}

    upgraded(path, open_engine)

    lost = []
    settled = set(rejected_ids(path, "consensus_runs"))
    syntheses = {row[0] for row in cells(path, ["id"], "FROM consensus_syntheses")}
    for run in before:
        plain = run[4:] == (("integer", "31"), ("integer", "30"), ("null", "")) and times.get(run[0]) == run[3]
        if int(bytes.fromhex(run[0][1])) not in settled and run[0] not in syntheses and not plain:
            lost.append(run)
    assert lost == []


def test_times_of_the_final_build_come_back(path: Path, open_engine: Open) -> None:
    """created_at gives back the ms it was made from; what is no time of years 1 to 9999 stays as it was."""
    builders.odd_final_build(path)
    founding = cells(path, ["id", "output_timestamp"], "FROM agent_outputs WHERE id <> 206")
    before = {row[0]: row[1] for row in founding}

    upgraded(path, open_engine)

    after = cells(path, ["id", "output_timestamp", "created_at"], "FROM agent_outputs")
    for output_id, ms, created_at in after:
        assert before[output_id] in (ms, created_at)
        assert ms == before[output_id] or ms == ("integer", b"0".hex()) or created_at[0] == "text"
    assert len(after) == len(before)


@pytest.mark.parametrize("table", ["agent_outputs", "consensus_syntheses"])
def test_frozen_rules_are_those_of_the_mapping(table: str, path: Path, open_engine: Open) -> None:
    """The copies of the rules in the revision give what the mapping gives, for every time there is."""
    builders.odd_final_build(path)
    upgraded(path, open_engine)
    created_at: ColumnElement[Any] = literal_column("x.created_at")
    nothing: ColumnElement[Any] = literal_column("NULL")
    stamp = "output_timestamp" if table == "agent_outputs" else "synthesis_timestamp"
    rules = select(run_key(nothing, created_at), milliseconds(created_at)).compile(dialect=sqlite.dialect())

    with oracle.reading(path) as connection:
        differing = connection.execute(
            f"SELECT x.id FROM {table} AS x JOIN consensus_runs AS r ON r.id = x.run_id"
            f" WHERE ({rules} ) IS NOT (r.run_key, x.{stamp})"
        ).fetchall()
        counted = connection.execute(f"SELECT count(*) FROM {table}").fetchone()

    assert differing == []
    assert counted > (3,)
