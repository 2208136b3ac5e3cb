"""The repository of syntheses: what the agents of a stage agreed on."""

from __future__ import annotations

import builtins
from datetime import datetime
from typing import Any

from consensus_orm import validation as check
from consensus_orm.consensus.declaration import SYNTHESES
from consensus_orm.consensus.records import Synthesis, naming
from consensus_orm.consensus.repository import PairRepository, given
from consensus_orm.repository.dual_write import Values

__all__ = ["Syntheses", "synthesis_of"]


class Syntheses(PairRepository):
    """The syntheses within one unit of work.

    Args:
        uow: The unit of work.
    """

    _pair = SYNTHESES

    def add(
        self,
        *,
        spec_id: str,
        stage: str,
        output_markdown: str,
        output_path: str | None = None,
        status: str,
        artifacts_count: int | None = None,
        agreements: str | None = None,
        conflicts: str | None = None,
        degraded: bool = False,
        run_id: str | None = None,
        created_at: datetime | None = None,
    ) -> Synthesis:
        """Store a synthesis; of several in a run, the newest counts.

        Args:
            spec_id: The spec it is about.
            stage: The stage of the spec.
            output_markdown: The synthesis itself, stored verbatim.
            output_path: The file it was written to.
            status: ok, degraded, failed or any other word.
            artifacts_count: The number of artifacts it was made from.
            agreements: What the agents agreed on.
            conflicts: What they disagreed on.
            degraded: Whether agents were missing.
            run_id: The run it belongs to; without one, rows of the same second are one run.
            created_at: An aware time; the start of the unit of work where left out.

        Returns:
            The synthesis, with its id.

        Raises:
            InvalidValueError: A value cannot be accepted; nothing is written.
            MismatchError: The sides differ and `ON_MISMATCH` is raise.
            StorageError: The row could not be written.
        """
        values = {
            "spec_id": check.identifier("spec_id", spec_id),
            "stage": check.identifier("stage", stage),
            "output_markdown": check.content("output_markdown", output_markdown),
            "output_path": check.content("output_path", output_path, optional=True),
            "status": check.identifier("status", status),
            "artifacts_count": check.number("artifacts_count", artifacts_count),
            "agreements": check.content("agreements", agreements, optional=True),
            "conflicts": check.content("conflicts", conflicts, optional=True),
            "degraded": int(check.flag("degraded", degraded)),
            "run_id": check.identifier("run_id", run_id, optional=True, empty=True),
            "created_at": self._time(created_at),
        }
        key = self._rows.add(values)
        values["created_at_raw"] = values.pop("created_at")
        return _synthesis({"id": key, **values})

    def latest(self, *, spec_id: str, stage: str) -> Synthesis | None:
        """The newest synthesis of a stage.

        Args:
            spec_id: The spec.
            stage: The stage.

        Returns:
            The synthesis; None where there is none.
        """
        rows = self._rows.rows(given(spec_id=spec_id, stage=stage), limit=1)
        return synthesis_of(rows[0]) if rows else None

    def list(
        self,
        *,
        spec_id: str | None = None,
        stage: str | None = None,
        run_id: str | None = None,
        limit: int | None = None,
    ) -> builtins.list[Synthesis]:
        """Syntheses, newest first, ties by id, newest first.

        Args:
            spec_id: Only of this spec.
            stage: Only of this stage.
            run_id: Only of this run id.
            limit: The highest number of syntheses.

        Returns:
            The syntheses; the same, in the same order, in every phase.

        Raises:
            InvalidValueError: The limit is negative.
        """
        filters = given(spec_id=spec_id, stage=stage, run_id=run_id)
        return [synthesis_of(row) for row in self._rows.rows(filters, limit=check.limit(limit))]


_named = naming(SYNTHESES.fields)


def synthesis_of(row: tuple[Any, ...]) -> Synthesis:
    """Make a synthesis of a row whose columns are the fields of the pair."""
    return _synthesis(_named(row))


def _synthesis(values: Values) -> Synthesis:
    if isinstance(values["degraded"], int) and values["degraded"] in (0, 1):
        values["degraded"] = bool(values["degraded"])
    return Synthesis.of(values)
