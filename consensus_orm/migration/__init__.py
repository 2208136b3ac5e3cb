"""The migration of a database: where it stands, the steps forward, and the way back from every one of them."""

from __future__ import annotations

from consensus_orm.migration.decisions import Decisions
from consensus_orm.migration.steps import Steps

__all__ = ["Migration"]


class Migration(Steps, Decisions):
    """Moves a database from phase to phase."""
