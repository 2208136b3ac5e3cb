"""The rehearsal: migrates a copy of the database through all phases and back, before the real one is touched.

It proves that the legacy rows come out byte for byte as they went in, measures every step, and leaves a report beside
the database, which is read once and never written.
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
from consensus_orm.rehearsal.evidence import Evidence, find, mention

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
    "mention",
]
