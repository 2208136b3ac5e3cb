"""The syntheses of a file of the dual-write build: a copy that is equal is matched, whatever is not stays a reject."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from consensus_orm.consensus.application import APPLICATION
from consensus_orm.schema import revisions
from consensus_orm.settings import Settings
from tests.conftest import Open
from tests.field import builders
from tests.field.programs import DualWriteBuild
from tests.field.rows import SYNTHESIS, bytes_as_text, insert
from tests.support import oracle

pytestmark = pytest.mark.sqlite

SIX = ("output_markdown", "output_path", "status", "artifacts_count", "agreements", "conflicts")
PLAIN: dict[str, Any] = {**SYNTHESIS, "artifacts_count": 3, "agreements": '["a"]', "conflicts": "[]", "degraded": 0}


def rejected(path: Path) -> list[tuple[int, str]]:
    """Run and reason of each reject."""
    with oracle.reading(path) as connection:
        return [
            (int(bytes.fromhex(json.loads(image)["id"][1])), reason)
            for image, reason in connection.execute("SELECT image, reason FROM consensus_orm_rejects ORDER BY id")
        ]


def made(path: Path, *pairs: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """A dual-write file: for each pair a synthesis, and a run with a copy of it that differs as said.

    What is said is a field of the JSON, or `run.NAME` for a column of the run.
    """
    with builders.writing(path) as connection:
        connection.executescript(builders.ARTIFACTS + builders.SYNTHESIS + builders.FOUNDING)
        for number, (synthesis, differing) in enumerate(pairs, 1):
            insert(connection, "consensus_synthesis", synthesis)
            fields = {name: synthesis.get(name) for name in SIX}
            fields |= {name: value for name, value in differing.items() if not name.startswith("run.")}
            run = {name: synthesis[name] for name in ("spec_id", "stage")}
            run |= {"consensus_ok": 1, "degraded": synthesis.get("degraded", 0), "run_timestamp": number}
            run |= {"synthesis_json": json.dumps(fields, sort_keys=True)}
            run |= {name.removeprefix("run."): value for name, value in differing.items() if name.startswith("run.")}
            insert(connection, "consensus_runs", run)
        connection.execute("PRAGMA user_version = 1")


def test_every_synthesis_that_the_program_wrote_twice_is_matched(path: Path, open_engine: Open) -> None:
    """Of a file that the dual-write build itself filled, not one row becomes a reject, and the legacy side stays."""
    program = DualWriteBuild(path)
    for number in range(12):
        for status, degraded in (("ok", False), ("degraded", True), ("FAILED", False)):
            program.store_artifact(f"S-{number}", "plan", "gemini", '{"ok": true}')
            program.store_synthesis(f"S-{number}", "plan", "# Twice \0 \U0001f600", status, degraded=degraded)
    before = oracle.image(path, *oracle.LEGACY)

    revisions.upgrade(open_engine(path), Settings(), APPLICATION, rewrite=True)

    assert len(oracle.legacy(path)["syntheses"]) == 36
    assert rejected(path) == []
    assert oracle.image(path, *oracle.LEGACY) == before
    assert not [name for name in oracle.tables(path) if "founding" in name]


EQUAL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": (PLAIN, {}),
    "all that may be NULL": ({**SYNTHESIS, "artifacts_count": None}, {}),
    "long": ({**PLAIN, "output_markdown": "‑–\U0001f600 line\n" * 120_000}, {}),
    "NUL and control characters": ({**PLAIN, "output_markdown": "a\0b\x1b[2J"}, {}),
    "empty": ({**PLAIN, "output_markdown": "", "status": "", "agreements": ""}, {}),
    "failed, and the run says so": ({**PLAIN, "status": "failed"}, {"run.consensus_ok": 0}),
    "failed, and the run is ok as ever": ({**PLAIN, "status": "failed"}, {}),
    "degraded": ({**PLAIN, "degraded": 1}, {}),
    "a large count": ({**PLAIN, "artifacts_count": 2**62}, {}),
}

LACKING = "the legacy side has no such synthesis"
UNEQUAL: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "another text": (PLAIN, {"output_markdown": "# Other"}, LACKING),
    "another case": (PLAIN, {"status": "OK"}, LACKING),
    "'' for NULL": ({**PLAIN, "output_path": None}, {"output_path": ""}, LACKING),
    "NULL for ''": ({**PLAIN, "output_path": ""}, {"output_path": None}, LACKING),
    "a count as text": (PLAIN, {"artifacts_count": "3"}, LACKING),
    "a count as real": (PLAIN, {"artifacts_count": 3.0}, LACKING),
    "a field more": (PLAIN, {"run_id": "r"}, LACKING),
    "another spec": (PLAIN, {"run.spec_id": "SPEC-OTHER"}, LACKING),
    "another stage": (PLAIN, {"run.stage": "plan"}, LACKING),
    "another flag": (PLAIN, {"run.degraded": 1}, LACKING),
    "no flag": (PLAIN, {"run.degraded": None}, LACKING),
    "no JSON": (PLAIN, {"run.synthesis_json": "{"}, LACKING),
    "JSON as bytes": (PLAIN, {"run.synthesis_json": b"{}"}, LACKING),
    "bytes on the legacy side": ({**PLAIN, "output_markdown": b"# S"}, {"output_markdown": "# S"}, LACKING),
    "no UTF-8 on the legacy side": (
        {**PLAIN, "agreements": bytes_as_text(b"\xed\xa0\x80")},
        {"agreements": "\ud800"},
        LACKING,
    ),
    "not ok, and the status says nothing": (
        PLAIN,
        {"run.consensus_ok": 0},
        "consensus_ok is not what the status of the synthesis says",
    ),
}


@pytest.mark.parametrize("name", EQUAL)
def test_an_equal_copy_is_matched(name: str, path: Path, open_engine: Open) -> None:
    """What the legacy side has in type and bytes is no reject."""
    made(path, EQUAL[name])
    revisions.upgrade(open_engine(path), Settings(), APPLICATION, rewrite=True)
    assert rejected(path) == []


@pytest.mark.parametrize("name", UNEQUAL)
def test_an_unequal_copy_stays_a_reject(name: str, path: Path, open_engine: Open) -> None:
    """What differs from the legacy row by a hair is kept whole, with its reason, beside one that is matched."""
    synthesis, differing, reason = UNEQUAL[name]
    made(path, ({**PLAIN, "spec_id": "SPEC-EQUAL"}, {}), (synthesis, differing))
    with oracle.reading(path) as connection:
        names = [column.strip('"') for column in oracle.columns(connection, "consensus_runs")]
        (before,) = oracle.query(connection, names, "FROM consensus_runs WHERE id = 2")

    revisions.upgrade(open_engine(path), Settings(), APPLICATION, rewrite=True)

    assert rejected(path) == [(2, reason)]
    with oracle.reading(path) as connection:
        (image,) = connection.execute("SELECT image FROM consensus_orm_rejects").fetchone()
    assert tuple(tuple(json.loads(image)[column]) for column in names) == before


def test_equal_copies_pair_off_one_to_one(path: Path, open_engine: Open) -> None:
    """A synthesis has one copy: a second equal run is more than the legacy side knows."""
    made(path, (PLAIN, {}), (PLAIN, {}))
    with builders.writing(path) as connection:
        connection.execute("DELETE FROM consensus_synthesis WHERE id = 1")
    revisions.upgrade(open_engine(path), Settings(), APPLICATION, rewrite=True)
    assert rejected(path) == [(2, LACKING)]


def test_a_synthesis_in_the_run_of_an_output(path: Path, open_engine: Open) -> None:
    """The build has one run for what it wrote in one millisecond: output and synthesis are matched each by itself."""
    made(path, ({**PLAIN, "degraded": 1}, {}))
    with sqlite3.connect(path) as connection:
        connection.executescript(
            """INSERT INTO agent_outputs VALUES (1, 1, 'gemini', NULL, 'said', 1), (2, 1, 'code', NULL, 'only here', 1);
            INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json)
              VALUES ('SPEC-ODD', 'spec-plan', 'gemini', 'said');"""
        )
    connection.close()
    revisions.upgrade(open_engine(path), Settings(), APPLICATION, rewrite=True)
    assert rejected(path) == [(2, "the legacy side has no such row")]
