"""The tables, as declarative SQLAlchemy 2.1 models on one metadata.

`normalized` holds the schema the data moves to, `legacy` the flat tables it comes from, `control` what the
migration itself keeps, `executions` the one table that is not part of the move. `legacy` is imported only
while a phase still needs it, so a program at CONTRACT never loads it.
"""

from __future__ import annotations

from consensus_orm.models.base import Base
from consensus_orm.models.executions import AgentExecution
from consensus_orm.models.normalized import AgentOutput, ConsensusRun, ConsensusSynthesisRecord

__all__ = ["AgentExecution", "AgentOutput", "Base", "ConsensusRun", "ConsensusSynthesisRecord"]
