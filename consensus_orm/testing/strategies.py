"""Strategies for hypothesis: every shape of a row, a whole legacy file, and histories of operations.

    from hypothesis import given
    from consensus_orm.testing import strategies

    @given(strategies.histories())
    def test_mine(history):
        with ConsensusStore.open(":memory:") as store:
            for operation in history:
                store.run(operation.apply)

A failing example prints as what it is made of, and shrinks to few and plain values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import insert

from consensus_orm.errors import ConfigurationError
from consensus_orm.testing.shapes import CONTENTS, HUGE, RUN_IDS, SECOND, TIMES, is_text

try:
    from hypothesis import strategies as st
except ImportError as error:
    raise ConfigurationError(
        "consensus_orm.testing.strategies needs hypothesis, which is not installed",
        hint="run: pip install 'consensus-orm[testing]'",
    ) from error

if TYPE_CHECKING:
    from consensus_orm.consensus.store import ConsensusUnitOfWork

__all__ = [
    "LegacyFile",
    "Operation",
    "artifact_arguments",
    "artifact_rows",
    "execution_rows",
    "histories",
    "legacy_files",
    "operations",
    "synthesis_arguments",
    "synthesis_rows",
]

Strategy = st.SearchStrategy[dict[str, Any]]

_SPECS = ("SPEC-KIT-900", "SPEC-KIT-901", "SPEC-ÄÖ")
_STAGES = ("spec-plan", "plan", "before-specify")
_AGENTS = ("gemini", "claude", "code", "gpt_pro", "consensus-verdict")


def _of(shapes: Mapping[str, Any], *, plain: bool) -> st.SearchStrategy[Any]:
    values = [value for value in shapes.values() if not (isinstance(value, str) and len(value) > HUGE // 10)]
    return st.sampled_from([value for value in values if is_text(value)] if plain else values)


def _texts() -> st.SearchStrategy[str]:
    return st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)


def _contents(*, plain: bool) -> st.SearchStrategy[Any]:
    return _of(CONTENTS, plain=plain) | _texts()


def _round(*, plain: bool) -> dict[str, st.SearchStrategy[Any]]:
    return {
        "spec_id": st.sampled_from(_SPECS),
        "stage": st.sampled_from(_STAGES),
        "run_id": _of(RUN_IDS, plain=plain),
        "created_at": _of(TIMES, plain=plain),
    }


def artifact_rows(*, plain: bool = False) -> Strategy:
    """Rows of `consensus_artifacts`: every shape of `TIMES`, `CONTENTS` and `RUN_IDS` but the huge one.

    Args:
        plain: Only what every kind of database holds; SQLite also holds bytes and numbers in columns of texts.
    """
    return st.fixed_dictionaries(
        {
            **_round(plain=plain),
            "agent_name": st.sampled_from(_AGENTS),
            "content_json": _contents(plain=plain),
            "response_text": st.none() | _contents(plain=plain),
        }
    )


def synthesis_rows(*, plain: bool = False) -> Strategy:
    """Rows of `consensus_synthesis`.

    Args:
        plain: As for `artifact_rows`.
    """
    return st.fixed_dictionaries(
        {
            **_round(plain=plain),
            "output_markdown": _contents(plain=plain),
            "output_path": st.none() | _texts(),
            "status": st.sampled_from(("ok", "degraded", "failed", "Partially FAILED")),
            "artifacts_count": st.none() | st.integers(0, 2**40),
            "agreements": st.none() | _texts(),
            "conflicts": st.none() | _texts(),
            "degraded": st.sampled_from((0, 1, None) if plain else (0, 1, None, 2, "true", "")),
        }
    )


def execution_rows() -> Strategy:
    """Rows of `agent_executions`: in flight, completed, or failed."""
    ended = st.fixed_dictionaries({"completed_at": st.just(SECOND), "response_text": _texts()})
    failed = st.fixed_dictionaries(
        {"completed_at": st.just(SECOND), "response_text": _texts(), "extraction_error": st.just("no JSON found")}
    )
    given = st.fixed_dictionaries(
        {
            "agent_id": st.uuids().map(str),
            "spec_id": st.sampled_from(_SPECS),
            "stage": st.sampled_from(_STAGES),
            "phase_type": st.sampled_from(("quality_gate", "regular_stage")),
            "agent_name": st.sampled_from(_AGENTS),
            "spawned_at": st.just(SECOND),
        }
    )
    return st.builds(lambda row, end: row | end, given, st.just({}) | ended | failed)


@dataclass(frozen=True)
class LegacyFile:
    """The rows of a database as programs of the field left it."""

    artifacts: list[dict[str, Any]] = field(default_factory=list)
    syntheses: list[dict[str, Any]] = field(default_factory=list)
    executions: list[dict[str, Any]] = field(default_factory=list)

    def write(self, path: str | Path) -> None:
        """Make the database.

        Args:
            path: The file, or the URL of a database, where there are none of these rows yet.
        """
        from consensus_orm.consensus.models import AgentExecution
        from consensus_orm.consensus.models.legacy import ConsensusArtifact, ConsensusSynthesis
        from consensus_orm.testing.models import stored
        from consensus_orm.testing.phases import legacy_file

        models = (ConsensusArtifact, ConsensusSynthesis, AgentExecution)
        with legacy_file(path) as session:
            for model, rows in zip(models, (self.artifacts, self.syntheses, self.executions), strict=True):
                for row in rows:
                    session.execute(insert(model).values({name: stored(session, each) for name, each in row.items()}))


def legacy_files(*, plain: bool = False, rows: int = 10) -> st.SearchStrategy[LegacyFile]:
    """Whole legacy databases, to be made by `LegacyFile.write`.

    Args:
        plain: As for `artifact_rows`; what is not plain is for SQLite alone.
        rows: The most rows of a table.
    """
    return st.builds(
        LegacyFile,
        st.lists(artifact_rows(plain=plain), max_size=rows),
        st.lists(synthesis_rows(plain=plain), max_size=rows),
        st.lists(execution_rows(), max_size=rows, unique_by=lambda row: row["agent_id"]),
    )


def _moments() -> st.SearchStrategy[datetime]:
    return st.datetimes(datetime(2025, 11, 4), datetime(2025, 11, 5), timezones=st.just(UTC))


def _round_arguments() -> dict[str, st.SearchStrategy[Any]]:
    return {
        "spec_id": st.sampled_from(_SPECS),
        "stage": st.sampled_from(_STAGES),
        "run_id": st.sampled_from(tuple(RUN_IDS.values())),
        "created_at": _moments(),
    }


def artifact_arguments() -> Strategy:
    """Arguments that `uow.artifacts.add` accepts on every kind of database."""
    given = {"agent_name": st.sampled_from(_AGENTS), "content_json": _texts(), "response_text": st.none() | _texts()}
    return st.fixed_dictionaries({**_round_arguments(), **given})


def synthesis_arguments() -> Strategy:
    """Arguments that `uow.syntheses.add` and `put` accept on every kind of database."""
    given = {"output_markdown": _texts(), "status": st.sampled_from(("ok", "failed")), "degraded": st.booleans()}
    return st.fixed_dictionaries({**_round_arguments(), **given})


@dataclass(frozen=True)
class Operation:
    """One thing that an application does in a unit of work.

    Attributes:
        repository: The repository, as an attribute of the unit of work.
        method: Its method.
        arguments: The arguments by name.
        newest: Whether the method is called with the id of the newest row, and only where there is one.
    """

    repository: str
    method: str
    arguments: Mapping[str, Any]
    newest: bool = False

    def apply(self, uow: ConsensusUnitOfWork) -> Any:
        """Do it.

        Args:
            uow: A unit of work that writes.

        Returns:
            What the method returned; None where there was no row to do it to.
        """
        of = getattr(uow, self.repository)
        if not self.newest:
            return getattr(of, self.method)(**self.arguments)
        return getattr(of, self.method)(rows[0].id, **self.arguments) if (rows := of.list(limit=1)) else None


def operations() -> st.SearchStrategy[Operation]:
    """Single operations: rows added, put, changed and deleted, by spec and by id, all of which succeed."""

    def of(repository: str, method: str, arguments: Strategy, *, newest: bool = False) -> st.SearchStrategy[Operation]:
        return st.builds(Operation, st.just(repository), st.just(method), arguments, st.just(newest))

    specs = st.fixed_dictionaries({"spec_id": st.sampled_from(_SPECS)}, optional={"stage": st.sampled_from(_STAGES)})
    changed = {"agent_name": st.sampled_from(_AGENTS), "run_id": st.sampled_from(tuple(RUN_IDS.values()))}
    return st.one_of(
        of("artifacts", "add", artifact_arguments()),
        of("syntheses", "add", synthesis_arguments()),
        of("syntheses", "put", synthesis_arguments()),
        of("artifacts", "update", st.fixed_dictionaries({}, optional=changed), newest=True),
        of("artifacts", "delete", st.just({}), newest=True),
        of("artifacts", "delete", specs),
        of("syntheses", "delete", specs),
    )


def histories(*, most: int = 10) -> st.SearchStrategy[list[Operation]]:
    """What an application does, one after the other: rows to begin with, then any operations.

    Args:
        most: The most operations.
    """
    return st.lists(operations(), min_size=1, max_size=most)
