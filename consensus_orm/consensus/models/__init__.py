"""The tables of the consensus data as declarative models.

`normalized` holds the schema the data moves to, `legacy` the flat tables it comes from, `executions` the one table
that is not moved. `legacy` is imported only while a phase needs it, so a program at CONTRACT never loads it.
"""

from __future__ import annotations

from consensus_orm.consensus.models.executions import AgentExecution
from consensus_orm.consensus.models.normalized import AgentOutput, ConsensusRun, ConsensusSynthesisRecord

__all__ = ["AgentExecution", "AgentOutput", "ConsensusRun", "ConsensusSynthesisRecord"]
