"""The schema of a database: its alembic revisions, and what guards a phase."""

from __future__ import annotations

from consensus_orm.schema.revisions import owns

__all__ = ["owns"]
