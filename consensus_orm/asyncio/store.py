"""The store of any moves, for coroutines: the synchronous one, with an `await` before each call.

    async with await AsyncStore.open("app.db", moves=MOVES) as store:
        async with store.unit_of_work() as uow:
            await uow.repository("users").add({"username": "ada"})

A method is declared by naming the synchronous one, whose arguments, result and docstring it has. The declarations are
written out because mypy and pyright see none that are made at run time.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Self, TypeVar

from sqlalchemy import URL

from consensus_orm.asyncio.calls import Asynchronous, asynchronous
from consensus_orm.asyncio.threads import Thread, Threads
from consensus_orm.asyncio.unit_of_work import AsyncUnitOfWork
from consensus_orm.databases.maintenance import Maintenance
from consensus_orm.declaration.moves import Moves
from consensus_orm.migration import Migration
from consensus_orm.phase import Phase
from consensus_orm.settings import Settings
from consensus_orm.store import RepositoryUnitOfWork, Store

__all__ = ["AsyncMaintenance", "AsyncMigration", "AsyncStore", "BaseAsyncStore"]

T = TypeVar("T")
P = ParamSpec("P")
S = TypeVar("S", bound=Store[Any])
A = TypeVar("A", bound=AsyncUnitOfWork[Any])


class AsyncMigration(Asynchronous):
    """`Migration`, to be awaited; a cancelled call that reports progress stops at its next report."""

    status = asynchronous(Migration.status)
    upgrade = asynchronous(Migration.upgrade)
    backfill = asynchronous(Migration.backfill)
    verify = asynchronous(Migration.verify)
    advance = asynchronous(Migration.advance)
    rollback = asynchronous(Migration.rollback)
    migrate = asynchronous(Migration.migrate)
    mismatches = asynchronous(Migration.mismatches)
    rejects = asynchronous(Migration.rejects)
    images = asynchronous(Migration.images)
    mismatch = asynchronous(Migration.mismatch)
    reject = asynchronous(Migration.reject)
    image = asynchronous(Migration.image)
    reconcile = asynchronous(Migration.reconcile)
    rehearse = asynchronous(Migration.rehearse)
    history = asynchronous(Migration.history)
    check = asynchronous(Migration.check)
    dependencies = asynchronous(Migration.dependencies)
    accept_dependencies = asynchronous(Migration.accept_dependencies)
    accept_reject = asynchronous(Migration.accept_reject)
    accept_rejects = asynchronous(Migration.accept_rejects)
    resolve_reject = asynchronous(Migration.resolve_reject)
    resolve_rejects = asynchronous(Migration.resolve_rejects)
    accept_mismatch = asynchronous(Migration.accept_mismatch)
    accept_mismatches = asynchronous(Migration.accept_mismatches)
    control = asynchronous(Migration.control)
    pause = asynchronous(Migration.pause)
    resume = asynchronous(Migration.resume)
    throttle = asynchronous(Migration.throttle)
    hold = asynchronous(Migration.hold)
    release = asynchronous(Migration.release)
    restore_image = asynchronous(Migration.restore_image)
    restore_images = asynchronous(Migration.restore_images)
    backup_before = asynchronous(Migration.backup_before)
    finish_contract = asynchronous(Migration.finish_contract)

    @property
    def phase(self) -> Awaitable[Phase]:
        """The phase the database is in now: `await store.migration.phase`."""
        return self._call(lambda: self._original().phase)


class AsyncMaintenance(Asynchronous):
    """`Maintenance`, to be awaited; a cancelled call that reports progress stops at its next report."""

    stats = asynchronous(Maintenance.stats)
    vacuum = asynchronous(Maintenance.vacuum)
    schedule_vacuum = asynchronous(Maintenance.schedule_vacuum)
    backup = asynchronous(Maintenance.backup)
    leftovers = asynchronous(Maintenance.leftovers)
    close = asynchronous(Maintenance.close)


class BaseAsyncStore(Asynchronous, Generic[A]):
    """A store for coroutines.

    As many units of work, and calls of `migration` and `maintenance`, run at once as the pool has connections, each on
    a thread of its own; the others wait in order, without a thread. Callbacks are called on the event loop. Use a store
    in one event loop at a time.

    Args:
        sync_store: The synchronous store.
    """

    _unit_type: type[A]

    def __init__(self, sync_store: Store[Any]) -> None:
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

    @staticmethod
    async def _opened(open_: Callable[[], S]) -> S:
        """Open a store on a thread, and import there what would block the event loop later."""
        thread, opened = Thread(), list[S]()

        def look() -> None:
            import stamina  # noqa: F401 - 30 ms, at the first retry

            opened.append(open_())

        try:
            await thread.finish(look)
        except asyncio.CancelledError:
            for store in opened:
                thread.call(store.close)
            raise
        finally:
            thread.close()
        return opened[0]

    @property
    def initial_phase(self) -> Phase:
        """The phase of a database that is not prepared: EXPAND if there are legacy tables, else CONTRACT."""
        return self.sync_store.initial_phase

    def unit_of_work(self, *, read_only: bool = False, exclusive: bool = False) -> A:
        """Take a unit of work; use it in an `async with` block, once.

        Args:
            read_only: Read one snapshot, without a lock.
            exclusive: Write while no other unit of work writes, in any process; on a server, other writers wait.

        Returns:
            The unit of work; it commits at the end of its block, and rolls back on any exception.
        """
        begin = partial(self.sync_store.unit_of_work, read_only=read_only, exclusive=exclusive)
        return self._unit_type(begin, self._threads)

    async def run(
        self,
        work: Callable[[A], Awaitable[T]],
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

    async def _once(self, work: Callable[[A], Awaitable[T]], **options: bool) -> T:
        async with self.unit_of_work(**options) as uow:
            return await work(uow)

    def in_unit_of_work(self, work: Callable[Concatenate[A, P], Awaitable[T]]) -> Callable[P, Coroutine[Any, Any, T]]:
        """Make a coroutine function that uses `run` for each of its calls; usable as a decorator.

        Args:
            work: A coroutine function whose first argument is the unit of work.

        Returns:
            A coroutine function without that argument.
        """

        @functools.wraps(work)
        async def call(*args: P.args, **kwargs: P.kwargs) -> T:
            """Done with `run`."""
            given: Callable[[A], Awaitable[T]] = lambda uow: work(uow, *args, **kwargs)  # noqa: E731 - typed
            return await self.run(functools.update_wrapper(given, work))

        return call

    upgrade = asynchronous(Store.upgrade)
    pending_rewrite = asynchronous(Store.pending_rewrite)
    copy_to = asynchronous(Store.copy_to)
    health = asynchronous(Store.health)

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


class AsyncStore(BaseAsyncStore[AsyncUnitOfWork[RepositoryUnitOfWork]]):
    """A `Store` for coroutines."""

    _unit_type = AsyncUnitOfWork[RepositoryUnitOfWork]

    @classmethod
    async def open(
        cls,
        url: str | Path | URL,
        *,
        moves: Moves,
        settings: Settings | None = None,
        echo: bool = False,
        password: Callable[[], str] | None = None,
    ) -> Self:
        """Open a database with the arguments of `Store.open`, which says what errors it raises.

        Returns:
            The store; an asynchronous context manager that closes it.
        """
        opened: partial[Store[RepositoryUnitOfWork]] = partial(
            Store.open, url, moves=moves, settings=settings, echo=echo, password=password
        )
        return cls(await cls._opened(opened))
