"""The journey: every step from where a database stands to a phase, up to the first gate that refuses."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from consensus_orm.migration.backfill import BackfillReport
from consensus_orm.migration.verify import VerifyReport
from consensus_orm.phase import Phase, Side
from consensus_orm.progress import Watch
from consensus_orm.unit_of_work.upgrade import Upgrade

if TYPE_CHECKING:
    from consensus_orm.migration import Migration

__all__ = ["Step", "steps"]


@dataclass(frozen=True)
class Step:
    """One finished step.

    Attributes:
        action: upgrade, backfill, verify or advance.
        phase: The phase after it.
        result: What the method of that name returned: revisions, a report, or the phase reached.
        seconds: How long it took.
    """

    action: str
    phase: Phase
    result: list[str] | BackfillReport | VerifyReport | Phase
    seconds: float


def steps(
    migration: Migration,
    upgrade: Upgrade,
    to: Phase,
    *,
    soak: bool,
    reason: str | None,
    progress: Watch,
) -> Iterator[Step]:
    """Take one step after the other; nothing is repaired, since differences are for people to look at.

    Args:
        migration: What is moved.
        upgrade: Brings its schema up to date first.
        to: The phase to reach.
        soak: Whether soak times count.
        reason: Why, for the audit.
        progress: Called after each chunk.

    Yields:
        Each step, when it is done.

    Raises:
        GateClosedError: A gate is shut.
    """

    def take(action: str, work: Callable[[], list[str] | BackfillReport | VerifyReport | Phase]) -> Step:
        started = time.monotonic()
        result = work()
        return Step(action, migration.phase, result, time.monotonic() - started)

    yield take("upgrade", partial(upgrade.run_if_needed, progress))
    while (now := migration.phase) < to:
        if now.compares and now.truth is Side.LEGACY:
            yield take("backfill", partial(migration.backfill, progress))
        if now.writes_normalized:
            yield take("verify", partial(migration.verify, progress))
        yield take("advance", partial(migration.advance, now.next, reason=reason, soak=soak, progress=progress))
    # Finishes what an interrupted call left behind, and refuses to go backwards.
    migration.advance(to, reason=reason, soak=soak, progress=progress)
