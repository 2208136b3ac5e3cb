"""The outbox is written in the transaction of the rows, without contents, and only while a store is mirrored."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from consensus_orm import ConsensusStore, Phase
from consensus_orm.external import Stage, attach
from consensus_orm.external.canonical import content_of, digest
from consensus_orm.telemetry import Event, StatementEvent, listen
from consensus_orm.testing import count_queries, take_to
from consensus_orm.testing.sinks import MemorySink
from tests.external.conftest import SETTINGS, add, mirrored
from tests.support.databases import Database, build_legacy, holds

ENTRIES = "SELECT pair, CAST(key AS INTEGER), op, digest FROM consensus_orm_outbox WHERE op <> 'export' ORDER BY id"


def test_each_written_row_is_named_once_with_its_digest(store: ConsensusStore, new_database: Database) -> None:
    """A unit of work leaves one entry for each row that it wrote: what the row is at the commit."""
    mirrored(store, MemorySink())
    with store.unit_of_work() as uow:
        rows = uow.repository("artifacts")
        kept = rows.add({"spec_id": "S", "stage": "s", "agent_name": "a", "content_json": "1"})
        rows.update(kept, {"content_json": "2"})
        gone = rows.add({"spec_id": "S", "stage": "s", "agent_name": "b", "content_json": "3"})
        rows.delete(key=gone)
    with store.unit_of_work(read_only=True) as uow:
        pair = uow.statements.moves["artifacts"]
        (row,) = uow._rows(uow.statements[pair].get(uow.phase.truth), {"_key": kept})
    assert new_database.rows_of(ENTRIES) == [
        ("artifacts", kept, "put", digest(content_of(pair, row))),
        ("artifacts", gone, "delete", None),
    ]


@pytest.mark.parametrize("stage", [stage for stage in Stage if not stage.records])
def test_nothing_is_written_at_other_stages(store: ConsensusStore, new_database: Database, stage: Stage) -> None:
    """Only MIRROR records."""
    mirror = mirrored(store, MemorySink(), min(stage, Stage.MIRROR))
    if stage is Stage.DETACHED:
        mirror.verify()
        mirror.advance()
    add(store)
    assert new_database.rows_of(ENTRIES) == []


def test_a_unit_of_work_that_fails_leaves_no_entry(store: ConsensusStore, new_database: Database) -> None:
    """An entry lives and dies with its row."""
    mirrored(store, MemorySink())
    with pytest.raises(ZeroDivisionError), store.unit_of_work() as uow:
        uow.artifacts.add(spec_id="S", stage="s", agent_name="a", content_json="1")
        raise ZeroDivisionError
    assert new_database.rows_of(ENTRIES) == []


def test_a_row_whose_entry_cannot_be_written_is_not_committed(store: ConsensusStore, new_database: Database) -> None:
    """The outbox fails with the row, so that none is committed that would never be sent."""
    mirrored(store, MemorySink())
    new_database.script("DROP TABLE consensus_orm_outbox")
    with pytest.raises(Exception, match=r"outbox|not exist|dropped"):
        add(store)
    assert new_database.scalar("SELECT count(*) FROM agent_outputs") == 0


@pytest.mark.long
@pytest.mark.parametrize("phase", list(Phase))
def test_the_entry_is_the_same_in_every_phase(new_database: Database, phase: Phase) -> None:
    """A row has one digest, whichever side is the truth; and one that is put back or adopted has an entry, too."""
    build_legacy(new_database.where)
    with ConsensusStore.open(new_database.where, settings=SETTINGS) as store:
        take_to(store, phase)
        sink = MemorySink()
        mirror = mirrored(store, sink)
        (key,) = add(store, model_version="m")
        mirror.relay.run(until_empty=True)
        before = dict(sink.items)
        for other in Phase:
            take_to(store, other)
            assert mirror.verify().clean, other
        mirror.export()
        mirror.relay.run(until_empty=True)
    assert sink.items == before
    assert f"artifacts:{key}" in before


def test_a_store_without_a_sink_pays_nothing(store: ConsensusStore) -> None:
    """A store that is not attached sends no statement more, and collects nothing."""
    add(store, run_id="R")  # the first one prepares the file, and writes the run, which the others find
    with count_queries(store) as plain:
        add(store, run_id="R")
    attach(store)
    with count_queries(store) as attached:
        add(store, run_id="R")
    on_a_server = store.engine.dialect.name == "postgresql"
    with ConsensusStore.open(store.engine.url, settings=SETTINGS) as other, other.unit_of_work() as uow:
        uow.artifacts.add(spec_id="S", stage="s", agent_name="a", content_json="1")
        assert uow._written == {}
    assert (
        len(attached) == len(plain) + 2 - on_a_server
    )  # the row is read, and its entry written, there with the commit


def test_a_compared_write_makes_no_further_trip_for_its_entry(new_database: Database) -> None:
    """On a server the row is read along with the comparison, and its entry is in one message with the commit."""
    build_legacy(new_database.where)
    on_a_server, trips = new_database.kind == "postgresql", list[Event]()
    sent: dict[bool, tuple[int, int]] = {}
    with ConsensusStore.open(new_database.where, settings=SETTINGS) as store:
        take_to(store, Phase.DUAL_WRITE)
        listen(store, lambda event: trips.append(event) if isinstance(event, StatementEvent) else None)
        for is_mirrored in (False, True):
            if is_mirrored:
                mirrored(store, MemorySink())
            add(store, run_id="R")  # without a run's id the next one would find this run only within its second
            trips.clear()
            with count_queries(store) as queries:
                (key,) = add(store, run_id="R")
            sent[is_mirrored] = len(queries), len(trips)
        with store.unit_of_work(read_only=True) as uow:
            pair = uow.statements.moves["artifacts"]
            (row,) = uow._rows(uow.statements[pair].get(uow.phase.truth), {"_key": key})
    assert sent[True][0] == sent[False][0] + (not on_a_server)  # what was compared is not read again
    assert sent[True][1] <= sent[False][1] + (not on_a_server)
    assert sent[False][1] > 0
    assert new_database.rows_of(ENTRIES)[-1] == ("artifacts", key, "put", digest(content_of(pair, row)))


@pytest.mark.parametrize("phase", [Phase.DUAL_WRITE, pytest.param(Phase.CUTOVER, marks=pytest.mark.long)])
def test_the_digest_is_that_of_the_row_as_it_is_read(new_database: Database, phase: Phase) -> None:
    """A compared write does not read its row again: whatever a value is, the entry has the digest that a read gives."""
    texts = ["", "\N{SNOWMAN}\U0001f600", "a\0b", "007", "a\ud800b", "a\udc80b", "x" * 10_000]
    build_legacy(new_database.where)
    with ConsensusStore.open(new_database.where, settings=SETTINGS) as store:
        take_to(store, phase)
        mirrored(store, MemorySink())
        rows_of_entries: list[tuple[int, str]] = []
        for value in [None, *filter(partial(holds, new_database.kind), texts)]:
            with store.unit_of_work() as uow:
                given = {"spec_id": "S", "stage": "s", "agent_name": "a", "content_json": "1", "response_text": value}
                key = uow.repository("artifacts").add(given)
            with store.unit_of_work(read_only=True) as uow:
                pair = uow.statements.moves["artifacts"]
                (row,) = uow._rows(uow.statements[pair].get(uow.phase.truth), {"_key": key})
            rows_of_entries.append((key, digest(content_of(pair, row))))
    assert [(key, hashed) for _, key, _, hashed in new_database.rows_of(ENTRIES)] == rows_of_entries


def test_two_units_of_work_for_a_row_are_two_entries(store: ConsensusStore, new_database: Database) -> None:
    """The order of the entries of a row is that of its commits."""
    mirrored(store, MemorySink())
    (key,) = add(store)
    with store.unit_of_work() as uow:
        uow.repository("artifacts").update(key, {"content_json": "2"})
    with store.unit_of_work() as uow:
        uow.artifacts.delete(spec_id="S")
    assert [(k, op) for _, k, op, _ in new_database.rows_of(ENTRIES)] == [(key, "put"), (key, "put"), (key, "delete")]


def test_every_entry_names_no_contents(store: ConsensusStore, new_database: Database) -> None:
    """No text of a row is in the outbox."""
    mirrored(store, MemorySink())
    add(store, content_json="a secret")
    cells: list[Any] = [cell for row in new_database.rows_of("SELECT * FROM consensus_orm_outbox") for cell in row]
    assert not any("secret" in str(cell) for cell in cells)
