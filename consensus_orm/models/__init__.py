"""The base of all models, and the control tables (`control`); the consensus data has its own in `consensus.models`."""

from __future__ import annotations

from consensus_orm.models.base import Base

__all__ = ["Base"]
