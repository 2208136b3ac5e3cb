"""Record whose legacy tables a database moves, so that moves of other tables are refused in every phase.

Revision ID: 0011
Revises: 0010
"""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

LEGACY = ("consensus_artifacts", "consensus_synthesis")
FOUND = (*LEGACY, "consensus_runs", "agent_outputs", "agent_executions")


def upgrade() -> None:
    op.add_column("consensus_orm_state", sa.Column("moves", sa.Text()))
    op.get_bind().execute(sa.text("UPDATE consensus_orm_state SET moves = :moves"), {"moves": "\n".join(_moved())})


def _moved() -> list[str]:
    """The legacy tables of this program, or those with which another one began at EXPAND, who is refused for them.

    From DUAL_WRITE on the guards name the tables, and this program was held against them before.
    """
    given = op.get_context().config.attributes.get("legacy")  # type: ignore[union-attr] # alembic always has one here
    own = {name.lower() for name in given or LEGACY}
    known = own if given else {*FOUND}
    adopted = _one("SELECT detail FROM consensus_orm_history WHERE action = 'adopt'")  # a copy was not adopted
    began = {name.lower() for name in json.loads(adopted or '{"found": []}')["found"]}
    guarded = _one("SELECT count(*) FROM consensus_orm_guards WHERE kind IN ('table', 'view')")
    return sorted(began if began and not guarded and began.isdisjoint(known) else own)


def _one(sql: str) -> Any:
    return op.get_bind().scalar(sa.text(sql))


def downgrade() -> None:
    op.drop_column("consensus_orm_state", "moves")
