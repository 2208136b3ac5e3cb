"""Ratios that are cheap to measure and stable, in CPU time, to be compared with stored ones (`--check`)."""

from __future__ import annotations

from benchmarks.suites import batches, moves, reads, writes

__all__ = ["GROUPS"]

GROUPS = (
    writes.GROUP.in_cpu_time("plain_orm", "core_both", "ours_dual_write", "ours_normalized"),
    batches.MANY.in_cpu_time("plain_orm", "add_many_dual_write"),
    reads.OWN.in_cpu_time("plain_orm_own", "own_dual_write"),
    moves.ONE.in_cpu_time("plain_orm", "repository_dual_write", "session_expand", "session_dual_write"),
)
