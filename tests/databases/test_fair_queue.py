"""The fair queue of writers: whoever waited longest is next, and who gives up loses no permit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from consensus_orm.databases.fair_queue import Turns


def start_waiting(turns: Turns, count: int, served: list[int], timeout: float = 10) -> list[threading.Thread]:
    """Threads that queue up one after the other and note when they are served."""

    def wait(number: int) -> None:
        if turns.acquire(timeout):
            served.append(number)
            turns.release()

    threads = []
    for number in range(count):
        thread = threading.Thread(target=wait, args=(number,))
        thread.start()
        threads.append(thread)
        while turns.waiting <= number:
            time.sleep(0.0005)
    return threads


def test_permits_go_to_whoever_waited_longest() -> None:
    """Waiting threads are served in the order in which they asked."""
    turns, served = Turns(1), list[int]()
    assert turns.acquire(0)
    threads = start_waiting(turns, 20, served)
    turns.release()
    for thread in threads:
        thread.join()
    assert served == list(range(20))


def test_a_newcomer_does_not_overtake() -> None:
    """With somebody waiting, a permit given back is not for whoever comes along just then."""
    turns = Turns(1)
    assert turns.acquire(0)
    threads = start_waiting(turns, 1, [])
    assert not turns.acquire(0)
    turns.release()
    threads[0].join()
    assert turns.acquire(0)


def write_on(turns: Turns, until: Callable[[], bool]) -> int:
    """Take the permit again and again, at once; how often before something holds."""
    for taken in range(10**9):
        assert turns.acquire(10)
        try:
            if until():
                return taken
        finally:
            turns.release()
    raise AssertionError


def taken_before_the_other(*stint: float) -> int:
    """How often a thread that comes back at once takes the permit while another one waits for it."""
    turns, served = Turns(1, *stint), list[int]()
    write_on(turns, iter([False, True]).__next__)  # it is known by now for one that comes back
    assert turns.acquire(0)
    threads = start_waiting(turns, 1, served)
    turns.release()
    taken = write_on(turns, lambda: served == [0])
    threads[0].join()
    return taken


def test_a_thread_that_comes_back_at_once_goes_on_for_a_stint(monkeypatch: pytest.MonkeyPatch) -> None:
    """While another one waits it is served several times, and then the other one is; without a stint it is not."""
    monkeypatch.setattr("consensus_orm.databases.fair_queue.AT_ONCE", 60)
    assert {taken_before_the_other() for _ in range(10)} == {0}
    started = time.monotonic()
    assert max(taken_before_the_other(0.5) for _ in range(10)) > 1
    assert time.monotonic() - started < 30, "the other one waits no longer than the stint"


def test_who_was_expected_back_and_stays_away_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A permit given back in a stint is there for whoever waits, though nobody hands it over."""
    monkeypatch.setattr("consensus_orm.databases.fair_queue.AT_ONCE", 60)
    turns, served = Turns(1, 60.0), list[int]()
    write_on(turns, iter([False, True]).__next__)
    assert turns.acquire(0)
    threads = start_waiting(turns, 3, served)
    turns.release()
    for thread in threads:
        thread.join(10)
    assert served == [0, 1, 2]


@pytest.mark.parametrize("stint", [0.0, 0.001])
def test_giving_up_leaves_the_queue_and_loses_no_permit(stint: float) -> None:
    """Threads that time out while permits come and go neither keep a place nor a permit."""
    turns, taken = Turns(2, stint), [0]
    most, lock = [0], threading.Lock()

    def run(number: int) -> None:
        for round_ in range(300):
            if turns.acquire((number + round_) % 3 * 0.0001):
                with lock:
                    taken[0] += 1
                    most[0] = max(most[0], taken[0])
                time.sleep(0)
                with lock:
                    taken[0] -= 1
                turns.release()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 2
    assert turns.waiting == 0
    assert [turns.acquire(0) for _ in range(3)] == [True, True, False]


def test_an_interrupted_wait_passes_its_permit_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A permit that arrives while KeyboardInterrupt is raised goes to the next in line."""
    turns = Turns(1)
    assert turns.acquire(0)

    class Interrupted:
        def __init__(self) -> None:
            self.taken = False

        def acquire(self, timeout: float = -1, **_: object) -> bool:
            if not self.taken:
                self.taken = True
                return True
            turns.release()  # it comes just now ...
            raise KeyboardInterrupt

        def release(self) -> None:
            """Nobody waits on this lock."""

    real = threading.Lock
    monkeypatch.setattr("consensus_orm.databases.fair_queue.threading.Lock", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        turns.acquire(1)
    monkeypatch.setattr("consensus_orm.databases.fair_queue.threading.Lock", real)
    assert turns.acquire(0)


def test_release_may_come_from_inside() -> None:
    """A release that interrupts another on the same thread, as a finalizer's does, does not hang."""
    turns = Turns(1)
    assert turns.acquire(0)
    served: list[int] = []
    threads = start_waiting(turns, 1, served)
    started = time.monotonic()
    with turns._serving:
        turns.release()
        assert not turns.acquire(0)  # nor does a newcomer take what is meant for another
    assert time.monotonic() - started < 1
    assert served == []
    turns._serve()
    threads[0].join(5)
    assert served == [0]
