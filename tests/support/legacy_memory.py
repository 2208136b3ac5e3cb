"""A memory server as the tool used it before: `store_memory` and `search`, texts with tags, no key; on one file.

python legacy_memory.py FILE [MISBEHAVIOUR]
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from mcp.server import MCPServer
from mcp.shared.exceptions import MCPError

FILE, MISBEHAVIOUR = Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""

server = MCPServer("legacy-memory")


def stored() -> list[dict[str, Any]]:
    return [json.loads(line) for line in FILE.read_text().splitlines()] if FILE.exists() else []


@server.tool()
def store_memory(content: str, domain: str = "", importance: int = 5, tags: list[str] | None = None) -> str:
    """Store a text; always a new one."""
    if MISBEHAVIOUR == "refuses":
        raise ValueError(f"no: {content}")
    if MISBEHAVIOUR == "refuses by the protocol":
        raise MCPError(code=-32603, message=f"no: {content}")
    if MISBEHAVIOUR == "dies of poison" and "poison" in content:
        os._exit(1)
    with FILE.open("a") as file:
        file.write(json.dumps({"content": content, "domain": domain, "importance": importance, "tags": tags or []}))
        file.write("\n")
    return json.dumps({"success": True})


if MISBEHAVIOUR != "no search":

    @server.tool(structured_output=False)
    def search(query: str, limit: int = 10, tags: list[str] | None = None, search_type: str = "semantic") -> str:
        """Find texts that have all tags."""
        if MISBEHAVIOUR == "is slow":
            time.sleep(60)
        if MISBEHAVIOUR == "no JSON":
            return "I found nothing, sorry."
        if MISBEHAVIOUR == "deep JSON":
            return "[" * 100_000
        found = [memory for memory in stored() if set(tags or ()) <= set(memory["tags"])]
        return json.dumps({"results": [{"memory": memory, "relevance_score": 1.0} for memory in found[:limit]]})


if __name__ == "__main__":
    server.run("stdio")
