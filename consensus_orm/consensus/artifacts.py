"""The repository of artifacts: one row for each thing that an agent said."""

from __future__ import annotations

import builtins
import inspect
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from functools import partial
from typing import Any, TypedDict

from typing_extensions import Unpack

from consensus_orm import validation as check
from consensus_orm.consensus.declaration import ARTIFACTS
from consensus_orm.consensus.records import Artifact, naming
from consensus_orm.consensus.repository import PairRepository, Rules, given
from consensus_orm.errors import InvalidValueError
from consensus_orm.repository.dual_write import Values

__all__ = ["ArtifactChanges", "Artifacts"]

_OPTIONAL = partial(check.identifier, optional=True, empty=True)
_RULES: Rules = {
    "spec_id": check.identifier,
    "stage": check.identifier,
    "agent_name": check.identifier,
    "content_json": check.content,
    "response_text": partial(check.content, optional=True),
    "run_id": _OPTIONAL,
    "model_version": _OPTIONAL,
}


class ArtifactChanges(TypedDict, total=False):
    """The fields of an artifact that can change; as for `Artifacts.add`."""

    spec_id: str
    stage: str
    agent_name: str
    content_json: str
    response_text: str | None
    run_id: str | None
    model_version: str | None
    created_at: datetime


class Artifacts(PairRepository[Artifact]):
    """The artifacts within one unit of work.

    Args:
        uow: The unit of work.
    """

    _pair = ARTIFACTS
    _rules = _RULES

    @staticmethod
    def _record(row: tuple[Any, ...]) -> Artifact:
        return Artifact.of(_named(row))

    def add(
        self,
        *,
        spec_id: str,
        stage: str,
        agent_name: str,
        content_json: str,
        response_text: str | None = None,
        run_id: str | None = None,
        model_version: str | None = None,
        created_at: datetime | None = None,
    ) -> Artifact:
        """Store the statement of one agent.

        Args:
            spec_id: The spec it is about.
            stage: The stage of the spec; free text.
            agent_name: The agent.
            content_json: The statement, stored verbatim; it need not be JSON.
            response_text: The raw response that it was extracted from.
            run_id: The run it belongs to; without one, rows of the same second are one run.
            model_version: The model; kept from phase DUAL_WRITE on, since the legacy table has no column for it.
            created_at: An aware time; the start of the unit of work where left out, so that a round written in one
                unit of work is one run.

        Returns:
            The artifact, with its id.

        Raises:
            InvalidValueError: A value cannot be accepted; nothing is written.
            MismatchError: The sides differ and `ON_MISMATCH` is raise.
            StorageError: The row could not be written.
        """
        values = {
            "spec_id": spec_id,
            "stage": stage,
            "agent_name": agent_name,
            "content_json": content_json,
            "response_text": response_text,
            "run_id": run_id,
            "model_version": model_version,
            "created_at": created_at,
        }
        checked = self._checked(values)
        return self._stored(self._rows.add(checked), checked)

    def add_many(self, rows: Iterable[Mapping[str, Any]]) -> builtins.list[Artifact]:
        """Store several artifacts, in order.

        Args:
            rows: The arguments of `add`, one mapping for each artifact.

        Returns:
            The artifacts, in the same order.

        Raises:
            InvalidValueError: A value of one of them cannot be accepted; nothing is written.
        """
        try:
            checked = [self._checked(_fields(row)) for row in rows]
        except TypeError as error:
            raise InvalidValueError(
                "a row lacks a required field or has an unknown one",
                hint="give what `add` takes",
                field="rows",
            ) from error
        return [self._stored(key, values) for key, values in zip(self._rows.add_many(checked), checked, strict=True)]

    def _stored(self, key: int, values: Values) -> Artifact:
        if self._uow.phase.truth == "legacy":
            values["model_version"] = None  # as every read in this phase gives it
        values["id"], values["created_at_raw"] = key, values.pop("created_at")
        return Artifact.of(values)

    def update(self, id: int, **changes: Unpack[ArtifactChanges]) -> bool:
        """Change some fields of an artifact, on both sides; other fields keep their very values.

        Args:
            id: Its id.
            **changes: The fields that change, as for `add`; of `model_version`, nothing is kept in phase EXPAND.

        Returns:
            Whether there is such an artifact.

        Raises:
            InvalidValueError: A field is unknown, or a value cannot be accepted; nothing is written.
            MismatchError: The sides differ and `ON_MISMATCH` is raise.
            StorageError: The row could not be written.
        """
        return self._update(id, changes)

    def list(
        self,
        *,
        spec_id: str | None = None,
        stage: str | None = None,
        run_id: str | None = None,
        agent_name: str | None = None,
        limit: int | None = None,
        after: int | None = None,
        oldest_first: bool = False,
    ) -> builtins.list[Artifact]:
        """Artifacts, newest first, ties by id, newest first.

        By a run id without a spec, all artifacts are read while legacy is the source of truth: its table has no index
        for that.

        Args:
            spec_id: Only of this spec.
            stage: Only of this stage.
            run_id: Only of this run id.
            agent_name: Only of this agent.
            limit: The highest number of artifacts.
            after: The id of an artifact: only those that come behind it, for the next page.
            oldest_first: In the other order.

        Returns:
            The artifacts; the same, in the same order, in every phase.

        Raises:
            InvalidValueError: The limit is negative, or there is no artifact `after`.
        """
        filters = given(spec_id=spec_id, stage=stage, run_id=run_id, agent_name=agent_name)
        return self._page(filters, limit, after, oldest_first=oldest_first)

    def iterate(
        self,
        *,
        spec_id: str | None = None,
        stage: str | None = None,
        run_id: str | None = None,
        agent_name: str | None = None,
        oldest_first: bool = False,
    ) -> Iterator[Artifact]:
        """Artifacts one after the other, in the order of `list`; a few are in memory at once, and the ids of all.

        Artifacts that are added or deleted meanwhile are left out; so they may be changed and deleted as they come.

        Args:
            spec_id: Only of this spec.
            stage: Only of this stage.
            run_id: Only of this run id.
            agent_name: Only of this agent.
            oldest_first: In the other order.
        """
        filters = given(spec_id=spec_id, stage=stage, run_id=run_id, agent_name=agent_name)
        return self._each(filters, oldest_first=oldest_first)

    def list_and_count(
        self,
        *,
        spec_id: str | None = None,
        stage: str | None = None,
        run_id: str | None = None,
        agent_name: str | None = None,
        limit: int | None = None,
        after: int | None = None,
        oldest_first: bool = False,
    ) -> tuple[builtins.list[Artifact], int]:
        """A page of artifacts, as of `list`, and how many there are in all, as of `count`.

        Args:
            spec_id: Only of this spec.
            stage: Only of this stage.
            run_id: Only of this run id.
            agent_name: Only of this agent.
            limit: The highest number of artifacts in the page.
            after: As for `list`.
            oldest_first: As for `list`.

        Raises:
            InvalidValueError: As `list` does.
        """
        filters = given(spec_id=spec_id, stage=stage, run_id=run_id, agent_name=agent_name)
        return self._page(filters, limit, after, oldest_first=oldest_first), self._rows.count(filters)

    def count(
        self,
        *,
        spec_id: str | None = None,
        stage: str | None = None,
        run_id: str | None = None,
        agent_name: str | None = None,
    ) -> int:
        """The number of artifacts that `list` would return.

        Args:
            spec_id: Only of this spec.
            stage: Only of this stage.
            run_id: Only of this run id.
            agent_name: Only of this agent.
        """
        return self._rows.count(given(spec_id=spec_id, stage=stage, run_id=run_id, agent_name=agent_name))

    def specs(self) -> builtins.list[str]:
        """The specs that have artifacts, sorted."""
        return self._rows.distinct("spec_id")


_GIVEN = [each for each in inspect.signature(Artifacts.add).parameters.values() if each.kind is each.KEYWORD_ONLY]
_NAMES = {each.name for each in _GIVEN}
_REQUIRED = {each.name for each in _GIVEN if each.default is each.empty}


def _fields(row: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `add` in a row; inspect.Signature.bind takes 40 times as long for this (measured).

    Raises:
        TypeError: It is no moves, a field that is required is missing, or one is unknown.
    """
    given = dict(**row)
    if not _REQUIRED <= given.keys() <= _NAMES:
        raise TypeError
    return given


_named = naming(ARTIFACTS.fields)
