"""FastAPI: units of work as dependencies, a store for the lifespan of the application, errors as status codes.

    from fastapi import FastAPI
    from consensus_orm import Artifact
    from consensus_orm.integrations.fastapi import UnitOfWork, answer_errors, lifespan

    app = FastAPI(lifespan=lifespan())          # CONSENSUS_ORM_URL, else the default file
    answer_errors(app)

    @app.post("/artifacts", status_code=201)
    async def add(artifact: NewArtifact, uow: UnitOfWork) -> Artifact:
        return await uow.artifacts.add(**artifact.model_dump())

The unit of work of a request is committed when the path function has returned, and before the answer is sent: an
answer of success means that the rows are kept. (A dependency with `yield` alone commits after the answer.) An
exception rolls back. So the body of a `StreamingResponse` and background tasks take units of work of their own, from
`Store`, and what must be repeated after a transient error is given to `store.run`.

`SyncUnitOfWork` and `SyncReadOnlyUnitOfWork` are for path functions without `async`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from pathlib import Path
from typing import Annotated, TypeVar

from sqlalchemy import URL

from consensus_orm import errors
from consensus_orm.asyncio.consensus import AsyncConsensusStore, AsyncConsensusUnitOfWork
from consensus_orm.consensus.declaration import CONSENSUS
from consensus_orm.consensus.store import ConsensusUnitOfWork
from consensus_orm.declaration.moves import Moves
from consensus_orm.integrations.problems import MEDIA_TYPE, RETRY_AFTER, problem
from consensus_orm.settings import Settings

try:
    from fastapi import Depends, FastAPI, Request
    from fastapi.responses import JSONResponse
except ImportError as error:
    raise errors.ConfigurationError(
        "consensus_orm.integrations.fastapi needs FastAPI", hint="pip install 'consensus-orm[fastapi]'"
    ) from error

__all__ = [
    "ReadOnlyUnitOfWork",
    "Store",
    "SyncReadOnlyUnitOfWork",
    "SyncUnitOfWork",
    "UnitOfWork",
    "answer_errors",
    "lifespan",
]

T = TypeVar("T")

log = logging.getLogger("consensus_orm")


def lifespan(
    url: str | Path | URL | None = None, *, settings: Settings | None = None, moves: Moves = CONSENSUS
) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    """Open a store when the application starts, and close it when it ends.

    Args:
        url: As for `ConsensusStore.open`.
        settings: As for `ConsensusStore.open`.
        moves: As for `ConsensusStore.open`.

    Returns:
        What `FastAPI(lifespan=...)` takes.
    """

    @asynccontextmanager
    async def opened(app: FastAPI) -> AsyncIterator[None]:
        """The store, as long as the application runs."""
        async with await AsyncConsensusStore.open(url, settings=settings, moves=moves) as store:
            app.state.consensus_store = store
            yield

    return opened


async def _store(request: Request) -> AsyncConsensusStore:
    store: AsyncConsensusStore | None = getattr(request.app.state, "consensus_store", None)
    if store is None:
        raise errors.ConfigurationError(
            "this application has no store", hint="make it with FastAPI(lifespan=lifespan()), and run its lifespan"
        )
    return store


Store = Annotated[AsyncConsensusStore, Depends(_store)]
"""The store of the application."""


async def _unit_of_work(store: Store) -> AsyncIterator[AsyncConsensusUnitOfWork]:
    async with store.unit_of_work() as uow:
        yield uow


async def _read_only(store: Store) -> AsyncIterator[AsyncConsensusUnitOfWork]:
    async with store.unit_of_work(read_only=True) as uow:
        yield uow


async def _sync_unit_of_work(store: Store) -> AsyncIterator[ConsensusUnitOfWork]:
    async with _on_threads(store.sync_store.unit_of_work()) as uow:
        yield uow


async def _sync_read_only(store: Store) -> AsyncIterator[ConsensusUnitOfWork]:
    async with _on_threads(store.sync_store.unit_of_work(read_only=True)) as uow:
        yield uow


@asynccontextmanager
async def _on_threads(unit: AbstractContextManager[T]) -> AsyncIterator[T]:
    """Begin and end a synchronous unit of work without blocking the event loop."""
    begun = await asyncio.to_thread(unit.__enter__)
    try:
        yield begun
    except BaseException as error:
        await asyncio.shield(asyncio.to_thread(unit.__exit__, type(error), error, error.__traceback__))
        raise
    await asyncio.shield(asyncio.to_thread(unit.__exit__, None, None, None))


# The scope `function` ends with the path function; that of a request, the default, when its answer has been sent.
UnitOfWork = Annotated[AsyncConsensusUnitOfWork, Depends(_unit_of_work, scope="function")]
"""A unit of work that is committed before the answer is sent, and rolled back on any exception."""

ReadOnlyUnitOfWork = Annotated[AsyncConsensusUnitOfWork, Depends(_read_only, scope="function")]
"""A unit of work that sees one snapshot, without a lock."""

SyncUnitOfWork = Annotated[ConsensusUnitOfWork, Depends(_sync_unit_of_work, scope="function")]
"""As `UnitOfWork`, for path functions without `async`, which FastAPI calls on a thread."""

SyncReadOnlyUnitOfWork = Annotated[ConsensusUnitOfWork, Depends(_sync_read_only, scope="function")]
"""As `ReadOnlyUnitOfWork`, for path functions without `async`."""


def answer_errors(app: FastAPI) -> None:
    """Answer errors of this package by their status and a body (`consensus_orm.integrations.problems`).

    Those that the client did not make are logged.

    Args:
        app: The application.
    """
    app.add_exception_handler(errors.ConsensusError, _answer)


async def _answer(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, errors.ConsensusError)  # it is registered for these alone
    status, body = problem(error)
    if status >= 500:
        log.error("%s %s was answered by %d: %s", request.method, request.url.path, status, error, exc_info=error)
    headers = {"Retry-After": RETRY_AFTER} if status == 503 else None
    return JSONResponse(body, status, headers, media_type=MEDIA_TYPE)
