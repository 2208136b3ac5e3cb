"""The defaults of columns: what a field holds that a row leaves out, the same on both sides."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

from sqlalchemy import Boolean, Column, Float, Integer, literal, select
from sqlalchemy.schema import ColumnDefault, DefaultClause

from consensus_orm.statements.rows import PairRows

__all__ = ["DefaultStatements"]


class DefaultStatements(PairRows):
    """The defaults of the columns of a move."""

    @cached_property
    def defaults(self) -> dict[str, Callable[[], Any] | str]:
        """For each field with a default, what gives its value: a function, or a statement."""
        names = [*self.pair.columns, *(of.key for of in self.pair.kept)]
        if not self.pair.is_numbered:  # numbers are the database's to give
            names += self.pair.legacy_keys
        found = {name: self._default(of) for name in names if (of := self.pair.declared(name)) is not None}
        return {name: given for name, given in found.items() if given is not None}

    def _default(self, of: Column[Any]) -> Callable[[], Any] | str | None:
        if isinstance(of.default, ColumnDefault):
            value = of.default.arg
            if of.default.is_callable:
                return lambda: value(None)
            return self.render(select(value)) if of.default.is_clause_element else lambda: value
        if not isinstance(of.server_default, DefaultClause):
            return None
        said = of.server_default.arg
        # A text is what the DDL says between quotes; the column makes of it what its type is.
        given: Any = literal(_read(said, of)) if isinstance(said, str) else said
        return self.render(select(given))


def _read(text: str, of: Column[Any]) -> Any:
    if isinstance(of.type, Boolean | Integer):
        return int(text)
    return float(text) if isinstance(of.type, Float) else text
