"""What a phase demands before the next one opens: how long it lasts (its soak), and how fresh the certificate must be.

The demands are stored when the phase begins. Settings can demand more later, and less only with `--force` and a reason:
an environment variable leaves no trace of who decided. A date in the future counts as no date: the clock was set back.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import func, select

from consensus_orm.databases import guard_record, state
from consensus_orm.ledgers import audit, certificates
from consensus_orm.ledgers.binding import milliseconds
from consensus_orm.models.control import PhaseChange
from consensus_orm.phase import Phase
from consensus_orm.settings import Settings
from consensus_orm.times import credible, when
from consensus_orm.times import milliseconds as milliseconds_of
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["Demands", "began_in_future", "clock_set_back", "count_from_now", "in_force", "soak_left"]

_SOAKS = {
    Phase.DUAL_WRITE: "soak_dual_write",
    Phase.CUTOVER: "soak_cutover",
    Phase.NORMALIZED: "soak_normalized",
}


@dataclass(frozen=True)
class Demands:
    """What a phase demands.

    Attributes:
        soak: How long it lasts at least.
        certificate_max_age: How old a certificate may be and still open the gate.
    """

    soak: timedelta
    certificate_max_age: timedelta

    @classmethod
    def of(cls, settings: Settings, phase: Phase) -> Demands:
        """What settings demand of a phase."""
        soak = getattr(settings, _SOAKS[phase]) if phase in _SOAKS else timedelta(0)
        return cls(soak, settings.certificate_max_age)

    def stored(self) -> dict[str, int]:
        """The columns of the state that hold them, in ms."""
        return {
            "soak": milliseconds_of(self.soak),
            "certificate_max_age": milliseconds_of(self.certificate_max_age),
        }


def in_force(uow: UnitOfWork) -> Demands:
    """What the present phase demands: what was stored when it began, or more where the settings ask for more.

    Where nothing was stored, as by an older release, the defaults of the settings take its place.
    """
    asked = Demands.of(uow.settings, uow.phase)
    soak, age = _stored(uow)
    usual = Demands.of(Settings.model_construct(), uow.phase)
    return Demands(
        soak=max(asked.soak, _duration(soak, usual.soak)),
        certificate_max_age=min(asked.certificate_max_age, _duration(age, usual.certificate_max_age)),
    )


def _stored(uow: UnitOfWork) -> tuple[Any, ...]:
    """What is stored in the state; nothing before revision 0005."""
    if "soak" not in uow.catalog.columns(uow, "consensus_orm_state"):
        return None, None
    return state.get(uow, "soak", "certificate_max_age") or (None, None)


def _duration(stored: Any, otherwise: timedelta) -> timedelta:
    try:
        return timedelta(milliseconds=stored)
    except (TypeError, OverflowError):  # not written by this package
        return otherwise


# The clock ------------------------------------------------------------------------------------------------

SET_BACK = "clock set back"
"""The action of an audit entry that says that a phase begins once more."""

_FLIPPED = select(func.coalesce(func.max(PhaseChange.id), 0)).where(PhaseChange.to_phase.is_not(None))
_SET_BACK = select(PhaseChange.detail).where(
    PhaseChange.action == SET_BACK, PhaseChange.id > _FLIPPED.scalar_subquery()
)


def soak_left(uow: UnitOfWork, demanded: Demands | None = None) -> timedelta:
    """How much longer the phase has to last: all of its soak where it began at a date in the future."""
    since = _since(uow)
    lasted = timedelta(0)
    if credible(since, uow.now):
        # A date that was in the future and no longer is counts: the clock was wrong only while it was set back.
        earlier = [json.loads(detail)["since"] for (detail,) in uow._rows(_SET_BACK)]
        began = max(date for date in (since, *earlier) if credible(date, uow.now))
        lasted = max(uow.now - when(began), timedelta(0))
    return max((demanded or in_force(uow)).soak - lasted, timedelta(0))


def began_in_future(uow: UnitOfWork) -> bool:
    """Whether the date at which the phase began lies in the future, or is invalid."""
    return not credible(_since(uow), uow.now)


def clock_set_back(uow: UnitOfWork) -> bool:
    """Whether the phase began, or was verified, at a date in the future: the clock was set back since."""
    if began_in_future(uow):
        return True
    newest = None if guard_record.lost(uow) else certificates.newest_of(uow, uow.epoch)
    return newest is not None and not credible(newest.at, uow.now)


def count_from_now(uow: UnitOfWork) -> None:
    """Make a phase that began in the future begin now: its soak starts again, and its certificate is void."""
    since = _since(uow)
    if not credible(since, uow.now):
        state.turn_epoch(uow, since=milliseconds(uow))
        audit.add(uow, SET_BACK, since=since if isinstance(since, int) else None)


def _since(uow: UnitOfWork) -> Any:
    found = state.get(uow, "since")
    return found[0] if found else None
