"""What a phase demands before the next one opens: how long it lasts, and how fresh the certificate must be.

It is stored when the phase begins. Settings can demand more later, and less only with `--force` and a reason: a
variable of the environment is no decision that anybody could find again.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from consensus_orm.databases import state
from consensus_orm.phase import Phase
from consensus_orm.settings import Settings
from consensus_orm.times import milliseconds
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["Demands", "in_force"]

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
        """What settings demand of a phase.

        Args:
            settings: Read for `soak_*` and `certificate_max_age`.
            phase: The phase.
        """
        soak = getattr(settings, _SOAKS[phase]) if phase in _SOAKS else timedelta(0)
        return cls(soak, settings.certificate_max_age)

    def stored(self) -> dict[str, int]:
        """The columns of the state that hold them, in ms."""
        return {
            "soak": milliseconds(self.soak),
            "certificate_max_age": milliseconds(self.certificate_max_age),
        }


def in_force(uow: UnitOfWork) -> Demands:
    """What the present phase demands: what was stored when it began, or more where the settings ask for more.

    Where nothing was stored, as by an older release, the defaults of the settings take its place.

    Args:
        uow: Sees the state.
    """
    asked = Demands.of(uow.settings, uow.phase)
    soak, age = _stored(uow)
    usual = _defaults(uow.phase)
    return Demands(
        soak=max(asked.soak, _duration(soak, usual.soak)),
        certificate_max_age=min(asked.certificate_max_age, _duration(age, usual.certificate_max_age)),
    )


def _stored(uow: UnitOfWork) -> tuple[Any, Any]:
    """What stands in the state; nothing before revision 0005."""
    if "soak" not in uow.catalog.columns(uow, "consensus_orm_state"):
        return None, None
    return state.get(uow, "soak", "certificate_max_age") or (None, None)


def _defaults(phase: Phase) -> Demands:
    return Demands.of(Settings.model_construct(), phase)


def _duration(stored: Any, otherwise: timedelta) -> timedelta:
    try:
        return timedelta(milliseconds=stored)
    except (TypeError, OverflowError):  # nothing that this package has written
        return otherwise
