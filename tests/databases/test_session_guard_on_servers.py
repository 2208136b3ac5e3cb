"""Rule 10 on PostgreSQL: what a session would write past the repositories is refused by triggers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from consensus_orm import ConsensusStore, Phase
from consensus_orm.consensus.models import AgentOutput
from consensus_orm.errors import StorageError, UnmirroredWriteError
from consensus_orm.testing import artifact_values, legacy_history, synthesis_values
from consensus_orm.testing.plugin import History
from tests.databases.test_session_guard import LEGACY, NORMALIZED, on
from tests.support.databases import behind

pytestmark = pytest.mark.postgresql

ROWS = (
    *("add", "change", "delete", "bulk_update", "bulk_delete", "core_insert", "insert_from_select", "executemany"),
    *("bulk_save", "text", "text_in_capitals", "with_cte", "driver"),
)
NEW_ROWS = ("add", "core_insert", "executemany", "bulk_save")
"""What needs no row to be there: triggers of rows do not fire where a statement finds none."""

WRITES: dict[str, Callable[[Session], None]] = {
    **{name: NORMALIZED[name] for name in ROWS},
    "truncate": on(text("TRUNCATE agent_outputs")),
    "merge": on(
        text(
            "MERGE INTO agent_outputs AS o USING consensus_runs AS r ON r.id = o.run_id"
            " WHEN MATCHED THEN UPDATE SET content = 'changed'"
        )
    ),
}


@pytest.fixture
def consensus_history() -> History:
    return legacy_history


@pytest.fixture
def store(every_phase: ConsensusStore) -> ConsensusStore:
    """A store in each phase, with a run to write to."""
    with every_phase.unit_of_work() as uow:
        uow.artifacts.add(**artifact_values(spec_id="SPEC-NEW"))
        uow.syntheses.add(**synthesis_values(spec_id="SPEC-NEW"))
    return every_phase


@pytest.mark.parametrize("name", WRITES)
def test_a_write_to_the_normalized_side_is_refused(store: ConsensusStore, name: str) -> None:
    """The statement raises UnmirroredWriteError and fails its unit of work; nothing changes, no log of ours neither."""
    if store.migration.phase is Phase.EXPAND and name not in (*NEW_ROWS, "truncate"):
        return  # there is no row to change
    before = behind(store).everything()
    with pytest.raises(UnmirroredWriteError) as raised, store.unit_of_work() as uow:
        uow.artifacts.add(**artifact_values(spec_id="SPEC-LOST"))
        WRITES[name](uow.session)
    assert "changed" not in str(raised.value)
    assert behind(store).everything() == before


@pytest.mark.parametrize("name", [name for name in LEGACY if name != "drop"])
def test_a_write_to_the_legacy_side_is_refused(store: ConsensusStore, name: str) -> None:
    """The legacy side is guarded as the normalized one is, as long as there is one."""
    if not store.migration.phase.has_legacy:
        return
    before = behind(store).everything()
    # The trigger that freezes them speaks to every program, and may come first.
    refusal = (UnmirroredWriteError, *([StorageError] if store.migration.phase.freezes_legacy else []))
    with pytest.raises(refusal), store.unit_of_work() as uow:
        LEGACY[name](uow.session)
    assert behind(store).everything() == before


def test_a_refused_statement_can_be_taken_back(store: ConsensusStore) -> None:
    """After the session's own rollback the unit of work goes on, and keeps what the repositories write then."""
    with store.unit_of_work() as uow:
        uow.session.begin_nested()
        with pytest.raises(UnmirroredWriteError):
            NORMALIZED["core_insert"](uow.session)
        uow.session.rollback()
        kept = uow.artifacts.add(**artifact_values(spec_id="SPEC-KEPT"))
    with store.unit_of_work(read_only=True) as uow:
        assert uow.artifacts.list(spec_id="SPEC-KEPT") == [kept]


def test_reads_and_tables_of_ones_own_are_free(store: ConsensusStore) -> None:
    """Mapped entities can be queried, and tables of one's own written, in the transaction of the repositories."""
    behind(store).script("CREATE TABLE notes (text TEXT)")
    with store.unit_of_work() as uow:
        made = uow.artifacts.add(**artifact_values(spec_id="SPEC-KEPT"))
        uow.session.execute(text("INSERT INTO notes VALUES (:text)"), {"text": str(made.id)})
        found: Any = uow.session.scalars(select(AgentOutput.id)).all()
        assert (made.id in found) is uow.phase.writes_normalized
        more = uow.artifacts.add(**artifact_values(spec_id="SPEC-KEPT"))
    assert behind(store).rows_of("SELECT text FROM notes") == [(str(made.id),)]
    with store.unit_of_work(read_only=True) as uow:
        assert uow.artifacts.list(spec_id="SPEC-KEPT") == [more, made]
    assert store.migration.status().foreign_writes == 0
