"""The migration of a database: its status, the steps forward through the gates, and the way back from every phase."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from consensus_orm.migration.migration import Migration

__all__ = ["Migration"]


def __getattr__(name: str) -> Any:
    if name == "Migration":  # imported when first used: a status and a health check take no step
        from consensus_orm.migration.migration import Migration

        return Migration
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
