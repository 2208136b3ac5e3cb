"""An external store that is spoken to by the Model Context Protocol, with the official SDK (extra `mcp`)."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from consensus_orm import errors
from consensus_orm import validation as check
from consensus_orm.external.declarations import Declaration
from consensus_orm.external.sink import Capabilities, Page
from consensus_orm.settings import Settings

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal
    from mcp import Client
    from mcp.types import CallToolResult

__all__ = ["McpSink"]

T = TypeVar("T")


class McpSink:
    """A memory server that is started as a process, and spoken to over its standard input and output.

    It is started at the first call, and again at the first call after it went away. Only ASCII is sent. One call is in
    flight at a time.

    Args:
        command: The program and its arguments.
        declaration: Which tools it has, and what can be relied on.
        name: The name under which the database keeps its stage.
        environment: Variables for the process, besides the few that the SDK passes on.
        settings: How long a call may take (`sink_timeout`); the defaults where left out.

    Raises:
        ConfigurationError: The extra `mcp` is not installed.
    """

    def __init__(
        self,
        command: Sequence[str],
        declaration: Declaration,
        *,
        name: str = "memory",
        environment: Mapping[str, str] | None = None,
        settings: Settings | None = None,
    ) -> None:
        _require_library()
        self._command = [check.text("command", word) for word in check.several("command", command)]
        if not self._command:
            raise check.invalid("command", "names no program", "give the program and its arguments")
        self._declaration = declaration
        self.name: str = check.identifier("name", name)
        self._environment = dict(environment or {})
        self._timeout = (settings or Settings()).sink_timeout.total_seconds()
        self._session: _Session | None = None

    @property
    def capabilities(self) -> Capabilities:
        """What the server can be relied on to do."""
        return self._declaration.capabilities

    def put(self, name: str, content: str) -> None:
        """Store an entry, in the place of the one with this name if there is one.

        Raises:
            InvalidValueError: Name or content is not ASCII.
        """
        for field, text in (("name", name), ("content", content)):
            if not text.isascii():
                raise check.invalid(field, "is not ASCII, which alone is sent to a server")
        self._use(lambda call: self._declaration.put(call, name, content))

    def get(self, name: str) -> str | None:
        """The content of an entry; None where there is none.

        Raises:
            InvalidValueError: The name holds a lone surrogate, which ends the session of the client.
        """
        try:
            name.encode()
        except UnicodeEncodeError:
            raise check.invalid("name", "holds a lone surrogate, which cannot be sent to a server") from None
        return self._use(lambda call: self._declaration.get(call, name))

    def delete(self, name: str) -> None:
        """Delete an entry; nothing happens where there is none."""
        self._use(lambda call: self._declaration.delete(call, name))

    def list(self, following: str | None = None) -> Page:
        """A page of all entries."""
        return self._use(lambda call: self._declaration.list(call, following))

    def close(self) -> None:
        """Stop the server; a later call starts it again."""
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def _use(self, work: Callable[[Callable[[str, Mapping[str, Any]], Any]], T]) -> T:
        """Do something with the tools of the server; after an error that may have ended the session, end it."""
        if self._session is None:
            self._session = _Session(self._command, self._environment, self._timeout, self.name)
            with self._closed_on_error():
                self._session.require(self._declaration.tools)
        with self._closed_on_error():
            return work(self._session.call)

    @contextlib.contextmanager
    def _closed_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            if isinstance(error, errors.SinkError):
                error.sink = error.sink or self.name
            if not isinstance(error, errors.SinkError) or isinstance(
                error, errors.SinkUnavailableError | errors.SinkContractError
            ):
                self.close()
            raise


class _Session:
    """One running server, and the thread in which the event loop of its client runs."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], timeout: float, name: str) -> None:
        from anyio.from_thread import start_blocking_portal

        self._name = name
        self._timeout = timeout
        self._exit = contextlib.ExitStack()
        if shutil.which(command[0]) is None:
            raise errors.SinkUnavailableError(f"{name}: there is no program {command[0]!r:.100}", sink=name)
        with contextlib.ExitStack() as exit_:
            self._portal: BlockingPortal = exit_.enter_context(start_blocking_portal())
            # What the server says is of its users, and goes nowhere.
            silence = exit_.enter_context(open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123 - no path
            with _translated(name, "does not start, or does not speak the protocol"):
                client = self._portal.call(partial(_client, command, environment, timeout, silence))
                self._client: Client = exit_.enter_context(self._portal.wrap_async_context_manager(client))
            self._exit = exit_.pop_all()

    def close(self) -> None:
        """Stop the server and the thread, whatever state they are in."""
        with contextlib.suppress(Exception):
            self._exit.close()

    def require(self, tools: Mapping[str, Sequence[str]]) -> None:
        """Refuse a server that lacks a tool or an argument of the declaration.

        Raises:
            SinkContractError: It does.
        """
        with _translated(self._name, "did not list its tools"):
            there = {tool.name: tool.input_schema for tool in self._run(_all_tools)}
        for tool, arguments in tools.items():
            if tool not in there:
                known = ", ".join(sorted(there))
                raise errors.SinkContractError(
                    f"{self._name} has no tool {tool!r:.60}",
                    hint=f"declare the names of its tools; it has: {known:.300}",
                    sink=self._name,
                    tool=tool,
                )
            takes = there[tool].get("properties", {})
            if missing := [name for name in arguments if name not in takes]:
                raise errors.SinkContractError(
                    f"the tool {tool!r:.60} of {self._name} has no argument {missing[0]!r:.60}",
                    hint=f"declare the names of its arguments; it takes: {', '.join(takes):.300}",
                    sink=self._name,
                    tool=tool,
                    argument=missing[0],
                )

    def call(self, tool: str, arguments: Mapping[str, Any]) -> Any:
        """Call a tool; returns its answer in terms of JSON.

        Raises:
            SinkUnavailableError: The server went away, or took too long.
            SinkError: The tool refused.
            SinkContractError: The answer is no JSON.
        """
        with _translated(self._name, f"did not answer {tool}", tool):
            result: CallToolResult = self._run(lambda client: client.call_tool(tool, dict(arguments)))
        texts = [block.text for block in result.content if block.type == "text"]
        if result.is_error:
            # Its text may repeat contents.
            raise errors.SinkError(f"the tool {tool!r:.60} of {self._name} refused", sink=self._name, tool=tool)
        if result.structured_content is not None:
            return result.structured_content
        try:
            return json.loads(texts[0]) if texts else None
        except (ValueError, RecursionError) as error:
            raise errors.SinkContractError(
                f"the answer of the tool {tool!r:.60} of {self._name} is no JSON", sink=self._name, tool=tool
            ) from error

    def _run(self, work: Callable[[Client], Awaitable[T]]) -> T:
        async def once() -> T:
            import anyio

            with anyio.fail_after(self._timeout + 1):
                return await work(self._client)

        return self._portal.call(once)


async def _client(command: Sequence[str], environment: Mapping[str, str], timeout: float, silence: Any) -> Client:
    from mcp import Client, StdioServerParameters

    from consensus_orm.external.mcp_messages import spoken_to

    server = StdioServerParameters(command=command[0], args=list(command[1:]), env=dict(environment))
    return Client(spoken_to(server, silence), read_timeout_seconds=timeout, cache=None)


async def _all_tools(client: Client) -> list[Any]:
    page = await client.list_tools()
    tools = [*page.tools]
    while page.next_cursor:
        page = await client.list_tools(cursor=page.next_cursor)
        tools += page.tools
    return tools


_OF_THE_CLIENT = (-32000, -32001)
"""Codes with which the SDK says that the connection was closed, and that an answer took too long."""


class _translated:
    """A block whose errors of the SDK become errors of this package, without the words of the server."""

    def __init__(self, name: str, what: str, tool: str | None = None) -> None:
        self._name = name
        self._what = what
        self._tool = tool

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, errors.ConsensusError):
            of = _innermost(error)
            code = getattr(of, "code", None)
            told = f"{type(of).__name__}{'' if code is None else f' {code}'}"
            if self._tool is not None and code is not None and code not in _OF_THE_CLIENT:
                raise errors.SinkError(
                    f"the tool {self._tool!r:.60} of {self._name} refused ({told})", sink=self._name, tool=self._tool
                ) from None
            raise errors.SinkUnavailableError(
                f"{self._name} {self._what} ({told})", sink=self._name, tool=self._tool
            ) from None


def _innermost(error: BaseException) -> BaseException:
    """The error in a group of one."""
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    return error


def _require_library() -> None:
    try:
        import mcp  # noqa: F401 - only whether it is there
    except ImportError:
        raise errors.ConfigurationError(
            "the SDK of the Model Context Protocol is not installed",
            hint="run: pip install 'consensus-orm[mcp]'",
            package="mcp",
        ) from None
    # The SDK logs lines of a server that are no JSON, with their contents.
    logging.getLogger("mcp.client.stdio").addFilter(_has_no_contents)


def _has_no_contents(record: logging.LogRecord) -> bool:
    return record.exc_info is None
