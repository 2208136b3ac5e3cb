"""Real memory servers for tests: the npm package @modelcontextprotocol/server-memory, and a legacy one in Python."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from consensus_orm.external import GraphMemory, McpSink, TaggedMemory
from consensus_orm.settings import Settings

__all__ = ["graph_command", "graph_sink", "kill", "tagged_sink"]

PROGRAM = "mcp-server-memory"
NOTED = "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid())); os.execvp(sys.argv[2], sys.argv[2:])"
"""Note the number of the process, and become the server."""

SETTINGS = Settings(sink_timeout=20)


def graph_command() -> str:
    """The program of the npm package; without it the test is skipped."""
    local = Path(__file__).parents[2] / "node_modules" / ".bin" / PROGRAM
    found = str(local) if local.exists() else shutil.which(PROGRAM)
    if found is None or shutil.which("node") is None:
        pytest.skip("NO MEMORY SERVER: run npm install @modelcontextprotocol/server-memory in the checkout")
    return found


def graph_sink(folder: Path, *, settings: Settings = SETTINGS) -> McpSink:
    """The npm package on a file in a folder; `kill` finds its process by the folder."""
    command = [sys.executable, "-c", NOTED, str(folder / "pid"), graph_command()]
    environment = {"MEMORY_FILE_PATH": str(folder / "memory.jsonl"), "PATH": os.environ["PATH"]}
    return McpSink(command, GraphMemory(), name="graph", environment=environment, settings=settings)


def tagged_sink(folder: Path, *words: str) -> McpSink:
    """The legacy server of `legacy_memory` on a file in a folder."""
    pytest.importorskip("mcp")
    script = str(Path(__file__).with_name("legacy_memory.py"))
    command = [sys.executable, script, str(folder / "memories.jsonl"), *words]
    return McpSink(command, TaggedMemory(), name="tagged", settings=SETTINGS)


def kill(folder: Path) -> None:
    """Kill the server that was started last in a folder."""
    os.kill(int((folder / "pid").read_text()), signal.SIGKILL)
