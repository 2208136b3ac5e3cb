"""The demo: migrates a legacy file through the five phases and back while threads write to it.

The writers use the public API, the steps are those of an operator, and raw SQL checks that every row came back.
"""

from __future__ import annotations

from consensus_orm.consensus.demo.report import DemoReport, Leg, Problem
from consensus_orm.consensus.demo.stage import play

__all__ = ["DemoReport", "Leg", "Problem", "play"]
