"""CONTRACT lets go: nothing in use depends on what was put away, and an operator can remove it for good."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from consensus_orm import ConsensusStore, Phase
from consensus_orm.cli import main
from consensus_orm.databases import state
from consensus_orm.databases.saved_rows import dropped
from consensus_orm.errors import GateClosedError, InvalidValueError, MigrationError, WrongPhaseError
from tests.migration.steps import CARRIED
from tests.support.databases import Database

AWAY = [dropped(name) for name in CARRIED]


def added(store: ConsensusStore) -> int:
    with store.unit_of_work() as uow:
        return uow.artifacts.add(spec_id="W", stage="s", agent_name="a", content_json="{}").id


def contracted(store: ConsensusStore, *, keep_tables: bool = False) -> None:
    store.migration.migrate(Phase.NORMALIZED, soak=False)
    store.migration.verify()
    store.migration.advance(Phase.CONTRACT, soak=False, reason="a test", keep_tables=keep_tables)


def test_what_was_put_away_is_removed_for_good(store: ConsensusStore, database: Database) -> None:
    """The tables and what makes them again go, with a reason in the audit; ids go on, and there is no way back."""
    contracted(store)
    before, last = database.normalized(), added(store)
    assert store.migration.finish_contract(reason="nobody goes back") == list(CARRIED)

    assert not set(AWAY) & set(database.tables())
    assert database.scalar("SELECT count(*) FROM consensus_orm_saved_schema") == 0
    entry = store.migration.history()[-1]
    assert (entry.action, entry.reason, entry.detail) == (
        "finish contract",
        "nobody goes back",
        {"removed": list(CARRIED)},
    )
    assert (entry.from_phase, entry.to_phase, store.migration.phase) == (Phase.CONTRACT, None, Phase.CONTRACT)
    assert added(store) == last + 1
    assert all(set(rows) <= set(database.normalized()[name]) for name, rows in before.items())
    with pytest.raises(MigrationError, match="removed for good"):
        store.migration.rollback(reason="too late")
    with pytest.raises(MigrationError, match="nothing is put away"):
        store.migration.finish_contract(reason="again")
    assert store.migration.status().guards == []


def test_only_contract_is_finished_and_with_a_reason(store: ConsensusStore, database: Database) -> None:
    """In every other phase, and without a reason, nothing is touched."""
    store.migration.upgrade()
    with pytest.raises(WrongPhaseError, match="in use"):
        store.migration.finish_contract(reason="too early")
    contracted(store)
    before = database.everything()
    with pytest.raises(InvalidValueError, match="needs a reason"):
        store.migration.finish_contract(reason=" ")
    assert database.everything() == before
    store.migration.rollback(Phase.NORMALIZED)


def test_the_command(store: ConsensusStore, database: Database) -> None:
    """`contract finish` wants a reason, says what it removed, and ends with 1 where it is refused."""
    store.migration.upgrade()
    run = CliRunner().invoke
    url = str(database.where)
    assert run(main, ["--url", url, "contract", "finish"]).exit_code == 2
    assert run(main, ["--url", url, "contract", "finish", "--reason", "early"]).exit_code == 1
    contracted(store)
    done = run(main, ["--url", url, "contract", "finish", "--reason", "enough", "--json"])
    assert (done.exit_code, '"consensus_artifacts"' in done.output) == (0, True), done.output


# Rows that were kept --------------------------------------------------------------------------------------


def test_tables_are_kept_instead_of_a_backup(store: ConsensusStore, database: Database, tmp_path: Path) -> None:
    """With `keep_tables` and a reason there is no backup, each legacy row stays, and only an operator removes it."""
    store.migration.migrate(Phase.NORMALIZED, soak=False)
    before = {name: database.rows(name) for name in CARRIED}
    with pytest.raises(InvalidValueError, match="keep_tables needs a reason"):
        store.migration.advance(Phase.CONTRACT, soak=False, keep_tables=True)
    contracted(store, keep_tables=True)

    assert [path.name for path in tmp_path.iterdir() if ".before-contract-" in path.name] == []
    assert store.migration.history()[-1].detail["tables_kept"] is True
    store.migration.advance(Phase.CONTRACT)  # finishes what was interrupted, which this was not
    assert {name: database.rows(dropped(name)) for name in CARRIED} == before
    store.migration.finish_contract(reason="the soak is over")
    assert not set(AWAY) & set(database.tables())


def test_the_way_back_from_kept_tables(store: ConsensusStore, database: Database) -> None:
    """Rows written at CONTRACT come back with the others, once each."""
    store.migration.migrate(Phase.NORMALIZED, soak=False)
    before = {name: database.rows(name) for name in CARRIED}
    contracted(store, keep_tables=True)
    new = added(store)
    store.migration.rollback(Phase.EXPAND)
    after = {name: database.rows(name) for name in CARRIED}
    assert set(map(tuple, after["consensus_artifacts"])) > set(map(tuple, before["consensus_artifacts"]))
    assert len(after["consensus_artifacts"]) == len(before["consensus_artifacts"]) + 1
    assert after["consensus_synthesis"] == before["consensus_synthesis"]
    assert added(store) == new + 1


def test_a_removal_that_was_interrupted(store: ConsensusStore, database: Database) -> None:
    """Killed while kept rows were removed, the next call ends it."""
    contracted(store, keep_tables=True)
    with store._units.bare() as uow:
        state.put_step(uow, state.EMPTYING)
    assert store.migration.finish_contract(reason="a test") == list(CARRIED)
    assert not set(AWAY) & set(database.tables())


# What stands in the way -----------------------------------------------------------------------------------


@pytest.mark.postgresql
@pytest.mark.parametrize("of", ["view", "foreign key", "default"])
def test_what_uses_a_table_shuts_the_gate(store: ConsensusStore, database: Database, of: str) -> None:
    """A view, a table or a default of another program is named before anything is removed, and nothing cascades."""
    contracted(store)
    table = dropped("consensus_artifacts")
    make, drop, told = {
        "view": (f"CREATE VIEW report AS SELECT * FROM {table}", "DROP VIEW report", "report"),
        "foreign key": (f"CREATE TABLE report (of BIGINT REFERENCES {table})", "DROP TABLE report", "on table report"),
        "default": (
            "CREATE TABLE report (id BIGINT DEFAULT nextval('consensus_artifacts_id_seq'))",
            "DROP TABLE report",
            None,
        ),
    }[of]
    database.script(make)
    if told is None:  # the sequence is the normalized table's now, so that a default on it holds up nothing
        store.migration.finish_contract(reason="a test")
        database.script("INSERT INTO report DEFAULT VALUES")
        return
    before = database.everything()
    with pytest.raises(GateClosedError, match=told):
        store.migration.finish_contract(reason="a test")
    assert database.everything() == before
    database.script(drop)
    store.migration.finish_contract(reason="a test")


def test_what_is_open_shuts_the_gate(store: ConsensusStore, database: Database) -> None:
    """A row that only a reject knows is settled first, and what another program has put in the way is gone."""
    contracted(store)
    database.script("DROP VIEW consensus_synthesis; CREATE VIEW consensus_synthesis AS SELECT 1 AS one")
    with pytest.raises(GateClosedError, match="consensus_synthesis is a view of another program"):
        store.migration.finish_contract(reason="a test")
    database.script("DROP VIEW consensus_synthesis")
    database.rows_of(
        "INSERT INTO consensus_orm_rejects (id, pair, key, table_name, reason, image, found_at, state)"
        " VALUES (900, 'artifacts', 900, 'consensus_artifacts', 'a test', '{}', 0, 'open')"
    )
    with pytest.raises(GateClosedError, match="1 reject is open"):
        store.migration.finish_contract(reason="a test")


# The sequence ---------------------------------------------------------------------------------------------


@pytest.mark.postgresql
@pytest.mark.parametrize("identity", [False, True])
def test_ids_go_on_without_the_table(store: ConsensusStore, database: Database, identity: bool) -> None:
    """An operator who drops the table by hand loses no id, whether its column was serial or identity.

    An id that was given and deleted before is not given again, also after the way back.
    """
    if identity:
        database.script(
            "ALTER TABLE consensus_artifacts ALTER id DROP DEFAULT; DROP SEQUENCE consensus_artifacts_id_seq;"
            "ALTER TABLE consensus_artifacts ALTER id ADD GENERATED BY DEFAULT AS IDENTITY;"
            "SELECT setval('consensus_artifacts_id_seq', (SELECT max(id) FROM consensus_artifacts))"
        )
    store.migration.migrate(Phase.NORMALIZED, soak=False)
    last = added(store)
    with store.unit_of_work() as uow:
        uow.artifacts.delete(spec_id="W")
    contracted(store)
    assert added(store) == last + 1
    store.migration.rollback(Phase.NORMALIZED)
    owner = "SELECT pg_get_serial_sequence('consensus_artifacts', 'id')"
    assert database.scalar(owner) == "public.consensus_artifacts_id_seq"
    assert added(store) == last + 2
    contracted(store)
    assert added(store) == last + 3
    database.script("".join(f"DROP TABLE {name};" for name in AWAY))
    assert added(store) == last + 4


@pytest.mark.postgresql
def test_a_sequence_of_another_role(store: ConsensusStore, database: Database) -> None:
    """A sequence that the normalized table cannot own is not used any more, and no id is given twice."""
    role = f"owner_{database.scalar('SELECT current_database()')}"
    database.script(f"CREATE ROLE {role}; GRANT CREATE ON SCHEMA public TO {role}")
    try:
        database.script(f"ALTER TABLE consensus_artifacts OWNER TO {role}")
        store.migration.migrate(Phase.NORMALIZED, soak=False)
        last = added(store)
        contracted(store)
        database.script("".join(f"DROP TABLE {name};" for name in AWAY))
        assert added(store) == last + 1
    finally:
        database.script(f"REASSIGN OWNED BY {role} TO postgres; DROP OWNED BY {role}; DROP ROLE {role}")
