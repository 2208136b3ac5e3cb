"""The repository of runs: rounds of agents, assembled from their outputs and syntheses."""

from __future__ import annotations

import builtins
from typing import Any

from consensus_orm import validation as check
from consensus_orm.consensus.declaration import ARTIFACTS, SYNTHESES
from consensus_orm.consensus.records import AgentOutput, Run, Synthesis, naming, time_of_ms
from consensus_orm.consensus.repository import given
from consensus_orm.consensus.syntheses import synthesis_of
from consensus_orm.repository.dual_write import DualWrite, Values
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["Runs"]


class Runs:
    """The runs within one unit of work; a run exists as long as it has an artifact or a synthesis.

    Args:
        uow: The unit of work.
    """

    def __init__(self, uow: UnitOfWork) -> None:
        self._artifacts = DualWrite(uow, ARTIFACTS)
        self._syntheses = DualWrite(uow, SYNTHESES)

    def list(self, *, spec_id: str, stage: str | None = None) -> builtins.list[Run]:
        """The runs of a spec, newest first, each with its outputs and syntheses.

        Args:
            spec_id: The spec.
            stage: Only of this stage.

        Returns:
            The runs; the same, in the same order, in every phase.
        """
        return self._where(given(spec_id=check.identifier("spec_id", spec_id), stage=stage))

    def _where(self, filters: Values) -> builtins.list[Run]:
        rounds: dict[tuple[Any, ...], _Round] = {}
        # Both sides identify the run of a row by the same rule, so this serves both.
        for row in self._artifacts.rows(filters, more=("run_key",)):
            *_, key, at = row
            output = _output(row)
            rounds.setdefault((output["spec_id"], output["stage"], key), _Round()).add_output(output, at)
        for row in self._syntheses.rows(filters, more=("run_key", "latest_consensus_ok", "latest_degraded")):
            *_, key, ok, degraded, at = row
            synthesis = synthesis_of(row)
            found = rounds.setdefault((synthesis.spec_id, synthesis.stage, key), _Round())
            found.add_synthesis(synthesis, bool(ok), bool(degraded), at)
        return [r.run(*name[:2]) for name, r in sorted(rounds.items(), key=lambda item: item[1].age, reverse=True)]

    def latest(self, *, spec_id: str, stage: str) -> Run | None:
        """The newest run of a stage: `list` would give it first.

        While the legacy side is read, this reads the times of all rows of the stage: the legacy tables have no index
        for it.

        Args:
            spec_id: The spec.
            stage: The stage.

        Returns:
            The run, with its outputs and syntheses; None where there is none.
        """
        filters = {"spec_id": check.identifier("spec_id", spec_id), "stage": check.identifier("stage", stage)}
        if (newest := self._artifacts.newest_parent(filters)) is None:
            return None
        *_, key = newest
        # Runs of other programs have no identity before they are adopted; then all runs of the stage are read.
        runs = self._where(filters if key is None else filters | {"run_key": key})
        return runs[0] if runs else None


_output = naming(ARTIFACTS.fields)


class _Round:
    """A run while its rows are collected, outputs and syntheses newest first."""

    def __init__(self) -> None:
        self.outputs: builtins.list[AgentOutput] = []
        self.syntheses: builtins.list[Synthesis] = []
        self.times: builtins.list[int] = []
        self.run_id: str | None = None
        self.consensus_ok, self.degraded = True, False

    def add_output(self, row: Values, at: int) -> None:
        self.times.append(at)
        self.run_id = row["run_id"]
        values = {name: row[name] for name in AgentOutput.model_fields if name != "content"}
        values["content"] = row["content_json"]
        self.outputs.append(AgentOutput.of(values))

    def add_synthesis(self, synthesis: Synthesis, ok: bool, degraded: bool, at: int) -> None:
        if not self.syntheses:  # the newest speaks for the run
            self.consensus_ok, self.degraded = ok, degraded
        self.times.append(at)
        self.run_id = synthesis.run_id
        self.syntheses.append(synthesis)

    @property
    def age(self) -> tuple[int, int, int]:
        """The sort key of runs: their start, then the ids of their newest rows, which are unique."""
        return (
            min(self.times),
            max((o.id for o in self.outputs), default=0),
            max((s.id for s in self.syntheses), default=0),
        )

    def run(self, spec_id: str, stage: str) -> Run:
        return Run.of(
            {
                "spec_id": spec_id,
                "stage": stage,
                "run_id": self.run_id,
                "started_at": time_of_ms(min(self.times)),
                "consensus_ok": self.consensus_ok,
                "degraded": self.degraded,
                "outputs": tuple(self.outputs),
                "syntheses": tuple(self.syntheses),
            }
        )
