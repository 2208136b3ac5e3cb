"""Create the sequence that numbers what sessions write, on servers.

Revision ID: 0006
Revises: 0005
"""

from __future__ import annotations

from alembic import op
from sqlalchemy import Sequence
from sqlalchemy.schema import CreateSequence, DropSequence

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

NUMBERS = Sequence("consensus_orm_written")


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute(CreateSequence(NUMBERS))


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute(DropSequence(NUMBERS))
