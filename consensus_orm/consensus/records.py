"""What the repositories return: frozen values, never live entities."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, computed_field

from consensus_orm.times import time_of

__all__ = ["AgentOutput", "Artifact", "Execution", "Record", "Run", "Synthesis"]


class Record(BaseModel):
    """A frozen value, equal to another by its fields."""

    model_config = ConfigDict(frozen=True)

    _names: ClassVar[set[str]]

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Remember the names of the fields for `of`."""
        super().__pydantic_init_subclass__(**kwargs)
        cls._names = set(cls.model_fields)  # shared by all records; pydantic copies it where it changes it

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """Make a record of values as the database gave them, without validating them again.

        A row may hold what no validation would pass (bytes in a text column); it comes back as stored.

        Args:
            values: Every field of the record; kept, not copied.

        Returns:
            The record.
        """
        # What `model_construct` does, less its handling of defaults and aliases: 0.7 instead of 3.2 us.
        record = cls.__new__(cls)
        object.__setattr__(record, "__dict__", values)
        object.__setattr__(record, "__pydantic_fields_set__", cls._names)
        object.__setattr__(record, "__pydantic_extra__", None)
        object.__setattr__(record, "__pydantic_private__", None)
        return record


class _Timed(Record):
    created_at_raw: Any = None
    """`created_at` as stored: text, number, bytes or None."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def created_at(self) -> datetime | None:
        """The time in UTC where the stored value is one (`YYYY-MM-DD HH:MM:SS[.f]`), else None."""
        return time_of(self.created_at_raw)


class Artifact(_Timed):
    """What one agent said in a stage of a spec."""

    id: int
    spec_id: str
    stage: str
    agent_name: str
    content_json: str
    response_text: str | None = None
    run_id: str | None = None
    model_version: str | None = None


class Synthesis(_Timed):
    """What the agents of a stage agreed on."""

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
    """What one agent put out, as part of a run; `id` is the artifact's."""

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

    @computed_field  # type: ignore[prop-decorator]
    @property
    def spawned_at(self) -> datetime | None:
        """When the agent was spawned, UTC; None where the stored value is no time."""
        return time_of(self.spawned_at_raw)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def completed_at(self) -> datetime | None:
        """When the agent completed or failed, UTC; None while it is in flight."""
        return time_of(self.completed_at_raw)


def naming(fields: tuple[str, ...]) -> Callable[[tuple[Any, ...]], dict[str, Any]]:
    """Make what gives the columns of a row the names of a record's fields; `created_at` is the raw one.

    Args:
        fields: The columns in the order of a row (`Pair.fields`); what follows them in a row is left out.
    """
    names = tuple("created_at_raw" if name == "created_at" else name for name in fields)
    return lambda row: dict(zip(names, row))  # noqa: B905 - more may follow, and what orders rows


def time_of_ms(milliseconds: int) -> datetime | None:
    """A time from ms since 1970 UTC; None for 0, which stands for no time, and for what Python has no word for."""
    if not milliseconds:
        return None
    seconds, rest = divmod(milliseconds, 1000)
    try:
        return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest * 1000)
    except (ValueError, OverflowError):  # SQLite knows the year 0, datetime begins with 1
        return None
