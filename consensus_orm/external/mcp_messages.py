"""The messages of a memory server; loaded with the SDK of the Model Context Protocol (extra `mcp`)."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from anyio.abc import ObjectReceiveStream
from mcp import StdioServerParameters, stdio_client
from mcp.shared.message import SessionMessage
from mcp.types import jsonrpc_message_adapter
from pydantic import ValidationError

__all__ = ["spoken_to"]


@contextlib.asynccontextmanager
async def spoken_to(server: StdioServerParameters, silence: Any) -> AsyncIterator[tuple[Any, Any]]:
    """Start a server; what it says, and where to say something.

    Args:
        server: Its command.
        silence: A file that takes its standard error.
    """
    async with stdio_client(server, errlog=silence) as (said, write):
        yield _Messages(said), write


class _Messages(ObjectReceiveStream[Any]):
    """What a server says, also in lines with lone surrogates, which Python reads as JSON and the SDK does not.

    A tool that cuts a text in the middle of a pair leaves one, and one is enough for the whole listing.
    """

    def __init__(self, said: Any) -> None:
        self._said = said

    async def receive(self) -> Any:
        message = await self._said.receive()
        if isinstance(message, ValidationError):
            with contextlib.suppress(ValueError, RecursionError):
                found = json.loads(message.errors()[0]["input"])
                return SessionMessage(jsonrpc_message_adapter.validate_python(found, by_name=False))
        return message

    async def aclose(self) -> None:
        await self._said.aclose()
