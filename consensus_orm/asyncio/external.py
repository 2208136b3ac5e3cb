"""External stores for coroutines: `Mirror` and `Relay`, with an `await` before each call.

from consensus_orm.asyncio.external import AsyncMirror

mirror = AsyncMirror(store, sink)                           # attaches the store
await mirror.advance("import")
await mirror.import_entries()
await mirror.advance("mirror")
relay = asyncio.create_task(mirror.relay.run())             # ends when it is cancelled
await mirror.verify()
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable
from functools import partial
from typing import Any

from consensus_orm import validation as check
from consensus_orm.asyncio.calls import Asynchronous, asynchronous
from consensus_orm.asyncio.store import BaseAsyncStore
from consensus_orm.asyncio.threads import Thread
from consensus_orm.external import outbox
from consensus_orm.external.importing import Read, read_own
from consensus_orm.external.mirror import Mirror
from consensus_orm.external.relay import Relay, RelayReport
from consensus_orm.external.sink import Sink
from consensus_orm.external.stage import Stage

__all__ = ["AsyncMirror", "AsyncRelay", "attach"]


def attach(store: BaseAsyncStore[Any]) -> None:
    """Have the units of work of a store write the outbox of each external store that is at MIRROR.

    Args:
        store: The store; see `consensus_orm.external.attach`.
    """
    outbox.attach(check.instance("store", store, BaseAsyncStore).sync_store)


class AsyncRelay:
    """`Relay`, to be awaited, on a thread of its own: it takes none of those of the units of work.

    Args:
        relay: The synchronous relay.
    """

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    async def run(self, *, until_empty: bool = False) -> RelayReport:
        """Send what is in the outbox, and go on with what comes, until the task is cancelled.

        A cancelled task ends after the entry that is being sent.

        Args:
            until_empty: As for `Relay.run`, which says what errors it raises.

        Returns:
            What was done.
        """
        stop, thread = threading.Event(), Thread()
        try:
            return await thread.finish(
                partial(self._relay.run, until_empty=until_empty, cancel=stop), cancelled=stop.set
            )
        finally:
            thread.close()


class AsyncMirror(Asynchronous):
    """`Mirror`, to be awaited.

    Args:
        store: The store; from now on its units of work write the outbox while the stage is MIRROR.
        sink: The external store; it is called on threads, one call at a time.
        read: Reads entries that only the external store holds as rows; called on a thread.

    Attributes:
        sync_mirror: The synchronous one.
        relay: Sends the outbox.
    """

    def __init__(self, store: BaseAsyncStore[Any], sink: Sink, *, read: Read = read_own) -> None:
        of = check.instance("store", store, BaseAsyncStore)
        self.sync_mirror = Mirror(of.sync_store, sink, read=read)
        super().__init__(lambda: self.sync_mirror, of._on_a_thread)
        self.sink = self.sync_mirror.sink
        self.relay = AsyncRelay(self.sync_mirror.relay)

    status = asynchronous(Mirror.status)
    advance = asynchronous(Mirror.advance)
    rollback = asynchronous(Mirror.rollback)
    import_entries = asynchronous(Mirror.import_entries)
    export = asynchronous(Mirror.export)
    verify = asynchronous(Mirror.verify)
    repair = asynchronous(Mirror.repair)
    findings = asynchronous(Mirror.findings)
    kept = asynchronous(Mirror.kept)
    accept = asynchronous(Mirror.accept)
    accept_many = asynchronous(Mirror.accept_many)
    pause = asynchronous(Mirror.pause)
    resume = asynchronous(Mirror.resume)

    @property
    def stage(self) -> Awaitable[Stage]:
        """The stage now: `await mirror.stage`."""
        return self._call(lambda: self.sync_mirror.stage)
