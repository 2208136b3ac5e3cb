"""The base class of the repositories of artifacts and syntheses, and the filters that all repositories take."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

from consensus_orm import validation as check
from consensus_orm.declaration.move import Move
from consensus_orm.repository.dual_write import DualWrite, Values
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["PairRepository", "given"]


def given(**filters: Any) -> Values:
    """The filters that are not None.

    Raises:
        InvalidValueError: One is not text.
    """
    return {name: check.text(name, value) for name, value in filters.items() if value is not None}


class PairRepository:
    """The rows of one pair of the consensus data within one unit of work.

    Args:
        uow: The unit of work.
    """

    _pair: ClassVar[Move]

    def __init__(self, uow: UnitOfWork) -> None:
        self._uow = uow
        self._rows = DualWrite(uow, self._pair)

    def _time(self, created_at: datetime | None) -> str:
        """A time as the tables hold it; the start of the unit of work where left out."""
        return self._uow.now_text if created_at is None else check.moment("created_at", created_at)

    def delete(self, *, spec_id: str, stage: str | None = None) -> int:
        """Delete the rows of a spec on both sides.

        Args:
            spec_id: The spec.
            stage: Only of this stage.

        Returns:
            How many rows were deleted.

        Raises:
            InvalidValueError: The spec is empty.
        """
        return self._rows.delete(given(spec_id=check.identifier("spec_id", spec_id), stage=stage))
