"""What the migration keeps about rows: writes of other programs, and images of rows that were overwritten."""

from __future__ import annotations

__all__: list[str] = []
