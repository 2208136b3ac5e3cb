"""The base class of the repositories of artifacts and syntheses, and the filters that all repositories take."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any, ClassVar, Generic, TypeVar

from consensus_orm import validation as check
from consensus_orm.declaration.move import Move
from consensus_orm.repository.dual_write import DualWrite, Values
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["PairRepository", "Rules", "given"]

R = TypeVar("R")

Rules = Mapping[str, Callable[[str, Any], Any]]
"""How the value of each field is checked, and made what the tables hold."""


def given(**filters: Any) -> Values:
    """The filters that are not None.

    Raises:
        InvalidValueError: One is not text.
    """
    return {name: check.text(name, value) for name, value in filters.items() if value is not None}


class PairRepository(ABC, Generic[R]):
    """The rows of one pair of the consensus data within one unit of work.

    Args:
        uow: The unit of work.
    """

    _pair: ClassVar[Move]
    _rules: ClassVar[Rules]

    def __init__(self, uow: UnitOfWork) -> None:
        self._uow = uow
        self._rows = DualWrite(uow, self._pair)

    @staticmethod
    @abstractmethod
    def _record(row: tuple[Any, ...]) -> R: ...

    def _checked(self, values: Mapping[str, Any]) -> Values:
        """A row to be added, as the tables hold it; what is left out takes its default."""
        checked = {name: rule(name, values.get(name)) for name, rule in self._rules.items()}
        checked["created_at"] = self._time(values.get("created_at"))
        return checked

    def _time(self, created_at: datetime | None) -> str:
        """A time as the tables hold it; the start of the unit of work where left out."""
        return self._uow.now_text if created_at is None else check.moment("created_at", created_at)

    def get(self, id: int) -> R | None:
        """The row with an id.

        Args:
            id: Its id, the same in every phase.

        Returns:
            The row; None where there is none.
        """
        row = self._rows.get(check.key("id", id, optional=True))
        return None if row is None else self._record(row)

    def get_many(self, ids: Iterable[int]) -> list[R]:
        """The rows with some ids, in the order of the ids; those that are not there are left out.

        Args:
            ids: The ids.

        Raises:
            InvalidValueError: They are not several, or one is not an id.
        """
        wanted = [check.key("ids", each) for each in check.several("ids", ids)]
        return [self._record(row) for row in self._rows.many(wanted)]

    def exists(self, id: int) -> bool:
        """Whether there is a row with an id; nothing else of it is read.

        Args:
            id: Its id.
        """
        return self._rows.exists(check.key("id", id))

    def _update(self, id: int, changes: Mapping[str, Any]) -> bool:
        rules = {**self._rules, "created_at": check.moment}
        for name in changes.keys() - rules.keys():
            raise check.invalid(name, "is no field that can change", f"use some of: {', '.join(rules)}")
        changed = {name: rules[name](name, value) for name, value in changes.items()}
        return self._rows.update(check.key("id", id), changed)

    def _page(self, filters: Values, limit: int | None, after: int | None, *, oldest_first: bool) -> list[R]:
        check.flag("oldest_first", oldest_first)
        found = self._rows.rows(
            filters, limit=check.limit(limit), after=check.key("after", after, optional=True), oldest_first=oldest_first
        )
        return [self._record(row) for row in found]

    def _each(self, filters: Values, *, oldest_first: bool) -> Iterator[R]:
        return map(self._record, self._rows.each(filters, oldest_first=check.flag("oldest_first", oldest_first)))

    def delete(self, id: int | None = None, *, spec_id: str | None = None, stage: str | None = None) -> int:
        """Delete rows on both sides: one by its id, or those of a spec.

        Args:
            id: The id of one row.
            spec_id: The spec.
            stage: Only of this stage.

        Returns:
            How many rows were deleted.

        Raises:
            InvalidValueError: Neither an id nor a spec is given, or the spec is empty.
        """
        if id is None:
            return self._rows.delete(given(spec_id=check.identifier("spec_id", spec_id), stage=stage))
        optional = None if spec_id is None else check.identifier("spec_id", spec_id)
        return self._rows.delete({"id": check.key("id", id), **given(spec_id=optional, stage=stage)})
