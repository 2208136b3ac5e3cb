"""A source in use: what is written while it is copied comes along, and the source itself is not written."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from consensus_orm import ConsensusStore, Phase
from consensus_orm.progress import Progress
from tests.copying.judges import (
    CHILDREN,
    LEGACY,
    SETTINGS,
    SIDES,
    SMALL,
    Sources,
    _add_one,
    _copied,
    _Once,
    assert_same_rows,
    fitting_history,
    moved,
    sides,
)
from tests.field import builders, rows
from tests.support import oracle

pytestmark = pytest.mark.long


class Meddler:
    """Writes to a source at chosen moments of a copy: between its chunks."""

    def __init__(self, *works: Callable[[], object]) -> None:
        self.works = list(works)
        self.told = 0

    def __call__(self, seen: Progress) -> None:
        if seen.pair.startswith(("looking at", "verifying")):
            return
        self.told += 1
        if self.told % 3 == 0 and self.works:
            self.works.pop(0)()


@pytest.mark.parametrize("way", ["there", "back", "file"])
def test_a_source_in_use(sources: Sources, url: str, tmp_path: Path, way: str) -> None:
    """Rows added, changed and deleted between the chunks of a copy come out as they stand at its end."""
    source: Path | str = _copied(sources(fitting_history, Phase.CUTOVER), tmp_path / "source.db")
    target: Path | str = url if way == "there" else tmp_path / "target.db"
    if way == "back":
        moved(source, url)
        source = url
    with ConsensusStore.open(source, settings=SETTINGS) as writer:

        def add() -> None:
            with writer.unit_of_work() as uow:
                for n in range(3):
                    uow.artifacts.add(
                        spec_id="SPEC-NEW", stage="s", agent_name="a", content_json=f"{n}", run_id="same run"
                    )
                uow.executions.record_spawn(agent_id="zz", spec_id="S", stage="s", phase_type="p", agent_name="a")

        def delete() -> None:
            with writer.unit_of_work() as uow:
                uow.artifacts.delete(spec_id="SPEC-NEW")
                uow.artifacts.delete(spec_id="SPEC-KIT-900", stage="spec-plan")
                uow.executions.record_completion("zz", "done")

        meddler = Meddler(add, delete, add, delete, add)
        report = moved(source, target, SMALL, progress=meddler)
        assert meddler.works == []
        assert report.passes > 1
        assert report.locked is not None
        with writer.unit_of_work(read_only=True) as uow:
            wanted = (
                uow.artifacts.list(),
                uow.syntheses.list(),
                uow.executions.list(),
                uow.runs.list(spec_id="SPEC-NEW"),
            )
    with ConsensusStore.open(target, settings=SETTINGS) as store:
        with store.unit_of_work(read_only=True) as uow:
            found = uow.artifacts.list(), uow.syntheses.list(), uow.executions.list(), uow.runs.list(spec_id="SPEC-NEW")
        assert found == wanted
        assert store.migration.verify().clean


def test_what_comes_after_the_last_look(sources: Sources, url: str, tmp_path: Path) -> None:
    """What is written when a pass has gone by it is carried under the lock."""
    source = _copied(sources(fitting_history, Phase.CUTOVER), tmp_path / "source.db")
    with ConsensusStore.open(source, settings=SETTINGS) as writer:
        added: list[object] = []

        def add(seen: Progress) -> None:
            # behind the last table with rows, in the first pass and in the second
            if seen.pair == "consensus_orm_history" and seen.done == seen.total and len(added) < 2:
                added.append(writer.run(_add_one))

        report = moved(source, url, SMALL, progress=add)
    assert report.passes == 3
    assert_same_rows(source, url, *SIDES)


@pytest.mark.parametrize("way", ["there", "back"])
def test_the_last_pass_is_one_moment(sources: Sources, url: str, tmp_path: Path, way: str) -> None:
    """Under a steady writer a copy ends, and holds all that was written before one moment and nothing written after."""
    source: Path | str = _copied(sources(fitting_history, Phase.DUAL_WRITE), tmp_path / "source.db")
    target: Path | str = url
    if way == "back":
        moved(source, url)
        source, target = url, tmp_path / "back.db"
    stop, added = threading.Event(), list[int]()

    def write() -> None:
        with ConsensusStore.open(source, settings=SETTINGS) as store:
            while not stop.wait(0.002):
                added.append(store.run(_add_one).id)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        report = moved(source, target)
    finally:
        stop.set()
        thread.join()
    with ConsensusStore.open(target, settings=SETTINGS) as store:
        with store.unit_of_work(read_only=True) as uow:
            there = sorted(artifact.id for artifact in uow.artifacts.list(spec_id="SPEC-LIVE"))
        assert there == added[: len(there)]
        assert store.migration.verify().clean
    assert len(added) >= len(there) > 0
    assert report.locked is not None


def test_catching_up_before_the_last_pass(sources: Sources, url: str, tmp_path: Path) -> None:
    """Without the last pass the target stays closed; later calls carry what changed, and the last one opens it."""
    source = _copied(sources(fitting_history, Phase.EXPAND), tmp_path / "source.db")
    first = moved(source, url, finish=False)
    assert not first.finished
    with builders.writing(source) as connection:
        connection.execute("DELETE FROM consensus_artifacts WHERE id = 1")
        connection.execute("UPDATE consensus_synthesis SET status = 'other' WHERE id = 1")
        rows.insert(connection, "consensus_artifacts", {**rows.ROUND, "content_json": "late"})
    second = moved(source, url, finish=False)
    changed = {table.name: (table.written, table.deleted) for table in second.tables if table.written or table.deleted}
    assert changed == {"consensus_artifacts": (1, 1), "consensus_synthesis": (1, 0)}
    last = moved(source, url)
    assert (last.finished, sum(table.written for table in last.tables)) == (True, 0)
    assert_same_rows(source, url, *SIDES)


def test_identities_that_move_from_row_to_row(sources: Sources, url: str, tmp_path: Path) -> None:
    """A run that is made again under another id while a copy goes on collides with nothing at the end."""
    source = _copied(sources(fitting_history, Phase.CONTRACT), tmp_path / "source.db")
    with ConsensusStore.open(source, settings=SETTINGS) as writer:
        with writer.unit_of_work() as uow:
            for n in range(40):
                uow.artifacts.add(spec_id=f"SPEC-{n}", stage="s", agent_name="a", content_json="{}", run_id="r")

        def again() -> None:
            with writer.unit_of_work() as uow:
                for n in range(40):
                    uow.artifacts.delete(spec_id=f"SPEC-{n}")
                    uow.artifacts.add(spec_id=f"SPEC-{n}", stage="s", agent_name="a", content_json="{}", run_id="r")

        assert moved(source, url, SMALL, progress=_Once("consensus_runs", 10, again)).finished
        assert_same_rows(source, url, *sides(Phase.CONTRACT))
        file = tmp_path / "target.db"
        assert moved(source, file, SMALL, progress=_Once("consensus_runs", 10, again)).finished
    for table in sides(Phase.CONTRACT):
        assert oracle.rows(file, table) == oracle.rows(source, table)


@pytest.mark.parametrize("spec", ["SPEC-MENDED", "SPEC-\0"], ids=["mended", "spoiled"])
def test_rows_follow_their_run_in_the_next_pass(sources: Sources, url: str, tmp_path: Path, spec: str) -> None:
    """Rows that did not change are copied, or left behind, as their run can be held by now."""
    source = _copied(sources(fitting_history, Phase.CONTRACT), tmp_path / "source.db")
    with oracle.reading(source) as connection:
        ((run,),) = connection.execute("SELECT min(run_id) FROM agent_outputs").fetchall()
        of_it = "SELECT id FROM {} WHERE run_id = ? ORDER BY id"
        rows_of_it = {table: connection.execute(of_it.format(table), (run,)).fetchall() for table in CHILDREN}

    def name(spec: str) -> None:
        with builders.writing(source) as connection:
            connection.execute("UPDATE consensus_runs SET spec_id = ? WHERE id = ?", (spec, run))

    name("SPEC-\0" if spec == "SPEC-MENDED" else "SPEC-FINE")
    report = moved(source, url, SMALL, reject=True, progress=_Once("consensus_syntheses", 0, lambda: name(spec)))
    is_held = "\0" not in spec
    with psycopg.connect(url) as server_connection:
        runs = server_connection.execute("SELECT spec_id FROM consensus_runs WHERE id = %s", (run,)).fetchall()
        found = {
            table: server_connection.execute(of_it.format(table).replace("?", "%s").encode(), (run,)).fetchall()
            for table in CHILDREN
        }
    assert runs == ([(spec,)] if is_held else [])
    assert found == (rows_of_it if is_held else {table: [] for table in CHILDREN})
    left_behind = {(odd.table, odd.key) for odd in report.unfit}
    assert left_behind == (
        set() if is_held else {(t, key) for t in CHILDREN for (key,) in rows_of_it[t]} | {("consensus_runs", run)}
    )


@pytest.mark.parametrize("mode", ["delete", "wal", "hot wal"])
def test_the_source_is_not_written(sources: Sources, url: str, tmp_path: Path, mode: str) -> None:
    """A file is byte for byte what it was, also one whose log nobody has carried into it."""
    source = tmp_path / "source.db"
    builders.build_legacy(source, columns=11)
    with contextlib.closing(sqlite3.connect(source)) as other:
        other.execute(f"PRAGMA journal_mode = {'delete' if mode == 'delete' else 'wal'}")
        other.execute("PRAGMA wal_autocheckpoint = 0")
        rows.insert(other, "consensus_artifacts", {**rows.ROUND, "content_json": "in the log"})
        other.commit()
        if mode == "hot wal":
            folder = tmp_path / "hot"
            folder.mkdir()
            for path in tmp_path.glob("source.db*"):
                (folder / path.name).write_bytes(path.read_bytes())
            source = folder / "source.db"
    before = oracle.sha256(source)
    report = moved(source, url)
    assert oracle.sha256(source) == before
    assert report.locked is not None
    if mode != "hot wal":
        assert [path.name for path in source.parent.iterdir() if path.is_file()] == ["source.db"]
    with psycopg.connect(url) as connection:
        found = connection.execute("SELECT count(*) FROM consensus_artifacts WHERE content_json = 'in the log'")
        assert found.fetchall() == [(1,)]


def test_a_source_that_may_not_be_written(url: str, tmp_path: Path) -> None:
    """A file without a lock to be had is copied as of one snapshot."""
    source = tmp_path / "source.db"
    builders.build_legacy(source, columns=11)
    report = moved(source, url, lock=False)
    assert (report.finished, report.locked) == (True, None)
    assert_same_rows(source, url, *LEGACY)
