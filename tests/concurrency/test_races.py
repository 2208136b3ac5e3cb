"""Races between real processes. The long one lasts a minute, or `CONSENSUS_ORM_TEST_SOAK` seconds."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from consensus_orm import ConsensusStore, Phase
from consensus_orm.errors import DatabaseBusyError
from consensus_orm.migration import pace, way_back
from consensus_orm.settings import Settings
from tests.concurrency import actors
from tests.concurrency.files import (
    SETTINGS,
    Files,
    assert_sides_agree,
    assert_sound,
    bring,
    flips,
    image,
    kept_in,
    phase_of,
    raw,
    small_file,
)
from tests.concurrency.processes import Child, acknowledged, start
from tests.concurrency.steps import verified, with_journal
from tests.support import oracle

SECONDS = float(os.environ.get("CONSENSUS_ORM_TEST_SOAK") or "60")
WRITERS = ["w0", "w1", "w2", "w3"]
MODES = ["wal", "journal"]


def verified_with_journal(path: Path) -> None:
    with_journal(path)
    verified(path)


@pytest.mark.long
@pytest.mark.timeout(SECONDS * 3 + 120)
@pytest.mark.parametrize(("wal", "names", "share"), [(True, WRITERS, 1.0), (False, WRITERS[:2], 0.2)], ids=MODES)
def test_writers_and_readers_while_the_phase_goes_back_and_forth(
    files: Files, path: Path, wal: bool, names: list[str], share: float
) -> None:
    """No acknowledged write is lost, no read goes back in time, no write is made under a phase that is over."""
    seconds = SECONDS * share
    files.copy(path, Phase.EXPAND, small_file, wal=wal, change=with_journal)
    with kept_in(path, wal=wal):
        writers = [start(actors.write, path, name) for name in names]
        readers = [start(actors.read, path, names, seed) for seed in range(2)]
        flipper = start(actors.flip, path, seconds)

        flipped = flipper.hear(seconds + 60)
        path.with_name("stop").touch()
        told = [writer.hear(60) for writer in writers]
        looked = [reader.hear(60) for reader in readers]
        for child in (*writers, *readers):
            assert child.join() == 0
        flipper.tell()
        assert flipper.hear(60) == (True, 0, 0)
        assert flipper.join() == 0

    written = sum(writes for writes, _ in told)
    print(f"\n{written} writes, {sum(n for n, _ in looked)} reads, {flipped} flips")
    assert flipped >= 6
    assert set.union(*(phases for _, phases in looked)) == {1, 2, 3, 4}
    assert_sound(path)
    assert_sides_agree(path)
    assert_journal_is_right(path)
    assert_acknowledged_is_there(path)


def assert_journal_is_right(path: Path) -> None:
    """Each write saw the phase in force while it wrote, and stood on the sides of that phase when it was made."""
    with raw(path) as connection:
        journal = connection.execute(
            "SELECT op, seen_phase, seen_epoch, phase, epoch, on_legacy, on_normalized FROM race_journal ORDER BY n"
        ).fetchall()
    of_epoch = dict(enumerate([1, *(after for _, _, after in flips(path))]))
    for op, seen_phase, seen_epoch, phase, epoch, on_legacy, on_normalized in journal:
        assert (seen_phase, seen_epoch) == (phase, epoch)
        assert of_epoch[epoch] == phase
        if op == "add":
            assert (on_legacy, on_normalized) == (phase <= 3, phase >= 2)
    assert [row[4] for row in journal] == sorted(row[4] for row in journal)
    assert {row[3] for row in journal} == {1, 2, 3, 4}


def assert_acknowledged_is_there(path: Path) -> None:
    """What the writers were told is what the legacy tables hold: every row once, nothing else, deleted rows gone."""
    added: set[tuple[str, str, int]] = set()
    for name in WRITERS:
        for words in acknowledged(path.with_name(f"{name}.acks")):
            if words[0] == "added":
                added.add((words[1], f"a{words[2]}", int(words[3])))
            elif words[0] == "deleted":
                added = {row for row in added if row[0] != words[1]}
    with raw(path) as connection:
        query = "SELECT spec_id, agent_name, id FROM consensus_artifacts WHERE spec_id GLOB 'w[0-9]-*'"
        found = connection.execute(query).fetchall()
        ids = connection.execute("SELECT key FROM race_journal WHERE pair = 'artifacts' AND op = 'add'").fetchall()
    assert len(found) == len(set(found))
    assert set(found) == added
    assert len(ids) == len(set(ids)), "an id was given twice"


# Flips against each other ------------------------------------------------------------------------------------


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the write lock, as another program."""
    with raw(path) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


def flipper(path: Path, method: str, **settings: str) -> Child:
    child = start(actors.advance, path, method, {"chunk_rows": "16", "chunk_pause": "0", **settings})
    assert child.hear() == "ready"
    return child


@pytest.mark.long
@pytest.mark.parametrize(
    ("phase", "method"),
    [
        *((phase, "advance") for phase in Phase if phase.next),
        *((phase, "rollback") for phase in Phase if phase.previous),
    ],
    ids=lambda value: value.name if isinstance(value, Phase) else value,
)
def test_of_two_flippers_one_wins(files: Files, path: Path, phase: Phase, method: str) -> None:
    """Two processes take the same step at once: one takes it, the other is told, and the audit has one entry."""
    files.copy(path, phase, small_file, change=verified if phase.writes_normalized and phase.has_legacy else None)
    before = flips(path)
    children = [flipper(path, method) for _ in range(2)]
    with locked(path):
        for child in children:
            child.tell()
        time.sleep(0.4)  # both have read the phase by now, and wait for the lock
    told = sorted(child.hear() for child in children)
    for child in children:
        assert child.join() == 0
    assert_sound(path)
    assert len(flips(path)) == len(before) + 1, told
    assert phase_of(path) == (phase.next if method == "advance" else phase.previous)
    loser, winner = told
    assert winner[0] == "ok"
    assert loser[0] in ("PhaseChangedError", "GateClosedError"), told
    if phase_of(path).compares and phase is not Phase.EXPAND:
        assert_sides_agree(path)


@pytest.mark.long
@pytest.mark.parametrize("phase", [Phase.EXPAND, Phase.DUAL_WRITE, Phase.CUTOVER])
def test_a_flip_waits_for_a_long_transaction(files: Files, path: Path, phase: Phase) -> None:
    """A unit of work that began before the flip ends under its own phase, and the flip comes after it."""
    files.copy(path, phase, small_file, change=verified_with_journal if phase.writes_normalized else with_journal)
    holder = start(actors.hold_and_write, path)
    assert holder.hear() == phase
    child = flipper(path, "advance")
    child.tell()
    time.sleep(0.5)
    assert phase_of(path) is phase
    holder.tell()
    key, _ = holder.hear()
    result, reached, seconds = child.hear()
    assert (result, reached) == ("ok", phase.next.name if phase.next else "")
    assert seconds > 0.45
    assert [holder.join(), child.join()] == [0, 0]
    with raw(path) as connection:
        rows = connection.execute("SELECT phase, key, on_legacy, on_normalized FROM race_journal").fetchall()
    assert (phase, key, True, phase >= 2) in rows
    if phase.compares:
        assert_sides_agree(path)


@pytest.mark.parametrize("phase", [Phase.NORMALIZED, Phase.CONTRACT])
def test_what_is_written_just_before_the_way_back_is_carried(
    files: Files, path: Path, phase: Phase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write between the last chunk that was carried and the flip is carried under the fence."""
    files.copy(path, phase, small_file)
    ids = []
    catch_up = pace.catch_up
    with ConsensusStore.open(path, settings=SETTINGS) as store, ConsensusStore.open(path) as other:

        def then_write(*arguments: Any) -> None:
            catch_up(*arguments)
            with other.unit_of_work() as uow:
                uow.artifacts.delete(spec_id="SPEC-KIT-900", stage="spec-plan")
                ids.append(uow.artifacts.add(spec_id="LATE", stage="s", agent_name="a", content_json="{}").id)

        monkeypatch.setattr(way_back, "catch_up", then_write)
        store.migration.rollback(Phase.CUTOVER if phase is Phase.NORMALIZED else Phase.NORMALIZED)
    assert_sound(path)
    assert len(ids) == 1
    assert (("integer", str(ids[0]).encode().hex().upper())) in [row[0] for row in oracle.legacy(path)["artifacts"]]
    assert_sides_agree(path)


@pytest.mark.long
def test_a_flip_gives_up_after_the_busy_timeout(files: Files, path: Path) -> None:
    """Against a transaction that does not end, a try of the flip fails in bounded time and changes nothing."""
    files.copy(path, Phase.DUAL_WRITE, small_file, change=verified_with_journal)
    holder = start(actors.hold_and_write, path)
    assert holder.hear() == Phase.DUAL_WRITE
    before = image(path)
    child = flipper(path, "advance", busy_timeout="0.4", retry_attempts="1")
    child.tell()
    result, _, seconds = child.hear()
    assert result == "DatabaseBusyError"
    assert 0.35 < seconds < 2
    assert image(path) == before
    holder.tell()
    holder.hear()
    assert [holder.join(), child.join()] == [0, 0]
    with ConsensusStore.open(path) as store:
        assert store.migration.advance(soak=False) is Phase.CUTOVER
    assert_sides_agree(path)


# Processes that sleep ----------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("target", [Phase.CUTOVER, Phase.NORMALIZED, Phase.CONTRACT])
def test_a_process_sleeps_through_flips(files: Files, path: Path, target: Phase) -> None:
    """Its old snapshot goes on saying what it said and cannot write; its next unit of work is of the new phase."""
    files.copy(path, Phase.EXPAND, small_file, change=with_journal)
    sleeper = start(actors.sleep_and_write, path)
    phase, rows = sleeper.hear()
    assert phase == Phase.EXPAND
    with ConsensusStore.open(path, settings=SETTINGS) as store:
        bring(store, target)
        with store.unit_of_work() as uow:
            uow.artifacts.delete(spec_id="SPEC-KIT-900")
    sleeper.tell()
    assert sleeper.hear() == (Phase.EXPAND, rows)
    assert sleeper.hear() == "ReadOnlyUnitOfWorkError"
    phase, (key, _), (first, _) = sleeper.hear()
    assert phase == target
    assert sleeper.hear() == "UnitOfWorkClosedError"
    assert sleeper.join() == 0
    with raw(path) as connection:
        present = "SELECT count(*) FROM {} WHERE id IN (?, ?)"
        assert connection.execute(present.format("agent_outputs"), (first, key)).fetchone() == (2,)
        if target.has_legacy:
            legacy = connection.execute(present.format("consensus_artifacts"), (first, key)).fetchone()
            assert legacy == (1 + target.writes_legacy,)
    assert_sound(path)


@pytest.mark.long
def test_a_stopped_writer_keeps_the_phase_from_changing(files: Files, path: Path) -> None:
    """SIGSTOP within a unit of work: two flips are refused while it sleeps, and its write is of the phase it saw."""
    files.copy(path, Phase.DUAL_WRITE, small_file, change=verified_with_journal)
    holder = start(actors.hold_and_write, path)
    holder.hear()
    holder.signal(signal.SIGSTOP)
    with ConsensusStore.open(path, settings=Settings(busy_timeout="0.2")) as store:
        steps: list[Callable[[], object]] = [lambda: store.migration.advance(soak=False), store.migration.rollback]
        for step in steps:
            with pytest.raises(DatabaseBusyError):
                step()
        holder.signal(signal.SIGCONT)
        holder.tell()
        holder.hear()
        assert holder.join() == 0
        assert store.migration.advance(soak=False) is Phase.CUTOVER
    assert_sides_agree(path)
    with raw(path) as connection:
        assert connection.execute("SELECT DISTINCT seen_phase, phase FROM race_journal").fetchall() == [(2, 2)]


def test_a_killed_writer_lets_the_phase_change(files: Files, path: Path) -> None:
    """Killed within a unit of work: nothing of it stays, and the flip that waited goes on."""
    files.copy(path, Phase.DUAL_WRITE, small_file, change=verified_with_journal)
    rows = oracle.legacy(path)
    holder = start(actors.hold_and_write, path)
    holder.hear()
    child = flipper(path, "advance")
    child.tell()
    time.sleep(0.2)
    holder.kill()
    assert child.hear()[:2] == ("ok", "CUTOVER")
    assert child.join() == 0
    assert oracle.legacy(path) == rows
    assert_sides_agree(path)


@pytest.mark.long
def test_a_raw_lock_in_the_way_of_a_reader_is_none(files: Files, path: Path) -> None:
    """Read-only units of work take no lock: a writer of another program keeps them from nothing."""
    files.copy(path, Phase.DUAL_WRITE, small_file, change=verified)
    with locked(path), ConsensusStore.open(path, settings=Settings(busy_timeout="0")) as store:
        with store.unit_of_work(read_only=True) as uow:
            assert uow.artifacts.count() == len(oracle.legacy(path)["artifacts"])
        with pytest.raises(DatabaseBusyError) as caught, store.unit_of_work():
            pass
        assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
