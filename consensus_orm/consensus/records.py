"""The frozen records that the repositories return: artifacts, syntheses, runs, executions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, computed_field, model_validator

from consensus_orm.times import time_of

__all__ = ["AgentOutput", "Artifact", "Execution", "Record", "Run", "Synthesis"]


class Record(BaseModel):
    """A frozen value, equal to another by its fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    _names: ClassVar[set[str]]

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Remember the names of the fields for `of`."""
        super().__pydantic_init_subclass__(**kwargs)
        cls._names = set(cls.model_fields)  # shared by all records; pydantic copies it where it changes it

    @model_validator(mode="before")
    @classmethod
    def _without_computed(cls, given: Any) -> Any:
        """Take back what `model_dump` gave: what it computed follows from the fields."""
        if not isinstance(given, Mapping):
            return given
        return {name: value for name, value in given.items() if name not in cls.model_computed_fields}

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """Make a record of values as the database gave them, without validating them again.

        A row may hold invalid values (bytes in a text column), which are returned as stored.

        Args:
            values: Every field of the record; kept, not copied.

        Returns:
            The record.
        """
        # `model_construct` without its handling of defaults and aliases: 0.7 instead of 3.2 us.
        record = cls.__new__(cls)
        object.__setattr__(record, "__dict__", values)
        object.__setattr__(record, "__pydantic_fields_set__", cls._names)
        object.__setattr__(record, "__pydantic_extra__", None)
        object.__setattr__(record, "__pydantic_private__", None)
        return record


class _Timed(Record):
    created_at_raw: Any = None
    """`created_at` as stored: text, number, bytes or None."""

    @computed_field  # type: ignore[prop-decorator]  # mypy knows no decorated property
    @property
    def created_at(self) -> datetime | None:
        """The stored value as a time in UTC; None where it is not `YYYY-MM-DD HH:MM:SS[.f]`."""
        return time_of(self.created_at_raw)


class Artifact(_Timed):
    """The statement of one agent in a stage of a spec."""

    id: int
    spec_id: str
    stage: str
    agent_name: str
    content_json: str
    response_text: str | None = None
    run_id: str | None = None
    model_version: str | None = None


class Synthesis(_Timed):
    """The result that the agents of a stage agreed on."""

    id: int
    spec_id: str
    stage: str
    output_markdown: str
    output_path: str | None = None
    status: str
    artifacts_count: int | None = None
    agreements: str | None = None
    conflicts: str | None = None
    degraded: bool | None = False
    run_id: str | None = None


class AgentOutput(_Timed):
    """The output of one agent as part of a run; `id` is that of the artifact."""

    id: int
    agent_name: str
    content: str
    response_text: str | None = None
    model_version: str | None = None


class Run(Record):
    """One round of agents: the outputs and syntheses of one spec and stage that belong together."""

    spec_id: str
    stage: str
    run_id: str | None
    started_at: datetime | None
    """Earliest time of its rows, UTC; None where one of them has no time."""
    consensus_ok: bool
    degraded: bool
    outputs: tuple[AgentOutput, ...] = ()
    """Newest first."""
    syntheses: tuple[Synthesis, ...] = ()
    """Newest first."""


class Execution(Record):
    """One spawn of one agent, and how it ended."""

    agent_id: str
    spec_id: str
    stage: str
    phase_type: str
    agent_name: str
    run_id: str | None = None
    branch_id: str | None = None
    spawned_at_raw: Any = None
    completed_at_raw: Any = None
    response_text: str | None = None
    extraction_error: str | None = None

    @computed_field  # type: ignore[prop-decorator]  # mypy knows no decorated property
    @property
    def spawned_at(self) -> datetime | None:
        """When the agent was spawned, UTC; None where the stored value is not a time."""
        return time_of(self.spawned_at_raw)

    @computed_field  # type: ignore[prop-decorator]  # mypy knows no decorated property
    @property
    def completed_at(self) -> datetime | None:
        """When the agent completed or failed, UTC; None while it is in flight."""
        return time_of(self.completed_at_raw)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def naming(fields: tuple[str, ...]) -> Callable[[tuple[Any, ...]], dict[str, Any]]:
    """Make a function that turns a row into the values of a record; `created_at` becomes `created_at_raw`.

    Args:
        fields: The columns in the order of a row (`Pair.fields`); further columns of a row are left out.
    """
    names = tuple("created_at_raw" if name == "created_at" else name for name in fields)
    return lambda row: dict(zip(names, row))  # noqa: B905 - further columns may follow


def time_of_ms(milliseconds: int) -> datetime | None:
    """A time from ms since 1970 UTC; None for 0, which stands for no time, and outside of Python's calendar."""
    try:
        return _EPOCH + timedelta(milliseconds=milliseconds) if milliseconds else None
    except OverflowError:  # SQLite has the year 0, datetime begins with 1
        return None
