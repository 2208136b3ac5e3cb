"""Ratios that are cheap to measure and stable, in CPU time, to be compared with stored ones (`--check`).

Many short rounds are as stable beside busy processes as few long ones are without: in ten runs of
`ratios --rounds 80 --scale 0.05` at a load of 15 to 23 on two cores no median was more than 6 % from their mean. CI
compares with `benchmarks/results/ratios.json`; a change that is meant makes it anew:

    python -m benchmarks ratios --rounds 240 --scale 0.05 --json benchmarks/results/ratios.json
"""

from __future__ import annotations

from benchmarks.suites import batches, moves, reads, writes

__all__ = ["GROUPS"]

GROUPS = (
    writes.GROUP.in_cpu_time("plain_orm", "core_both", "ours_dual_write", "ours_normalized"),
    batches.MANY.in_cpu_time("plain_orm", "add_many_dual_write"),
    reads.OWN.in_cpu_time("plain_orm_own", "own_dual_write"),
    moves.ONE.in_cpu_time("plain_orm", "repository_dual_write", "session_expand", "session_dual_write"),
)
