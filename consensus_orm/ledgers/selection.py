"""The open entries of a ledger that an operator selects: by number, by range of numbers, by table, or by reason."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import ClauseElement, bindparam, select

from consensus_orm import errors
from consensus_orm import validation as check
from consensus_orm.databases.base import Transaction
from consensus_orm.formats import none_of
from consensus_orm.ledgers.binding import Key
from consensus_orm.ledgers.entries import UNSETTLED
from consensus_orm.models.control import Mismatch, Reject, RowImage

__all__ = ["Selected", "Selection"]

Ledger = type[Mismatch] | type[Reject] | type[RowImage]


class Selected(NamedTuple):
    """An open entry of a ledger; its key is None where it stands for many rows, or for a row that has none."""

    number: int
    pair: str
    key: Key


@dataclass(frozen=True)
class Selection:
    """What an operator names: entries by number, and all entries of a table or of a reason.

    Attributes:
        numbers: Numbers, each of an open entry, and ranges, each with at least one.
        table: A pair, or one of its tables; with a reason, both must agree.
        all_of: The exact reason of rejects.
    """

    numbers: tuple[int | range, ...] = ()
    table: str | None = None
    all_of: str | None = None

    @classmethod
    def of(cls, numbers: Iterable[int | range], table: str | None = None, all_of: str | None = None) -> Selection:
        """Check what was named.

        Raises:
            InvalidValueError: A number is none, or numbers are given together with a table.
        """
        given = tuple(map(_number, check.several("numbers", numbers)))
        if given and table is not None:
            raise errors.InvalidValueError(
                "numbers and a table select different entries", hint="give one of them", field="table"
            )
        return cls(given, table, all_of)

    def __bool__(self) -> bool:
        return bool(self.numbers) or self.table is not None or self.all_of is not None

    def entries(self, uow: Transaction, ledger: Ledger) -> list[Selected]:
        """The entries, in order of their numbers.

        Raises:
            InvalidValueError: A number, a range, the table or the reason has no open entry; it names all such numbers.
        """
        found: set[Selected] = set()
        absent: list[int | range] = []
        for number in self.numbers:
            numbered = _numbered(uow, ledger, number)
            found |= numbered
            absent += [] if numbered else [number]
        if absent:
            raise _none_of(ledger, absent)
        if self.table is not None or self.all_of is not None:
            found |= self._grouped(uow, ledger)
        return sorted(found)

    def pairs(self, uow: Transaction) -> list[str]:
        """The pairs of the table, or all of them.

        Raises:
            InvalidValueError: No pair has such a table.
        """
        moves = uow.statements.moves
        if self.table is None:
            return [pair.name for pair in moves]
        named = self.table.lower()
        found = [p.name for p in moves if named in (p.name.lower(), p.legacy_name.lower(), p.table.name.lower())]
        if not found:
            known = ", ".join(pair.name for pair in moves)
            raise errors.InvalidValueError(
                f"no move has a table {self.table!r:.60}", hint=f"use one of: {known}", field="table"
            )
        return found

    def _grouped(self, uow: Transaction, ledger: Ledger) -> set[Selected]:
        statement = _of_pair(ledger, self.all_of is not None)
        pairs = self.pairs(uow)
        found = {
            Selected(*row) for pair in pairs for row in uow._rows(statement, {"pair": pair, "reason": self.all_of})
        }
        if not found:
            field = "table" if self.all_of is None else "all_of"
            which = f"of table {self.table:.60}" if self.all_of is None else "has this reason"
            raise errors.InvalidValueError(
                f"no {_nouns(ledger)[0]} {which}", hint=f"see: consensus-orm {_command(ledger)}", field=field
            )
        return found


def _number(given: object) -> int | range:
    if not isinstance(given, range):
        return check.position("numbers", given)
    if not given or given.step != 1:
        raise errors.InvalidValueError(
            f"{given} is no range of numbers", hint="give the first number and the last", field="numbers"
        )
    return given


def _numbered(uow: Transaction, ledger: Ledger, number: int | range) -> set[Selected]:
    first, last = (number[0], number[-1]) if isinstance(number, range) else (number, number)
    # A number may name an image that was put back before, a range does not.
    statement = _in_range(ledger, ledger is not RowImage or isinstance(number, range))
    return {Selected(*row) for row in uow._rows(statement, {"first": first, "last": last})}


def _none_of(ledger: Ledger, absent: Sequence[int | range]) -> errors.InvalidValueError:
    """The error that names all numbers that no entry has."""
    told = [f"from {each[0]} to {each[-1]}" if isinstance(each, range) else str(each) for each in absent]
    return errors.InvalidValueError(
        none_of(told, *_nouns(ledger)),
        hint=f"nothing was done; see: consensus-orm {_command(ledger)}",
        field="id",
        absent=told,
    )


def _nouns(ledger: Ledger) -> tuple[str, str]:
    plural = _command(ledger) if ledger is RowImage else f"open {_command(ledger)}"
    return plural.removesuffix("es" if ledger is Mismatch else "s"), plural


def _command(ledger: Ledger) -> str:
    return "images" if ledger is RowImage else "mismatches" if ledger is Mismatch else "rejects"


@cache
def _in_range(ledger: Ledger, only_open: bool) -> ClauseElement:
    return _listed(ledger, only_open, ledger.id.between(bindparam("first"), bindparam("last")))


@cache
def _of_pair(ledger: Ledger, with_reason: bool) -> ClauseElement:
    reasons = [Reject.reason == bindparam("reason")] if with_reason else []
    return _listed(ledger, True, ledger.pair == bindparam("pair"), *reasons)


def _listed(ledger: Ledger, only_open: bool, *where: Any) -> ClauseElement:
    of_state = [UNSETTLED[ledger]] if only_open else []
    return select(ledger.id, ledger.pair, ledger.key).where(*of_state, *where).order_by(ledger.id)
