"""Parts: normalized tables in which a row of a move has at most one row of its own."""

from __future__ import annotations

from collections.abc import Mapping as Dict
from functools import cached_property
from typing import Any

from sqlalchemy import Column, Table
from sqlalchemy.orm import DeclarativeBase, InstrumentedAttribute

from consensus_orm.declaration.attributes import column_of, table_of
from consensus_orm.declaration.rules import Expression

__all__ = ["Part"]

Attribute = InstrumentedAttribute[Any]


class Part:
    """A normalized table that holds some columns of a row, in one row or in none; the table of a subclass, too.

    Args:
        model: The mapped class.
        by: Its column that refers to the key of the moved row: unique, and best its primary key.
        columns: Its columns, or several of them together, and what they hold: a legacy column, or a rule.
        when: A condition on legacy columns: whether a row has its part. Where left out, it has one if one of the
            columns holds a value.
    """

    def __init__(
        self,
        model: type[DeclarativeBase],
        *,
        by: Attribute,
        columns: Dict[Any, Any],
        when: Expression | None = None,
    ) -> None:
        self.model = model
        self._by = by
        self.columns = dict(columns)
        self.when = when

    def __repr__(self) -> str:
        return f"<Part {self.table.name}>"

    @cached_property
    def table(self) -> Table:
        """The table of the model; of a subclass the one that it adds."""
        return table_of(self.model)

    @cached_property
    def by(self) -> Column[Any]:
        """The column that refers to the key of the moved row."""
        return column_of(self._by)
