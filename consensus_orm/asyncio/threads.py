"""Threads for coroutines: each does one call after the other, and only so many are at work at once.

The executors of the standard library would do nearly the same. But a unit of work takes 1.0 to 1.7 times as
long with them, they start their threads on the event loop, which held it up by 15 to 60 ms while other threads
were busy and not by 2 to 10 (measured), and on Python 3.11 a StopIteration raised by a call leaves its coroutine
waiting for ever.
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
    """What a call gave: a value or an error.

    Args:
        call: The call; made at once.
    """

    __slots__ = ("_error", "_value")

    def __init__(self, call: Callable[[], T]) -> None:
        self._error: BaseException | None = None
        try:
            self._value = call()
        except BaseException as error:  # whoever waits for the call gets it, whatever it is
            self._error = error

    def get(self) -> T:
        """Give the value, or raise the error; once, so that nothing refers to its frames from within them."""
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
    """One thread, which does the calls of coroutines one after the other until it is closed or forgotten."""

    def __init__(self) -> None:
        self._calls: _Calls = SimpleQueue()
        # `Thread.start` waits until the thread runs, so it is not called here, on the event loop.
        _thread.start_new_thread(_start, (self._calls,))
        self._end = weakref.finalize(self, self._calls.put, None)

    def call(self, fn: Callable[[], T], context: Context | None = None) -> Answer[T]:
        """Have something done after everything that was asked for before.

        Args:
            fn: What to do. It is done even where nobody waits for it any more.
            context: The context variables it sees; a copy of the caller's where left out.

        Returns:
            What to wait for; it never raises the error of the call itself.
        """
        loop = asyncio.get_running_loop()
        answer: Answer[T] = loop.create_future()
        self._calls.put(partial(_answer, loop, answer, partial((context or copy_context()).run, fn)))
        return answer

    def post(self, fn: Callable[[], object], context: Context | None) -> None:
        """Have something done that nobody waits for.

        Args:
            fn: As for `call`.
            context: As for `call`.
        """
        self._calls.put(partial(Outcome, partial((context or copy_context()).run, fn)))

    async def finish(
        self, fn: Callable[[], T], context: Context | None = None, cancelled: Callable[[], object] | None = None
    ) -> T:
        """Have something done and wait until it is over, even where the task is cancelled meanwhile.

        Args:
            fn: As for `call`.
            context: As for `call`.
            cancelled: Called when the task is cancelled; what it was cancelled by is raised at the end.

        Returns:
            What the call gave.
        """
        try:
            # Not shielded: `asyncio.shield` costs one more round of the loop, and each round is a fight for the GIL.
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
        """Let it end, after what it was asked for."""
        self._end()


def _start(calls: _Calls) -> None:
    thread = threading.Thread(target=_work, args=(calls,), name="consensus_orm asyncio", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # there is no further thread to be had: this one does the work, without a name
        _work(calls)


def _work(calls: _Calls) -> None:
    while (call := calls.get()) is not None:
        call()
        del call  # or it would stay, with all that it refers to, until the next one comes


def _answer(loop: asyncio.AbstractEventLoop, answer: Answer[T], call: Callable[[], T]) -> None:
    outcome = Outcome(call)
    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
        loop.call_soon_threadsafe(_settle, answer, outcome)


def _settle(answer: Answer[T], outcome: Outcome[T]) -> None:
    if not answer.done():  # cancelled
        answer.set_result(outcome)


class Threads:
    """Threads that are lent; coroutines that wait for one occupy none.

    They belong to the event loop they were first taken in; another loop, in a forked child too, gets new ones.

    Args:
        size: How many may be lent at once.
        patience: Longest wait for one, in seconds.
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
            borrower: What works on the thread. Both are referred to from here until the thread is back: where a
                coroutine becomes garbage, what it had open would be garbage with it, and taken away before it ends.

        Raises:
            PoolExhaustedError: None came back in time.
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
        """Let the next one have a thread that has nothing left to do."""
        if thread in self._lent and self._loop is asyncio.get_running_loop():
            del self._lent[thread]
            self._idle.append(thread)
            self._slots.release()

    def leave(self, thread: Thread, last: Callable[[], object], context: Context) -> None:
        """Give a thread back once it has done all it was asked for, without waiting for that.

        Args:
            thread: The thread, maybe at work.
            last: What it is to do at the end.
            context: The context variables that sees.
        """
        answer: Answer[object] = thread.call(last, context)
        self._last.add(answer)
        answer.add_done_callback(self._last.discard)
        answer.add_done_callback(lambda _: self.give_back(thread))

    def abandon(self, thread: Thread, last: Callable[[], object], context: Context | None) -> None:
        """Give a thread back for a coroutine that was destroyed: it can wait for nothing, and is on no loop.

        Args:
            thread: The thread, maybe at work.
            last: What it is to do at the end.
            context: The context variables that sees.
        """
        thread.post(last, context)
        try:
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self.leave, thread, lambda: None, Context())
        except RuntimeError:  # the loop is closed: nobody waits for a thread
            self._lent.pop(thread, None)
            thread.close()

    async def close(self) -> None:
        """Wait until everything that was left has been done, and end the threads that nobody has."""
        await asyncio.sleep(0)  # so that what was abandoned has been left
        while self._last and self._loop is asyncio.get_running_loop():
            await asyncio.wait(self._last)
        while self._idle:
            self._idle.pop().close()
