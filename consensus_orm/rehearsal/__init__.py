"""The rehearsal: a copy of the database goes the whole way and back, before anybody touches the real one.

It proves on real rows that they come out byte for byte as they went in, measures every step, and leaves
evidence beside the database. The database itself is read once and never written.
"""

from __future__ import annotations

from consensus_orm.migration.rehearsal_report import (
    Estimate,
    Identity,
    Latency,
    Proof,
    RehearsalReport,
    RehearsalStep,
    WritersReport,
)
from consensus_orm.rehearsal.evidence import Evidence, find
from consensus_orm.rehearsal.round_trip import rehearse

__all__ = [
    "Estimate",
    "Evidence",
    "Identity",
    "Latency",
    "Proof",
    "RehearsalReport",
    "RehearsalStep",
    "WritersReport",
    "find",
    "rehearse",
]
