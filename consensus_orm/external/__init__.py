"""External stores: a second store that is no SQL database, imported, mirrored, compared and left behind.

    from consensus_orm.external import GraphMemory, McpSink, Mirror

    sink = McpSink(["mcp-server-memory"], GraphMemory())        # extra `mcp`
    mirror = Mirror(store, sink)
    mirror.advance("import")
    mirror.import_entries()
    mirror.advance("mirror")                                    # from here on, units of work write the outbox
    mirror.relay.run(until_empty=True)
    mirror.verify()

The page `docs/external.md` of this package tells the whole way. The engine does not know this package: it offers a hook
before the commit of a unit of work.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from consensus_orm.external.comparison import ComparisonReport
    from consensus_orm.external.declarations import GraphMemory, TaggedMemory
    from consensus_orm.external.file_sink import FileSink
    from consensus_orm.external.findings import Finding
    from consensus_orm.external.importing import ImportReport, Row, read_own
    from consensus_orm.external.mcp_sink import McpSink
    from consensus_orm.external.mirror import Mirror, MirrorStatus
    from consensus_orm.external.outbox import attach
    from consensus_orm.external.relay import Relay, RelayReport
    from consensus_orm.external.sink import Capabilities, Item, Page, Sink
    from consensus_orm.external.stage import Stage

__all__ = [
    "Capabilities",
    "ComparisonReport",
    "FileSink",
    "Finding",
    "GraphMemory",
    "ImportReport",
    "Item",
    "McpSink",
    "Mirror",
    "MirrorStatus",
    "Page",
    "Relay",
    "RelayReport",
    "Row",
    "Sink",
    "Stage",
    "TaggedMemory",
    "attach",
    "read_own",
]

_HOME = {
    "comparison": ("ComparisonReport",),
    "declarations": ("GraphMemory", "TaggedMemory"),
    "file_sink": ("FileSink",),
    "findings": ("Finding",),
    "importing": ("ImportReport", "Row", "read_own"),
    "mcp_sink": ("McpSink",),
    "mirror": ("Mirror", "MirrorStatus"),
    "outbox": ("attach",),
    "relay": ("Relay", "RelayReport"),
    "sink": ("Capabilities", "Item", "Page", "Sink"),
    "stage": ("Stage",),
}


def __getattr__(name: str) -> Any:
    # Loaded when first used, as the package itself does it.
    for module, names in _HOME.items():
        if name in names:
            value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{module}"), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
