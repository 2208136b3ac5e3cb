"""The repository of agent executions: spawned agents, and how each ended; one table in every phase."""

from __future__ import annotations

import builtins
import json
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from functools import cache, cached_property
from typing import Any, NamedTuple

from sqlalchemy import ClauseElement, Select, Text, bindparam, cast, delete, func, null, select, tuple_, update
from sqlalchemy.dialects.postgresql import insert

from consensus_orm import validation as check
from consensus_orm.consensus.models.executions import AgentExecution
from consensus_orm.consensus.records import Execution
from consensus_orm.consensus.repository import given
from consensus_orm.declaration.attributes import table_of
from consensus_orm.declaration.expressions import milliseconds
from consensus_orm.errors import InvalidValueError, UnknownAgentError
from consensus_orm.repository.routed_reads import STREAMED
from consensus_orm.statements.rendering import Statement, in_keys
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


class _Which(NamedTuple):
    """Which executions: those with given values, and with one column empty or filled."""

    equal: tuple[str, ...] = ()
    empty: str | None = None
    filled: str | None = None

    def of(self, given: Select[Any]) -> Select[Any]:
        where = [TABLE.c[name] == bindparam(name) for name in self.equal]
        where += [] if self.empty is None else [TABLE.c[self.empty].is_(None)]
        where += [] if self.filled is None else [TABLE.c[self.filled].is_not(None)]
        return given.where(*where)


@cache
def _found(
    present: frozenset[str], which: _Which, *, newest_first: bool, limited: bool, behind: bool, keys_alone: bool
) -> ClauseElement:
    """Executions, oldest or newest first: at most `_limit`, and those behind `_after`."""
    columns = [TABLE.c[name] if name in present else null().label(name) for name in COLUMNS]
    order = (TABLE.c.spawned_at, TABLE.c.agent_id)
    found = which.of(select(TABLE.c.agent_id) if keys_alone else select(*columns))
    if behind:
        mark = TABLE.alias()
        at = select(mark.c.spawned_at).where(mark.c.agent_id == bindparam("_after")).scalar_subquery()
        here, there = tuple_(*order), tuple_(at, bindparam("_after"))
        found = found.where(here < there if newest_first else here > there)
    found = found.order_by(*(of.desc() if newest_first else of for of in order))
    return found.limit(bindparam("_limit")) if limited else found


@cache
def _count(which: _Which) -> ClauseElement:
    return which.of(select(func.count()).select_from(TABLE))


@cache
def _by_keys(present: frozenset[str]) -> ClauseElement:
    columns = [TABLE.c[name] if name in present else null().label(name) for name in COLUMNS]
    return select(*columns).where(in_keys(TABLE.c.agent_id))


EXISTS = select(TABLE.c.agent_id).where(TABLE.c.agent_id == bindparam("agent_id"))
DELETE = delete(TABLE).where(TABLE.c.agent_id == bindparam("agent_id"))


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

    def get_many(self, agent_ids: Iterable[str]) -> builtins.list[Execution]:
        """The executions of some spawns, in the order of their ids; those that are not there are left out.

        Args:
            agent_ids: The spawns.
        """
        return self._many([check.text("agent_ids", of) for of in check.several("agent_ids", agent_ids)])

    def exists(self, agent_id: str) -> bool:
        """Whether a spawn was recorded; nothing else of it is read.

        Args:
            agent_id: The spawn.
        """
        return bool(self._uow._rows(EXISTS, {"agent_id": check.text("agent_id", agent_id)}))

    def in_flight(
        self,
        *,
        spec_id: str | None = None,
        run_id: str | None = None,
        limit: int | None = None,
        newest_first: bool = False,
    ) -> builtins.list[Execution]:
        """Executions that never completed, oldest first.

        Without a filter, a table that another program made is read in full: it has no index for this
        (`AgentExecution`).

        Args:
            spec_id: Only of this spec.
            run_id: Only of this run.
            limit: The highest number of executions.
            newest_first: In the other order.
        """
        filters = given(spec_id=spec_id, run_id=run_id)
        return self._where(filters, empty="completed_at", limit=limit, newest_first=newest_first)

    def list(
        self,
        *,
        spec_id: str | None = None,
        stage: str | None = None,
        run_id: str | None = None,
        agent_name: str | None = None,
        limit: int | None = None,
        after: str | None = None,
        newest_first: bool = False,
    ) -> builtins.list[Execution]:
        """Executions, oldest first, ties by agent_id.

        Args:
            spec_id: Only of this spec.
            stage: Only of this stage.
            run_id: Only of this run.
            agent_name: Only of this agent.
            limit: The highest number of executions.
            after: The agent_id of an execution: only those that come behind it, for the next page.
            newest_first: In the other order.

        Raises:
            InvalidValueError: The limit is negative, or there is no execution `after`.
        """
        filters = given(spec_id=spec_id, stage=stage, run_id=run_id, agent_name=agent_name)
        return self._where(filters, limit=limit, after=after, newest_first=newest_first)

    def iterate(
        self,
        *,
        spec_id: str | None = None,
        stage: str | None = None,
        run_id: str | None = None,
        agent_name: str | None = None,
        newest_first: bool = False,
    ) -> Iterator[Execution]:
        """Executions one after the other, in the order of `list`; a few are in memory at once, and the ids of all.

        Args:
            spec_id: Only of this spec.
            stage: Only of this stage.
            run_id: Only of this run.
            agent_name: Only of this agent.
            newest_first: In the other order.
        """
        filters = given(spec_id=spec_id, stage=stage, run_id=run_id, agent_name=agent_name)
        check.flag("newest_first", newest_first)
        return self._each(filters, newest_first=newest_first)

    def _each(self, filters: dict[str, Any], *, newest_first: bool) -> Iterator[Execution]:
        keys = [
            key for (key,) in self._found(filters, _Which(tuple(filters)), newest_first=newest_first, keys_alone=True)
        ]
        for first in range(0, len(keys), STREAMED):
            yield from self._many(keys[first : first + STREAMED])

    def list_and_count(
        self,
        *,
        spec_id: str | None = None,
        stage: str | None = None,
        run_id: str | None = None,
        agent_name: str | None = None,
        limit: int | None = None,
        after: str | None = None,
        newest_first: bool = False,
    ) -> tuple[builtins.list[Execution], int]:
        """A page of executions, as of `list`, and how many there are in all, as of `count`.

        Args:
            spec_id: Only of this spec.
            stage: Only of this stage.
            run_id: Only of this run.
            agent_name: Only of this agent.
            limit: The highest number of executions in the page.
            after: As for `list`.
            newest_first: As for `list`.

        Raises:
            InvalidValueError: As `list` does.
        """
        filters = given(spec_id=spec_id, stage=stage, run_id=run_id, agent_name=agent_name)
        return self._where(filters, limit=limit, after=after, newest_first=newest_first), self._count(filters)

    def count(
        self,
        *,
        spec_id: str | None = None,
        stage: str | None = None,
        run_id: str | None = None,
        agent_name: str | None = None,
    ) -> int:
        """The number of executions that `list` would return.

        Args:
            spec_id: Only of this spec.
            stage: Only of this stage.
            run_id: Only of this run.
            agent_name: Only of this agent.
        """
        return self._count(given(spec_id=spec_id, stage=stage, run_id=run_id, agent_name=agent_name))

    def extraction_failures(
        self, spec_id: str, *, limit: int | None = None, newest_first: bool = False
    ) -> builtins.list[Execution]:
        """Executions of a spec whose output could not be parsed, with that output, oldest first.

        Args:
            spec_id: The spec.
            limit: The highest number of executions.
            newest_first: In the other order.
        """
        filters = {"spec_id": check.text("spec_id", spec_id)}
        return self._where(filters, filled="extraction_error", limit=limit, newest_first=newest_first)

    def for_branch(
        self, *, spec_id: str, stage: str, branch_id: str, limit: int | None = None, newest_first: bool = False
    ) -> builtins.list[Execution]:
        """Executions of one branch of a stage, oldest first.

        Args:
            spec_id: The spec.
            stage: The stage.
            branch_id: The branch.
            limit: The highest number of executions.
            newest_first: In the other order.
        """
        filters = {"spec_id": spec_id, "stage": stage, "branch_id": branch_id}
        texts = {name: check.text(name, value) for name, value in filters.items()}
        return self._where(texts, limit=limit, newest_first=newest_first)

    def delete(self, agent_id: str) -> bool:
        """Delete the execution of a spawn, one in flight, too.

        Args:
            agent_id: The spawn.

        Returns:
            Whether there was one.
        """
        return bool(self._uow._execute(DELETE, {"agent_id": check.identifier("agent_id", agent_id)}).rowcount)

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
        return {name.lower() for name in self._uow.catalog.columns(self._uow, TABLE.name)}

    def _require(self, names: Iterable[str]) -> None:
        """Add the columns of values that the file does not have."""
        for name in names:
            if name not in self._present and name in COLUMNS:
                self._uow._execute(Statement(f"ALTER TABLE {TABLE.name} ADD COLUMN {name} TEXT", writes=True))
                self._present.add(name)

    def _where(
        self,
        filters: dict[str, Any],
        *,
        empty: str | None = None,
        filled: str | None = None,
        limit: int | None = None,
        after: str | None = None,
        newest_first: bool = False,
    ) -> builtins.list[Execution]:
        check.limit(limit)
        check.text("after", after, optional=True)
        check.flag("newest_first", newest_first)
        which = _Which(tuple(filters), empty, filled)
        found = self._found(filters, which, limit=limit, after=after, newest_first=newest_first)
        if after is not None and not found and not self.exists(after):
            raise check.invalid("after", "is the agent_id of no execution", "begin with a first page")
        return [_execution(row) for row in found]

    def _found(
        self,
        filters: dict[str, Any],
        which: _Which,
        *,
        limit: int | None = None,
        after: str | None = None,
        newest_first: bool,
        keys_alone: bool = False,
    ) -> builtins.list[tuple[Any, ...]]:
        if self._is_missing(which):
            return []
        statement = _found(
            frozenset(self._present),
            which,
            newest_first=newest_first,
            limited=limit is not None,
            behind=after is not None,
            keys_alone=keys_alone,
        )
        return self._uow._rows(statement, filters | {"_limit": limit, "_after": after})

    def _is_missing(self, which: _Which) -> bool:
        """Whether a column that must hold a value is missing, so that no row has one."""
        return bool({*which.equal, *([which.filled] if which.filled else [])} - self._present)

    def _count(self, filters: dict[str, Any]) -> int:
        which = _Which(tuple(filters))
        rows = [] if self._is_missing(which) else self._uow._rows(_count(which), filters)
        return rows[0][0] if rows else 0

    def _many(self, agent_ids: builtins.list[str]) -> builtins.list[Execution]:
        rows = self._uow._rows(_by_keys(frozenset(self._present)), {"_keys": json.dumps(agent_ids)})
        found = {execution.agent_id: execution for execution in map(_execution, rows)}
        return [found[key] for key in dict.fromkeys(agent_ids) if key in found]

    def _known(self, agent_id: str) -> Execution:
        return self._where({"agent_id": agent_id})[0]


_RAW = {"spawned_at": "spawned_at_raw", "completed_at": "completed_at_raw"}


def _execution(row: tuple[Any, ...]) -> Execution:
    return Execution.of({_RAW.get(name, name): value for name, value in zip(COLUMNS, row, strict=True)})
