"""The external store that is named on the command line or in the settings, and how its entries are read as rows."""

from __future__ import annotations

import importlib
import shlex
import sys
from pathlib import Path

from consensus_orm import errors
from consensus_orm.external.declarations import GraphMemory, TaggedMemory
from consensus_orm.external.file_sink import FileSink
from consensus_orm.external.sink import Sink
from consensus_orm.settings import Settings

__all__ = ["sink_named"]

HINT = "give file:FOLDER, graph:COMMAND, tagged:COMMAND, or module:NAME of a sink: --sink, or CONSENSUS_ORM_SINK"
DECLARATIONS = {"graph": GraphMemory, "tagged": TaggedMemory}


def sink_named(text: str | None, settings: Settings) -> Sink:
    """Make the external store of a name.

    Args:
        text: `file:FOLDER`; `graph:COMMAND` or `tagged:COMMAND`, a memory server with the arguments of its command;
            or `package.module:NAME`, a sink or a function that makes one. The setting `sink` where left out.
        settings: How long a call may take.

    Raises:
        ConfigurationError: There is none of this name.
    """
    given = text if text is not None else settings.sink
    kind, _, rest = (given or "").partition(":")
    if not kind or not rest:
        raise errors.ConfigurationError("no external store is named", hint=HINT)
    if kind == "file":
        return FileSink(Path(rest).expanduser())
    if (declaration := DECLARATIONS.get(kind)) is not None:
        from consensus_orm.external.mcp_sink import McpSink  # the SDK is an extra

        try:
            command = shlex.split(rest)
        except ValueError as error:
            raise errors.ConfigurationError(f"the command of the sink cannot be read: {error}", hint=HINT) from error
        # Variables before the program, as a shell takes them: MEMORY_FILE_PATH=... mcp-server-memory
        environment = {}
        while command and "=" in command[0]:
            name, _, value = command.pop(0).partition("=")
            environment[name] = value
        return McpSink(command, declaration(), name=kind, environment=environment, settings=settings)
    return _imported(kind, rest)


def _imported(module: str, attribute: str) -> Sink:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise errors.ConfigurationError(
            f"there is no sink {module!r:.60}: {type(error).__name__}", hint=HINT
        ) from error
    made = found if isinstance(found, Sink) and not isinstance(found, type) else found() if callable(found) else found
    if not isinstance(made, Sink):
        raise errors.ConfigurationError(f"{attribute!r:.60} is a {type(made).__name__}, and no sink", hint=HINT)
    return made
