"""Rows that the target of a copy cannot hold: each is listed, and nothing of it is half there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psycopg
import pytest

from consensus_orm import ConsensusStore, Phase, errors
from tests.copying.judges import (
    LEGACY,
    SETTINGS,
    Sources,
    _id,
    cells_of_file,
    cells_of_server,
    moved,
    odd_history,
    unheld,
)
from tests.field import builders, rows, server
from tests.support import oracle, oracle_of_servers

pytestmark = pytest.mark.long


def test_every_odd_row_is_copied_or_listed(tmp_path: Path, url: str) -> None:
    """All rows that a server cannot hold are listed, without contents, before anything is written."""
    source = tmp_path / "odd.db"
    odd_history(source)
    before = oracle.sha256(source)
    with pytest.raises(errors.CopyRefusedError) as caught:
        moved(source, url)
    assert {(odd.table, odd.key) for odd in caught.value.rows} == unheld(source)
    assert len(caught.value.rows) == len(unheld(source)) > 40
    assert oracle_of_servers.tables(url) == []
    assert oracle.sha256(source) == before
    assert [path.name for path in tmp_path.iterdir()] == ["odd.db"]


def test_rows_that_are_left_behind_become_rejects(tmp_path: Path, url: str) -> None:
    """With `reject` all other rows are copied, and each of these is kept whole, in type and bytes."""
    source = tmp_path / "odd.db"
    odd_history(source)
    wanted = unheld(source)
    report = moved(source, url, reject=True)
    assert {(odd.table, odd.key) for odd in report.unfit} == wanted
    for table in LEGACY:
        kept = [row for row in cells_of_file(source, table) if (table, _id(row)) not in wanted]
        assert sorted(cells_of_server(url, table), key=_id) == sorted(kept, key=_id)
    with psycopg.connect(url) as connection:
        told = "SELECT table_name, key::jsonb, image::json, state FROM consensus_orm_rejects"
        listed = connection.execute(told).fetchall()
    images = {(table, key): image for table, key, image, _ in listed}
    assert {state for *_, state in listed} == {"open"}
    assert images.keys() == wanted
    for table in LEGACY:
        for row in cells_of_file(source, table):
            if (table, _id(row)) in wanted:
                image = images[table, _id(row)]
                assert {name: _cell(image[name]) for name in row} == {name: _cell(cell) for name, cell in row.items()}


def _cell(cell: Any) -> Any:
    kind, digits = cell
    if kind != "real":
        return kind, digits.upper()
    try:
        return kind, float(bytes.fromhex(digits))  # images spell their bytes,
    except ValueError:
        return kind, float(digits)  # the judge the number


@pytest.mark.parametrize(
    "phase", [Phase.DUAL_WRITE, Phase.CUTOVER, Phase.NORMALIZED, Phase.CONTRACT], ids=lambda phase: phase.name.lower()
)
def test_what_is_left_behind_leaves_nothing_half(sources: Sources, url: str, phase: Phase) -> None:
    """Where runs lose rows, or are left behind themselves with theirs, both sides agree in what is copied."""
    moved(sources(odd_history, phase), url, reject=True)
    with ConsensusStore.open(url, settings=SETTINGS) as store:
        if phase.has_legacy:
            report = store.migration.verify()
            assert (report.differences, report.rejects > 0) == ((), True)
        with store.unit_of_work(read_only=True) as uow:
            for run in uow.runs.list(spec_id="SPEC-ODD"):
                assert run.outputs or run.syntheses


def test_text_that_looks_like_a_number(url: str, tmp_path: Path) -> None:
    """SQLite would store another type: such times of a server are listed, and become rejects."""
    with psycopg.connect(url) as connection:
        connection.execute(f"{server.ARTIFACTS}{server.SYNTHESIS}".encode())
        times = ["1762743600", " 1.5 ", "1e3", "-7", ".5", "2025", "not 7", "", "1 2", "0x10", "٧"]
        for at in times:
            server.insert(connection, "consensus_artifacts", {**rows.ROUND, "created_at": at, "content_json": "7"})
    with pytest.raises(errors.CopyRefusedError) as caught:
        moved(url, tmp_path / "file.db")
    assert [odd.key for odd in caught.value.rows] == [1, 2, 3, 4, 5, 6]
    assert not (tmp_path / "file.db").exists()
    moved(url, tmp_path / "file.db", reject=True)
    stored = [row["created_at"] for row in cells_of_file(tmp_path / "file.db", "consensus_artifacts")]
    assert stored == [("text", at.encode().hex().upper()) for at in times[6:]]


def test_executions_that_cannot_be_held(tmp_path: Path, url: str) -> None:
    """A NUL in what an agent said, a row without a key and one without a phase are listed and kept like any other."""
    source = tmp_path / "file.db"
    builders.build_legacy(source, columns=11)
    with builders.writing(source) as connection:
        connection.executescript(
            "PRAGMA writable_schema = ON; UPDATE sqlite_master SET sql = replace(sql, 'phase_type TEXT NOT NULL',"
            " 'phase_type TEXT') WHERE name = 'agent_executions'; PRAGMA writable_schema = RESET"
        )
        connection.execute("UPDATE agent_executions SET response_text = 'a' || char(0) WHERE rowid = 1")
        connection.execute(
            "INSERT INTO agent_executions (agent_id, spec_id, stage, phase_type, agent_name, spawned_at)"
            " VALUES (NULL, 'S', 's', 'p', 'a', 'now'), ('early', 'S', 's', NULL, 'a', 'now')"
        )
    report = moved(source, url, reject=True)
    assert {odd.table for odd in report.unfit} == {"agent_executions"}
    assert sorted((odd.column, odd.reason) for odd in report.unfit) == [
        ("agent_id", "1 keys that are no text"),
        ("phase_type", "NULL where a value is required"),
        ("response_text", "a NUL character in text"),
    ]
    with ConsensusStore.open(url, settings=SETTINGS) as store:
        listed = store.migration.rejects()
        assert [(reject.table, reject.pair) for reject in listed] == [("agent_executions", "artifacts")] * 3
        store.migration.accept_reject(listed[0].id, reason="known")
        with store.unit_of_work(read_only=True) as uow:
            assert len(uow.executions.list()) == 2


def test_a_key_that_is_no_utf8_goes_from_file_to_file(tmp_path: Path) -> None:
    """SQLite keeps any bytes as text: such a key has its place in the order of keys, and its row is copied."""
    source, target = tmp_path / "source.db", tmp_path / "target.db"
    builders.build_legacy(source, columns=11)
    with builders.writing(source) as connection:
        connection.execute("UPDATE agent_executions SET agent_id = CAST(x'ff41' AS TEXT) WHERE rowid = 1")
    assert moved(source, target).unfit == ()
    copied, there = (sorted(row[1:] for row in oracle.rows(path, "agent_executions")) for path in (target, source))
    assert copied == there
