"""Roles that own nothing: what they may do to the legacy tables they may do in every phase, and no more."""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
from click.testing import CliRunner
from sqlalchemy import make_url, select

from consensus_orm import ConsensusStore, Phase, errors
from consensus_orm.cli import main
from tests.migration.steps import BASE, forward
from tests.support import servers
from tests.support.databases import ServerDatabase, build_legacy

TABLES = "consensus_artifacts, consensus_synthesis"
ROUND = [*Phase, *reversed([*Phase][:-1])]
"""Every phase up to CONTRACT, and back to EXPAND."""


class Roles(NamedTuple):
    """One database as each role sees it."""

    admin: ServerDatabase
    owner: ServerDatabase
    app: ServerDatabase
    """It may do all to the rows of the legacy tables."""
    reader: ServerDatabase
    writer: ServerDatabase
    """A program that only adds rows, by SQL of its own."""


def allow(roles: Roles, kind: str, rights: str, tables: str = TABLES) -> None:
    """Give a role rights on tables, and on the sequences of the legacy tables, from which their ids come."""
    sequences = "consensus_artifacts_id_seq, consensus_synthesis_id_seq"
    to = make_url(getattr(roles, kind).where).username
    roles.owner.script(f"GRANT {rights} ON {tables} TO {to}")
    if "INSERT" in rights:
        roles.owner.script(f"GRANT USAGE ON SEQUENCE {sequences} TO {to}")


@pytest.fixture
def roles() -> Iterator[Roles]:
    """A legacy database, and four roles; they have rights on the legacy tables alone."""
    names = {kind: f"{kind}_{uuid.uuid4().hex[:8]}" for kind in ("owner", "app", "reader", "writer")}
    with servers.database() as url:
        admin = ServerDatabase(url)
        admin.script("".join(f"CREATE ROLE {name} LOGIN;" for name in names.values()))
        admin.script(f"GRANT ALL ON SCHEMA public TO {names['owner']}")
        of = {kind: ServerDatabase(make_url(url).set(username=name).render_as_string()) for kind, name in names.items()}
        build_legacy(of["owner"].where)
        roles = Roles(admin, **of)
        allow(roles, "app", "SELECT, INSERT, UPDATE, DELETE")
        allow(roles, "reader", "SELECT")
        allow(roles, "writer", "INSERT")
        yield roles
    with psycopg.connect(servers.shared()[0], autocommit=True) as connection:
        for name in names.values():
            connection.execute(f"DROP ROLE {name}".encode())


@contextlib.contextmanager
def opened(database: ServerDatabase, folder: Path | None = None, **changes: object) -> Iterator[ConsensusStore]:
    settings = BASE.model_copy(update={"backup_dir": folder, "retry_attempts": 1, **changes})
    with ConsensusStore.open(database.where, settings=settings) as store:
        yield store


def name(database: ServerDatabase) -> str:
    return str(make_url(database.where).username)


def to(store: ConsensusStore, phase: Phase) -> None:
    """Go to a phase, forward with all that the gates ask for."""
    if phase > store.migration.phase:
        forward(store, phase)
    elif phase < store.migration.phase:
        store.migration.rollback(phase)


def use(store: ConsensusStore) -> None:
    """All that an application does to its rows, by the repositories and by the session, those of others among them."""
    spec, stage = "used", "spec-plan"
    with store.unit_of_work() as uow:
        kept = uow.artifacts.add(spec_id=spec, stage=stage, agent_name="gemini", content_json="{}", run_id="r")
        more = {"spec_id": spec, "stage": stage, "content_json": "{}"}
        uow.artifacts.add_many([{**more, "agent_name": each} for each in ("claude", "gpt")])
        uow.syntheses.add(spec_id=spec, stage=stage, output_markdown="#", status="ok", run_id="r")
    with store.unit_of_work() as uow:
        model: Any = uow.model(uow.statements.moves["artifacts"])
        for row in uow.session.scalars(select(model).where(model.agent_name.in_(["gemini", "foreign"]))):
            row.agent_name = "changed"
    with store.unit_of_work() as uow:
        found = uow.artifacts.get(kept.id)
        assert found is not None
        assert found.agent_name == "changed"
        assert uow.syntheses.delete(spec_id=spec, stage=stage) == 1
        assert uow.artifacts.delete(spec_id=spec, stage=stage) == 3


def read(store: ConsensusStore) -> int:
    with store.unit_of_work(read_only=True) as uow:
        uow.runs.list(spec_id="used")
        uow.syntheses.list()
        return len(uow.artifacts.list())


ADD = "INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json) VALUES ('kept', 's', 'foreign', '{}')"


def test_roles_are_served_in_every_phase_and_back(roles: Roles, tmp_path: Path) -> None:
    """A role with rights on the legacy tables alone reads and writes all along after `upgrade`; no mismatch is left.

    A program that only adds rows by SQL is recorded by triggers, and frozen out only in NORMALIZED.
    """
    rows = roles.admin.scalar("SELECT count(*) FROM consensus_artifacts")
    with opened(roles.owner, tmp_path) as store:
        store.migration.upgrade()
        with opened(roles.app, shadow_reads=1) as app, opened(roles.reader, shadow_reads=1) as reader:
            for phase in ROUND:
                to(store, phase)
                if phase.writes_legacy:
                    roles.writer.script(ADD)
                    rows += 1
                use(app)
                if phase.compares:
                    store.migration.reconcile()
                assert read(app) == read(reader) == rows, phase
                assert [each for each in store.migration.dependencies() if each.kind == "role"] == []
                assert not app.migration.mismatches()
    assert roles.admin.scalar("SELECT count(*) FROM consensus_artifacts WHERE agent_name = 'changed'") > 0


CHANGES = (
    "UPDATE consensus_orm_state SET phase = 5",
    "UPDATE consensus_orm_state SET epoch = 0, step = NULL",
    "DELETE FROM consensus_orm_state",
    "INSERT INTO consensus_orm_state (id, phase, since) VALUES (1, 1, 0)",
    "UPDATE consensus_orm_fence SET phases = 0",
    "INSERT INTO consensus_orm_history (action, from_phase, to_phase, at, by) VALUES ('advance', 1, 2, 0, 'me')",
    "UPDATE consensus_orm_history SET by = 'me'",
    "DELETE FROM consensus_orm_history",
    "DELETE FROM consensus_orm_changes",
    "UPDATE consensus_orm_changes SET undecided = true",
    "INSERT INTO consensus_orm_changes (pair, key, side, op) VALUES ('artifacts', '1', 'legacy', 'insert')",
    "UPDATE consensus_orm_mismatches SET state = 'repaired'",
    "SET consensus_orm.by = 'repository'; UPDATE consensus_orm_mismatches SET state = 'accepted'",
    "DELETE FROM consensus_orm_mismatches",
    "UPDATE consensus_orm_rejects SET state = 'accepted'",
    "SELECT image FROM consensus_orm_rejects",
    "SELECT image FROM consensus_orm_images",
    "DELETE FROM consensus_orm_images",
    "UPDATE consensus_orm_guards SET definition = ''",
    "UPDATE consensus_orm_saved_schema SET sql = ''",
    "INSERT INTO consensus_orm_certificates (at) VALUES (0)",
    "INSERT INTO consensus_orm_acceptances VALUES ('role', 'x', 'y', 0, 'z', 0, 'me')",
    "UPDATE consensus_orm_backfill SET finished = true",
    "UPDATE consensus_orm_control SET throttle = 1",
    "UPDATE consensus_orm_version SET version_num = '0001'",
    "TRUNCATE consensus_orm_changes",
    "DROP VIEW consensus_orm_fence",
    "ALTER TABLE consensus_artifacts DISABLE TRIGGER ALL",
    "CREATE TEMPORARY TABLE t (); CREATE TRIGGER t AFTER INSERT ON t EXECUTE FUNCTION consensus_orm_artifacts_legacy()",
)
"""What only an operator may do."""


@pytest.mark.parametrize("phase", [Phase.DUAL_WRITE, Phase.NORMALIZED], ids=str)
def test_an_application_changes_neither_phase_nor_ledgers(roles: Roles, tmp_path: Path, phase: Phase) -> None:
    """Each attempt is refused for lack of a privilege, by the role with most rights, and no control table changes."""
    with opened(roles.owner, tmp_path) as store:
        store.migration.upgrade()
        to(store, phase)
        with opened(roles.app) as app, app.unit_of_work() as uow:
            uow.artifacts.add(spec_id="x", stage="s", agent_name="a", content_json="{}")
    if phase is Phase.DUAL_WRITE:
        roles.writer.script(ADD)
    roles.admin.script(
        "INSERT INTO consensus_orm_mismatches (pair, kind, state, found_by, found_at)"
        " VALUES ('artifacts', 'different', 'confirmed', 'test', 0)"
    )
    before = roles.admin.everything()
    assert before["consensus_orm_changes"]
    let_through = []
    for statement in CHANGES:
        try:
            roles.app.script(statement)
        except psycopg.errors.InsufficientPrivilege:
            continue
        except psycopg.errors.ObjectNotInPrerequisiteState:  # a view with an aggregate has no rows to change
            continue
        let_through.append(statement)
    assert let_through == []
    assert roles.admin.everything() == before
    if phase is Phase.NORMALIZED:  # what is needed to go back is safe from a program that says it is ours, too
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            roles.app.script("SET consensus_orm.by = 'repository'; DELETE FROM consensus_orm_changes")


def test_where_the_shadow_alone_may_not_be_written_the_write_stands(roles: Roles, tmp_path: Path) -> None:
    """The failure is a mismatch, recorded by the same role, and a repair by an operator settles it."""
    with opened(roles.owner, tmp_path) as store:
        store.migration.upgrade()
        to(store, Phase.DUAL_WRITE)
        roles.owner.script(f"REVOKE ALL ON agent_outputs FROM {name(roles.app)}, {name(roles.reader)}")
        with opened(roles.app, shadow_reads=1) as app:
            with app.unit_of_work() as uow:
                added = uow.artifacts.add(spec_id="x", stage="s", agent_name="a", content_json="{}")
            with app.unit_of_work() as uow:
                row = {"spec_id": "x", "stage": "s", "agent_name": "session", "content_json": "{}"}
                model: Any = uow.model("artifacts")
                rows = [model(**row) for _ in range(2)]
                uow.session.add_all(rows)
                uow.session.flush()
                ids = {added.id, *(row.id for row in rows)}
                rows[0].agent_name = "changed"
            read(app)
        there = f"SELECT agent_name FROM consensus_artifacts WHERE id IN ({', '.join(map(str, ids))}) ORDER BY 1"
        assert [agent for (agent,) in roles.admin.rows_of(there)] == ["a", "changed", "session"]
        assert {(found.key, found.kind) for found in store.migration.mismatches()} == {
            (key, "shadow_failed") for key in ids
        }
        store.migration.upgrade()
        store.migration.reconcile()
        with opened(roles.app) as app:
            use(app)
        assert store.migration.mismatches() == []


def test_a_difference_that_a_reader_finds_is_recorded(roles: Roles, tmp_path: Path) -> None:
    """A role with SELECT alone records what its shadow reads find, and sounds the alarm; the phase it cannot change."""
    with opened(roles.owner, tmp_path) as store:
        store.migration.upgrade()
        to(store, Phase.CUTOVER)
        roles.admin.unnoticed("UPDATE consensus_artifacts SET agent_name = 'odd' WHERE id = 1")
        with opened(roles.reader, shadow_reads=1, alarm_mismatches=1, alarm_falls_back=True) as reader:
            read(reader)
        assert [found.column for found in store.migration.mismatches()] == ["agent_name"]
        assert "alarm" in [entry.action for entry in store.migration.history()]
        assert store.migration.phase is Phase.CUTOVER


@pytest.mark.parametrize("accepted", [False, True])
def test_a_role_that_would_be_cut_off_shuts_the_gate(roles: Roles, tmp_path: Path, accepted: bool) -> None:
    """Check, status and the gate name it with the GRANTs that help, which do; it may also be accepted."""
    with opened(roles.owner, tmp_path) as store:
        store.migration.upgrade()
        assert store.migration.check() == []
        allow(roles, "reader", "INSERT")
        roles.owner.script(f"GRANT UPDATE (agent_name) ON consensus_artifacts TO {name(roles.reader)}")
        found = {(each.kind, each.name, each.table) for each in store.migration.status().dependencies}
        role = name(roles.reader)
        assert found == {
            ("role", role, "consensus_artifacts"),
            ("role", role, "consensus_synthesis"),
            ("column right", f"UPDATE (agent_name) of {role}", "consensus_artifacts"),
        }
        assert any(f"role {role} may use consensus_artifacts" in text for text in store.migration.check())
        with pytest.raises(errors.GateClosedError) as shut:
            store.migration.advance()
        told = " ".join(shut.value.reasons)
        assert "agent_outputs" in told
        assert "column right" not in told  # which matters once reads move
        if accepted:
            names = [f"role {role}", f"UPDATE (agent_name) of {role}"]
            store.migration.accept_dependencies(names, reason="it is a report")
        else:
            for grant in re.findall(r"GRANT [^;]*? TO \w+", told):
                roles.owner.script(grant)
            store.migration.accept_dependencies([f"UPDATE (agent_name) of {role}"], reason="it is a report")
        to(store, Phase.CUTOVER)


def test_tables_that_are_made_again_have_the_rights_of_the_other_side(roles: Roles, tmp_path: Path) -> None:
    """Whichever side is made again, and for a role that came at CONTRACT on the way back, too."""
    with opened(roles.owner, tmp_path) as store:
        store.migration.upgrade()
        to(store, Phase.DUAL_WRITE)
        roles.owner.script("DROP TABLE agent_outputs CASCADE")
        store.migration.reconcile(rebuild="normalized")
        with opened(roles.app) as app:
            use(app)
        to(store, Phase.CUTOVER)
        roles.owner.script("DROP TABLE consensus_synthesis CASCADE")
        store.migration.reconcile(rebuild="legacy")
        with opened(roles.app) as app:
            use(app)
        assert store.migration.mismatches() == []
        to(store, Phase.CONTRACT)
        allow(roles, "reader", "INSERT, UPDATE, DELETE", "agent_outputs, consensus_runs, consensus_syntheses")
        store.migration.upgrade()
        to(store, Phase.DUAL_WRITE)
        for each in (roles.app, roles.reader):
            with opened(each) as app:
                use(app)
        assert store.migration.mismatches() == []


def test_what_upgrade_may_not_give_is_printed(roles: Roles, tmp_path: Path) -> None:
    """Where another role owns the legacy tables, status has the GRANT for their sequences; and nothing fails."""
    newcomer = name(roles.reader)
    with opened(roles.owner, tmp_path) as store:
        store.migration.upgrade()
        roles.admin.script(
            f"GRANT INSERT ON {TABLES} TO {newcomer}; ALTER SEQUENCE consensus_artifacts_id_seq OWNED BY NONE;"
            " ALTER SEQUENCE consensus_artifacts_id_seq OWNER TO postgres"
        )
        assert store.migration.upgrade() == []
        left = {each.name: each.grants for each in store.migration.dependencies()}
        grant = "GRANT USAGE ON SEQUENCE public.consensus_artifacts_id_seq TO"
        assert left == {role: (f"{grant} {role}",) for role in (name(roles.owner), newcomer)}
    told = CliRunner().invoke(main, ["--url", roles.owner.where, "upgrade"])
    assert told.exit_code == 0, told.output
    assert f"  {grant} {newcomer};" in told.output.splitlines()
    with opened(roles.app) as store:  # who may give nothing may still ask
        assert store.migration.upgrade() == []
        assert {each.name for each in store.migration.dependencies()} == left.keys()


def test_errors_name_privilege_schema_and_table(roles: Roles, tmp_path: Path) -> None:
    """Of the first statement of a unit of work, too; the hint is a GRANT that can be pasted."""
    with opened(roles.owner, tmp_path) as store:
        store.migration.upgrade()
    role = name(roles.app)
    for lost, table, privilege in (
        ("UPDATE ON consensus_orm_fence", "consensus_orm_fence", "UPDATE"),
        ("SELECT ON consensus_orm_state", "consensus_orm_state", "SELECT"),
        ("INSERT ON consensus_artifacts", "consensus_artifacts", "INSERT"),
    ):
        roles.owner.script(f"REVOKE {lost} FROM {role}")
        with pytest.raises(errors.ReadOnlyDatabaseError) as refused, opened(roles.app) as app:
            use(app)
        error = refused.value
        assert (error.privilege, error.schema, error.table) == (privilege, "public", table)
        assert error.hint == f"as its owner, run: GRANT {privilege} ON TABLE public.{table} TO {role}"
        roles.owner.script(f"GRANT {lost} TO {role}")


def test_a_role_that_sees_only_the_schema_of_the_legacy_tables_may_use_ours(tmp_path: Path, roles: Roles) -> None:
    """Upgrade gives the right to use the schema, too; and a role without any right gets none."""
    names = ", ".join(map(name, roles[1:]))
    roles.admin.script(
        f"CREATE SCHEMA ours; ALTER SCHEMA ours OWNER TO {name(roles.owner)}; REVOKE ALL ON SCHEMA ours FROM PUBLIC;"
        + "".join(f"ALTER ROLE {role} SET search_path = ours, public;" for role in names.split(", "))
    )
    with opened(roles.owner, tmp_path) as store:
        store.migration.upgrade()
        to(store, Phase.DUAL_WRITE)
        with opened(roles.app) as app:
            use(app)
    given = f"SELECT has_schema_privilege('{name(roles.writer)}', 'ours', 'USAGE')"
    assert roles.admin.scalar(given)
    assert roles.admin.scalar("SELECT count(*) FROM pg_tables WHERE schemaname = 'ours'") > 10


def test_the_sign_at_contract_may_be_read_by_every_role(roles: Roles, tmp_path: Path) -> None:
    """A program that knows only the legacy tables is told where the rows are, not that it lacks a right."""
    with opened(roles.owner, tmp_path) as store:
        store.migration.upgrade()
        to(store, Phase.CONTRACT)
    assert "agent_outputs" in roles.reader.scalar("SELECT * FROM consensus_artifacts")
