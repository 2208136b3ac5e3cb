"""The demonstration: a legacy file goes through the five phases and all the way back while threads write to it.

Nothing is staged: the writers use the public API, the steps are those of an operator, and whether every row
came back is judged by plain SQL that knows nothing of this package.
"""

from __future__ import annotations

from consensus_orm.consensus.demo.report import DemoReport, Leg, Problem
from consensus_orm.consensus.demo.stage import play

__all__ = ["DemoReport", "Leg", "Problem", "play"]
