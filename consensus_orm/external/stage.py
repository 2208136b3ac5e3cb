"""The four stages of an external store, beside the five phases, and what each of them does."""

from __future__ import annotations

from enum import IntEnum

from consensus_orm.errors import InvalidValueError
from consensus_orm.models import external

__all__ = ["Stage"]


class Stage(IntEnum):
    """The stages: not used, read once, written along, and left behind.

    Code asks a stage for its properties (`stage.records`), and does not compare it with others.
    """

    OFF = 0
    IMPORT = 1
    MIRROR = external.MIRROR
    DETACHED = 3

    @property
    def imports(self) -> bool:
        """Whether entries that only the external store holds may come in."""
        return self in (Stage.IMPORT, Stage.MIRROR)

    @property
    def records(self) -> bool:
        """Whether units of work write the outbox, and a relay sends it."""
        return self is Stage.MIRROR

    @property
    def next(self) -> Stage | None:
        """The stage `advance` leads to; None at the end."""
        return Stage(self + 1) if self < Stage.DETACHED else None

    @property
    def previous(self) -> Stage | None:
        """The stage `rollback` leads to; None at the start."""
        return Stage(self - 1) if self > Stage.OFF else None

    @classmethod
    def parse(cls, value: Stage | str | int) -> Stage:
        """Parse the name (in any case) or number of a stage.

        Raises:
            InvalidValueError: There is no such stage.
        """
        text = str(int(value) if isinstance(value, int) else value).strip()
        for stage in cls:
            if text == str(stage.value) or text.upper() == stage.name:
                return stage
        known = ", ".join(stage.name.lower() for stage in cls)
        raise InvalidValueError(f"there is no stage {text!r:.40}", hint=f"use one of: {known}", field="stage")
