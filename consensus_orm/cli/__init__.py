"""The command line, `consensus-orm`: for operators, who must be able to trust what they are told.

Exit codes: 0 done and clean, 1 refused or something found, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

from consensus_orm.cli import copying, evidence, look, showcase, step, upkeep  # for the commands they define
from consensus_orm.cli.app import main

__all__ = ["main"]

assert all((copying, evidence, look, showcase, step, upkeep))
