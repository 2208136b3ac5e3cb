"""Every statement on the data, built once from the moves.

Built with SQLAlchemy, rendered once, and run on the driver's connection with named parameters: that costs
what raw SQL costs, where a `select()` built for each call costs 35 to 53 us more (measured). `sql.parameter`
names the parameter of each legacy column; `_key`, `_keys` (a JSON array), `_first` and `_last` (a range of keys),
and one for each link to a parent are the others.
"""

from __future__ import annotations

from functools import cache, cached_property

from sqlalchemy import (
    func,
    literal_column,
    select,
    union_all,
)

from consensus_orm.declaration.fingerprint import fingerprint
from consensus_orm.declaration.keys import require_declared
from consensus_orm.declaration.move import Move
from consensus_orm.declaration.moves import Moves
from consensus_orm.declaration.parts import Parent
from consensus_orm.errors import ConfigurationError
from consensus_orm.phase import Side
from consensus_orm.statements.carrying import CarryStatements
from consensus_orm.statements.comparison import ComparisonStatements
from consensus_orm.statements.defaults import DefaultStatements
from consensus_orm.statements.parents import AgedParents, ParentStatements
from consensus_orm.statements.reading import NEWEST, ReadStatements
from consensus_orm.statements.rows import PairRendering
from consensus_orm.statements.writing import WriteStatements

__all__ = ["PairStatements", "Statements"]


class PairStatements(ReadStatements, WriteStatements, DefaultStatements, CarryStatements, ComparisonStatements):
    """All statements on the two tables of a pair."""


class Statements:
    """All statements of the moves of a declaration.

    Args:
        moves: The declaration.
        rendering: How they are printed for the kind of database.

    Raises:
        ConfigurationError: A rule of the declaration cannot be said in the SQL of that kind of database.
    """

    def __init__(self, moves: Moves, rendering: PairRendering) -> None:
        if rendering.name not in moves.dialects:
            raise ConfigurationError(
                f"these moves are declared for {', '.join(moves.dialects)}, and not for {rendering.name}",
                hint="name that database, too: Moves(..., dialects=...)",
            )
        require_declared(moves)
        self.moves = moves
        self.rendering = rendering
        self._pairs = {pair.name: PairStatements(pair, rendering, moves) for pair in moves}
        self.parents = {p.table.name: ParentStatements(p, moves, rendering) for p in moves.parents}
        for of_pair in self._pairs.values():
            of_pair.check()
        for of_parent in self.parents.values():
            of_parent.check()

    def __getitem__(self, pair: Move) -> PairStatements:
        return self._pairs[pair.name]

    @cached_property
    def completes(self) -> bool:
        """Whether rows that the ORM alone has written to the normalized side lack something: a value, a parent."""
        return any(pair.parents or self[pair].adopt for pair in self.moves)

    def of_parents(self, pair: Move) -> tuple[ParentStatements, ...]:
        """The statements on the parents of a pair, of each table once."""
        return tuple(dict.fromkeys(self.parents[parent.table.name] for parent in pair.parents))

    @cache
    def parents_by_age(
        self,
        parent: Parent,
        side: Side,
        filters: tuple[str, ...],
        *,
        with_row_of: str | None = None,
        oldest_first: bool = False,
        limited: bool = True,
    ) -> str:
        """The parents whose rows equal the bound values of some columns, newest first.

        The newest is the one that began last, by its earliest row; of several, the one with the newest row. The
        normalized side knows when each began; on the legacy one it follows from all rows that have these values.

        Args:
            parent: Which parents.
            side: The side.
            filters: Those columns.
            with_row_of: The move of which the parents have a row; any where left out.
            oldest_first: In the other order.
            limited: At most `_limit` of them.

        Returns:
            A statement that gives their identity, and the key of the newest row of each move.
        """
        pairs = [self[pair] for pair in self.moves.members(parent)]
        if side is Side.NORMALIZED:
            meant = [pairs[0].pair.carried[name] == pairs[0].bound[name] for name in filters]
            aged = self.parents[parent.table.name].by_age(*meant, with_row_of=with_row_of)
        else:
            aged = self._legacy_by_age(parent, filters, pairs, with_row_of)
        return self.rendering.render(aged.ordered(oldest_first=oldest_first, limited=limited))

    @staticmethod
    def _legacy_by_age(
        parent: Parent, filters: tuple[str, ...], pairs: list[PairStatements], with_row_of: str | None
    ) -> AgedParents:
        rows = union_all(*(each.ages(parent, filters, pairs) for each in pairs)).subquery()
        identity = [rows.c[of.key] for of in parent.identity]
        newest = {each.pair.name: func.max(rows.c[each.pair.name]) for each in pairs}
        found = select(*identity, *newest.values()).group_by(*identity)
        if with_row_of is not None:
            found = found.having(newest[with_row_of].is_not(None))
        keys = (func.coalesce(key, literal_column("0")) for key in newest.values())
        return AgedParents(found, [func.min(rows.c[NEWEST]), *keys])

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the declaration: what a certificate speaks of."""
        return fingerprint(self.moves)
