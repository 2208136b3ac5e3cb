"""Other programs write between two statements of whoever carries: each case at its very moment, on PostgreSQL.

A statement there sees what was committed when it began, and nothing keeps a program that knows one side from
committing between two of ours. The long races come upon these moments by chance; here they are made.
"""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from consensus_orm import ConsensusStore, Phase
from consensus_orm.databases.postgresql.connection import ServerConnection
from consensus_orm.progress import Progress
from tests.concurrency.databases import (
    SETTINGS,
    assert_sides_agree,
    assert_sound,
    connect,
    in_phase,
    legacy,
    normalized,
    query,
)
from tests.support.servers import Server

pytestmark = pytest.mark.long

Before = Callable[[str, Callable[[], object]], None]


@pytest.fixture
def before(monkeypatch: pytest.MonkeyPatch) -> Iterator[Before]:
    """Do something once, just before the next statement of ours that begins with some words."""
    done: list[str] = []
    asked: list[str] = []

    def at(words: str, act: Callable[[], object]) -> None:
        execute = ServerConnection.execute
        asked.append(words)

        def watched(connection: ServerConnection, query: Any, *more: Any, **options: Any) -> Any:
            if str(query).replace('"', "").startswith(words) and words not in done:
                done.append(words)
                act()
            return execute(connection, query, *more, **options)

        monkeypatch.setattr(ServerConnection, "execute", watched)

    yield at
    assert done == asked, "the moment never came"


@pytest.fixture
def url() -> Iterator[str]:
    """A database in which both sides are written, and nothing has been carried yet."""
    with in_phase(Phase.DUAL_WRITE) as url:
        yield url


@pytest.fixture
def store(url: str) -> Iterator[ConsensusStore]:
    with ConsensusStore.open(url, settings=SETTINGS) as store:
        yield store


def program(url: str, statement: str) -> None:
    """What a program does that knows one side only."""
    with connect(url) as connection:
        assert connection.execute(statement.encode()).rowcount == 1


def finish(store: ConsensusStore, url: str) -> None:
    """Carry what is left; nothing is rejected, and both sides agree."""
    store.migration.backfill()
    assert_sound(url)
    store.migration.reconcile(foreign="adopt")
    assert store.migration.verify().clean
    assert store.migration.rejects(everything=True) == []
    assert_sides_agree(url)
    assert_sound(url)


def ids(url: str, spec: str) -> list[int]:
    rows = legacy(url)["artifacts"]
    assert rows == normalized(url)["artifacts"]
    return [row[0] for row in rows if row[1] == spec]


def test_a_legacy_row_deleted_before_it_is_carried_leaves_no_run(
    url: str, store: ConsensusStore, before: Before
) -> None:
    """The chunk was measured with it already: a run exists exactly as long as it has rows."""
    program(
        url,
        "INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json) VALUES ('ALONE', 's', 'a', '{}')",
    )
    with connect(url) as connection:
        connection.execute("DELETE FROM consensus_orm_changes")  # as if it had been there before the dual write
    before("WITH seen", lambda: program(url, "DELETE FROM consensus_artifacts WHERE spec_id = 'ALONE'"))
    store.migration.backfill()
    assert query(url, "SELECT count(*) FROM consensus_runs WHERE spec_id = 'ALONE'") == [(0,)]
    finish(store, url)


def test_a_run_for_rows_that_were_there_under_another_one_keeps_its_times(
    url: str, store: ConsensusStore, before: Before
) -> None:
    """A row that was not new may have made a run begin earlier: what follows from rows is derived again."""
    insert = (
        "INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json, run_id, created_at) VALUES"
        " ('S', 's', 'a', '{}', 'one', '2026-01-02 00:00:00'), ('S', 's', 'b', '{}', 'two', '2026-01-03 00:00:00')"
    )
    with connect(url) as connection:
        connection.execute(insert)
    store.migration.backfill()
    change = "UPDATE consensus_artifacts SET run_id = 'two', created_at = '2026-01-01 00:00:00' WHERE agent_name = 'a'"
    back = "UPDATE consensus_artifacts SET run_id = 'one', created_at = '2026-01-02 00:00:00' WHERE agent_name = 'a'"
    program(url, change)
    with connect(url) as connection:  # carried again from the start, and the change undone unseen before it is compared
        connection.execute("DELETE FROM consensus_orm_changes")
        connection.execute("DELETE FROM consensus_orm_backfill")
    before("SELECT consensus_artifacts.id", lambda: program(url, back))
    store.migration.backfill()
    times = query(url, "SELECT run_id, run_timestamp FROM consensus_runs WHERE spec_id = 'S' ORDER BY run_id")
    assert times == [("one", 1767312000000), ("two", 1767398400000)]
    finish(store, url)


def test_a_normalized_row_deleted_while_its_chunk_is_carried_stays_deleted(
    url: str, store: ConsensusStore, before: Before
) -> None:
    """It looks like a row to carry; its writer meant it to be gone, from both sides."""
    with store.unit_of_work() as uow:
        key = uow.artifacts.add(spec_id="GONE", stage="s", agent_name="a", content_json="{}").id
    before("WITH seen", lambda: program(url, f"DELETE FROM agent_outputs WHERE id = {key}"))
    store.migration.backfill()
    finish(store, url)
    assert ids(url, "GONE") == []


def test_a_delete_that_waits_for_its_commit_is_followed(url: str, store: ConsensusStore, before: Before) -> None:
    """The insert of the backfill waits for it, and brings the row back when it is committed."""
    with store.unit_of_work() as uow:
        key = uow.artifacts.add(spec_id="GONE", stage="s", agent_name="a", content_json="{}").id
    with connect(url) as connection:
        connection.execute("BEGIN")

        def begin_to_delete() -> None:
            connection.execute("DELETE FROM agent_outputs WHERE id = %s", (key,))
            threading.Timer(0.3, lambda: connection.execute("COMMIT")).start()

        before("WITH seen", begin_to_delete)
        store.migration.backfill()
        finish(store, url)
    assert ids(url, "GONE") == []


def test_a_row_changed_after_it_was_adopted_is_no_reject(url: str, store: ConsensusStore, before: Before) -> None:
    """What differs because somebody wrote it meanwhile is carried next time."""
    insert = (
        "INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json) VALUES ('LATE', 's', 'a', 'one')"
    )
    store.migration.backfill()
    program(url, insert)
    change = "UPDATE consensus_artifacts SET content_json = 'two' WHERE spec_id = 'LATE'"
    before("SELECT DISTINCT CAST(consensus_orm_changes.key", lambda: program(url, change))
    store.migration.backfill()
    finish(store, url)
    assert query(url, "SELECT content FROM agent_outputs WHERE agent_name = 'a'") == [("two",)]


@pytest.mark.parametrize(
    ("write", "left", "adopted"),
    [
        ("DELETE FROM agent_outputs", ["{}"], []),
        ("DELETE FROM consensus_artifacts", [], []),
        ("UPDATE agent_outputs SET content = 'theirs'", ["{}"], ["theirs"]),
        ("UPDATE consensus_artifacts SET content_json = 'theirs'", ["theirs"], ["theirs"]),
    ],
)
def test_what_others_write_while_reconcile_looks_is_not_repaired(
    url: str, store: ConsensusStore, monkeypatch: pytest.MonkeyPatch, write: str, left: list[str], adopted: list[str]
) -> None:
    """The sides differ, and it was noted why: it is carried from the truth, and waits for a choice elsewhere."""
    store.migration.backfill()
    with store.unit_of_work() as uow:
        key = uow.artifacts.add(spec_id="GONE", stage="s", agent_name="a", content_json="{}").id
    reconcile = importlib.import_module("consensus_orm.migration.reconcile")
    scan = reconcile.scan

    def write_and_scan(*arguments: Any) -> Any:
        program(url, f"{write} WHERE id = {key}")
        return scan(*arguments)

    monkeypatch.setattr(reconcile, "scan", write_and_scan)
    store.migration.reconcile()
    monkeypatch.undo()
    assert [row[4] for row in legacy(url)["artifacts"] if row[0] == key] == left
    finish(store, url)
    assert [row[4] for row in legacy(url)["artifacts"] if row[0] == key] == adopted


def test_rows_that_others_go_on_adding_do_not_keep_a_backfill_from_its_end(url: str, store: ConsensusStore) -> None:
    """Whoever writes faster than it carries is carried as well, and does not hold it up."""
    chunks: list[Progress] = []

    def add_more(progress: Progress) -> None:
        chunks.append(progress)
        assert len(chunks) < 40, "it runs after those who write"
        with connect(url) as connection:
            connection.execute(
                "INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json)"
                " SELECT 'MORE', 's', 'a', '{}' FROM generate_series(1, 40)"
            )

    store.migration.backfill(add_more)
    finish(store, url)
    assert len(ids(url, "MORE")) == 40 * len(chunks)


@pytest.mark.parametrize("look", ["SELECT consensus_artifacts.id \nFROM", "SELECT agent_outputs.id \nFROM"])
def test_what_is_committed_between_two_looks_is_deleted_and_counted(
    url: str, store: ConsensusStore, before: Before, look: str
) -> None:
    """A delete looks at one side after the other; a row that comes between is counted where it goes from both."""

    def add() -> None:
        with ConsensusStore.open(url, settings=SETTINGS) as other, other.unit_of_work() as uow:
            uow.artifacts.add(spec_id="GONE", stage="s", agent_name="b", content_json="{}")

    with store.unit_of_work() as uow:
        uow.artifacts.add(spec_id="GONE", stage="s", agent_name="a", content_json="{}")
    before(look, add)
    with store.unit_of_work() as uow:
        deleted = uow.artifacts.delete(spec_id="GONE")
    assert deleted + len(query(url, "SELECT id FROM consensus_artifacts WHERE spec_id = 'GONE'")) == 2
    finish(store, url)


def test_a_unit_of_work_that_deletes_waits_for_the_way_back(store: ConsensusStore, before: Before) -> None:
    """In NORMALIZED our deletes run beside what is carried back, and leave no run that has no rows."""
    with in_phase(Phase.NORMALIZED) as url, ConsensusStore.open(url, settings=SETTINGS) as normalized_store:
        with normalized_store.unit_of_work() as uow:
            for number in range(3):
                uow.artifacts.add(spec_id="GONE", stage=f"{number}", agent_name="a", content_json="{}", run_id="r")
        threads: list[threading.Thread] = []

        def delete() -> None:
            with ConsensusStore.open(url, settings=SETTINGS) as other, other.unit_of_work() as uow:
                assert uow.artifacts.delete(spec_id="GONE") == 3
                time.sleep(0.6)  # the run that is made again would wait for this commit

        def begin_to_delete() -> None:
            threads.append(threading.Thread(target=delete))
            threads[0].start()
            time.sleep(0.3)

        before("INSERT INTO consensus_runs", begin_to_delete)
        normalized_store.migration.rollback()
        threads[0].join()
        assert_sound(url)
        assert normalized_store.migration.verify().clean
        assert_sides_agree(url)
        assert ids(url, "GONE") == []


def test_who_carries_knows_whether_others_write() -> None:
    """A write of somebody else is noticed at the next unit of work; those of our own are not taken for others'."""

    def asked(store: ConsensusStore) -> bool:
        with store.unit_of_work() as uow:
            return uow._connected.others_wrote()

    with Server(settings={"autovacuum": "off"}) as server, ConsensusStore.open(server.url()) as store:
        store.upgrade()
        asked(store)
        assert [asked(store) for _ in range(3)] == [False, False, False]
        with connect(server.url()) as connection:
            connection.execute("CREATE TABLE theirs ()")
        assert [asked(store), asked(store)] == [True, False]
