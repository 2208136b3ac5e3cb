"""Files that SQLite writes in UTF-16: what they cannot give back is refused, and what is in them stays as it is."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from consensus_orm import ConsensusStore, ConsensusUnitOfWork, Phase, Settings
from consensus_orm.errors import InvalidValueError
from consensus_orm.testing import artifact_values, spawn_values, synthesis_values, take_to
from consensus_orm.testing.plugin import NO_TIME
from tests import oracle
from tests.field import builders

ENCODINGS = ["UTF-16le", "UTF-16be"]
LOST = {"lone surrogate": "x\ud800y", "the other half": "\udc00", "bytes that are no UTF-8": "\udcff\udcfe"}
"""What SQLite would turn into U+FFFD."""

HELD = {"NUL": "a\0b", "beyond the plane": "é\U0001f600", "replacement": "\ufffd", "empty": ""}
IN_THE_FILE = {**HELD, **LOST, "swapped": "\udc00\ud800", "at the end": "y\ud800"}


@pytest.fixture(params=ENCODINGS)
def encoding(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def path(encoding: str, tmp_path: Path) -> Path:
    """A legacy file in UTF-16."""
    path = tmp_path / "wide.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA encoding = '{encoding}'")
        connection.execute("CREATE TABLE settled (encoding)")
        connection.execute("DROP TABLE settled")
    builders.build_legacy(path, columns=11, altered=False)
    return path


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(
        soak_dual_write=NO_TIME, soak_cutover=NO_TIME, soak_normalized=NO_TIME, chunk_pause=NO_TIME, backup_dir=tmp_path
    )


@pytest.fixture(params=[Phase.EXPAND, Phase.DUAL_WRITE, Phase.NORMALIZED], ids=lambda phase: phase.name)
def store(path: Path, settings: Settings, request: pytest.FixtureRequest) -> Iterator[ConsensusStore]:
    with ConsensusStore.open(path, settings=settings) as store:
        take_to(store, request.param)
        store.run(lambda uow: uow.executions.record_spawn(**spawn_values(agent_id="agent")))
        yield store


def encoded(text: str, encoding: str) -> bytes:
    return text.encode(encoding.lower().replace("utf-16", "utf-16-"), "surrogatepass")


def literal(text: str, encoding: str) -> str:
    return f"CAST(X'{encoded(text, encoding).hex()}' AS TEXT)"


def writes(text: str) -> list[Callable[[ConsensusUnitOfWork], Any]]:
    """Every way to a column that holds any text."""
    a, s = artifact_values, synthesis_values
    return [
        lambda uow: uow.artifacts.add(**a(content_json=text)),
        lambda uow: uow.artifacts.add(**a(response_text=text)),
        lambda uow: uow.artifacts.add_many([a(), a(content_json=text)]),
        lambda uow: uow.syntheses.add(**s() | {"output_markdown": text}),
        lambda uow: uow.syntheses.add(**s() | {"output_path": text}),
        lambda uow: uow.syntheses.add(**s() | {"agreements": text}),
        lambda uow: uow.syntheses.add(**s() | {"conflicts": text}),
        lambda uow: uow.executions.record_completion("agent", text),
        lambda uow: uow.executions.record_extraction_failure("agent", text, "no JSON"),
        lambda uow: uow.executions.record_extraction_failure("agent", "raw", text or "none"),
    ]


@pytest.mark.parametrize("text", LOST.values(), ids=LOST)
def test_what_it_cannot_give_back_is_refused(store: ConsensusStore, path: Path, text: str) -> None:
    """Nothing of a call is written, although its unit of work is committed; the error repeats no contents."""
    before = oracle.everything(path)
    for write in writes(text):
        with store.unit_of_work() as uow, pytest.raises(InvalidValueError, match="in UTF-16 cannot hold") as raised:
            write(uow)
        assert text not in str(raised.value)
    assert oracle.everything(path) == before


@pytest.mark.parametrize("text", HELD.values(), ids=HELD)
def test_what_it_can_is_stored_and_read(store: ConsensusStore, path: Path, encoding: str, text: str) -> None:
    """NULs and characters beyond 16 bits are the bytes of the encoding on both sides, and come back as given."""
    with store.unit_of_work() as uow:
        artifact = uow.artifacts.add(**artifact_values(spec_id="SPEC-NEW", content_json=text, response_text=text))
        synthesis = uow.syntheses.add(**synthesis_values() | {"spec_id": "SPEC-NEW", "output_markdown": text})
        execution = uow.executions.record_completion("agent", text)
    assert (artifact.content_json, synthesis.output_markdown, execution.response_text) == (text, text, text)
    with store.unit_of_work(read_only=True) as uow:
        assert uow.artifacts.get(artifact.id) == artifact
        assert uow.syntheses.latest(spec_id="SPEC-NEW", stage=synthesis.stage) == synthesis
    cell = ("text", encoded(text, encoding).hex().upper())
    phase = store.migration.phase
    sides = [oracle.legacy] * phase.writes_legacy + [oracle.normalized] * phase.writes_normalized
    for side in sides:
        found = side(path)
        assert [row[4:6] for row in found["artifacts"] if row[0][1] == hexadecimal(artifact.id)] == [(cell, cell)]
        assert [row[3] for row in found["syntheses"] if row[0][1] == hexadecimal(synthesis.id)] == [cell]


def hexadecimal(number: int) -> str:
    return str(number).encode().hex().upper()


def test_what_is_in_the_file_stays_as_it_is(path: Path, settings: Settings, encoding: str) -> None:
    """Texts that are no UTF-16, and that no program reads as they are, are carried byte for byte, there and back."""
    with builders.writing(path) as connection:
        for text in IN_THE_FILE.values():
            cell = literal(text, encoding)
            connection.execute(
                "INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json, response_text, run_id,"
                f" created_at) VALUES ('S', 's', {cell}, {cell}, {cell}, {cell}, '2025-11-04 02:23:58')"
            )
            connection.execute(
                "INSERT INTO consensus_synthesis (spec_id, stage, output_markdown, status, conflicts, created_at)"
                f" VALUES ('S', 's', {cell}, 'ok', {cell}, '2025-11-04 02:23:58')"
            )
    before = oracle.legacy(path)
    with ConsensusStore.open(path, settings=settings) as store:
        take_to(store, Phase.DUAL_WRITE)
        store.migration.backfill()
        assert store.migration.verify().clean
        assert oracle.normalized(path) == oracle.legacy(path) == before
        take_to(store, Phase.CONTRACT)
        assert oracle.normalized(path) == before
        store.migration.rollback(Phase.EXPAND)
    assert oracle.legacy(path) == before


def test_a_derived_text_is_of_its_encoding(path: Path, settings: Settings, encoding: str) -> None:
    """synthesis_json is there for any text that is UTF-16, and NULL for one that is not."""
    with ConsensusStore.open(path, settings=settings) as store:
        take_to(store, Phase.DUAL_WRITE)
        store.run(lambda uow: uow.syntheses.add(**synthesis_values() | {"spec_id": "WIDE", "output_markdown": "é – ü"}))
    with oracle.reading(path) as connection:
        ((kind, said),) = connection.execute(
            "SELECT typeof(synthesis_json), synthesis_json ->> 'output_markdown' FROM consensus_runs"
            " WHERE spec_id = 'WIDE'"
        )
    assert (kind, said) == ("text", "é – ü")


def test_a_row_that_was_left_behind_comes_back(path: Path, settings: Settings, encoding: str) -> None:
    """A row that was accepted as a reject, and kept when its table was dropped, is put back byte for byte."""
    cells = [literal(text, encoding) for text in ("x\ud800y", "é", "a\0b")]
    with builders.writing(path) as connection:
        connection.execute(
            "INSERT INTO consensus_synthesis (spec_id, stage, output_markdown, status, agreements, conflicts,"
            f" artifacts_count, degraded, created_at) VALUES ('S', 's', {', '.join(cells[:1])}, 'ok', {cells[1]},"
            f" {cells[2]}, 'many', 0.1, '2025-11-04 02:23:58')"
        )
    before = oracle.legacy(path)
    with ConsensusStore.open(path, settings=settings) as store:
        store.migration.advance(Phase.DUAL_WRITE)
        with builders.writing(path) as connection:
            connection.execute(
                "CREATE TRIGGER refusing BEFORE INSERT ON consensus_syntheses WHEN NEW.artifacts_count = 'many'"
                " BEGIN SELECT RAISE(IGNORE); END"
            )
        store.migration.backfill()
        assert len(store.migration.rejects()) == 1
        for reject in store.migration.rejects():
            store.migration.accept_reject(reject.id, reason="tried")
        take_to(store, Phase.CONTRACT)
        store.migration.rollback(Phase.NORMALIZED)
    assert oracle.legacy(path)["syntheses"] == before["syntheses"]


def test_bytes_that_are_no_utf8_stay_in_a_file_of_utf8(tmp_path: Path, settings: Settings) -> None:
    """CAST(x'ff' AS TEXT), written by raw SQL, is read escaped, carried byte for byte, and comes back."""
    path = tmp_path / "narrow.db"
    builders.build_legacy(path, columns=11)
    with builders.writing(path) as connection:
        connection.execute(
            "INSERT INTO consensus_artifacts (id, spec_id, stage, agent_name, content_json, created_at)"
            " VALUES (500, 'S', 's', 'a', CAST(x'ff' AS TEXT), '2025-11-04 02:23:58')"
        )
    before = oracle.legacy(path)
    with ConsensusStore.open(path, settings=settings) as store:
        take_to(store, Phase.CONTRACT)
        assert oracle.normalized(path) == before
        with store.unit_of_work(read_only=True) as uow:
            found = uow.artifacts.get(500)
        assert found is not None
        assert found.content_json == "\udcff"
        store.migration.rollback(Phase.EXPAND)
    assert oracle.legacy(path) == before
