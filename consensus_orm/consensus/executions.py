"""The repository of agent executions: spawned agents, and how each ended; one table in every phase."""

from __future__ import annotations

import builtins
from collections.abc import Iterable
from datetime import datetime, timedelta
from functools import cache, cached_property
from typing import Any

from sqlalchemy import ClauseElement, Text, bindparam, cast, delete, null, select, update
from sqlalchemy.dialects.postgresql import insert

from consensus_orm import validation as check
from consensus_orm.consensus.models.executions import AgentExecution
from consensus_orm.consensus.records import Execution
from consensus_orm.consensus.repository import given
from consensus_orm.declaration.attributes import table_of
from consensus_orm.declaration.expressions import milliseconds
from consensus_orm.errors import InvalidValueError, UnknownAgentError
from consensus_orm.statements.rendering import Statement
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["Executions"]

TABLE = table_of(AgentExecution)
COLUMNS = tuple(TABLE.columns.keys())

RESPAWN = ("spec_id", "stage", "phase_type", "agent_name", "run_id", "branch_id", "spawned_at")
"""The columns that a repeated spawn may change while the agent has not completed."""


@cache
def _spawn(names: tuple[str, ...]) -> ClauseElement:
    """Insert a spawn, or change it while the agent has not completed; the statement suits SQLite, too."""
    spawn = insert(TABLE).values({name: bindparam(name) for name in names})
    changes = {name: spawn.excluded[name] for name in RESPAWN if name in names}
    return spawn.on_conflict_do_update(index_elements=["agent_id"], set_=changes, where=TABLE.c.completed_at.is_(None))


@cache
def _complete(names: tuple[str, ...]) -> ClauseElement:
    """Complete a spawn; the response may hold bytes that are not UTF-8."""
    values = {name: cast(bindparam(name), Text) for name in names}
    return update(TABLE).where(TABLE.c.agent_id == bindparam("_agent_id")).values(values)


@cache
def _found(present: frozenset[str], equal: tuple[str, ...], empty: str | None, filled: str | None) -> ClauseElement:
    """Executions with given values, and with one column empty or filled; oldest first."""
    columns = [TABLE.c[name] if name in present else null().label(name) for name in COLUMNS]
    where = [TABLE.c[name] == bindparam(name) for name in equal]
    where += [] if empty is None else [TABLE.c[empty].is_(None)]
    where += [] if filled is None else [TABLE.c[filled].is_not(None)]
    return select(*columns).where(*where).order_by(TABLE.c.spawned_at, TABLE.c.agent_id)


_AT = milliseconds(TABLE.c.completed_at)
COMPLETED_BEFORE = delete(TABLE).where(
    TABLE.c.completed_at >= "0001", TABLE.c.completed_at < bindparam("second"), _AT != 0, bindparam("before") > _AT
)
"""Delete executions that completed before a time; rows whose text is not a valid time are left alone.

Times as text sort in the order of time, so an index finds those up to a second, and only they are read."""


class Executions:
    """The agent executions within one unit of work.

    Args:
        uow: The unit of work.
    """

    def __init__(self, uow: UnitOfWork) -> None:
        self._uow = uow

    def record_spawn(
        self,
        *,
        agent_id: str,
        spec_id: str,
        stage: str,
        phase_type: str,
        agent_name: str,
        run_id: str | None = None,
        branch_id: str | None = None,
    ) -> Execution:
        """Record that an agent was spawned; may be repeated, and never erases a completion.

        Args:
            agent_id: The spawn; unique.
            spec_id: The spec it works on.
            stage: The stage of the spec.
            phase_type: The purpose of the spawn, for example quality_gate.
            agent_name: The agent.
            run_id: The run it belongs to.
            branch_id: The branch of the run.

        Returns:
            The execution as it stands now.

        Raises:
            InvalidValueError: A value cannot be accepted; nothing is written.
        """
        values = {
            "agent_id": check.identifier("agent_id", agent_id),
            "spec_id": check.identifier("spec_id", spec_id),
            "stage": check.identifier("stage", stage),
            "phase_type": check.identifier("phase_type", phase_type),
            "agent_name": check.identifier("agent_name", agent_name),
            "run_id": check.identifier("run_id", run_id, optional=True, empty=True),
            "branch_id": check.identifier("branch_id", branch_id, optional=True, empty=True),
            "spawned_at": self._uow.now_text,
        }
        self._uow._connected.check(values)
        self._require(name for name, value in values.items() if value is not None)
        names = tuple(name for name in values if name in self._present)
        self._uow._execute(_spawn(names), values)
        return self._known(agent_id)

    def record_completion(self, agent_id: str, response_text: str) -> Execution:
        """Record that an agent completed.

        Args:
            agent_id: The spawn.
            response_text: Its response, stored verbatim.

        Returns:
            The execution as it stands now.

        Raises:
            UnknownAgentError: The spawn was not recorded.
        """
        return self._complete(agent_id, response_text=check.content("response_text", response_text))

    def record_extraction_failure(self, agent_id: str, raw_output: str, error: str) -> Execution:
        """Record that an agent completed with output that could not be parsed; the output is kept.

        Args:
            agent_id: The spawn.
            raw_output: Its output, stored verbatim.
            error: Why nothing could be extracted.

        Returns:
            The execution as it stands now.

        Raises:
            UnknownAgentError: The spawn was not recorded.
            InvalidValueError: The error is empty.
        """
        if not check.content("error", error):
            raise InvalidValueError("error must not be empty", field="error")
        raw = check.content("raw_output", raw_output)
        return self._complete(agent_id, response_text=raw, extraction_error=error)

    def _complete(self, agent_id: str, **values: Any) -> Execution:
        check.identifier("agent_id", agent_id)
        values["completed_at"] = self._uow.now_text
        self._uow._connected.check({**values, "agent_id": agent_id})
        self._require(values)
        if not self._uow._execute(_complete(tuple(values)), {**values, "_agent_id": agent_id}).rowcount:
            raise UnknownAgentError(f"no spawn of agent {agent_id!r} was recorded", agent_id=agent_id)
        return self._known(agent_id)

    def get(self, agent_id: str) -> Execution | None:
        """The execution of a spawn; None where there is none.

        Args:
            agent_id: The spawn.
        """
        rows = self._where({"agent_id": check.text("agent_id", agent_id)})
        return rows[0] if rows else None

    def in_flight(self, *, spec_id: str | None = None, run_id: str | None = None) -> builtins.list[Execution]:
        """Executions that never completed, oldest first.

        Without a filter, a table that another program made is read in full: it has no index for this
        (`AgentExecution`).

        Args:
            spec_id: Only of this spec.
            run_id: Only of this run.
        """
        return self._where(given(spec_id=spec_id, run_id=run_id), empty="completed_at")

    def list(
        self, *, spec_id: str | None = None, stage: str | None = None, run_id: str | None = None
    ) -> builtins.list[Execution]:
        """Executions, oldest first.

        Args:
            spec_id: Only of this spec.
            stage: Only of this stage.
            run_id: Only of this run.
        """
        return self._where(given(spec_id=spec_id, stage=stage, run_id=run_id))

    def extraction_failures(self, spec_id: str) -> builtins.list[Execution]:
        """Executions of a spec whose output could not be parsed, with that output, oldest first.

        Args:
            spec_id: The spec.
        """
        return self._where({"spec_id": check.text("spec_id", spec_id)}, filled="extraction_error")

    def for_branch(self, *, spec_id: str, stage: str, branch_id: str) -> builtins.list[Execution]:
        """Executions of one branch of a stage, oldest first.

        Args:
            spec_id: The spec.
            stage: The stage.
            branch_id: The branch.
        """
        filters = {"spec_id": spec_id, "stage": stage, "branch_id": branch_id}
        return self._where({name: check.text(name, value) for name, value in filters.items()})

    def cleanup(self, older_than: datetime | timedelta) -> int:
        """Delete executions that completed long ago, and none that are in flight.

        A table that another program made is read in full: it has no index for this (`AgentExecution`).

        Args:
            older_than: An aware time, or how long before the start of this unit of work.

        Returns:
            The number of deleted executions.

        Raises:
            InvalidValueError: The time has no zone, or the duration is negative.
        """
        if isinstance(older_than, timedelta):
            if older_than < timedelta(0):
                raise InvalidValueError("older_than must not be negative", field="older_than")
            try:
                older_than = self._uow.now - older_than
            except OverflowError:
                raise InvalidValueError("older_than lies before the year 1", field="older_than") from None
        second = check.moment("older_than", older_than)[:19] + "z"  # a letter sorts after any fraction
        parameters = {"before": int(older_than.timestamp() * 1000), "second": second}
        return self._uow._execute(COMPLETED_BEFORE, parameters).rowcount

    # Files in the field have 8 to 11 of the columns -------------------------------------------------------

    @cached_property
    def _present(self) -> set[str]:
        return self._uow.catalog.columns(self._uow, TABLE.name)

    def _require(self, names: Iterable[str]) -> None:
        """Add the columns of values that the file does not have."""
        for name in names:
            if name not in self._present and name in COLUMNS:
                self._uow._execute(Statement(f"ALTER TABLE {TABLE.name} ADD COLUMN {name} TEXT", writes=True))
                self._present.add(name)

    def _where(
        self, filters: dict[str, Any], *, empty: str | None = None, filled: str | None = None
    ) -> builtins.list[Execution]:
        if {*filters, *([filled] if filled else [])} - self._present:
            return []  # a missing column holds no value
        statement = _found(frozenset(self._present), tuple(filters), empty, filled)
        return [_execution(row) for row in self._uow._rows(statement, filters)]

    def _known(self, agent_id: str) -> Execution:
        return self._where({"agent_id": agent_id})[0]


_RAW = {"spawned_at": "spawned_at_raw", "completed_at": "completed_at_raw"}


def _execution(row: tuple[Any, ...]) -> Execution:
    return Execution.of({_RAW.get(name, name): value for name, value in zip(COLUMNS, row, strict=True)})
