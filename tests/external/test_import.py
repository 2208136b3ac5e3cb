"""The import: entries come in once, with where they came from; what is no row becomes a reject, kept whole."""

from __future__ import annotations

import itertools
import json

import pytest

from consensus_orm import ConsensusStore, Phase
from consensus_orm.errors import SinkContractError
from consensus_orm.external import FileSink, Item, Page, Stage
from consensus_orm.external.artifacts import read_artifact
from consensus_orm.testing import take_to
from consensus_orm.testing.sinks import MemorySink
from tests.external.conftest import SETTINGS, add, mirrored
from tests.external.test_texts import KEYS_OF_NO_ROW
from tests.support.databases import Database, build_legacy, holds

ENTRY = {"spec_id": "SPEC", "stage": "quality-gate", "agent": "gemini", "content": {"ok": True}}


def filled(count: int = 3) -> MemorySink:
    sink = MemorySink()
    sink.items = {f"gate-{number}": json.dumps(ENTRY | {"content": number}) for number in range(count)}
    return sink


@pytest.mark.parametrize("phase", list(Phase))
def test_entries_come_in_once_and_through_the_sides_of_the_phase(new_database: Database, phase: Phase) -> None:
    """Each becomes one row; a second import takes in none; both sides agree."""
    build_legacy(new_database.where)
    sink = filled()
    with ConsensusStore.open(new_database.where, settings=SETTINGS) as store:
        take_to(store, phase)
        mirror = mirrored(store, sink, Stage.IMPORT)
        assert (mirror.import_entries().imported, mirror.import_entries().imported) == (3, 0)
        if phase.compares:
            assert store.migration.verify().clean
        with store.unit_of_work(read_only=True) as uow:
            assert uow.artifacts.count(spec_id="SPEC") == 3
    came_from = new_database.rows_of("SELECT item, pair FROM consensus_orm_sink_imports ORDER BY item")
    assert came_from == [(f"gate-{number}", "artifacts") for number in range(3)]


def test_what_is_no_row_is_kept_whole_until_a_decision(store: ConsensusStore) -> None:
    """A reject shuts the gate; accepted, it is no difference as long as it stays what it was."""
    sink = filled(1)
    sink.items |= {"note": "remember the milk", "half": json.dumps({"spec_id": "S"}), "\N{SNOWMAN}\ud800": "{}"}
    mirror = mirrored(store, sink, Stage.IMPORT)
    report = mirror.import_entries()
    assert (report.imported, report.rejects) == (1, 3)
    assert mirror.import_entries().rejects == 0
    assert all(" open; see: " in reason for reason in mirror.status().gate)
    kept = [json.loads(str(mirror.kept(each.id))) for each in mirror.findings()]
    assert {each["name"]: each["content"] for each in kept} == {n: c for n, c in sink.items.items() if n != "gate-0"}
    for each in mirror.findings():
        mirror.accept(each.id, reason="no artifact")
    mirror.advance("mirror")
    mirror.relay.run(until_empty=True)
    assert mirror.verify().clean
    assert mirror.import_entries().rejects == 0
    sink.items["note"] = "and the eggs"
    assert [each.kind for each in mirror.verify().differences] == ["not_imported"]


def test_an_entry_that_changes_after_it_came_in_is_a_mismatch(store: ConsensusStore) -> None:
    """The tool that still writes to the old store is noticed."""
    sink = filled(2)
    mirror = mirrored(store, sink)
    mirror.relay.run(until_empty=True)
    assert mirror.verify().clean
    sink.items["gate-0"] = json.dumps(ENTRY | {"content": "changed"})
    sink.items["gate-new"] = json.dumps(ENTRY)
    assert sorted(each.kind for each in mirror.verify().differences) == ["changed", "not_imported"]
    assert mirror.import_entries().imported == 1
    for each in mirror.findings():
        mirror.accept(each.id, reason="seen")
    mirror.relay.run(until_empty=True)
    assert mirror.verify().clean


def test_rows_that_were_deleted_do_not_come_back(store: ConsensusStore) -> None:
    """An entry that is named as a row of this database comes in only when asked for."""
    sink = MemorySink()
    mirror = mirrored(store, sink)
    add(store, 2)
    mirror.relay.run(until_empty=True)
    with store.unit_of_work() as uow:
        uow.repository("artifacts").delete(key=1)
    assert mirror.import_entries().imported == 0
    mirror.relay.run(until_empty=True)
    assert sorted(sink.items) == ["artifacts:2"]


def test_a_lost_database_is_taken_in_again(store: ConsensusStore, kind: str, tmp_path: object) -> None:
    """All rows of another database come in by their own numbers, exactly."""
    sink = FileSink(f"{tmp_path}/sink", name="copy")
    texts = [text for text in ("plain", "a\0\ud800", "\N{SNOWMAN}") if holds(kind, text)]
    with ConsensusStore.open(f"{tmp_path}/lost.db", settings=SETTINGS) as lost:
        lost.upgrade()
        mirror = mirrored(lost, sink)
        for text in texts:
            add(lost, content_json=text)
        mirror.relay.run(until_empty=True)
        with lost.unit_of_work(read_only=True) as uow:
            wanted = uow.artifacts.list()
    mirror = mirrored(store, sink, Stage.IMPORT)
    assert mirror.import_entries().imported == 0
    report = mirror.import_entries(own=True)
    assert report.imported == len(texts)
    with store.unit_of_work(read_only=True) as uow:
        assert uow.artifacts.list() == wanted


def test_a_listing_that_is_not_what_get_says_is_a_reject(store: ConsensusStore) -> None:
    """An entry that cannot be read as it was listed does not come in."""
    sink = filled(1)
    listed = dict(sink.items)
    sink.get = lambda name: None  # type: ignore[method-assign]
    mirror = mirrored(store, sink, Stage.IMPORT)
    assert mirror.import_entries().rejects == len(listed)


ROW = {"spec_id": "S", "stage": "s", "agent_name": "a", "content_json": "{}"}
ODD_ROWS = [
    *({}, {"stage": "s"}, ROW | {"content_json": None}, ROW | {"no_such": 1}, ROW | {"id": 1}),
    *(ROW | {"spec_id": [1]}, ROW | {"spec_id": {"$json": {}}}, ROW | {"created_at": {"$json": [1]}}),
    *(ROW | {"created_at": 2**80}, ROW | {"created_at": True}, ROW | {"stage": {"$bytes": "x"}}, ROW | {"run_id": {}}),
]


def test_a_row_that_the_database_refuses_is_a_reject_and_the_others_come_in(store: ConsensusStore) -> None:
    """Whatever an entry holds, the import comes to its end: each is a row or a finding, and none is in the way."""
    sink = filled(1)
    for number, row in enumerate(ODD_ROWS):
        content = json.dumps({"move": "artifacts", "row": row})
        sink.items |= {f"a-{number}": content, f"artifacts:{number + 100}": content}
    mirror = mirrored(store, sink, Stage.IMPORT)
    report = mirror.import_entries(own=True)
    assert (report.items, report.known) == (len(sink.items), 0)
    assert report.rejects >= 12
    assert mirror.import_entries(own=True).known == len(sink.items)
    with store.unit_of_work(read_only=True) as uow:
        assert uow.artifacts.count(spec_id="SPEC") == 1
        assert len(uow.repository("artifacts").rows({})) == report.imported
    for each in mirror.findings():
        mirror.accept(each.id, reason="no row")
    mirror.advance("mirror")
    mirror.relay.run(until_empty=True)
    assert mirror.verify().clean


@pytest.mark.parametrize("key", KEYS_OF_NO_ROW)
def test_a_name_that_no_row_can_have_is_in_nobodys_way(store: ConsensusStore, key: str) -> None:
    """An entry that is named like a row and cannot be one is compared, imported and decided on as any other."""
    sink = MemorySink()
    mirror = mirrored(store, sink)
    add(store)
    mirror.relay.run(until_empty=True)
    sink.items[f"artifacts:{key}"] = "{}"
    assert [each.kind for each in mirror.verify().differences] == ["not_imported"]
    assert (mirror.import_entries(own=True).rejects, mirror.repair()) == (1, 0)
    for each in mirror.findings():
        mirror.accept(each.id, reason="not ours")
    assert mirror.verify().clean


def test_names_that_are_written_alike_are_two(store: ConsensusStore) -> None:
    """A name that is kept as JSON is not that of an entry whose name is this JSON."""
    sink = MemorySink()
    sink.items = {name: json.dumps(ENTRY) for name in ("\N{SNOWMAN}", json.dumps("\N{SNOWMAN}"))}
    assert mirrored(store, sink, Stage.IMPORT).import_entries().imported == 2


@pytest.mark.sqlite
def test_a_listing_in_pages_is_read_to_its_end(store: ConsensusStore) -> None:
    """Pages of one entry and empty ones are no end; a page that comes again, or endless ones, are an error."""
    sink = filled(4)
    sink.page = 1
    pages = sink.list
    sink.list = lambda following=None: Page((), "") if following is None else pages(following)  # type: ignore[method-assign]
    mirror = mirrored(store, sink, Stage.IMPORT)
    assert mirror.import_entries().imported == 4
    numbers = itertools.count()
    for endless in (lambda _: Page((), "same"), lambda _: Page((Item("gate-0", "{}"),), str(next(numbers)))):
        sink.list = endless  # type: ignore[method-assign,assignment]
        with pytest.raises(SinkContractError, match="no end"):
            mirror.import_entries()
    sink.list = pages  # type: ignore[method-assign]
    assert mirror.import_entries().imported == 0


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (json.dumps(ENTRY), "quality-gate"),
        ("[]", None),
        ("not JSON", None),
        ("{}", None),
        ("[" * 100_000, None),
        (json.dumps({"move": "artifacts", "row": {"stage": "own"}}), "own"),
    ],
)
def test_reading_an_artifact(content: str, wanted: str | None) -> None:
    """An object that names spec, stage and agent, and has a content, or a row that this package wrote."""
    row = read_artifact(Item("x", content))
    assert (None if row is None else row.values["stage"]) == wanted
