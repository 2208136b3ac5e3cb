"""The draft of a revision for an application's own alembic: it creates the tables that a move needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

from sqlalchemy import Enum, Table

__all__ = ["revision_of"]

_REVISION = '''\
"""Create {tables}.

Revision ID: {revision}
Revises:{revises}
Create Date: {at}
"""

import sqlalchemy as sa
from alembic import op
{imports}
revision = {revision!r}
{down_revision}
branch_labels = None
depends_on = None


def upgrade() -> None:
    {upgrade}


def downgrade() -> None:
    {downgrade}
'''

_OPEN = "# open: the revision of yours that it follows, as `alembic heads` names it\ndown_revision = None"


def revision_of(tables: Sequence[Table], *, revises: str | None = None) -> str:
    """Write the revision that creates tables, as alembic's autogenerate renders it.

    Args:
        tables: The tables, those that others refer to first.
        revises: The revision that it follows; left open where left out.

    Returns:
        The text of its module.
    """
    from alembic.operations import ops
    from alembic.util import rev_id

    made: list[Any] = []
    for table in tables:
        indexes = sorted(table.indexes, key=lambda each: str(each.name))
        made += [ops.CreateTableOp.from_table(table), *map(ops.CreateIndexOp.from_index, indexes)]
    upgrade = ops.UpgradeOps(made)
    imports: set[str] = set()
    return _REVISION.format(
        tables=" and ".join(table.name for table in tables) or "nothing",
        revision=rev_id(),
        revises=f" {revises}" if revises else "",
        down_revision=_OPEN if revises is None else f"down_revision = {revises!r}",
        at=datetime.now(UTC).isoformat(" ", "seconds"),
        upgrade=_rendered(upgrade, imports),
        downgrade="\n    ".join([_rendered(upgrade.reverse(), imports), *_dropped_types(tables)]),
        imports="".join(f"{line}\n" for line in sorted(imports)),
    )


def _dropped_types(tables: Sequence[Table]) -> Iterator[str]:
    """The code that drops what a server makes for the enums of tables, which alembic leaves standing."""
    others = [table for metadata in {table.metadata for table in tables} for table in metadata.sorted_tables]
    kept = {name for table in others if table not in tables for name in _enums(table)}
    for name in sorted({name for table in tables for name in _enums(table)} - kept):
        yield f"sa.Enum(name={name!r}).drop(op.get_bind(), checkfirst=True)"


def _enums(table: Table) -> set[str]:
    types = [of.type for of in table.columns]
    return {str(each.name) for each in types if isinstance(each, Enum) and each.native_enum and each.name}


def _rendered(operations: Any, imports: set[str]) -> str:
    """The code of operations; what it needs is added to `imports`."""
    from alembic.autogenerate import render_python_code
    from alembic.autogenerate.api import AutogenContext
    from alembic.runtime.migration import MigrationContext

    def note(kind: str, item: Any, context: AutogenContext) -> Literal[False]:
        """Let alembic render an item, and note the module of a type that is neither its own nor SQLAlchemy's."""
        module = type(item).__module__
        if kind == "type" and not module.startswith("sqlalchemy."):
            context.imports.add(f"import {module}")
        seen.append(context)
        return False

    seen: list[AutogenContext] = []
    # Of all databases alembic renders the types of this one whole (JSONB, ARRAY); everything else is the same for all.
    context = MigrationContext.configure(dialect_name="postgresql")
    code = render_python_code(operations, render_item=note, migration_context=context)
    imports.update(*(context.imports for context in seen))
    return code
