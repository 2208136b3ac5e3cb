"""AsyncConsensusStore: the synchronous store for coroutines, with an `await` before each call.

    async with await AsyncConsensusStore.open("artifacts.db") as store:
        async with store.unit_of_work() as uow:
            await uow.artifacts.add(spec_id="SPEC-1", stage="plan", agent_name="gemini", content_json="{}")

A method is declared by naming the synchronous one, whose arguments, result and docstring it has. The declarations are
written out because mypy and pyright see none that are made at run time.

A unit of work has a thread for itself from its begin to its end, to which each of its calls goes. Greenlets would need
a thread, too, because the driver of SQLite blocks, and would go there for each statement (a compared write has several)
instead of each call. Compared with the same unit of work without coroutines, a write took 1.1 to 1.8 times as long with
threads and 1.4 to 3.6 with greenlets, ten writes 1.2 to 1.8 and 1.7 to 4.5, a read 2.8 to 3.2 and 4.4 to 4.6, ten reads
2.4 to 2.8 and 3.5 to 3.9 (medians of 15 interleaved rounds, three runs on two busy cores). Greenlets would also run our
Python code on the event loop, which every wait outside the driver, as for the write queue, would block.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextvars import Context, copy_context
from datetime import datetime
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from sqlalchemy import URL

from consensus_orm import errors
from consensus_orm.asyncio.threads import Thread, Threads
from consensus_orm.consensus.artifacts import Artifacts
from consensus_orm.consensus.declaration import CONSENSUS
from consensus_orm.consensus.executions import Executions
from consensus_orm.consensus.runs import Runs
from consensus_orm.consensus.store import ConsensusStore, ConsensusUnitOfWork
from consensus_orm.consensus.syntheses import Syntheses
from consensus_orm.databases.maintenance import Maintenance
from consensus_orm.declaration.move import Move
from consensus_orm.declaration.moves import Moves
from consensus_orm.migration import Migration
from consensus_orm.phase import Phase
from consensus_orm.repository.repository import Repository
from consensus_orm.repository.routed_reads import STREAMED
from consensus_orm.settings import Settings

__all__ = [
    "AsyncArtifacts",
    "AsyncConsensusStore",
    "AsyncConsensusUnitOfWork",
    "AsyncExecutions",
    "AsyncMaintenance",
    "AsyncMigration",
    "AsyncRepository",
    "AsyncRuns",
    "AsyncSyntheses",
]

T = TypeVar("T")
P = ParamSpec("P")


# A synchronous object, from a coroutine ------------------------------------------------------------------


class _Asynchronous:
    """Stands for a synchronous object.

    Args:
        original: Gives that object; called on the thread of its methods.
        call: Runs a function on that thread.
    """

    def __init__(self, original: Callable[[], Any], call: Callable[..., Coroutine[Any, Any, Any]]) -> None:
        self._original = original
        self._call = call

    def _apply(self, method: Callable[..., T], given: inspect.BoundArguments) -> T:
        return method(self._original(), *given.args[1:], **given.kwargs)


_Method = Callable[Concatenate[Any, P], T]
_AsyncMethod = Callable[Concatenate[_Asynchronous, P], Coroutine[Any, Any, T]]


def _asynchronous(method: _Method[P, T]) -> _AsyncMethod[P, T]:
    """Make a coroutine method of a synchronous one; its callbacks are called on the event loop."""
    signature = inspect.signature(method)
    reports = [name for name in ("progress", "tell") if name in signature.parameters]
    if reports:
        return _reporting(method, signature, reports)

    @functools.wraps(method)
    async def call(self: _Asynchronous, /, *args: P.args, **kwargs: P.kwargs) -> T:
        answer: T = await self._call(lambda: method(self._original(), *args, **kwargs))
        return answer

    return call


def _reporting(method: _Method[P, T], signature: inspect.Signature, reports: list[str]) -> _AsyncMethod[P, T]:
    """Make a coroutine method of one that reports progress; after a cancellation it ends at its next report."""

    @functools.wraps(method)
    async def call(self: _Asynchronous, /, *args: P.args, **kwargs: P.kwargs) -> T:
        given, watch = signature.bind(None, *args, **kwargs), _Watch()
        for name in reports:
            given.arguments[name] = partial(watch.report, given.arguments.get(name))
        answer: T = await self._call(partial(self._apply, method, given), cancelled=watch.stop)
        return answer

    return call


class _Watch:
    """Connects a long call on a thread with the coroutine that waits for it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopped = False

    def stop(self) -> None:
        self._stopped = True

    def report(self, callback: Callable[..., object] | None, *what: Any) -> None:
        """Call a callback on the event loop, and raise its error here."""
        if callback is not None and not self._stopped:
            done: Future[None] = Future()
            self._loop.call_soon_threadsafe(_do, done, callback, what)
            done.result()
        if self._stopped:
            raise asyncio.CancelledError


def _do(done: Future[None], callback: Callable[..., object], what: tuple[Any, ...]) -> None:
    try:
        callback(*what)
    except BaseException as error:
        done.set_exception(error)
    else:
        done.set_result(None)


def _streamed(method: _Method[P, Iterator[T]]) -> Callable[Concatenate[_Asynchronous, P], AsyncIterator[T]]:
    """Make an asynchronous iterator of a method that gives an iterator; its thread is asked for some at a time."""

    @functools.wraps(method)
    async def iterate(self: _Asynchronous, /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[T]:
        found: Iterator[T] = await self._call(lambda: method(self._original(), *args, **kwargs))
        while some := await self._call(lambda: [*islice(found, STREAMED)]):
            for each in some:
                yield each

    return iterate


class AsyncArtifacts(_Asynchronous):
    """`Artifacts`, to be awaited."""

    add = _asynchronous(Artifacts.add)
    add_many = _asynchronous(Artifacts.add_many)
    update = _asynchronous(Artifacts.update)
    get = _asynchronous(Artifacts.get)
    get_many = _asynchronous(Artifacts.get_many)
    exists = _asynchronous(Artifacts.exists)
    list = _asynchronous(Artifacts.list)
    iterate = _streamed(Artifacts.iterate)
    list_and_count = _asynchronous(Artifacts.list_and_count)
    count = _asynchronous(Artifacts.count)
    delete = _asynchronous(Artifacts.delete)
    specs = _asynchronous(Artifacts.specs)


class AsyncSyntheses(_Asynchronous):
    """`Syntheses`, to be awaited."""

    add = _asynchronous(Syntheses.add)
    put = _asynchronous(Syntheses.put)
    update = _asynchronous(Syntheses.update)
    get = _asynchronous(Syntheses.get)
    get_many = _asynchronous(Syntheses.get_many)
    exists = _asynchronous(Syntheses.exists)
    latest = _asynchronous(Syntheses.latest)
    list = _asynchronous(Syntheses.list)
    iterate = _streamed(Syntheses.iterate)
    list_and_count = _asynchronous(Syntheses.list_and_count)
    count = _asynchronous(Syntheses.count)
    delete = _asynchronous(Syntheses.delete)


class AsyncRuns(_Asynchronous):
    """`Runs`, to be awaited."""

    list = _asynchronous(Runs.list)
    iterate = _streamed(Runs.iterate)
    latest = _asynchronous(Runs.latest)


class AsyncExecutions(_Asynchronous):
    """`Executions`, to be awaited."""

    record_spawn = _asynchronous(Executions.record_spawn)
    record_completion = _asynchronous(Executions.record_completion)
    record_extraction_failure = _asynchronous(Executions.record_extraction_failure)
    get = _asynchronous(Executions.get)
    get_many = _asynchronous(Executions.get_many)
    exists = _asynchronous(Executions.exists)
    list = _asynchronous(Executions.list)
    iterate = _streamed(Executions.iterate)
    list_and_count = _asynchronous(Executions.list_and_count)
    count = _asynchronous(Executions.count)
    in_flight = _asynchronous(Executions.in_flight)
    extraction_failures = _asynchronous(Executions.extraction_failures)
    for_branch = _asynchronous(Executions.for_branch)
    cleanup = _asynchronous(Executions.cleanup)
    delete = _asynchronous(Executions.delete)


class AsyncRepository(_Asynchronous):
    """`Repository`, to be awaited."""

    add = _asynchronous(Repository.add)
    add_many = _asynchronous(Repository.add_many)
    exists = _asynchronous(Repository.exists)
    get = _asynchronous(Repository.get)
    get_many = _asynchronous(Repository.get_many)
    put = _asynchronous(Repository.put)
    update = _asynchronous(Repository.update)
    rows = _asynchronous(Repository.rows)
    iterate = _streamed(Repository.iterate)
    list_and_count = _asynchronous(Repository.list_and_count)
    count = _asynchronous(Repository.count)
    distinct = _asynchronous(Repository.distinct)
    delete = _asynchronous(Repository.delete)


class AsyncMigration(_Asynchronous):
    """`Migration`, to be awaited; a cancelled call that reports progress stops at its next report."""

    status = _asynchronous(Migration.status)
    upgrade = _asynchronous(Migration.upgrade)
    backfill = _asynchronous(Migration.backfill)
    verify = _asynchronous(Migration.verify)
    advance = _asynchronous(Migration.advance)
    rollback = _asynchronous(Migration.rollback)
    migrate = _asynchronous(Migration.migrate)
    mismatches = _asynchronous(Migration.mismatches)
    rejects = _asynchronous(Migration.rejects)
    images = _asynchronous(Migration.images)
    mismatch = _asynchronous(Migration.mismatch)
    reject = _asynchronous(Migration.reject)
    image = _asynchronous(Migration.image)
    reconcile = _asynchronous(Migration.reconcile)
    rehearse = _asynchronous(Migration.rehearse)
    history = _asynchronous(Migration.history)
    check = _asynchronous(Migration.check)
    dependencies = _asynchronous(Migration.dependencies)
    accept_dependencies = _asynchronous(Migration.accept_dependencies)
    accept_reject = _asynchronous(Migration.accept_reject)
    accept_rejects = _asynchronous(Migration.accept_rejects)
    resolve_reject = _asynchronous(Migration.resolve_reject)
    accept_mismatch = _asynchronous(Migration.accept_mismatch)
    accept_mismatches = _asynchronous(Migration.accept_mismatches)
    control = _asynchronous(Migration.control)
    pause = _asynchronous(Migration.pause)
    resume = _asynchronous(Migration.resume)
    throttle = _asynchronous(Migration.throttle)
    hold = _asynchronous(Migration.hold)
    release = _asynchronous(Migration.release)
    restore_image = _asynchronous(Migration.restore_image)
    backup_before = _asynchronous(Migration.backup_before)
    finish_contract = _asynchronous(Migration.finish_contract)

    @property
    def phase(self) -> Awaitable[Phase]:
        """The phase the database is in now: `await store.migration.phase`."""
        return self._call(lambda: self._original().phase)


class AsyncMaintenance(_Asynchronous):
    """`Maintenance`, to be awaited; a cancelled call that reports progress stops at its next report."""

    stats = _asynchronous(Maintenance.stats)
    vacuum = _asynchronous(Maintenance.vacuum)
    schedule_vacuum = _asynchronous(Maintenance.schedule_vacuum)
    backup = _asynchronous(Maintenance.backup)
    leftovers = _asynchronous(Maintenance.leftovers)
    close = _asynchronous(Maintenance.close)


# The unit of work ----------------------------------------------------------------------------------------


class AsyncConsensusUnitOfWork:
    """A `ConsensusUnitOfWork` to be awaited; commits on success, rolls back on any exception.

    A cancellation rolls back at any point: it waits for the call under way, and leaves the block without a transaction
    or a borrowed connection. There are two exceptions. While the unit waits for its begin (another process has the
    lock), the task ends at once, and the wait continues without it: it ends with a rollback, and until then counts as a
    unit at work. And after the commit has begun, the writes stay, callbacks are called, and then the task is cancelled.

    Args:
        unit: Gives a synchronous unit of work.
        threads: Lends a thread.
    """

    def __init__(self, unit: Callable[[], ConsensusUnitOfWork], threads: Threads) -> None:
        self._unit = unit
        self._threads = threads
        self._thread: Thread | None = None
        self._context: Context | None = None
        self._begun: ConsensusUnitOfWork | None = None
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

    async def run_sync(
        self, fn: Callable[Concatenate[ConsensusUnitOfWork, P], T], /, *args: P.args, **kwargs: P.kwargs
    ) -> T:
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
    def _sync(self) -> ConsensusUnitOfWork:
        if self._begun is None:
            raise errors.UnitOfWorkClosedError("this unit of work has not begun", hint="use it in `async with`")
        return self._begun

    @cached_property
    def artifacts(self) -> AsyncArtifacts:
        """The artifacts: what agents said."""
        return AsyncArtifacts(lambda: self._sync.artifacts, self._call)

    @cached_property
    def syntheses(self) -> AsyncSyntheses:
        """The syntheses: what agents agreed on."""
        return AsyncSyntheses(lambda: self._sync.syntheses, self._call)

    @cached_property
    def runs(self) -> AsyncRuns:
        """The runs: rounds of agents with their outputs and syntheses."""
        return AsyncRuns(lambda: self._sync.runs, self._call)

    @cached_property
    def executions(self) -> AsyncExecutions:
        """The executions: spawned agents, and how each ended."""
        return AsyncExecutions(lambda: self._sync.executions, self._call)

    def repository(self, move: Move | str) -> AsyncRepository:
        """The rows of a move.

        Args:
            move: The move, or its name.
        """
        return AsyncRepository(lambda: self._sync.repository(move), self._call)

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


# The store -----------------------------------------------------------------------------------------------


class AsyncConsensusStore(_Asynchronous):
    """A `ConsensusStore` for coroutines.

    As many units of work, and calls of `migration` and `maintenance`, run at once as the pool has connections, each on
    a thread of its own; the others wait in order, without a thread. Callbacks are called on the event loop. Use a store
    in one event loop at a time.

    Args:
        sync_store: The synchronous store.
    """

    def __init__(self, sync_store: ConsensusStore) -> None:
        super().__init__(lambda: sync_store, self._on_a_thread)
        self.sync_store = sync_store
        self.engine = sync_store.engine
        self.settings = sync_store.settings
        self.path = sync_store.path
        self.name = sync_store.name
        self.telemetry = sync_store.telemetry
        self.retrier = sync_store.retrier
        pool: Any = sync_store.engine.pool  # the type Pool has no size; every pool of this package has one
        self._threads = Threads(pool.size(), sync_store.settings.pool_timeout.total_seconds())
        self.migration = AsyncMigration(lambda: sync_store.migration, self._on_a_thread)
        self.maintenance = AsyncMaintenance(lambda: sync_store.maintenance, self._on_a_thread)

    @classmethod
    async def open(
        cls,
        url: str | Path | URL | None = None,
        *,
        settings: Settings | None = None,
        echo: bool = False,
        moves: Moves = CONSENSUS,
        password: Callable[[], str] | None = None,
    ) -> Self:
        """Open a database with the arguments of `ConsensusStore.open`, which says what errors it raises.

        Returns:
            The store; an asynchronous context manager that closes it.
        """
        thread, opened = Thread(), list[ConsensusStore]()

        def look() -> None:
            """Open it on the thread, and import what would block the event loop later."""
            import stamina  # noqa: F401 - 30 ms, at the first retry

            opened.append(ConsensusStore.open(url, settings=settings, echo=echo, moves=moves, password=password))

        try:
            await thread.finish(look)
        except asyncio.CancelledError:
            for store in opened:
                thread.call(store.close)
            raise
        finally:
            thread.close()
        return cls(opened[0])

    @property
    def initial_phase(self) -> Phase:
        """The phase of a database that is not prepared: EXPAND if there are legacy tables, else CONTRACT."""
        return self.sync_store.initial_phase

    def unit_of_work(self, *, read_only: bool = False, exclusive: bool = False) -> AsyncConsensusUnitOfWork:
        """Take a unit of work; use it in an `async with` block, once.

        Args:
            read_only: Read one snapshot, without a lock.
            exclusive: Write while no other unit of work writes, in any process; on a server, other writers wait.

        Returns:
            The unit of work; it commits at the end of its block, and rolls back on any exception.
        """
        begin = partial(self.sync_store.unit_of_work, read_only=read_only, exclusive=exclusive)
        return AsyncConsensusUnitOfWork(begin, self._threads)

    async def run(
        self,
        work: Callable[[AsyncConsensusUnitOfWork], Awaitable[T]],
        *,
        read_only: bool = False,
        exclusive: bool = False,
    ) -> T:
        """Do a piece of work in a unit of work, and repeat all of it after a transient error.

        Args:
            work: Called with the unit of work and awaited, maybe several times; so it must have side effects only
                through `uow.on_commit`.
            read_only: Take a read-only unit of work.
            exclusive: Take one that writes while no other does.

        Returns:
            What `work` returned.

        Raises:
            ConsensusError: The last error, when the policy is exhausted or the error is permanent.
        """
        name = getattr(work, "__qualname__", "work")
        once = partial(self._once, work, read_only=read_only, exclusive=exclusive)
        return await self.retrier.call_async(once, name=name, read_only=read_only)

    async def _once(self, work: Callable[[AsyncConsensusUnitOfWork], Awaitable[T]], **options: bool) -> T:
        async with self.unit_of_work(**options) as uow:
            return await work(uow)

    def in_unit_of_work(
        self, work: Callable[Concatenate[AsyncConsensusUnitOfWork, P], Awaitable[T]]
    ) -> Callable[P, Coroutine[Any, Any, T]]:
        """Make a coroutine function that uses `run` for each of its calls; usable as a decorator.

        Args:
            work: A coroutine function whose first argument is the unit of work.

        Returns:
            A coroutine function without that argument.
        """

        @functools.wraps(work)
        async def call(*args: P.args, **kwargs: P.kwargs) -> T:
            """Done with `run`."""
            given: Callable[[AsyncConsensusUnitOfWork], Awaitable[T]] = lambda uow: work(uow, *args, **kwargs)  # noqa: E731 - typed
            return await self.run(functools.update_wrapper(given, work))

        return call

    upgrade = _asynchronous(ConsensusStore.upgrade)
    pending_rewrite = _asynchronous(ConsensusStore.pending_rewrite)
    copy_to = _asynchronous(ConsensusStore.copy_to)
    health = _asynchronous(ConsensusStore.health)

    async def _on_a_thread(self, fn: Callable[[], T], cancelled: Callable[[], object] | None = None) -> T:
        thread = await self._threads.take()
        try:
            return await thread.finish(fn, cancelled=cancelled)
        finally:
            self._threads.give_back(thread)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"

    async def close(self) -> None:
        """Close every connection after cancelled units of work have ended; then the store raises `StoreClosedError`."""
        await self._threads.close()
        thread = Thread()
        try:
            await thread.finish(self.sync_store.close)
        finally:
            thread.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
