"""Where row security hides rows from the role of an operator, every step refuses by name, and nothing is lost."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url

from consensus_orm import ConsensusStore, Phase, errors
from tests.migration.steps import BASE
from tests.support import servers
from tests.support.databases import ServerDatabase, build_legacy

HIDE = (
    "ALTER TABLE consensus_artifacts ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;"
    " CREATE POLICY even ON consensus_artifacts USING (id % 2 = 0)"
)


@pytest.fixture
def owned() -> Iterator[tuple[ServerDatabase, ServerDatabase]]:
    """A legacy database as a superuser sees it, and as the owner of its tables does."""
    role = f"owner_{uuid.uuid4().hex[:8]}"
    with servers.database() as url:
        admin = ServerDatabase(url)
        admin.script(f"CREATE ROLE {role} LOGIN CREATEDB; GRANT ALL ON SCHEMA public TO {role}")
        owner = ServerDatabase(make_url(url).set(username=role).render_as_string())
        build_legacy(owner.where)
        yield admin, owner
    with psycopg.connect(servers.shared()[0], autocommit=True) as connection:
        connection.execute(f"DROP ROLE {role}".encode())


@contextlib.contextmanager
def opened(database: ServerDatabase, folder: Path) -> Iterator[ConsensusStore]:
    settings = BASE.model_copy(update={"backup_dir": folder, "retry_attempts": 1})
    with ConsensusStore.open(database.where, settings=settings) as store:
        yield store


def to(store: ConsensusStore, phase: Phase) -> None:
    store.migration.migrate(phase, soak=False)


STEPS: dict[str, tuple[Phase, Callable[[ConsensusStore], Any]]] = {
    "advance": (Phase.EXPAND, lambda store: store.migration.advance(soak=False)),
    "backfill": (Phase.DUAL_WRITE, lambda store: store.migration.backfill()),
    "verify": (Phase.DUAL_WRITE, lambda store: store.migration.verify()),
    "reconcile": (Phase.DUAL_WRITE, lambda store: store.migration.reconcile()),
    "contract": (Phase.NORMALIZED, lambda store: store.migration.advance(soak=False)),
    "rehearse": (Phase.EXPAND, lambda store: store.migration.rehearse()),
    "backup": (Phase.EXPAND, lambda store: store.migration.backup_before("test")),
}


@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_would_not_see_all_rows_is_refused(
    owned: tuple[ServerDatabase, ServerDatabase], tmp_path: Path, step: str
) -> None:
    """The error names the table, and no row of any side changes; without the policy the step is taken."""
    admin, owner = owned
    phase, take = STEPS[step]
    with opened(owner, tmp_path) as store:
        store.migration.upgrade()
        to(store, phase)
        if phase is Phase.NORMALIZED:
            assert store.migration.verify().clean
        if step == "reconcile":  # so that there is something to look at
            admin.unnoticed("UPDATE consensus_artifacts SET agent_name = 'odd' WHERE id = 1")
        admin.script(HIDE)
        before = admin.everything()
        with pytest.raises((errors.MigrationError, errors.StorageError)) as refused:
            take(store)
        assert "consensus_artifacts" in str(refused.value)
        assert "row security" in str(refused.value)
        after = admin.everything()
        assert {name: after[name] for name in after if not name.startswith("consensus_orm_")} == {
            name: before[name] for name in before if not name.startswith("consensus_orm_")
        }
        if step in ("advance", "contract"):
            assert any("row security of consensus_artifacts" in reason for reason in store.migration.status().gate)
        admin.script("ALTER TABLE consensus_artifacts NO FORCE ROW LEVEL SECURITY")
        if step in ("advance", "contract"):
            store.migration.accept_dependencies(["even on public.consensus_artifacts"], reason="a test")
        take(store)


def test_the_error_of_the_server_names_the_table(owned: tuple[ServerDatabase, ServerDatabase], tmp_path: Path) -> None:
    """It has the table, the SQLSTATE and what to do as facts, and units of the application go on."""
    admin, owner = owned
    with opened(owner, tmp_path) as store:
        store.migration.upgrade()
        to(store, Phase.DUAL_WRITE)
        admin.script(HIDE)
        with pytest.raises(errors.RowsHiddenError) as hidden:
            store.migration.backfill()
        assert (hidden.value.table, hidden.value.sqlstate) == ("consensus_artifacts", "42501")
        assert "BYPASSRLS" in hidden.value.hint
        with store.unit_of_work(read_only=True) as uow:
            assert uow.artifacts.count() > 0


def test_a_column_that_the_role_may_not_read_shuts_the_gate(
    owned: tuple[ServerDatabase, ServerDatabase], tmp_path: Path
) -> None:
    """The gate names role, column and table, and the command that gives the right."""
    admin, owner = owned
    role = make_url(owner.where).username
    with opened(owner, tmp_path) as store:
        store.migration.upgrade()
        others = ", ".join(name for name in owner.columns("consensus_artifacts") if name != "response_text")
        admin.script(
            f"ALTER TABLE consensus_artifacts OWNER TO postgres; REVOKE ALL ON consensus_artifacts FROM {role};"
            f" GRANT SELECT ({others}), INSERT, UPDATE, DELETE ON consensus_artifacts TO {role}"
        )
        (reason,) = (each for each in store.migration.status().gate if "may not read" in each)
        assert f"the role {role} may not read response_text of consensus_artifacts" in reason
        with pytest.raises(errors.GateClosedError, match="may not read response_text"):
            store.migration.advance(soak=False)


def test_a_policy_of_a_legacy_table_has_to_be_known_before_reads_move(
    owned: tuple[ServerDatabase, ServerDatabase], tmp_path: Path
) -> None:
    """It does not apply to the normalized table: CUTOVER is shut until the policy is gone or accepted."""
    admin, _ = owned
    admin.script(HIDE)
    with opened(admin, tmp_path) as store:  # a superuser sees all rows
        store.migration.upgrade()
        to(store, Phase.DUAL_WRITE)
        with pytest.raises(errors.GateClosedError, match=r"policy of its own even on public\.consensus_artifacts"):
            to(store, Phase.CUTOVER)
        assert store.migration.phase is Phase.DUAL_WRITE
