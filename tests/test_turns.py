from __future__ import annotations

import threading
import time

import pytest

from consensus_orm.turns import Turns


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


def test_giving_up_leaves_the_queue_and_loses_no_permit() -> None:
    """Threads that time out while permits come and go neither keep a place nor a permit."""
    turns, taken = Turns(2), [0]
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
    monkeypatch.setattr("consensus_orm.turns.threading.Lock", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        turns.acquire(1)
    monkeypatch.setattr("consensus_orm.turns.threading.Lock", real)
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
