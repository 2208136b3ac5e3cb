"""Vacuum: a file gets small again beside programs that write, once or on a schedule."""

from __future__ import annotations

import contextlib
import itertools
import logging
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine

from consensus_orm import errors
from consensus_orm.databases.engine import checkout, driver
from consensus_orm.databases.maintenance import Maintenance
from consensus_orm.databases.opening import create
from consensus_orm.databases.sqlite import vacuum as vacuum_module
from consensus_orm.databases.sqlite.vacuum import VacuumScheduler, vacuum
from consensus_orm.databases.statistics import VacuumReport
from consensus_orm.settings import Settings
from tests.conftest import Open
from tests.support.bloated import make_bloated, writing
from tests.support.timing import assert_typical

MEGABYTE = 1_000_000


def check(path: Path) -> dict[str, object]:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        names = ("integrity_check", "auto_vacuum", "freelist_count", "journal_mode")
        found = {name: connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names}
        found["kept"] = connection.execute("SELECT count(*) FROM t WHERE a != 'live'").fetchone()[0]
        found["live"] = connection.execute("SELECT count(*) FROM u").fetchone()[0]
    return found


@pytest.mark.long
@pytest.mark.parametrize("journal_mode", ["wal", "delete"])
@pytest.mark.parametrize("auto_vacuum", [2, 0])
def test_the_production_file_becomes_small_under_a_live_writer(
    tmp_path: Path, open_engine: Open, auto_vacuum: int, journal_mode: str
) -> None:
    """39,061 pages of which a dozen are used end below 1 MB on disk while another program writes.

    Its longest wait is below 100 ms, and a step holds the lock for less than 50; a conversion is one step.
    """
    runs = itertools.count()

    def measure() -> float:
        path = tmp_path / f"{next(runs)}.db"
        report, wait = _made_small(path, open_engine, auto_vacuum, journal_mode)
        path.unlink()
        return max(wait, 2 * report.longest_lock if auto_vacuum else 0)

    assert_typical(measure, below=0.1, disk=True, runs=3)


def _made_small(path: Path, open_engine: Open, auto_vacuum: int, journal_mode: str) -> tuple[VacuumReport, float]:
    """Vacuum a bloated file beside a writer: what was reported, and the writer's longest wait in seconds."""
    make_bloated(path, pages=39_061, auto_vacuum=auto_vacuum, journal_mode=journal_mode)
    assert path.stat().st_size > 150 * MEGABYTE
    engine = open_engine(path)
    with writing(path) as writer:
        time.sleep(0.1)
        report = vacuum(engine, full=not auto_vacuum)
        after = path.stat().st_size
        time.sleep(0.1)
    engine.dispose()
    found = check(path)
    assert after < MEGABYTE
    assert report.before.database > 150 * MEGABYTE
    assert report.after.database == pytest.approx(after, abs=MEGABYTE / 4)
    assert report.converted is not bool(auto_vacuum)
    assert report.pages_freed > 39_000
    assert found["integrity_check"] == "ok"
    assert (found["kept"], found["live"]) == (2, writer["count"])
    assert (found["auto_vacuum"], found["journal_mode"]) == (2, journal_mode)
    assert report.steps > 1 or not auto_vacuum
    assert not list(path.parent.glob(".*"))
    return report, writer["longest"]


@pytest.mark.long
def test_threads_of_the_same_store_write_on(tmp_path: Path, open_engine: Open) -> None:
    """Writers of the same engine wait for a step at most."""
    runs = itertools.count()

    def write(engine: Engine, stop: threading.Event, waits: list[float]) -> None:
        while not stop.is_set():
            started = time.monotonic()
            with checkout(engine) as pooled:
                driver(pooled).begin(write=True)
                driver(pooled).execute("INSERT INTO t (a) VALUES (1)")
                driver(pooled).commit()
            waits.append(time.monotonic() - started)
            time.sleep(0.001)

    def measure() -> float:
        path = make_bloated(tmp_path / f"{next(runs)}.db", pages=10_000, auto_vacuum=2, journal_mode="wal")
        engine, stop, waits = open_engine(path), threading.Event(), [0.0]
        threads = [threading.Thread(target=write, args=(engine, stop, waits)) for _ in range(3)]
        for thread in threads:
            thread.start()
        report = vacuum(engine)
        stop.set()
        for thread in threads:
            thread.join()
        assert report.pages_freed > 9_900
        return max(waits)

    assert_typical(measure, below=0.1, disk=True)


@pytest.mark.long
def test_progress_is_told_and_the_file_shrinks_as_it_goes(path: Path, open_engine: Open) -> None:
    """Progress grows up to the pages there were to free, and no step leaves the cutting of the file to the end."""
    told: list[tuple[int, int]] = []
    sizes: list[int] = []

    def progress(done: int, total: int) -> None:
        told.append((done, total))
        sizes.append(path.stat().st_size)

    engine = open_engine(make_bloated(path, pages=10_000, auto_vacuum=2, journal_mode="wal"))
    report = vacuum(engine, progress=progress)
    assert len(told) == report.steps > 2
    assert told == sorted(told)
    assert told[-1] == (report.pages_freed, report.pages_freed)
    assert sizes[-1] < sizes[1] < sizes[0]


@pytest.mark.long
def test_a_cancelled_vacuum_ends_after_its_step_and_the_next_goes_on(path: Path, open_engine: Open) -> None:
    """Cancelling leaves a sound file that the next vacuum finishes."""
    engine = open_engine(make_bloated(path, pages=10_000, auto_vacuum=2, journal_mode="wal"))
    event = threading.Event()
    first = vacuum(engine, cancelled=event, progress=lambda *_: event.set())
    assert first.steps == 1
    assert "cancelled" in first.notes[0]
    assert check(path)["integrity_check"] == "ok"
    assert vacuum(engine).after.database < MEGABYTE


@pytest.mark.long
def test_a_reader_delays_the_shrinking_and_is_waited_for(tmp_path: Path, open_engine: Open) -> None:
    """With an old snapshot open the file cannot shrink; it does as soon as the reader is done."""
    runs = itertools.count()

    def measure() -> float:
        path = make_bloated(tmp_path / f"{next(runs)}.db", pages=2_000, auto_vacuum=2, journal_mode="wal")
        engine = open_engine(path)
        with contextlib.closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM t").fetchone()
            timer = threading.Timer(0.5, reader.rollback)
            timer.start()
            report = vacuum(engine)
            timer.join()
        assert report.seconds > 0.4
        assert report.notes == ()
        assert report.after.total < MEGABYTE
        return report.longest_lock

    assert_typical(measure, below=0.05, disk=True)


@pytest.mark.long
def test_a_reader_that_stays_is_reported(tmp_path: Path, open_engine: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Patience ends, the report says why the file is still large, and no writer waited for the reader."""
    monkeypatch.setattr(vacuum_module, "SHRINK_PATIENCE", 0.3)
    runs = itertools.count()

    def measure() -> float:
        path = make_bloated(tmp_path / f"{next(runs)}.db", pages=2_000, auto_vacuum=2, journal_mode="wal")
        engine = open_engine(path)
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM t").fetchone()
            with writing(path) as writer:
                report = vacuum(engine)
        assert "open reader" in report.notes[0]
        assert report.after.database > 5 * MEGABYTE
        assert vacuum(engine).after.total < MEGABYTE
        return writer["longest"]

    assert_typical(measure, below=0.1, disk=True)


def test_a_file_without_auto_vacuum_is_left_while_others_have_it_open(path: Path, open_engine: Open) -> None:
    """Not converted while another has it open, which the report says; converted once nobody has."""
    engine = open_engine(make_bloated(path, pages=2_000, auto_vacuum=0, journal_mode="delete"))
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("SELECT 1 FROM t").fetchone()
        report = vacuum(engine)
        assert (report.converted, report.steps, report.after) == (False, 0, report.before)
        assert "--full" in report.notes[0]
    with checkout(engine):
        assert "this store is in use" in vacuum(engine).notes[0]
    report = vacuum(engine)
    assert report.converted
    assert report.after.total < MEGABYTE
    assert check(path)["auto_vacuum"] == 2


def test_a_refused_conversion_leaves_everything_as_it_was(path: Path, tmp_path: Path) -> None:
    """A lock held by another ends a full vacuum in bounded time, and the file is as it was."""
    make_bloated(path, pages=500, auto_vacuum=0, journal_mode="delete")
    engine = create(path, Settings(busy_timeout="0.2"))
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(errors.DatabaseBusyError):
            vacuum(engine, full=True)
    engine.dispose()
    found = check(path)
    assert (found["integrity_check"], found["auto_vacuum"], found["kept"]) == ("ok", 0, 2)


@pytest.mark.long
def test_one_vacuum_at_a_time_across_processes(path: Path, open_engine: Open) -> None:
    """While another process vacuums this file a second vacuum is refused; its lock ends with it."""
    engine = open_engine(make_bloated(path, pages=500, auto_vacuum=2, journal_mode="wal"))
    code = (
        "import sys, pathlib; from consensus_orm.databases.sqlite.vacuum import _only_one\n"
        "with _only_one(pathlib.Path(sys.argv[1])): print('ready', flush=True); sys.stdin.readline()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": str(Path(vacuum_module.__file__).parents[1])},
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        with pytest.raises(errors.DatabaseBusyError, match="another vacuum"):
            vacuum(engine)
        other.kill()
    assert vacuum(engine).pages_freed > 400
    assert sorted(each.name for each in path.parent.iterdir()) == [path.name, f"{path.name}-shm", f"{path.name}-wal"]


def test_nothing_to_do_is_done_at_once(path: Path, open_engine: Open) -> None:
    """A second vacuum finds nothing, takes no step, and changes nothing on disk."""
    engine = open_engine(make_bloated(path, pages=500, auto_vacuum=2, journal_mode="wal"))
    vacuum(engine)
    report = vacuum(engine)
    assert (report.steps, report.pages_freed, report.notes) == (0, 0, ())
    assert report.after.database == report.before.database


def test_memory_has_nothing_to_give_back() -> None:
    """A database in memory is left alone, and that is said."""
    engine = create(":memory:", Settings())
    assert vacuum(engine).notes == ("the database is in memory",)
    engine.dispose()


def wait_until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def schedulers() -> list[threading.Thread]:
    """The threads that vacuum on a schedule."""
    return [thread for thread in threading.enumerate() if thread.name == "consensus_orm vacuum"]


def test_the_scheduler_vacuums_again_and_again(path: Path, open_engine: Open) -> None:
    """What becomes free between two runs is given back by the next, and stopping is quick."""
    engine = open_engine(make_bloated(path, pages=500, auto_vacuum=2, journal_mode="wal"))
    before = schedulers()
    with VacuumScheduler(engine, timedelta(seconds=0.05)) as scheduler:
        assert schedulers() != before
        wait_until(lambda: scheduler.last and path.stat().st_size < MEGABYTE)
        with contextlib.closing(sqlite3.connect(path, timeout=10, isolation_level=None)) as other:
            other.execute("INSERT INTO t VALUES (1000000, zeroblob(3000000))")
            other.execute("DELETE FROM t WHERE id = 1000000")
        wait_until(lambda: check(path)["freelist_count"] == 0 and path.stat().st_size < MEGABYTE)
        started = time.monotonic()
    assert time.monotonic() - started < 0.5
    assert schedulers() == before


def test_the_scheduler_survives_errors(
    path: Path,
    open_engine: Open,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run that fails is logged, and the one after the cause is gone succeeds."""
    engine = open_engine(make_bloated(path, pages=200, auto_vacuum=2, journal_mode="wal"))
    with checkout(engine):
        pass
    away = path.rename(path.with_suffix(".away"))
    with caplog.at_level(logging.WARNING), VacuumScheduler(engine, timedelta(seconds=0.02)) as scheduler:
        wait_until(lambda: "was removed while it was in use" in caplog.text)
        with monkeypatch.context() as patched:
            patched.setattr(scheduler, "_work", lambda *_, **__: 1 / 0)
            wait_until(lambda: "ZeroDivisionError" in caplog.text)
        assert scheduler.last is None
        away.rename(path)
        wait_until(lambda: scheduler.last)


class Waits(threading.Event):
    """Stands where a scheduler waits: notes how long it would, and ends it at the third time."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.asked.append(timeout or 0.0)
        return len(self.asked) == 3


def test_the_first_run_is_jittered_and_not_at_once(path: Path, open_engine: Open) -> None:
    """Schedulers that start together run at different times, the first time soon, later about once in an interval."""
    engine, hour = open_engine(path), 3600.0
    waits = []
    for _ in range(12):
        scheduler = VacuumScheduler(engine, timedelta(seconds=hour), jitter=0.2)
        scheduler._stopped = Waits()
        scheduler.start()._thread.join()
        assert scheduler.last is not None
        waits.append(scheduler._stopped.asked)
    first, *later = zip(*waits, strict=True)
    assert all(0 < wait <= 0.2 * hour for wait in first)
    assert all(0.8 * hour <= wait <= 1.2 * hour for waits in later for wait in waits)
    assert min(map(min, later)) < hour < max(map(max, later))  # 24 on one side: in 1 of 8 million cases
    for drawn in (first, *later):  # 12 that are drawn lie within a tenth of their range in 1 of 10 million cases
        assert max(drawn) - min(drawn) > 0.02 * hour


def test_a_scheduler_that_starts_and_ends_has_done_nothing(path: Path, open_engine: Open) -> None:
    """A daily one can be closed before its first run, and before it was started; no time between runs is refused."""
    scheduler = VacuumScheduler(open_engine(path)).start()
    assert scheduler.close()
    assert scheduler.last is None
    assert VacuumScheduler(open_engine(path)).stop()
    with pytest.raises(errors.InvalidValueError):
        VacuumScheduler(open_engine(path), timedelta(0))


def test_maintenance_has_one_schedule(path: Path, open_engine: Open) -> None:
    """A new schedule ends the one before it, and closing ends the last."""
    before = schedulers()
    maintenance = Maintenance(open_engine(path), Settings())
    maintenance.schedule_vacuum(timedelta(hours=1))
    [first] = set(schedulers()) - set(before)
    scheduler = maintenance.schedule_vacuum()
    [second] = set(schedulers()) - set(before)
    assert second is not first
    assert (second.daemon, scheduler.interval) == (True, 86400)
    maintenance.close()
    assert schedulers() == before
    maintenance.close()
