"""Testing kit: factories for every model and record, odd rows, stores in every phase, and counted statements.

The factories and strategies need the extra `testing` (factory-boy, hypothesis). pytest finds the plugin
`consensus_orm.testing.plugin` by itself; its docstring lists the fixtures. `consensus-orm docs testing` has the tables.

    from consensus_orm.testing import ConsensusArtifactFactory, artifact_values, legacy_file, take_to

    with legacy_file(path):                                     # a file as programs of the field left it
        ConsensusArtifactFactory.create_batch(3)                # one round: same spec, stage and second
        ConsensusArtifactFactory.create(time_shape="iso", content_shape="invalid_utf8")
    with ConsensusStore.open(path) as store:
        take_to(store, Phase.CUTOVER)
        with store.unit_of_work() as uow:
            uow.artifacts.add(**artifact_values(agent_name="claude"))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from consensus_orm.testing import strategies
    from consensus_orm.testing._factory import seed
    from consensus_orm.testing.models import (
        AgentExecutionFactory,
        AgentOutputFactory,
        ConsensusArtifactFactory,
        ConsensusRunFactory,
        ConsensusSynthesisFactory,
        ConsensusSynthesisRecordFactory,
        twins,
    )
    from consensus_orm.testing.moves import check_moves
    from consensus_orm.testing.phases import legacy_file, legacy_history, take_to
    from consensus_orm.testing.queries import QueryLog, count_queries
    from consensus_orm.testing.records import (
        AgentOutputRecordFactory,
        ArtifactFactory,
        ExecutionFactory,
        RunFactory,
        SynthesisFactory,
    )
    from consensus_orm.testing.session import session_on, use_session
    from consensus_orm.testing.shapes import CONTENTS, RUN_IDS, SECOND, TIMES
    from consensus_orm.testing.values import (
        ArtifactValuesFactory,
        SpawnValuesFactory,
        SynthesisValuesFactory,
        artifact_values,
        spawn_values,
        synthesis_values,
    )

__all__ = [
    "CONTENTS",
    "RUN_IDS",
    "SECOND",
    "TIMES",
    "AgentExecutionFactory",
    "AgentOutputFactory",
    "AgentOutputRecordFactory",
    "ArtifactFactory",
    "ArtifactValuesFactory",
    "ConsensusArtifactFactory",
    "ConsensusRunFactory",
    "ConsensusSynthesisFactory",
    "ConsensusSynthesisRecordFactory",
    "ExecutionFactory",
    "QueryLog",
    "RunFactory",
    "SpawnValuesFactory",
    "SynthesisFactory",
    "SynthesisValuesFactory",
    "artifact_values",
    "check_moves",
    "count_queries",
    "legacy_file",
    "legacy_history",
    "seed",
    "session_on",
    "spawn_values",
    "strategies",
    "synthesis_values",
    "take_to",
    "twins",
    "use_session",
]

_MODULES = ("shapes", "queries", "session", "phases", "values", "records", "models", "moves", "_factory")


def __getattr__(name: str) -> Any:
    if name == "strategies":
        return importlib.import_module(f"{__name__}.strategies")
    # Imported when first used: pytest loads the plugin, and so this package, in every run of every project.
    for module in _MODULES if name in __all__ else ():
        home = importlib.import_module(f"{__name__}.{module}")
        if name in home.__all__:
            return globals().setdefault(name, getattr(home, name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
