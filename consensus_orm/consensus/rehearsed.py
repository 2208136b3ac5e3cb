"""How a rehearsal writes consensus data, and how it judges the upgrade of a file of the final build.

Such a file has no legacy side to go back to, so its rows before and after the upgrade are compared, with raw SQL and
without the revision that carried them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from typing import Any

from consensus_orm.consensus.artifacts import Artifacts
from consensus_orm.consensus.expressions import SYNTHESIS_FIELDS
from consensus_orm.consensus.syntheses import Syntheses
from consensus_orm.migration.rehearsal_report import Proof
from consensus_orm.phase import Phase, Side
from consensus_orm.rehearsal.application import Rehearsed
from consensus_orm.rehearsal.digest import Image, digested
from consensus_orm.rehearsal.raw_sql import Look
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["REHEARSED"]

OUTPUT = ("agent_name", "model_version", "content")
SYNTHESIS_EVERY = 5
SPEC = "CONSENSUS-ORM-REHEARSAL"
"""The spec of the writers' rows, which marks them in a copy that is kept."""


def add(uow: UnitOfWork, name: str, number: int, text: str) -> dict[str, int]:
    """Add an artifact, and a synthesis now and then.

    Args:
        uow: A unit of work of the copy.
        name: The name of the writer.
        number: The number of its unit of work.
        text: The content, compared at the end.

    Returns:
        The key of each row by its pair.
    """
    run = f"{name}-{number // SYNTHESIS_EVERY}"
    added = Artifacts(uow).add(spec_id=SPEC, stage=name, agent_name=name, content_json=text, run_id=run)
    keys = {"artifacts": added.id}
    if number % SYNTHESIS_EVERY == 0:
        synthesis = Syntheses(uow).add(spec_id=SPEC, stage=name, output_markdown=text, status="ok", run_id=run)
        keys["syntheses"] = synthesis.id
    return keys


def prove(before: Look, after: Look, phase: Phase) -> Iterator[Proof]:
    """Compare the backup of a final build's file with the file after its upgrade, less the rows that became rejects."""
    rejected = _rejected(after)
    outputs = [_outputs(look, rejected["agent_outputs"]) for look in (before, after)]
    syntheses = [_as_json(before, rejected["consensus_runs"]), _syntheses(after, rejected["consensus_runs"])]
    for table, (wanted, found) in (("agent_outputs", outputs), ("consensus_syntheses", syntheses)):
        yield Proof(
            phase=phase,
            table=table,
            side=Side.NORMALIZED,
            rows=found.rows,
            digest=found.digest,
            difference=wanted.difference(found),
        )


def _rejected(look: Look) -> dict[str, set[str]]:
    """Ids of the rows that became rejects."""
    found: dict[str, set[str]] = {"agent_outputs": set(), "consensus_runs": set()}
    for table, image in look.rows("SELECT table_name, image FROM consensus_orm_rejects WHERE key IS NULL"):
        found[table].add(bytes.fromhex(json.loads(image)["id"][1]).decode())
    return found


def _outputs(look: Look, skip: Collection[str]) -> Image:
    if not look.columns("agent_outputs"):
        return Image()
    cells = ", ".join(map(look.cell, OUTPUT))
    return digested(look.stream(f"SELECT id, {cells} FROM agent_outputs ORDER BY id"), skip)


def _syntheses(look: Look, skip: Collection[str]) -> Image:
    cells = ", ".join(map(look.cell, SYNTHESIS_FIELDS))
    return digested(look.stream(f"SELECT id, {cells} FROM consensus_syntheses ORDER BY id"), skip)


def _as_json(look: Look, skip: Collection[str]) -> Image:
    """The syntheses of runs as the cells of the rows that the upgrade makes of them."""
    rows = look.stream("SELECT id, synthesis_json FROM consensus_runs WHERE synthesis_json IS NOT NULL ORDER BY id")
    return digested(((run, *_cells(text)) for run, text in rows if str(run) not in skip), skip)


def _cells(text: bytes) -> Iterator[Any]:
    fields = json.loads(text)
    for name in SYNTHESIS_FIELDS:
        value = fields[name]
        yield "null" if value is None else "integer" if isinstance(value, int) else "text"
        yield None if value is None else str(value).encode()


REHEARSED = Rehearsed({"artifacts": "content_json", "syntheses": "output_markdown"}, add, prove)
