"""The repository of runs: rounds of agents, assembled from their outputs and syntheses."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from itertools import islice
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

    def list(
        self,
        *,
        spec_id: str | None = None,
        stage: str | None = None,
        with_synthesis: bool = False,
        limit: int | None = None,
        after: Run | None = None,
        oldest_first: bool = False,
    ) -> builtins.list[Run]:
        """Runs, newest first, each with its outputs and syntheses.

        Without a limit all of them are read with two statements; with one, each run of the page is looked up.

        Args:
            spec_id: Only of this spec.
            stage: Only of this stage.
            with_synthesis: Only those that have a synthesis; a verdict that is stored without a run id is a run
                without one.
            limit: The highest number of runs.
            after: A run of an earlier page: only those that come behind it.
            oldest_first: In the other order.

        Returns:
            The runs; the same, in the same order, in every phase.

        Raises:
            InvalidValueError: The limit is negative, or there is no run `after` with these rows any more.
        """
        filters = given(spec_id=_optional("spec_id", spec_id), stage=stage)
        check.flag("with_synthesis", with_synthesis)
        check.flag("oldest_first", oldest_first)
        if after is not None:
            check.instance("after", after, Run)
        if check.limit(limit) is None and after is None:
            return self._all(filters, with_synthesis, oldest_first=oldest_first)
        return [*islice(self._each(filters, after, limit, with_synthesis, oldest_first=oldest_first), limit)]

    def iterate(
        self,
        *,
        spec_id: str | None = None,
        stage: str | None = None,
        with_synthesis: bool = False,
        oldest_first: bool = False,
    ) -> Iterator[Run]:
        """Runs one after the other, in the order of `list`; one is in memory at once, and what names the others.

        Args:
            spec_id: Only of this spec.
            stage: Only of this stage.
            with_synthesis: Only those that have a synthesis.
            oldest_first: In the other order.
        """
        filters = given(spec_id=_optional("spec_id", spec_id), stage=stage)
        check.flag("with_synthesis", with_synthesis)
        return self._each(filters, None, None, with_synthesis, oldest_first=check.flag("oldest_first", oldest_first))

    def _each(
        self, filters: Values, after: Run | None, limit: int | None, with_synthesis: bool, *, oldest_first: bool
    ) -> Iterator[Run]:
        found = self._artifacts.parents(
            filters,
            limit=limit if after is None else None,
            with_row_of=SYNTHESES.name if with_synthesis else None,
            oldest_first=oldest_first,
        )
        if not all(isinstance(name, str) for identity in found for name in identity[:3]):
            # Runs of other programs have no key before they are adopted, and those of a stage are read as one; and by
            # a spec that is no text nothing is found.
            runs = self._all(filters, with_synthesis, oldest_first=oldest_first)
            yield from runs[_place([_newest(run) for run in runs], after) :]
            return
        for spec_id, stage, key, *_ in found[_place([tuple(row[3:]) for row in found], after) :]:
            yield from self._where({"spec_id": spec_id, "stage": stage, "run_key": key})

    def _all(self, filters: Values, with_synthesis: bool, *, oldest_first: bool) -> builtins.list[Run]:
        runs = [run for run in self._where(filters) if run.syntheses or not with_synthesis]
        return runs[::-1] if oldest_first else runs

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

    def latest(self, *, spec_id: str, stage: str, with_synthesis: bool = False) -> Run | None:
        """The newest run of a stage: `list` would give it first.

        While the legacy side is read, this reads the times of all rows of the stage: the legacy tables have no index
        for it.

        Args:
            spec_id: The spec.
            stage: The stage.
            with_synthesis: The newest that has a synthesis. An artifact that is stored without a run id, as the
                verdict of a quality gate, is a run of its own, without one.

        Returns:
            The run, with its outputs and syntheses; None where there is none.
        """
        filters = {"spec_id": check.identifier("spec_id", spec_id), "stage": check.identifier("stage", stage)}
        return next(iter(self.list(**filters, with_synthesis=with_synthesis, limit=1)), None)


def _optional(field: str, value: object) -> Any:
    return check.identifier(field, value, optional=True)


def _newest(run: Run) -> tuple[int | None, ...]:
    """The ids of the newest output and synthesis of a run, which no other run has."""
    return tuple(max((row.id for row in rows), default=None) for rows in (run.outputs, run.syntheses))


def _place(runs: builtins.list[tuple[Any, ...]], after: Run | None) -> int:
    """The place behind a run among others, of which each is told by its newest rows."""
    if after is None:
        return 0
    try:
        return runs.index(_newest(after)) + 1
    except ValueError:
        raise check.invalid(
            "after", "is a run that is gone, or has other rows by now", "begin with a first page"
        ) from None


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
