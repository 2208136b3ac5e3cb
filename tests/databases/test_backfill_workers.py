"""Workers of a backfill claim their ranges in the database, so that no two of them have the same one."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from consensus_orm import ConsensusStore, Phase
from consensus_orm.cli import main
from consensus_orm.databases.lock import Lock
from consensus_orm.errors import InvalidValueError
from consensus_orm.ledgers import backfill_ranges
from consensus_orm.ledgers.backfill_ranges import RangeState
from consensus_orm.migration.transactions import Transactions
from tests.support import databases


@pytest.mark.postgresql
@pytest.mark.parametrize("every_phase", ["DUAL_WRITE"], indirect=True)
def test_two_claimants_get_disjoint_ranges(every_phase: ConsensusStore) -> None:
    """At the same time; what one of them gives up is free for the next, and a third waits for neither."""
    claiming, pair = (
        Transactions(every_phase._units, lock=Lock.RANGE),
        every_phase._units.statements.moves["artifacts"],
    )
    with claiming() as uow:
        for first in (1, 11):
            backfill_ranges.cut(uow, pair, first, first + 9, 10, None)
    with claiming() as one:
        mine = backfill_ranges.claim(one, pair, RangeState.OPEN)
        with pytest.raises(ZeroDivisionError), claiming() as other:
            theirs = backfill_ranges.claim(other, pair, RangeState.OPEN)
            with claiming() as third:
                assert backfill_ranges.claim(third, pair, RangeState.OPEN) is None
            assert mine is not None
            assert theirs is not None
            assert (mine.first, mine.last, theirs.first, theirs.last) == (1, 10, 11, 20)
            backfill_ranges.turn(other, pair, theirs, RangeState.CARRIED)
            1 / 0  # noqa: B018
        with claiming() as next_:
            assert backfill_ranges.claim(next_, pair, RangeState.OPEN) == theirs


@pytest.mark.parametrize("every_phase", ["DUAL_WRITE"], indirect=True)
def test_no_more_workers_than_can_work(every_phase: ConsensusStore) -> None:
    """A file has one writer, a server the connections of the pool; one worker there is always."""
    where = databases.behind(every_phase).where
    most = 1 if every_phase.path else 10
    for workers in (0, most + 1):
        with pytest.raises(InvalidValueError) as refused:
            every_phase.migration.backfill(workers=workers)
        assert refused.value.field == "workers"
    assert CliRunner().invoke(main, ["--url", str(where), "backfill", "--workers", str(most)]).exit_code <= 1
    assert every_phase.migration.backfill(workers=most).seconds > 0
    assert every_phase.migration.phase is Phase.DUAL_WRITE
    assert every_phase.migration.verify().clean
