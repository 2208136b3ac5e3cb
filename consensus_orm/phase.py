"""The five phases of the move, and what each of them writes and reads."""

from __future__ import annotations

from enum import IntEnum, StrEnum
from functools import cached_property

from consensus_orm.errors import InvalidValueError

__all__ = ["Phase", "Side"]


class Side(StrEnum):
    """One of the two schemas of the data."""

    LEGACY = "legacy"
    NORMALIZED = "normalized"

    @property
    def other(self) -> Side:
        """The side opposite."""
        return Side.NORMALIZED if self is Side.LEGACY else Side.LEGACY


class Phase(IntEnum):
    """The phases of the migration: create, write both, move reads, write only the new, clean up.

    Code asks a phase for its properties (`phase.writes_legacy`), and does not compare it with others.
    """

    EXPAND = 1
    DUAL_WRITE = 2
    CUTOVER = 3
    NORMALIZED = 4
    CONTRACT = 5

    @cached_property
    def writes_legacy(self) -> bool:
        """Whether units of work write the legacy tables."""
        return self <= Phase.CUTOVER

    @cached_property
    def writes_normalized(self) -> bool:
        """Whether units of work write the normalized tables."""
        return self >= Phase.DUAL_WRITE

    @cached_property
    def sides(self) -> tuple[tuple[Side, bool], ...]:
        """Both sides, and whether units of work write each."""
        return ((Side.LEGACY, self.writes_legacy), (Side.NORMALIZED, self.writes_normalized))

    @cached_property
    def compares(self) -> bool:
        """Whether units of work write both sides, and compare them."""
        return self.writes_legacy and self.writes_normalized

    @cached_property
    def truth(self) -> Side:
        """The source of truth: the side that reads use."""
        return Side.LEGACY if self < Phase.CUTOVER else Side.NORMALIZED

    @cached_property
    def freezes_legacy(self) -> bool:
        """Whether the legacy tables are frozen: writes by other programs are refused, and changes are recorded."""
        return self is Phase.NORMALIZED

    @cached_property
    def has_legacy(self) -> bool:
        """Whether the legacy tables exist."""
        return self < Phase.CONTRACT

    @property
    def next(self) -> Phase | None:
        """The phase `advance` leads to; None at the end."""
        return Phase(self + 1) if self < Phase.CONTRACT else None

    @property
    def previous(self) -> Phase | None:
        """The phase `rollback` leads to; None at the start."""
        return Phase(self - 1) if self > Phase.EXPAND else None

    @classmethod
    def parse(cls, value: Phase | str | int) -> Phase:
        """Parse the name (in any case) or number of a phase.

        Args:
            value: `"cutover"`, `"CUTOVER"`, `3`, `"3"` or a `Phase`.

        Raises:
            InvalidValueError: There is no such phase.
        """
        text = str(int(value) if isinstance(value, int) else value).strip()
        for phase in cls:
            if text == str(phase.value) or text.upper().replace("-", "_") == phase.name:
                return phase
        known = ", ".join(phase.name.lower() for phase in cls)
        raise InvalidValueError(f"there is no phase {text!r:.40}", hint=f"use one of: {known}", field="phase")
