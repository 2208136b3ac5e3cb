"""Legacy tables that another program makes again at CONTRACT: their rows are adopted, and the tables dropped.

What both sides say of an id is compared as when a side is made again (`rebuild`): a row whose id was given before gets
a new one. Each step is a chain of short transactions; the next call continues an interrupted one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from consensus_orm import errors
from consensus_orm.declaration.move import Move
from consensus_orm.ledgers import audit, signs
from consensus_orm.ledgers.binding import among, keys_of
from consensus_orm.migration import keyless
from consensus_orm.migration.carrying import reject_unequal
from consensus_orm.migration.pace import in_chunks
from consensus_orm.migration.ranges import Range, next_range
from consensus_orm.migration.rebuild import highest_given, unequal_in, with_ids_of_their_own
from consensus_orm.migration.transactions import Transactions
from consensus_orm.phase import Side
from consensus_orm.progress import Tally, Watch
from consensus_orm.repository.carrying import carry
from consensus_orm.statements.rendering import quoted
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["Adopted", "adopt_strays"]

ADOPTED = "written to a legacy table at CONTRACT"


@dataclass(frozen=True)
class Adopted:
    """What was done with the rows of a legacy table that another program made at CONTRACT.

    Attributes:
        table: The table, which is gone again.
        rows: Rows that were carried to the normalized side.
        renumbered: Those among them that have new ids, since theirs were given before.
        known: Rows that the normalized side had already.
        rejects: Rows that could not be carried; each is kept whole among the rejects.
    """

    table: str
    rows: int = 0
    renumbered: int = 0
    known: int = 0
    rejects: int = 0

    def plus(self, more: Adopted) -> Adopted:
        """The sum for some rows and others of the same table."""
        return Adopted(
            self.table,
            self.rows + more.rows,
            self.renumbered + more.renumbered,
            self.known + more.known,
            self.rejects + more.rejects,
        )


def adopt_strays(writing: Transactions, flipping: Transactions, progress: Watch = None) -> list[Adopted]:
    """Carry the rows of legacy tables that exist at CONTRACT, drop the tables, and put up the views again."""
    done: list[Adopted] = []
    while names := writing.run(signs.strays):  # again, where its program goes on writing
        for pair in (pair for pair in writing.statements.moves if pair.legacy_name in names):
            adopted = Adopted(pair.legacy_name)
            for more in _emptied(writing, pair, progress):
                adopted = adopted.plus(more)
            if adopted != Adopted(pair.legacy_name):
                done.append(adopted)
        flipping.run(_drop_empty)
    return done


def _emptied(writing: Transactions, pair: Move, progress: Watch) -> Iterator[Adopted]:
    tally = Tally(progress, pair.name)
    given = writing.run(lambda uow: highest_given(uow, pair, Side.NORMALIZED))

    def chunk(uow: UnitOfWork, size: int) -> tuple[Adopted, int] | None:
        if pair.legacy_name not in signs.strays(uow):
            return None
        tally.expect(lambda: uow._rows(uow.statements[pair].count(Side.LEGACY, ()))[0][0])
        if (of := next_range(uow, pair, Side.LEGACY, None, size)) is None:
            return None
        adopted = _adopt(uow, pair, of, given)
        return adopted, adopted.rows + adopted.known + adopted.rejects

    return in_chunks(writing, tally, chunk)


def _adopt(uow: UnitOfWork, pair: Move, of: Range, given: int) -> Adopted:
    """Carry the rows of a range, and delete them from the table that another program made."""
    sql = uow.statements[pair]
    keys = keys_of(uow, sql.keys_in_range(Side.LEGACY), of.bounds)
    new = unequal_in(uow, pair, Side.LEGACY, of)
    ids = with_ids_of_their_own(uow, pair, new, Side.LEGACY, given)
    carried = [*ids.free, *ids.renumbered]
    carry(uow, pair, carried, Side.NORMALIZED, ADOPTED)
    uow.catalog.go_on_above(uow, pair)
    rejected = reject_unequal(uow, pair, carried, Side.LEGACY)
    (delete,) = sql.delete(Side.LEGACY)
    if not uow._execute(delete, among([*keys, *ids.renumbered])).rowcount:
        raise errors.MigrationError(
            f"rows of {pair.legacy_name} cannot be deleted",
            hint="nothing of this step was kept; drop the triggers of other programs on it, then try again",
            table=pair.legacy_name,
        )
    return Adopted(
        pair.legacy_name,
        rows=len(carried) - len(rejected.keys),
        renumbered=len(ids.renumbered),
        known=len(keys) - len(new),
        rejects=ids.new_rejects + rejected.new,
    )


def _drop_empty(uow: UnitOfWork) -> None:
    """Drop the tables that are empty, and put up views in their place, in one transaction."""
    uow.catalog.keep_out(uow)
    there = signs.strays(uow)
    moves = uow.statements.moves
    for pair in (pair for pair in moves.of_tables(Side.LEGACY) if pair.legacy_name in there):
        sharing = moves.sharing(pair, Side.LEGACY)
        if any(next_range(uow, each, Side.LEGACY, None, 1) for each in sharing):
            continue  # written since its rows were carried
        rejected = sum(keyless.reject(uow, each, Side.LEGACY) for each in sharing)
        uow._execute(f"DROP TABLE {quoted(pair.legacy_name)}")
        audit.add(uow, "adopt table", table=pair.legacy_name, keyless=rejected)
    signs.put_up(uow)
