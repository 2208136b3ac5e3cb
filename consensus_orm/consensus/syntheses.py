"""The repository of syntheses: what the agents of a stage agreed on."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from typing import Any, TypedDict

from typing_extensions import Unpack

from consensus_orm import validation as check
from consensus_orm.consensus.declaration import SYNTHESES
from consensus_orm.consensus.expressions import run_key_of
from consensus_orm.consensus.records import Synthesis, naming
from consensus_orm.consensus.repository import PairRepository, Rules, given
from consensus_orm.databases.lock import Lock
from consensus_orm.repository.dual_write import Values

__all__ = ["Syntheses", "SynthesisChanges", "synthesis_of"]


_RULES: Rules = {
    "spec_id": check.identifier,
    "stage": check.identifier,
    "output_markdown": check.content,
    "output_path": partial(check.content, optional=True),
    "status": check.identifier,
    "artifacts_count": check.number,
    "agreements": partial(check.content, optional=True),
    "conflicts": partial(check.content, optional=True),
    "degraded": lambda name, value: int(check.flag(name, value)),
    "run_id": partial(check.identifier, optional=True, empty=True),
}


class SynthesisChanges(TypedDict, total=False):
    """The fields of a synthesis that can change; as for `Syntheses.add`."""

    spec_id: str
    stage: str
    output_markdown: str
    output_path: str | None
    status: str
    artifacts_count: int | None
    agreements: str | None
    conflicts: str | None
    degraded: bool
    run_id: str | None
    created_at: datetime


class Syntheses(PairRepository[Synthesis]):
    """The syntheses within one unit of work.

    Args:
        uow: The unit of work.
    """

    _pair = SYNTHESES
    _rules = _RULES

    @staticmethod
    def _record(row: tuple[Any, ...]) -> Synthesis:
        return synthesis_of(row)

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
            "spec_id": spec_id,
            "stage": stage,
            "output_markdown": output_markdown,
            "output_path": output_path,
            "status": status,
            "artifacts_count": artifacts_count,
            "agreements": agreements,
            "conflicts": conflicts,
            "degraded": degraded,
            "run_id": run_id,
            "created_at": created_at,
        }
        return self._add(self._checked(values))

    def put(
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
        """Store the one synthesis of a run: it replaces those that the run has.

        Two calls for one run, in any two processes, leave one synthesis. The newest that is replaced gives its id.

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
            "spec_id": spec_id,
            "stage": stage,
            "output_markdown": output_markdown,
            "output_path": output_path,
            "status": status,
            "artifacts_count": artifacts_count,
            "agreements": agreements,
            "conflicts": conflicts,
            "degraded": degraded,
            "run_id": run_id,
            "created_at": created_at,
        }
        checked = self._checked(values)
        self._rows.check(checked)
        self._uow._refuse_to_read_only()
        self._uow._connected.hold(Lock.CARRY)  # two that find none would add one each
        run = {"spec_id": spec_id, "stage": stage, "run_key": run_key_of(run_id, checked["created_at"])}
        keys = self._rows.keys(run, more=("run_key",))
        for key in keys[1:]:
            self._rows.delete({"id": key})
        if not keys or not self._rows.update(keys[0], checked):
            return self._add(checked)
        return _stored(keys[0], checked)

    def _add(self, values: Values) -> Synthesis:
        return _stored(self._rows.add(values), values)

    def update(self, id: int, **changes: Unpack[SynthesisChanges]) -> bool:
        """Change some fields of a synthesis, on both sides; other fields keep their very values.

        Args:
            id: Its id.
            **changes: The fields that change, as for `add`.

        Returns:
            Whether there is such a synthesis.

        Raises:
            InvalidValueError: A field is unknown, or a value cannot be accepted; nothing is written.
            MismatchError: The sides differ and `ON_MISMATCH` is raise.
            StorageError: The row could not be written.
        """
        return self._update(id, changes)

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
        after: int | None = None,
        oldest_first: bool = False,
    ) -> builtins.list[Synthesis]:
        """Syntheses, newest first, ties by id, newest first.

        Args:
            spec_id: Only of this spec.
            stage: Only of this stage.
            run_id: Only of this run id.
            limit: The highest number of syntheses.
            after: The id of a synthesis: only those that come behind it, for the next page.
            oldest_first: In the other order.

        Returns:
            The syntheses; the same, in the same order, in every phase.

        Raises:
            InvalidValueError: The limit is negative, or there is no synthesis `after`.
        """
        filters = given(spec_id=spec_id, stage=stage, run_id=run_id)
        return self._page(filters, limit, after, oldest_first=oldest_first)

    def iterate(
        self,
        *,
        spec_id: str | None = None,
        stage: str | None = None,
        run_id: str | None = None,
        oldest_first: bool = False,
    ) -> Iterator[Synthesis]:
        """Syntheses one after the other, in the order of `list`; a few are in memory at once, and the ids of all.

        Syntheses that are added or deleted meanwhile are left out; so they may be changed and deleted as they come.

        Args:
            spec_id: Only of this spec.
            stage: Only of this stage.
            run_id: Only of this run id.
            oldest_first: In the other order.
        """
        return self._each(given(spec_id=spec_id, stage=stage, run_id=run_id), oldest_first=oldest_first)

    def list_and_count(
        self,
        *,
        spec_id: str | None = None,
        stage: str | None = None,
        run_id: str | None = None,
        limit: int | None = None,
        after: int | None = None,
        oldest_first: bool = False,
    ) -> tuple[builtins.list[Synthesis], int]:
        """A page of syntheses, as of `list`, and how many there are in all, as of `count`.

        Args:
            spec_id: Only of this spec.
            stage: Only of this stage.
            run_id: Only of this run id.
            limit: The highest number of syntheses in the page.
            after: As for `list`.
            oldest_first: As for `list`.

        Raises:
            InvalidValueError: As `list` does.
        """
        filters = given(spec_id=spec_id, stage=stage, run_id=run_id)
        return self._page(filters, limit, after, oldest_first=oldest_first), self._rows.count(filters)

    def count(self, *, spec_id: str | None = None, stage: str | None = None, run_id: str | None = None) -> int:
        """The number of syntheses that `list` would return.

        Args:
            spec_id: Only of this spec.
            stage: Only of this stage.
            run_id: Only of this run id.
        """
        return self._rows.count(given(spec_id=spec_id, stage=stage, run_id=run_id))


_named = naming(SYNTHESES.fields)


def synthesis_of(row: tuple[Any, ...]) -> Synthesis:
    """Make a synthesis of a row whose columns are the fields of the pair."""
    return _synthesis(_named(row))


def _stored(key: int, values: Values) -> Synthesis:
    """The synthesis that was written with some values."""
    values["created_at_raw"] = values.pop("created_at")
    return _synthesis({"id": key, **values})


def _synthesis(values: Values) -> Synthesis:
    if isinstance(values["degraded"], int) and values["degraded"] in (0, 1):
        values["degraded"] = bool(values["degraded"])
    return Synthesis.of(values)
