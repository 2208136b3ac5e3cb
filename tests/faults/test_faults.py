"""Faults of the world: a clear error, no half-done step, and a usable store when they are over.

Each step of `tests.concurrency.steps` meets a full database, a system that takes no more bytes, and so on; the
file is judged by raw SQL. What needs root (mounts, other users) is skipped without.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from consensus_orm import ConsensusStore, Phase, errors
from consensus_orm.settings import Settings
from tests.concurrency.files import (
    SETTINGS,
    Files,
    assert_sides_agree,
    assert_sound,
    bring,
    image,
    kept_in,
    phase_of,
    raw,
    records,
    small_file,
    truth,
)
from tests.concurrency.processes import start
from tests.concurrency.steps import STEPS, bytes_at_most, verified, write

pytestmark = pytest.mark.long

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="only root may mount, and be somebody else")


def add(store: ConsensusStore, name: str, size: int = 10) -> int:
    with store.unit_of_work() as uow:
        return uow.artifacts.add(spec_id="SPEC-F", stage="s", agent_name=name, content_json="x" * size).id


def names(store: ConsensusStore) -> list[str]:
    with store.unit_of_work(read_only=True) as uow:
        return [artifact.agent_name for artifact in uow.artifacts.list(spec_id="SPEC-F")]


# No room ---------------------------------------------------------------------------------------------------------

FILLING = [name for name, step in STEPS.items() if name not in ("vacuum", "full_vacuum", "flip_3_4", "rollback_3_2")]

GROWING = {"write_in_expand", "write_in_dual_write", "backfill", "flip_1_2", "rollback_4_3", "rebuild", "migrate"}
"""Steps that cannot do without a page more."""


@pytest.mark.parametrize("name", FILLING)
@pytest.mark.parametrize("room", [0, 3, 12], ids=lambda pages: f"{pages}_pages")
def test_a_full_database_stops_a_step_and_keeps_everything(files: Files, path: Path, name: str, room: int) -> None:
    """Where SQLite says FULL: DatabaseFullError, the truth as it was, and the same store goes on when there is room."""
    step = STEPS[name]
    files.copy(path, step.start, step.build, change=step.change)
    before, rows = image(path), truth(path)
    limits: list[sqlite3.Connection] = []
    with ConsensusStore.open(path, settings=SETTINGS) as store:
        store.engine.dispose()
        event.listen(store.engine, "connect", lambda driver, _record: limits.append(driver))

        @event.listens_for(store.engine, "checkout")
        def limit(driver: sqlite3.Connection, *_: object) -> None:
            if driver in limits:
                pages = driver.execute("PRAGMA page_count").fetchone()[0]
                driver.execute(f"PRAGMA max_page_count = {pages + room}")

        # A file that has free pages has room.
        with raw(path) as connection:
            connection.execute("VACUUM")
        full = False
        try:
            step.work(store)
        except errors.DatabaseFullError:
            full = True
        assert_sound(path)
        if full and not step.writes:
            assert truth(path) == rows
        if full and step.atomic:
            assert image(path) == before
        event.remove(store.engine, "checkout", limit)
        for driver in limits:
            with contextlib.suppress(sqlite3.ProgrammingError):
                driver.execute("PRAGMA max_page_count = 1000000")
        step.work(store)
    assert phase_of(path) is step.end
    assert_sound(path)
    if step.carries:
        assert_sides_agree(path)
    assert full or room or name not in GROWING, "there was room: this shows nothing"


def run_out_of_bytes_and_go_on(pipe: Connection, path: Path, name: str, size: int) -> None:
    """Do a step while the system takes no byte beyond a size, then again in the same store without that."""
    with ConsensusStore.open(path, settings=SETTINGS) as store:
        try:
            with bytes_at_most(size, signal.SIG_IGN):
                STEPS[name].work(store)
        except errors.ConsensusError as error:
            pipe.send((type(error).__name__, bool(error.hint)))
        else:
            pipe.send(("ok", True))
        pipe.recv()
        STEPS[name].work(store)
        pipe.send(records(store))


@pytest.mark.parametrize("wal", [True, False], ids=["wal", "journal"])
@pytest.mark.parametrize("name", ["write_in_dual_write", "backfill", "flip_1_2", "rollback_4_3", "contract", "rebuild"])
def test_failing_writes_stop_a_step_and_keep_everything(files: Files, tmp_path: Path, name: str, wal: bool) -> None:
    """Writes that fail half done (EFBIG): a StorageError or BackupError, and the same store goes on afterwards."""
    step = STEPS[name]
    original = files.copy(tmp_path / "original.db", step.start, step.build, change=step.change, wal=wal)
    length = original.stat().st_size
    chance = random.Random(name)
    heard = set()
    for size in sorted(chance.sample(range(length if wal else length + 50_000), 6)):
        folder = tmp_path / f"{size}"
        folder.mkdir()
        path = Path(shutil.copyfile(original, folder / "store.db"))
        before, rows = image(path), truth(path)
        with kept_in(path, wal=wal):
            child = start(run_out_of_bytes_and_go_on, path, name, size)
            said, hint = child.hear()
            heard.add(said)
            assert said in ("ok", "StorageError", "DatabaseFullError", "ReadOnlyDatabaseError", "BackupError")
            assert hint
            assert_sound(path)
            if said != "ok":
                assert step.writes or truth(path) == rows
                assert not step.atomic or image(path) == before
            child.tell()
            seen = child.hear()
            assert child.join() == 0
        assert phase_of(path) is step.end
        assert_sound(path)
        if step.carries:
            assert_sides_agree(path)
        with ConsensusStore.open(path, settings=SETTINGS) as store:
            assert records(store) == seen
    assert heard - {"ok"}, "nothing failed: this shows nothing"


@contextlib.contextmanager
def mounted(folder: Path, *options: str) -> Iterator[Path]:
    """Mount something at a folder, and take it away at the end."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *options, str(folder)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"no mounts here: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@needs_root
def test_a_full_disk_stops_writers_and_flips(files: Files, tmp_path: Path) -> None:
    """A real file system without a byte left: clear errors, reads go on, and all is well when there is room."""
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=2m", "tmpfs") as disk:
        path = files.copy(disk / "store.db", Phase.DUAL_WRITE, change=verified)
        with ConsensusStore.open(path, settings=SETTINGS) as store:
            add(store, "before")
            filler = disk / "filler"
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as handle:
                while True:
                    handle.write(b"x" * 4096)
            seen = records(store)
            with pytest.raises(errors.DatabaseFullError) as caught:
                add(store, "while", 4_000_000)
            assert caught.value.hint
            with pytest.raises(errors.DatabaseFullError):
                add(store, "while", 100_000)
            with contextlib.suppress(errors.DatabaseFullError):
                store.migration.advance(soak=False)  # the log may have room left for as little as this
            assert len(records(store)) == len(seen)
            assert "before" in names(store)
            assert_sound(path)
            filler.unlink()
            add(store, "after")
            assert {"before", "after"} <= set(names(store))
            bring(store, Phase.NORMALIZED)
        assert_sound(path)


@needs_root
def test_a_full_disk_lets_nobody_read_a_file_in_wal(files: Files, tmp_path: Path) -> None:
    """Where there is no room for the -shm file, which the first reader makes, the error says that the disk is full."""
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=2m", "tmpfs") as disk:
        path = files.copy(disk / "store.db", Phase.DUAL_WRITE)
        assert not Path(f"{path}-shm").exists()
        filler = disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as handle:
            while True:
                handle.write(b"x" * 4096)
        with pytest.raises(errors.DatabaseFullError), ConsensusStore.open(path) as store:
            records(store)
        filler.unlink()
        assert_sound(path)


# No permission ---------------------------------------------------------------------------------------------------


def try_as_nobody(pipe: Connection, path: Path) -> None:
    """Become a user without rights to the file, then read, write and flip."""
    os.setgid(65534)
    os.setuid(65534)
    told: dict[str, str] = {}

    def note(what: str, work: Callable[[], Any]) -> None:
        try:
            told[what] = str(work())
        except errors.ConsensusError as error:
            told[what] = type(error).__name__ + ("" if error.hint else " without a hint")

    try:
        store = ConsensusStore.open(path, settings=SETTINGS)
    except errors.ConsensusError as error:
        pipe.send({"open": type(error).__name__})
        return
    with store:
        note("read", lambda: len(records(store)))
        note("write", lambda: add(store, "nobody"))
        note("flip", lambda: store.migration.rollback())
        note("phase", lambda: store.migration.phase.name)
    pipe.send(told)


@needs_root
@pytest.mark.parametrize("wal", [True, False], ids=["wal", "journal"])
@pytest.mark.parametrize("writable_folder", [True, False], ids=["folder", "nothing"])
def test_a_file_that_may_only_be_read(files: Files, wal: bool, writable_folder: bool) -> None:
    """As another user: reads work where SQLite can make them work, writes and flips are refused, nothing is written."""
    with tempfile.TemporaryDirectory(prefix="consensus_orm-") as folder:
        path = files.copy(Path(folder) / "store.db", Phase.CUTOVER, small_file, wal=wal)
        before = path.read_bytes()
        Path(folder).chmod(0o777 if writable_folder else 0o755)
        path.chmod(0o444)
        child = start(try_as_nobody, path)
        told = child.hear()
        assert child.join() == 0
        if wal and not writable_folder:  # a WAL file needs its shared memory, even to be read
            assert told == {"open": "ReadOnlyDatabaseError"}
        else:
            assert told == {
                "read": "4",
                "write": "ReadOnlyDatabaseError",
                "flip": "ReadOnlyDatabaseError",
                "phase": "CUTOVER",
            }
        assert path.read_bytes() == before
        path.chmod(0o600)
        with ConsensusStore.open(path, settings=SETTINGS) as store:
            add(store, "me")
        assert_sides_agree(path)


@needs_root
def test_a_file_system_remounted_read_only(files: Files, tmp_path: Path) -> None:
    """Between two units of work the file system becomes read-only, and then writable again."""
    with mounted(tmp_path / "disk", "-t", "tmpfs", "-o", "size=4m", "tmpfs") as disk:
        path = files.copy(disk / "store.db", Phase.DUAL_WRITE, small_file, change=verified, wal=False)
        with path.open("rb"), ConsensusStore.open(path, settings=SETTINGS) as store:  # not alone: it stays out of WAL
            add(store, "before")
            store.engine.dispose()  # an open handle for writing would keep the system from remounting
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
            assert names(store) == ["before"]
            with pytest.raises(errors.ReadOnlyDatabaseError):
                add(store, "never")
            with pytest.raises(errors.ReadOnlyDatabaseError):
                store.migration.advance(soak=False)
            store.engine.dispose()
            subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
            add(store, "after")
            assert store.migration.advance(soak=False) is Phase.CUTOVER
            assert names(store) == ["after", "before"]
        assert_sides_agree(path)


# Damage ----------------------------------------------------------------------------------------------------------


def root_page(path: Path, table: str) -> int:
    with raw(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        row = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
        return int(row[0])


@contextlib.contextmanager
def damaged(path: Path, page: int) -> Iterator[None]:
    """Overwrite a page, and restore it at the end."""
    with raw(path) as connection:
        size = connection.execute("PRAGMA page_size").fetchone()[0]
    with path.open("r+b") as handle:
        handle.seek((page - 1) * size)
        whole = handle.read(size)
        handle.seek((page - 1) * size)
        handle.write(b"\xa5" * size)
    yield
    with path.open("r+b") as handle:
        handle.seek((page - 1) * size)
        handle.write(whole)


@pytest.mark.parametrize("table", ["agent_outputs", "consensus_artifacts", "consensus_runs", "consensus_orm_history"])
def test_a_corrupted_page(files: Files, path: Path, table: str) -> None:
    """What touches the page fails with CorruptDatabaseError and changes nothing; once mended, all goes on."""
    files.copy(path, Phase.DUAL_WRITE, change=verified)
    page = root_page(path, table)
    rows, flips_before = truth(path), image(path)
    steps: list[Callable[[ConsensusStore], object]] = [
        lambda store: add(store, "never"),
        lambda store: store.migration.rollback(),
        lambda store: store.migration.advance(soak=False),
    ]
    with damaged(path, page):
        failures = 0
        for step in steps:
            with ConsensusStore.open(path, settings=SETTINGS) as store:
                try:
                    step(store)
                except errors.CorruptDatabaseError:
                    failures += 1
                else:
                    break  # it did not touch the page, and the file is no longer what it was
        assert failures or table == "consensus_orm_history"
        if failures == len(steps):
            assert phase_of(path) is Phase.DUAL_WRITE
    if failures < len(steps):
        return
    assert truth(path) == rows
    assert image(path) == flips_before
    with ConsensusStore.open(path, settings=SETTINGS) as store:
        add(store, "after")
        assert store.migration.advance(soak=False) is Phase.CUTOVER
    assert_sound(path)
    assert_sides_agree(path)


def test_a_header_of_something_else(files: Files, path: Path) -> None:
    """A file whose first page was overwritten is no database; nothing is written, and mended it works."""
    files.copy(path, Phase.CUTOVER, small_file)
    with damaged(path, 1):
        before = path.read_bytes()
        with pytest.raises(errors.NotADatabaseError):
            ConsensusStore.open(path)
        assert path.read_bytes() == before
    with ConsensusStore.open(path, settings=SETTINGS) as store:
        add(store, "after")
    assert_sides_agree(path)


# The log is gone -------------------------------------------------------------------------------------------------


def test_a_log_removed_under_an_open_store(files: Files, path: Path) -> None:
    """What was acknowledged is saved from the removed log, the store goes on, and other processes see all of it."""
    files.copy(path, Phase.DUAL_WRITE, small_file, change=verified)
    barrier = threading.Barrier(4)
    with ConsensusStore.open(path, settings=SETTINGS) as store:

        def read() -> None:
            with store.unit_of_work(read_only=True) as uow:
                uow.artifacts.count()
                barrier.wait()

        threads = [threading.Thread(target=read) for _ in range(4)]  # so that several connections are idle
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for number in range(3):
            add(store, f"a{number}")
            Path(f"{path}-wal").unlink()
            with raw(path) as connection, contextlib.suppress(sqlite3.OperationalError):
                connection.execute("SELECT count(*) FROM consensus_runs").fetchone()  # another program looks
            add(store, f"b{number}")
            with ConsensusStore.open(path, settings=SETTINGS) as other:
                assert len(names(other)) == 2 * (number + 1)
                assert names(other) == names(store)
        assert store.migration.advance(soak=False) is Phase.CUTOVER
    assert_sound(path)
    assert_sides_agree(path)


def write_and_wait(pipe: Connection, path: Path) -> None:
    """Write, and be killed."""
    store = ConsensusStore.open(path, settings=SETTINGS)
    write(store)
    store.migration.advance(soak=False)
    pipe.send(None)
    pipe.recv()


@pytest.mark.parametrize("suffixes", [["-wal"], ["-wal", "-shm"], ["-shm"]], ids="+".join)
def test_a_log_removed_after_a_kill(files: Files, path: Path, suffixes: list[str]) -> None:
    """Without its log a file is what it was at the last checkpoint: older, but whole, both sides together."""
    files.copy(path, Phase.DUAL_WRITE, change=verified)
    before = image(path)
    child = start(write_and_wait, path)
    child.hear()
    child.kill()
    for suffix in suffixes:
        Path(f"{path}{suffix}").unlink()
    assert_sound(path)
    if "-wal" in suffixes:
        assert image(path) == before
    else:
        assert phase_of(path) is Phase.CUTOVER
    with ConsensusStore.open(path, settings=SETTINGS) as store:
        write(store)
    assert_sound(path)
    assert_sides_agree(path)


# The clock -------------------------------------------------------------------------------------------------------


def test_a_clock_that_goes_backwards(files: Files, path: Path) -> None:
    """Writes go on, no id is given twice, no gate opens early, and the audit keeps the order of what happened."""
    files.copy(path, Phase.EXPAND, small_file)
    time = [datetime(2026, 1, 10, tzinfo=UTC)]
    settings = Settings(clock=lambda: time[0], chunk_pause=timedelta(0), soak_dual_write=timedelta(days=7))
    with ConsensusStore.open(path, settings=settings) as store:
        store.migration.advance()
        store.migration.backfill()
        ids = []
        for days in (0, -3, -400, 1):
            time[0] += timedelta(days=days)
            ids.append(add(store, f"{days}"))
            assert store.migration.verify().clean
            with pytest.raises(errors.GateClosedError, match="soak"):
                store.migration.advance()
            store.migration.status()
        assert ids == sorted(set(ids))
        assert names(store) == ["0", "-3", "1", "-400"]
        time[0] = datetime(2026, 1, 18, tzinfo=UTC)
        assert store.migration.verify().clean
        assert store.migration.advance() is Phase.CUTOVER
        time[0] -= timedelta(days=100)
        store.migration.rollback()
        entries = store.migration.history()
        assert [entry.to_phase for entry in entries if entry.to_phase is not None][-3:] == [2, 3, 2]
        assert [entry.id for entry in entries] == sorted(entry.id for entry in entries)
    assert_sound(path)
    assert_sides_agree(path)


# The pool --------------------------------------------------------------------------------------------------------


def test_a_full_pool(files: Files, path: Path) -> None:
    """With all connections lent, units of work and steps fail in bounded time; with one back, they succeed."""
    files.copy(path, Phase.DUAL_WRITE, small_file, change=verified)
    settings = Settings(pool_size=2, pool_timeout=timedelta(milliseconds=200), chunk_pause=timedelta(0))
    with ConsensusStore.open(path, settings=settings) as store:
        before = image(path)
        units = [store.unit_of_work(read_only=True) for _ in range(2)]
        with contextlib.ExitStack() as stack:
            for unit in units:
                stack.enter_context(unit)
            attempts: list[Callable[[], object]] = [
                lambda: add(store, "never"),
                lambda: names(store),
                lambda: store.migration.advance(soak=False),
                store.migration.rollback,
                store.migration.verify,
                store.maintenance.vacuum,
            ]
            for attempt in attempts:
                with pytest.raises(errors.PoolExhaustedError) as caught:
                    attempt()
                assert caught.value.hint
        assert image(path) == before
        add(store, "after")
        assert store.migration.advance(soak=False) is Phase.CUTOVER
    assert_sides_agree(path)


def test_one_connection_is_enough(files: Files, path: Path) -> None:
    """No step needs two connections at once: with a pool of one, the whole way there and back is gone."""
    files.copy(path, Phase.EXPAND)
    settings = Settings(pool_size=1, pool_timeout=timedelta(seconds=1), chunk_rows=16, chunk_pause=timedelta(0))
    rows = truth(path)
    with ConsensusStore.open(path, settings=settings) as store:
        seen = records(store)
        bring(store, Phase.CONTRACT)
        assert records(store) == seen
        store.maintenance.vacuum()
        store.migration.rollback(Phase.EXPAND)
    assert truth(path) == rows
    assert_sound(path)
