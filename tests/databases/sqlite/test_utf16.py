"""Files that SQLite writes in UTF-16: what they cannot give back is refused, and what is in them stays as it is."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from consensus_orm import ConsensusStore, ConsensusUnitOfWork, Phase, Settings
from consensus_orm.copying import CopyReport
from consensus_orm.errors import CopyRefusedError, InvalidValueError
from consensus_orm.ledgers import images
from consensus_orm.testing import artifact_values, spawn_values, synthesis_values, take_to
from consensus_orm.testing.plugin import NO_TIME
from tests.field import builders
from tests.support import oracle

pytestmark = pytest.mark.long

ENCODINGS = ["UTF-16le", "UTF-16be"]
LOST = {
    "lone surrogate": "x\ud800y",
    "the other half": "\udc00",
    "bytes that are no UTF-8": "\udcff\udcfe",
    "the last of the plane": "x\uffff",
    "the last but one": "\ufffe",
}
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


@pytest.mark.parametrize("name", ["\uffff", "a\ufffe"], ids=ascii)
def test_a_name_that_it_takes_for_another(store: ConsensusStore, path: Path, name: str) -> None:
    """A name that SQLite would turn into U+FFFD is refused: no row is added under it, and none of the other's goes."""
    other = name[:-1] + "\ufffd"
    with store.unit_of_work() as uow:
        uow.artifacts.add(**artifact_values(spec_id=other))
        uow.syntheses.add(**synthesis_values() | {"spec_id": other})
        uow.executions.record_spawn(**spawn_values(agent_id=other))
    before = oracle.everything(path)
    calls: list[Callable[[ConsensusUnitOfWork], Any]] = [
        lambda uow: uow.artifacts.add(**artifact_values(spec_id=name)),
        lambda uow: uow.artifacts.delete(spec_id=name),
        lambda uow: uow.syntheses.delete(spec_id=name),
        lambda uow: uow.executions.record_spawn(**spawn_values(agent_id=name)),
        lambda uow: uow.executions.record_completion(name, "{}"),
    ]
    for call in calls:
        with store.unit_of_work() as uow, pytest.raises(InvalidValueError, match="in UTF-16 cannot hold"):
            call(uow)
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


# Copies ------------------------------------------------------------------------------------------------------

SIDES = (
    "consensus_artifacts", "consensus_synthesis", "consensus_runs", "agent_outputs", "consensus_syntheses",
    "agent_executions",
)  # fmt: skip
PHASES = [Phase.EXPAND, Phase.DUAL_WRITE, Phase.NORMALIZED, Phase.CONTRACT]
AGENTS = [f"{first}{second}" for first in "a\u0100\xe9\u20ac\ue000\uffff\U0001f600" for second in ("", "b", "\u0141")]
"""In the order of their bytes in UTF-16 these are not what they are in UTF-8."""


def in_utf8(text: str) -> str:
    """A text as an image holds it in a file of UTF-8: a lone surrogate in the three bytes it would take."""
    return text.encode("utf-8", "surrogatepass").hex().upper()


def fill(path: Path, encoding: str) -> None:
    """Add rows with texts that are UTF-16, and with some that are not: in a content, in a name, with half a unit."""
    odd = "CAST(X'610062' AS TEXT)"
    cells = [*(literal(text, encoding) for text in (*IN_THE_FILE.values(), "z\ud800\x80")), odd]
    with builders.writing(path) as connection:
        for cell in cells:
            for spec, content in (("'S'", cell), (cell, "'{}'")):
                connection.execute(
                    "INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json, response_text,"
                    f" created_at) VALUES ({spec}, 's', 'a', {content}, 'é', '2025-11-04 02:23:58')"
                )
            connection.execute(
                "INSERT INTO consensus_synthesis (spec_id, stage, output_markdown, status, conflicts, created_at)"
                f" VALUES ('S', 's', 'é', 'ok', {cell}, '2025-11-04 02:23:58')"
            )
        for agent in (*(literal(text, encoding) for text in AGENTS), literal("y\udc00", encoding)):
            connection.execute(
                "INSERT INTO agent_executions (agent_id, spec_id, stage, phase_type, agent_name, spawned_at)"
                f" VALUES ({agent}, 'S', 's', 'p', 'a', '2025-11-04 02:23:58')"
            )


def copied(source: Path, target: Path | str, settings: Settings, **options: Any) -> CopyReport:
    with (
        ConsensusStore.open(source, settings=settings) as origin,
        ConsensusStore.open(target, settings=settings) as store,
    ):
        return origin.copy_to(store, **options)


def tables_of(path: Path) -> dict[str, list[dict[str, oracle.Cell]]]:
    """The rows of both sides by column."""
    found = {}
    with oracle.reading(path) as connection:
        for table in SIDES:
            if names := oracle.columns(connection, table):
                rows = oracle.query(connection, names, f"FROM {table} ORDER BY rowid")
                found[table] = [dict(zip((name.strip('"') for name in names), row, strict=True)) for row in rows]
    return found


def told(cell: oracle.Cell, encoding: str) -> oracle.Cell | None:
    """A cell of a file in UTF-16 as one in UTF-8 holds it; None where that would be another text."""
    if cell[0] != "text":
        return cell
    try:
        text = bytes.fromhex(cell[1]).decode(encoding.lower().replace("utf-16", "utf-16-"))
    except UnicodeDecodeError:
        return None
    return "text", text.encode().hex().upper()


def expected(path: Path, encoding: str) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
    """By raw bytes: the rows that a file in UTF-8 can hold, and those it cannot; a row goes where its run goes."""
    whole: dict[str, list[Any]] = {}
    lost: dict[str, list[Any]] = {}
    runs: list[oracle.Cell] = []
    for table, rows in tables_of(path).items():
        for row in rows:
            seen = {name: told(cell, encoding) for name, cell in row.items()}
            if None in seen.values() or (table in ("agent_outputs", "consensus_syntheses") and row["run_id"] in runs):
                lost.setdefault(table, []).append(row)
                runs += [row["id"]] if table == "consensus_runs" else []
            else:
                whole.setdefault(table, []).append(seen)
    return whole, lost


def keyed(rows: list[Any]) -> list[Any]:
    return sorted(rows, key=lambda row: next(iter(row.values())))


@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.name)
def test_a_copy_lists_what_it_cannot_read(
    path: Path, settings: Settings, encoding: str, phase: Phase, tmp_path: Path
) -> None:
    """Malformed text, which SQLite reads as another one, is refused before anything is written, or kept as a reject.

    All other rows are there byte for byte in the encoding of the target, in whatever order their keys come.
    """
    fill(path, encoding)
    with ConsensusStore.open(path, settings=settings) as store:
        take_to(store, phase)
    whole, lost = expected(path, encoding)
    before, target = oracle.everything(path), tmp_path / "target.db"
    with pytest.raises(CopyRefusedError) as refused:
        copied(path, target, settings)
    assert not target.exists()
    found = [(odd.table, odd.key if odd.key is None else str(odd.key)) for odd in refused.value.rows]
    keys = [
        (table, None if table == "agent_executions" else bytes.fromhex(next(iter(row.values()))[1]).decode())
        for table, rows in lost.items()
        for row in rows
    ]
    assert sorted(found, key=str) == sorted(keys, key=str)
    assert len(found) >= 12

    report = copied(path, target, settings.model_copy(update={"chunk_rows": 4}), reject=True)
    assert sum(table.deleted for table in report.tables) == 0
    assert oracle.everything(path) == before
    there = tables_of(target)
    assert {table: keyed(rows) for table, rows in there.items() if rows} == {
        table: keyed(rows) for table, rows in whole.items()
    }
    with ConsensusStore.open(target, settings=settings) as store:
        assert store.migration.status().rejects == len(store.migration.rejects()) == len(found)
    with oracle.reading(target) as connection:
        images = [json.loads(image) for (image,) in connection.execute("SELECT image FROM consensus_orm_rejects")]
    agent = next(image for image in images if "phase_type" in image)
    assert agent["agent_id"] == ["text", in_utf8("y\udc00")]
    kept = {image["content_json"][1] for image in images if "content_json" in image}
    if phase.has_legacy:
        assert kept >= {in_utf8(text) for text in ("x\ud800y", "\udc00", "\udc00\ud800", "y\ud800", "z\ud800\x80")}


@pytest.mark.parametrize(
    ("type_", "digits", "encoding", "text"),
    [
        ("text", "78 00 00 D8", "utf-16-le", "x\ud800"),
        ("text", "00 78 D8 00", "utf-16-be", "x\ud800"),
        ("text", "78 FF", "utf-8", "x\udcff"),
        ("integer", "37", "utf-16-le", "7"),
        ("blob", "FF", "utf-16-le", "FF"),
    ],
)
def test_an_image_is_shown_in_the_encoding_of_its_file(type_: str, digits: str, encoding: str, text: str) -> None:
    """What is no text there is shown by lone surrogates, and digits are ASCII whatever texts are written in."""
    assert images.text_of(type_, digits.replace(" ", ""), encoding) == text
