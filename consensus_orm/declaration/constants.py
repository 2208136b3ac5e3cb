"""How the constants of a declaration are written into SQL.

Statements are printed once and run with parameters of their own. What else SQLAlchemy would bind is a constant, and its
compilers write it, type by type. Here stands what they leave to others: values that SQL cannot say, or that would
mean something else there, are refused instead of written.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, time
from decimal import Decimal
from enum import Enum
from typing import Any

from sqlalchemy import BINARY, VARBINARY, Dialect, LargeBinary, literal
from sqlalchemy.exc import CompileError
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.types import Enum as OfEnums
from sqlalchemy.types import Integer, NullType, TypeDecorator, TypeEngine

__all__ = ["Constants", "ConstantsInSQLite", "with_binary"]

_NUMBER = re.compile(r"-?(?P<whole>[0-9]+)(?P<rest>(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?)")
_NO_NUMBER = re.compile(r"[-+]?(?:inf|infinity|s?nan[0-9]*)", re.IGNORECASE)


class Constants(SQLCompiler):
    """Mixed into a compiler of SQLAlchemy's: writes constants, and leaves parameters to be bound."""

    def visit_bindparam(self, bindparam: Any, *args: Any, **kw: Any) -> str:
        """A parameter without a value is bound when the statement runs; a value is written."""
        kw["literal_binds"] = not bindparam.required
        written: str = super().visit_bindparam(bindparam, *args, **kw)  # type: ignore[no-untyped-call]  # untyped there
        return written

    def render_literal_value(self, value: Any, type_: TypeEngine[Any]) -> str:
        """Write a constant.

        Raises:
            CompileError: SQL has no word for it.
        """
        if value is None and not type_.should_evaluate_none:
            return super().render_literal_value(value, type_)
        if not isinstance(type_, OfEnums | TypeDecorator):  # which are made for values of their own
            value = _plain(value)
        known = type_.dialect_impl(self.dialect).literal_processor(self.dialect) is not None
        if not known:  # as of a column that keeps any value
            type_ = literal(value).type
        if isinstance(type_, NullType):
            raise CompileError(f"the SQL type of a {type(value).__name__} is not known; write literal(value, type)")
        if isinstance(type_, Integer) and int(value) != value:  # pyright: ignore[reportArgumentType]  # a number
            raise CompileError(f"{value!r} is no integer")
        written = super().render_literal_value(value, type_)
        self.check(value, written)
        if _NUMBER.fullmatch(written) and written.startswith("-"):
            return f"({written})"  # two minus signs would begin a comment
        return self.with_type(written, type_) if known else written

    def with_type(self, written: str, type_: TypeEngine[Any]) -> str:
        """What was written, with its type where the database would not know it."""
        return written

    def check(self, value: Any, written: str) -> None:
        """Refuse what the database would read as another value.

        Args:
            value: The constant.
            written: How it would be written.

        Raises:
            CompileError: It would.
        """
        if "\0" in written:
            raise CompileError("a text with a NUL character in it cannot be written")
        try:
            written.encode()
        except UnicodeEncodeError:
            raise CompileError("a text with a lone surrogate in it cannot be written") from None
        if _NO_NUMBER.fullmatch(written):
            raise CompileError(f"{written} cannot be written")


class ConstantsInSQLite(Constants):
    """Constants in SQLite, which has integers of 64 bits, doubles, texts and blobs, and nothing else."""

    def check(self, value: Any, written: str) -> None:
        """Refuse what SQLite would read as another value."""
        super().check(value, written)
        number = _NUMBER.fullmatch(written)
        if number and not number["rest"] and not -(2**63) <= int(written) < 2**63:
            raise CompileError(f"{written} does not fit into the 64 bits of an integer")
        if number and isinstance(value, Decimal) and Decimal(repr(float(written))) != value:
            raise CompileError(f"{written} has more digits than a double holds")
        if isinstance(value, datetime | time) and value.tzinfo is not None:
            raise CompileError("a time with a zone cannot be written: SQLite's have none")


def _plain(value: Any) -> Any:
    """A value as the class of Python's that it is a kind of: a member of a StrEnum is a str."""
    if isinstance(value, Enum) and isinstance(value, int | float | str | bytes):
        return value.value
    kinds: tuple[Callable[[Any], Any], ...] = (bool, int, float, str, bytes)
    return next((kind(value) for kind in kinds if isinstance(value, kind)), value)  # type: ignore[arg-type]  # classes


def with_binary(colspecs: Any, form: str) -> dict[Any, Any]:
    """The types of a dialect, of which those for bytes can be written; SQLAlchemy's would write a text.

    Args:
        colspecs: The types of the dialect.
        form: How bytes are written, with `{}` for their hexadecimal digits.
    """

    class Binary(LargeBinary):
        # Of the type itself: SQLAlchemy declares what its subclasses may return.
        def literal_processor(self, dialect: Dialect) -> Callable[[Any], str]:  # pyright: ignore[reportIncompatibleMethodOverride]
            return lambda value: form.format(bytes(value).hex())

    return {**colspecs, LargeBinary: Binary, BINARY: Binary, VARBINARY: Binary}
