"""Several rows in one call: all as `add` writes each, in their order, and with few trips to a server."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from consensus_orm import ConsensusStore, Phase
from consensus_orm.errors import InvalidValueError, StorageError
from consensus_orm.repository.dual_write import TOGETHER
from consensus_orm.telemetry import StatementEvent, listen
from tests.support.databases import behind

MANY = TOGETHER + TOGETHER // 2

PHASES = pytest.mark.parametrize("every_phase", [phase.name for phase in Phase], indirect=True)


def rows(count: int) -> list[dict[str, Any]]:
    """Rows of a few runs."""
    return [
        {"spec_id": "MANY", "stage": "s", "agent_name": f"a{n}", "content_json": str(n), "run_id": f"r{n % 3}"}
        for n in range(count)
    ]


def stored(store: ConsensusStore) -> list[list[tuple[Any, ...]]]:
    """The rows as each side that is written has them, by raw SQL."""
    phase, database = store.migration.phase, behind(store)
    found = []
    if phase.writes_legacy:
        found.append(
            database.rows_of(
                "SELECT id, agent_name, content_json, run_id FROM consensus_artifacts"
                " WHERE spec_id = 'MANY' ORDER BY id"
            )
        )
    if phase.writes_normalized:
        found.append(
            database.rows_of(
                "SELECT o.id, o.agent_name, o.content, r.run_id FROM agent_outputs o JOIN consensus_runs r"
                " ON r.id = o.run_id WHERE r.spec_id = 'MANY' ORDER BY o.id"
            )
        )
    return found


@PHASES
def test_they_are_written_in_their_order(every_phase: ConsensusStore) -> None:
    """Each side of the phase has every row once, under the key that was told, and the sides agree."""
    given = rows(MANY)
    with every_phase.unit_of_work() as uow:
        added = uow.artifacts.add_many(given)
    expected = [
        (artifact.id, row["agent_name"], row["content_json"], row["run_id"])
        for artifact, row in zip(added, given, strict=True)
    ]
    assert sorted(artifact.id for artifact in added) == [artifact.id for artifact in added]
    for side in stored(every_phase):
        assert side == expected
    assert every_phase.migration.mismatches() == []
    with every_phase.unit_of_work(read_only=True) as uow:
        assert uow.artifacts.list(spec_id="MANY", oldest_first=True) == added


@pytest.mark.postgresql
@PHASES
def test_a_server_gets_them_in_few_messages(every_phase: ConsensusStore) -> None:
    """Rows go together, and with them what compares them: a hundred are one trip, in every phase."""
    heard: list[StatementEvent] = []
    with every_phase.unit_of_work() as uow:
        uow.artifacts.add(**rows(1)[0])
    listen(every_phase, lambda event: heard.append(event) if isinstance(event, StatementEvent) else None)
    with every_phase.unit_of_work() as uow:
        before = len(heard)
        uow.artifacts.add_many(rows(MANY))
        assert len(heard) - before == 2, [event.operation for event in heard]


@PHASES
def test_a_row_that_one_side_refuses_is_as_if_it_came_alone(every_phase: ConsensusStore) -> None:
    """A shadow that refuses one of them loses that one row and records it; a truth that does so fails the unit."""
    phase, database = every_phase.migration.phase, behind(every_phase)
    refusing = (
        "agent_outputs" if phase in (Phase.DUAL_WRITE, Phase.NORMALIZED, Phase.CONTRACT) else "consensus_artifacts"
    )
    database.script(f"CREATE UNIQUE INDEX only_one ON {refusing} (agent_name) WHERE agent_name = 'a3'")
    given = rows(6)
    given[4]["agent_name"] = "a3"
    if not phase.compares:
        with pytest.raises(StorageError), every_phase.unit_of_work() as uow:
            uow.artifacts.add_many(given)
        assert stored(every_phase) == [[]]
        return
    with every_phase.unit_of_work() as uow:
        added = uow.artifacts.add_many(given)
    legacy, normalized = stored(every_phase)
    whole, lacking = (legacy, normalized) if phase is Phase.DUAL_WRITE else (normalized, legacy)
    assert [row[0] for row in whole] == [artifact.id for artifact in added]
    assert [row for row in whole if row not in lacking] == [whole[4]]
    assert {entry.key for entry in every_phase.migration.mismatches()} == {added[4].id}


@PHASES
def test_a_value_that_cannot_be_held_is_refused_before_any_is_written(every_phase: ConsensusStore) -> None:
    """Bad input anywhere among them: nothing is written of the others, also where the caller goes on."""
    with every_phase.unit_of_work() as uow:
        with pytest.raises(InvalidValueError):
            uow.artifacts.add_many([*rows(3), {**rows(1)[0], "agent_name": ""}])
        uow.executions.record_spawn(agent_id="on", spec_id="S", stage="s", phase_type="t", agent_name="a")
    assert all(side == [] for side in stored(every_phase))


@pytest.mark.parametrize("every_phase", ["DUAL_WRITE", "CUTOVER"], indirect=True)
def test_each_of_them_is_compared(every_phase: ConsensusStore) -> None:
    """A trigger that alters one of many rows is seen, and the mismatch is that row's."""
    change = "UPDATE consensus_artifacts SET content_json = 'other' WHERE id = NEW.id AND agent_name = 'a4'"
    behind(every_phase).fault("AFTER INSERT", "consensus_artifacts", change)
    with every_phase.unit_of_work() as uow:
        added = uow.artifacts.add_many(rows(6))
    assert {(entry.key, entry.column) for entry in every_phase.migration.mismatches()} == {(added[4].id, "content")}


@pytest.mark.postgresql
@pytest.mark.parametrize("every_phase", ["EXPAND"], indirect=True)
def test_none_is_kept_where_one_is_ignored(every_phase: ConsensusStore) -> None:
    """A trigger that ignores one row of a message fails the unit of work, also where the caller goes on."""
    ignoring = "IF NEW.agent_name = 'a1' THEN RETURN NULL; END IF"
    behind(every_phase).fault("BEFORE INSERT", "consensus_artifacts", ignoring)
    with (
        pytest.raises(StorageError, match="not taken"),
        every_phase.unit_of_work() as uow,
        contextlib.suppress(StorageError),
    ):
        uow.artifacts.add_many(rows(4))
    assert stored(every_phase) == [[]]
