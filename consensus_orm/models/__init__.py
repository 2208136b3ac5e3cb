"""The metadata that all tables of this package share, and the control tables.

`control` holds what the migration keeps about itself. The tables of the consensus data are in `consensus.models`.
"""

from __future__ import annotations

from consensus_orm.models.base import Base

__all__ = ["Base"]
