"""Move a database in use from its legacy schema to a normalized one, with nothing lost and a way back.

from consensus_orm import ConsensusStore

with ConsensusStore.open("artifacts.db") as store:
    with store.unit_of_work() as uow:
        uow.artifacts.add(spec_id="SPEC-1", stage="plan", agent_name="gemini", content_json="{}")
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from consensus_orm import errors
from consensus_orm._version import __version__
from consensus_orm.errors import *  # noqa: F403 - all of them, by their own list

if TYPE_CHECKING:
    from consensus_orm.asyncio.consensus import AsyncConsensusStore, AsyncConsensusUnitOfWork
    from consensus_orm.asyncio.store import AsyncStore
    from consensus_orm.asyncio.unit_of_work import AsyncUnitOfWork
    from consensus_orm.consensus.programs import declare_tables, include_object, owns
    from consensus_orm.consensus.records import AgentOutput, Artifact, Execution, Run, Synthesis
    from consensus_orm.consensus.restoration import restore
    from consensus_orm.consensus.store import ConsensusStore, ConsensusUnitOfWork
    from consensus_orm.consensus.tracker import ExecutionTracker
    from consensus_orm.declaration.move import Move
    from consensus_orm.declaration.moves import Moves
    from consensus_orm.declaration.parts import JsonItems, Many, Parent, Part, Split
    from consensus_orm.declaration.rules import Computed, Convert, Default, Earliest, EnumMap, Explode, Latest, original
    from consensus_orm.phase import Phase, Side
    from consensus_orm.settings import OnMismatch, Settings
    from consensus_orm.store import Store

__all__ = [
    "AgentOutput",
    "Artifact",
    "AsyncConsensusStore",
    "AsyncConsensusUnitOfWork",
    "AsyncStore",
    "AsyncUnitOfWork",
    "Computed",
    "ConsensusStore",
    "ConsensusUnitOfWork",
    "Convert",
    "Default",
    "Earliest",
    "EnumMap",
    "Execution",
    "ExecutionTracker",
    "Explode",
    "JsonItems",
    "Latest",
    "Many",
    "Move",
    "Moves",
    "OnMismatch",
    "Parent",
    "Part",
    "Phase",
    "Run",
    "Settings",
    "Side",
    "Split",
    "Store",
    "Synthesis",
    "__version__",
    "declare_tables",
    "include_object",
    "original",
    "owns",
    "restore",
]
__all__ += errors.__all__

_HOME = {
    "asyncio.consensus": ("AsyncConsensusStore", "AsyncConsensusUnitOfWork"),
    "asyncio.store": ("AsyncStore",),
    "asyncio.unit_of_work": ("AsyncUnitOfWork",),
    "declaration.move": ("Move",),
    "declaration.moves": ("Moves",),
    "declaration.parts": ("JsonItems", "Many", "Parent", "Part", "Split"),
    "declaration.rules": ("Computed", "Convert", "Default", "Earliest", "EnumMap", "Explode", "Latest", "original"),
    "phase": ("Phase", "Side"),
    "consensus.programs": ("declare_tables", "include_object", "owns"),
    "consensus.records": ("AgentOutput", "Artifact", "Execution", "Run", "Synthesis"),
    "consensus.restoration": ("restore",),
    "settings": ("OnMismatch", "Settings"),
    "store": ("Store",),
    "consensus.store": ("ConsensusStore", "ConsensusUnitOfWork"),
    "consensus.tracker": ("ExecutionTracker",),
}


def __getattr__(name: str) -> Any:
    # Imported when first used, which costs 0.4 s: pytest loads our plugin, and so this module, in every project.
    for module, names in _HOME.items():
        if name in names:
            value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{module}"), name)
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
