"""A limited number of threads that do the blocking calls of coroutines, each in order.

The executors of the standard library do nearly the same. But a unit of work takes 1.0 to 1.7 times as long with them;
they start threads on the event loop, which blocked it for 15 to 60 ms instead of 2 to 10 while other threads were busy
(measured); and on Python 3.11 a call that raises StopIteration leaves its coroutine waiting for ever.
"""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import threading
import weakref
from collections.abc import Callable
from contextvars import Context, copy_context
from functools import partial
from queue import SimpleQueue
from typing import Generic, TypeAlias, TypeVar

from consensus_orm.errors import PoolExhaustedError

__all__ = ["Outcome", "Thread", "Threads"]

T = TypeVar("T")


class Outcome(Generic[T]):
    """The value or the error of a call, which is made at once."""

    __slots__ = ("_error", "_value")

    def __init__(self, call: Callable[[], T]) -> None:
        self._error: BaseException | None = None
        try:
            self._value = call()
        except BaseException as error:  # raised by `get`, whatever it is
            self._error = error

    def get(self) -> T:
        """Return the value or raise the error; once, so that no frame of the error refers to it."""
        error, self._error = self._error, None
        try:
            if error is not None:
                raise error
            return self._value
        finally:
            del error


Answer: TypeAlias = "asyncio.Future[Outcome[T]]"

_Calls: TypeAlias = "SimpleQueue[Callable[[], object] | None]"


class Thread:
    """A thread that does calls in order until it is closed or garbage."""

    def __init__(self) -> None:
        self._calls: _Calls = SimpleQueue()
        # `Thread.start` waits until the thread runs, which would block the event loop.
        _thread.start_new_thread(_start, (self._calls,))
        self._end = weakref.finalize(self, self._calls.put, None)

    def call(self, fn: Callable[[], T], context: Context | None = None) -> Answer[T]:
        """Queue a call, which is made even if its coroutine no longer waits.

        Args:
            fn: The function.
            context: Its context variables; a copy of the caller's where left out.

        Returns:
            A future of the outcome, which does not raise the error of the call itself.
        """
        loop = asyncio.get_running_loop()
        answer: Answer[T] = loop.create_future()
        self._calls.put(partial(_answer, loop, answer, partial((context or copy_context()).run, fn)))
        return answer

    def post(self, fn: Callable[[], object], context: Context | None) -> None:
        """Queue a call without a result."""
        self._calls.put(partial(Outcome, partial((context or copy_context()).run, fn)))

    async def finish(
        self, fn: Callable[[], T], context: Context | None = None, cancelled: Callable[[], object] | None = None
    ) -> T:
        """Make a call and wait for its end, even if the task is cancelled meanwhile.

        Args:
            fn: As for `call`.
            context: As for `call`.
            cancelled: Called when the task is cancelled; the cancellation is raised at the end.

        Returns:
            What the function returned.
        """
        try:
            # Not shielded: `asyncio.shield` costs one more round of the loop, in which threads compete for the GIL.
            return (await self.call(fn, context)).get()
        except asyncio.CancelledError:
            if cancelled is not None:
                cancelled()
            await self._outlast()
            raise

    async def _outlast(self) -> None:
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await self.call(lambda: None)
                return

    def close(self) -> None:
        """End the thread after its queued calls."""
        self._end()


def _start(calls: _Calls) -> None:
    thread = threading.Thread(target=_work, args=(calls,), name="consensus_orm asyncio", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # the system gives no further thread: this one does the work, without a name
        _work(calls)


def _work(calls: _Calls) -> None:
    while (call := calls.get()) is not None:
        call()
        del call  # otherwise it stays alive until the next one


def _answer(loop: asyncio.AbstractEventLoop, answer: Answer[T], call: Callable[[], T]) -> None:
    outcome = Outcome(call)
    with contextlib.suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(_settle, answer, outcome)


def _settle(answer: Answer[T], outcome: Outcome[T]) -> None:
    if not answer.done():  # cancelled
        answer.set_result(outcome)


class Threads:
    """A pool of threads; coroutines that wait for a thread occupy none.

    The threads belong to one event loop; another loop, in a forked child, too, gets new ones.

    Args:
        size: The number of threads that may be lent at once.
        patience: The longest wait for one, in seconds.
    """

    def __init__(self, size: int, patience: float) -> None:
        self.size = size
        self._patience = patience
        self._loop: asyncio.AbstractEventLoop | None = None
        self._slots = asyncio.Semaphore(size)
        self._idle: list[Thread] = []
        self._lent: dict[Thread, object] = {}
        self._last: set[Answer[object]] = set()

    async def take(self, borrower: object = None) -> Thread:
        """Borrow a thread; first come, first served.

        Args:
            borrower: The user of the thread, kept alive until the thread is back: if its coroutine becomes garbage,
                what it has open must not be collected before it ends.

        Raises:
            PoolExhaustedError: No thread came back in time.
        """
        if self._loop is not asyncio.get_running_loop():
            self._loop, self._slots = asyncio.get_running_loop(), asyncio.Semaphore(self.size)
            self._idle, self._lent, self._last = [], {}, set()
        try:
            async with asyncio.timeout(self._patience if self._slots.locked() else None):
                await self._slots.acquire()
        except TimeoutError:
            raise PoolExhaustedError(pool_size=self.size) from None
        try:
            thread = self._idle.pop() if self._idle else Thread()
        except BaseException:
            self._slots.release()
            raise
        self._lent[thread] = borrower
        return thread

    def give_back(self, thread: Thread) -> None:
        """Return a thread without queued calls."""
        if thread in self._lent and self._loop is asyncio.get_running_loop():
            del self._lent[thread]
            self._idle.append(thread)
            self._slots.release()

    def leave(self, thread: Thread, last: Callable[[], object], context: Context) -> None:
        """Return a thread after its queued calls and a last one, without waiting for them."""
        answer: Answer[object] = thread.call(last, context)
        self._last.add(answer)
        answer.add_done_callback(self._last.discard)
        answer.add_done_callback(lambda _: self.give_back(thread))

    def abandon(self, thread: Thread, last: Callable[[], object], context: Context | None) -> None:
        """Do what `leave` does for a coroutine that was destroyed, which is on no loop."""
        thread.post(last, context)
        try:
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self.leave, thread, lambda: None, Context())
        except RuntimeError:  # the loop is closed
            self._lent.pop(thread, None)
            thread.close()

    async def close(self) -> None:
        """Wait for the last calls of threads that were left, and end the idle threads."""
        await asyncio.sleep(0)  # so that `leave` has been called for abandoned threads
        while self._last and self._loop is asyncio.get_running_loop():
            await asyncio.wait(self._last)
        while self._idle:
            self._idle.pop().close()
