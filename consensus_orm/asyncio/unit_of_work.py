"""The unit of work of any moves, for coroutines.

A unit of work has a thread for itself from its begin to its end, to which each of its calls goes. Greenlets would need
a thread, too, because the driver of SQLite blocks, and would go there for each statement (a compared write has several)
instead of each call. Compared with the same unit of work without coroutines, a write took 1.1 to 1.8 times as long with
threads and 1.4 to 3.6 with greenlets, ten writes 1.2 to 1.8 and 1.7 to 4.5, a read 2.8 to 3.2 and 4.4 to 4.6, ten reads
2.4 to 2.8 and 3.5 to 3.9 (medians of 15 interleaved rounds, three runs on two busy cores). Greenlets would also run our
Python code on the event loop, which every wait outside the driver, as for the write queue, would block.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from contextvars import Context, copy_context
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

from sqlalchemy.orm import DeclarativeBase

from consensus_orm import errors
from consensus_orm.asyncio.calls import Asynchronous, asynchronous, streamed
from consensus_orm.asyncio.threads import Thread, Threads
from consensus_orm.declaration.move import Move
from consensus_orm.phase import Phase
from consensus_orm.repository.repository import Repository
from consensus_orm.store import RepositoryUnitOfWork

__all__ = ["AsyncRepository", "AsyncUnitOfWork"]

T = TypeVar("T")
P = ParamSpec("P")
U = TypeVar("U", bound=RepositoryUnitOfWork)


class AsyncRepository(Asynchronous):
    """`Repository`, to be awaited."""

    add = asynchronous(Repository.add)
    add_many = asynchronous(Repository.add_many)
    exists = asynchronous(Repository.exists)
    get = asynchronous(Repository.get)
    get_many = asynchronous(Repository.get_many)
    put = asynchronous(Repository.put)
    update = asynchronous(Repository.update)
    rows = asynchronous(Repository.rows)
    iterate = streamed(Repository.iterate)
    list_and_count = asynchronous(Repository.list_and_count)
    count = asynchronous(Repository.count)
    distinct = asynchronous(Repository.distinct)
    delete = asynchronous(Repository.delete)


class AsyncUnitOfWork(Generic[U]):
    """A unit of work to be awaited; commits on success, rolls back on any exception.

    A cancellation rolls back at any point: it waits for the call under way, and leaves the block without a transaction
    or a borrowed connection. There are two exceptions. While the unit waits for its begin (another process has the
    lock), the task ends at once, and the wait continues without it: it ends with a rollback, and until then counts as a
    unit at work. And after the commit has begun, the writes stay, callbacks are called, and then the task is cancelled.

    Args:
        unit: Gives a synchronous unit of work.
        threads: Lends a thread.
    """

    def __init__(self, unit: Callable[[], U], threads: Threads) -> None:
        self._unit = unit
        self._threads = threads
        self._thread: Thread | None = None
        self._context: Context | None = None
        self._begun: U | None = None
        self._cut = False

    async def __aenter__(self) -> Self:
        if self._context is not None:
            raise errors.UnitOfWorkClosedError("a unit of work is entered once")
        # One context for begin and end, so that the end can reset what the begin has set.
        self._context = copy_context()
        thread = await self._threads.take(self)
        try:
            (await thread.call(self._begin, self._context)).get()
        except asyncio.CancelledError:
            self._threads.leave(thread, partial(self._end, asyncio.CancelledError()), self._context)
            raise
        except GeneratorExit:
            self._threads.abandon(thread, partial(self._end, GeneratorExit()), self._context)
            raise
        except BaseException:
            self._threads.give_back(thread)
            raise
        self._thread = thread
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                await _be_cancelled()
                if self._cut:
                    raise _interrupted()
        except BaseException as late:
            await self._finish(late)
            raise
        await self._finish(error)

    async def _finish(self, error: BaseException | None) -> None:
        thread, self._thread = self._thread, None
        if thread is None:
            raise errors.UnitOfWorkClosedError
        if isinstance(error, GeneratorExit):  # the task was collected as garbage
            self._threads.abandon(thread, partial(self._end, error), self._context)
            return
        try:
            await thread.finish(partial(self._end, error), self._context)
        finally:
            self._threads.give_back(thread)

    # On the thread --------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._begun = self._unit().__enter__()

    def _end(self, error: BaseException | None) -> None:
        if self._begun is not None:
            self._begun.__exit__(*((None, None, None) if error is None else (type(error), error, error.__traceback__)))

    def _do(self, fn: Callable[[], T]) -> T:
        if self._cut:
            raise _interrupted()
        return fn()

    # Calls ----------------------------------------------------------------------------------------------

    async def _call(self, fn: Callable[[], T]) -> T:
        if self._thread is None:
            raise errors.UnitOfWorkClosedError
        try:
            outcome = await self._thread.call(partial(self._do, fn))
        except asyncio.CancelledError:
            self._cut = True  # how far it came is unknown
            raise
        return outcome.get()

    async def run_sync(self, fn: Callable[Concatenate[U, P], T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a plain function with the synchronous unit of work, on its thread.

        For its session (`await uow.run_sync(lambda uow: uow.session.scalars(query).all())`), for an
        `ExecutionTracker` (`await uow.run_sync(tracker.spawn, agent_id=...)`), and to make many small calls at once.

        Args:
            fn: The function.
            *args: Its further positional arguments.
            **kwargs: Its keyword arguments.

        Returns:
            What the function returned.
        """
        return await self._call(lambda: fn(self._sync, *args, **kwargs))

    def on_commit(self, callback: Callable[[], object]) -> None:
        """Call a function after the commit, and only then.

        Args:
            callback: A plain function without arguments, called on the event loop, in the order of registration,
                before the `async with` block ends. Its errors are logged.

        Raises:
            InvalidValueError: It is a coroutine function, which would not be awaited.
        """
        if inspect.iscoroutinefunction(callback):
            raise errors.InvalidValueError(
                "on_commit takes a plain function", hint="let it create the task", field="callback"
            )
        # The result of the commit is posted after it, so the task continues after the callback.
        later = partial(asyncio.get_running_loop().call_soon_threadsafe, context=copy_context())
        self._sync.on_commit(lambda: later(self._sync._run, [callback]))

    # Attributes of the synchronous unit of work -------------------------------------------------------

    @property
    def _sync(self) -> U:
        if self._begun is None:
            raise errors.UnitOfWorkClosedError("this unit of work has not begun", hint="use it in `async with`")
        return self._begun

    def repository(self, move: Move | str) -> AsyncRepository:
        """The rows of a move.

        Args:
            move: The move, or its name.
        """
        return AsyncRepository(lambda: self._sync.repository(move), self._call)

    def model(self, move: Move[Any] | str) -> type[DeclarativeBase]:
        """The class of the side that is the truth in this phase.

        Args:
            move: The move, or its name.
        """
        return self._sync.model(move)

    @property
    def phase(self) -> Phase:
        """The phase of this unit of work, the same from its begin to its end."""
        return self._sync.phase

    @property
    def prepared(self) -> bool:
        """Whether the database has our tables."""
        return self._sync.prepared

    @property
    def epoch(self) -> int:
        """How often the phase had changed when this unit of work began."""
        return self._sync.epoch

    @property
    def now(self) -> datetime:
        """When this unit of work began, UTC: the created_at of what it adds."""
        return self._sync.now

    @property
    def now_text(self) -> str:
        """`now` as the tables hold it."""
        return self._sync.now_text


async def _be_cancelled() -> None:
    """Let a pending cancellation of the task take effect."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        await asyncio.sleep(0)


def _interrupted() -> errors.UnitOfWorkClosedError:
    return errors.UnitOfWorkClosedError(
        "a call of this unit of work was cancelled before it was over",
        hint="nothing of it was kept; give the time limit to the whole unit of work, and begin another",
    )
