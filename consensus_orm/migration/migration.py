"""All of a migration in one class: its records, decisions and steps."""

from __future__ import annotations

from consensus_orm.migration.decisions import Decisions
from consensus_orm.migration.steering import Steering
from consensus_orm.migration.steps import Steps

__all__ = ["Migration"]


class Migration(Steps, Decisions, Steering):
    """Moves a database from phase to phase; `store.migration` is one."""
