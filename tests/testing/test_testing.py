"""The testing kit: its factories make what they say, and its fixtures are what they promise."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, make_url
from sqlalchemy.orm import Session

from consensus_orm import ConsensusStore, Phase, testing
from consensus_orm.consensus import records
from consensus_orm.errors import ConfigurationError
from consensus_orm.testing import (
    CONTENTS,
    RUN_IDS,
    TIMES,
    AgentExecutionFactory,
    AgentOutputFactory,
    AgentOutputRecordFactory,
    ArtifactFactory,
    ConsensusArtifactFactory,
    ConsensusRunFactory,
    ConsensusSynthesisFactory,
    ConsensusSynthesisRecordFactory,
    ExecutionFactory,
    RunFactory,
    SynthesisFactory,
    artifact_values,
    legacy_file,
    session_on,
    spawn_values,
    synthesis_values,
    take_to,
    twins,
    use_session,
)
from consensus_orm.testing.plugin import Flip, QueryCounter
from tests.support import oracle, servers
from tests.support.databases import at, behind


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "field.db"


def as_stored(value: Any) -> tuple[str, Any]:
    """What SQLite keeps of a value: its type and bytes, as the oracle writes them."""
    if value is None:
        return ("null", "")
    if isinstance(value, bytes):
        return ("blob", value.hex().upper())
    if isinstance(value, float):
        return ("real", value)
    if isinstance(value, int):
        return ("integer", str(value).encode().hex().upper())
    handler = "surrogatepass" if "\ud800" in value else "surrogateescape"
    return ("text", value.encode("utf-8", handler).hex().upper())


def cell(path: Path, column: str, table: str) -> oracle.Cell:
    with oracle.reading(path) as connection:
        ((found,),) = oracle.query(connection, [column], f"FROM {table}")
    return found


@pytest.mark.parametrize("shape", TIMES)
def test_every_shape_of_time_is_stored_as_named(path: Path, shape: str) -> None:
    """A legacy row holds the odd created_at that its factory was asked for, in type and bytes."""
    with legacy_file(path):
        ConsensusArtifactFactory.create(time_shape=shape)

    kind, stored = cell(path, "created_at", "consensus_artifacts")
    expected = as_stored(TIMES[shape])
    assert (kind, float(stored) if kind == "real" else stored) == expected


@pytest.mark.parametrize("shape", CONTENTS)
def test_every_shape_of_content_is_stored_as_named(path: Path, shape: str) -> None:
    """A row holds the odd content that its factory was asked for: BLOBs, NULs, bytes that are no UTF-8, 5 MB."""
    with legacy_file(path):
        ConsensusArtifactFactory.create(content_shape=shape)

    expected = CONTENTS[shape]
    # A column declared TEXT turns numbers into text.
    stored = as_stored(str(expected) if isinstance(expected, int | float) else expected)
    assert cell(path, "content_json", "consensus_artifacts") == stored
    if shape == "huge":
        assert len(stored[1]) // 2 == pytest.approx(5_000_000, abs=10)


@pytest.mark.parametrize("shape", RUN_IDS)
def test_every_shape_of_run_id_is_stored_as_named(path: Path, shape: str) -> None:
    """NULL and '' stay two different run ids."""
    with legacy_file(path):
        ConsensusSynthesisFactory.create(run_shape=shape)

    assert cell(path, "run_id", "consensus_synthesis") == as_stored(RUN_IDS[shape])


def test_traits_of_legacy_rows(path: Path) -> None:
    """Big ids, failed and degraded syntheses, and executions in each state are one word each."""
    with legacy_file(path):
        assert ConsensusArtifactFactory.create(big_id=True).id > 2**31
        assert ConsensusArtifactFactory.create(verdict=True).agent_name == "consensus-verdict"
        assert ConsensusSynthesisFactory.create(degraded_flag=True).degraded == 1
        assert ConsensusSynthesisFactory.create(degraded_null=True).degraded is None
        assert ConsensusSynthesisFactory.create(degraded_status=True).status == "degraded"
        assert ConsensusSynthesisFactory.create(failed=True).status == "failed"
        assert AgentExecutionFactory.create().completed_at is None
        assert AgentExecutionFactory.create(completed=True).extraction_error is None
        assert AgentExecutionFactory.create(failed=True).extraction_error


def test_twins_differ_in_the_id_alone(path: Path) -> None:
    """Rows equal in everything but the id, which a deduplication would lose."""
    with legacy_file(path) as session:
        made = twins(ConsensusArtifactFactory, 3, agent_name="gemini")
        session.flush()
        rows = session.connection().exec_driver_sql(
            "SELECT count(DISTINCT id), count(DISTINCT agent_name || content_json || created_at)"
            " FROM consensus_artifacts"
        )
        assert rows.one() == (3, 1)
        assert len({each.id for each in made}) == 3


def test_what_was_made_is_read_back_from_the_database(path: Path) -> None:
    """Model factories flush and expire: an attribute is what the database stored, not what was given."""
    with legacy_file(path) as session:
        session.connection().exec_driver_sql(
            "CREATE TRIGGER t AFTER INSERT ON consensus_artifacts BEGIN"
            " UPDATE consensus_artifacts SET agent_name = 'rewritten' WHERE id = NEW.id; END"
        )
        assert ConsensusArtifactFactory.create(agent_name="given").agent_name == "rewritten"


def test_normalized_rows_follow_the_mapping(path: Path) -> None:
    """What a normalized row derives from others is made by the mapping's own rules, so that verify has no complaint."""
    with legacy_file(path):
        pass
    with ConsensusStore.open(path) as store:
        take_to(store, Phase.CONTRACT)
        with session_on(path):
            for shape in ("second", "null", "iso", "nearly_next_second"):
                output = AgentOutputFactory.create(time_shape=shape)
                ConsensusSynthesisRecordFactory.create(time_shape=shape, run=output.run)
            AgentOutputFactory.create(run_shape="empty", content_shape="invalid_utf8")
            ConsensusRunFactory.create(run_shape="named")
        with store.unit_of_work(read_only=True) as uow:
            specs = uow.artifacts.specs()
            assert all(len(uow.runs.list(spec_id=spec)) == 1 for spec in specs)
            assert len(specs) == 5


def test_foreign_outputs_are_what_a_founding_program_writes(path: Path) -> None:
    """A foreign output, in a run without a key, is noticed and adopted like one of another program."""
    with legacy_file(path):
        ConsensusArtifactFactory.create()
    with ConsensusStore.open(path) as store:
        take_to(store, Phase.CUTOVER)
        with session_on(path):
            made = AgentOutputFactory.create(foreign=True).id
        assert store.migration.status().foreign_writes > 0
        store.migration.reconcile()
        assert store.migration.verify().clean
        with store.unit_of_work(read_only=True) as uow:
            adopted = uow.artifacts.get(made)
        assert adopted is not None
        assert adopted.created_at_raw == "2025-11-04 02:10:38.123"


def test_model_factories_need_a_session() -> None:
    """Without a session in use the error says how to give one."""
    with pytest.raises(ConfigurationError, match="use_session"):
        ConsensusArtifactFactory.create()


def test_a_session_of_ones_own_can_be_used(path: Path) -> None:
    """use_session takes any plain session, and leaves committing to its owner."""
    with legacy_file(path):
        pass
    engine: Engine = create_engine(f"sqlite:///{path}")
    with Session(engine) as session, use_session(session):
        ConsensusArtifactFactory.create()
        session.rollback()
    engine.dispose()

    assert oracle.rows(path, "consensus_artifacts") == []


def test_records_are_made_without_a_database() -> None:
    """Record factories make every record, odd values included, equal to what a repository would return."""
    odd = ArtifactFactory.build(time_shape="integer_seconds", content_shape="blob", run_shape="empty", big_id=True)
    assert odd.created_at is None
    assert [odd.created_at_raw, odd.content_json, odd.run_id] == [1762743600, b"\x00\xffblob", ""]
    assert ArtifactFactory.build().created_at is not None
    assert SynthesisFactory.build(degraded_null=True).degraded is None
    run = RunFactory.build(spec_id="SPEC-X")
    assert (len(run.outputs), len(run.syntheses), run.syntheses[0].spec_id) == (2, 1, "SPEC-X")
    assert RunFactory.build(unfinished=True).syntheses == ()
    assert RunFactory.build(alone=True).outputs == ()
    assert ExecutionFactory.build().completed_at is None
    assert ExecutionFactory.build(failed=True).extraction_error
    assert isinstance(AgentOutputRecordFactory.build(), records.AgentOutput)
    with pytest.raises(TypeError, match="agent"):
        ArtifactFactory.build(agent="gemini")


def test_a_made_record_equals_a_read_one(consensus_store: ConsensusStore) -> None:
    """A record from a factory with the values of a stored one is equal to it."""
    with consensus_store.unit_of_work() as uow:
        stored = uow.artifacts.add(**artifact_values())
    fields = {name: getattr(stored, name) for name in type(stored).model_fields}

    assert ArtifactFactory.build(**fields) == stored


def test_values_are_what_the_repositories_take(consensus_store: ConsensusStore) -> None:
    """The arguments made by the kit are accepted as they are, and overridden by name."""
    with consensus_store.unit_of_work() as uow:
        assert uow.artifacts.add(**artifact_values(run_shape="empty")).run_id == ""
        assert uow.artifacts.add(**artifact_values(content_shape="emoji")).content_json == CONTENTS["emoji"]
        assert uow.syntheses.add(**synthesis_values(failed=True)).status == "failed"
        assert uow.executions.record_spawn(**spawn_values(agent_name="me")).agent_name == "me"


def test_every_factory_is_exported() -> None:
    """Every name of the kit resolves, and there is a factory for each model and record."""
    for name in testing.__all__:
        assert getattr(testing, name)
    factories = {name.removesuffix("Factory") for name in testing.__all__ if name.endswith("Factory")}
    models = {"ConsensusArtifact", "ConsensusSynthesis", "ConsensusRun", "AgentOutput", "ConsensusSynthesisRecord"}
    assert models | {"AgentExecution", "Artifact", "Synthesis", "Run", "AgentOutputRecord", "Execution"} <= factories
    with pytest.raises(AttributeError):
        testing.NoSuchThing  # noqa: B018


@pytest.mark.long
def test_a_missing_extra_is_named() -> None:
    """Without factory-boy the plugin still loads, and a factory says what to install."""
    code = (
        "import sys; sys.modules['factory'] = None\n"
        "import consensus_orm.testing.plugin\n"
        "from consensus_orm.errors import ConfigurationError\n"
        "from consensus_orm import testing\n"
        "testing.take_to, testing.count_queries\n"
        "try:\n    testing.ArtifactFactory\n"
        "except ConfigurationError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert "consensus-orm[testing]" in done.stdout


def test_the_plugin_imports_nothing_before_a_fixture_is_used() -> None:
    """Pytest loads the plugin in every project; that alone costs neither SQLAlchemy nor factory-boy nor alembic."""
    code = (
        "import sys; import consensus_orm.testing.plugin\n"
        "print([m for m in ('sqlalchemy', 'pydantic', 'factory', 'alembic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


# Fixtures ---------------------------------------------------------------------------------------------------


def test_a_store_is_new_and_of_its_own(consensus_store: ConsensusStore, consensus_url: str | Path) -> None:
    """consensus_store is empty, at CONTRACT, where consensus_url says, at the newest revision."""
    assert behind(consensus_store) == at(consensus_url)
    assert consensus_store.migration.phase is Phase.CONTRACT
    assert consensus_store.migration.upgrade() == []
    with consensus_store.unit_of_work(read_only=True) as uow:
        assert uow.artifacts.count() == 0


def test_every_phase_is_taken_there_with_its_history(every_phase: ConsensusStore, request: Any) -> None:
    """every_phase runs once per phase, on the same history, both sides equal where there are two."""
    phase = Phase.parse(request.node.callspec.params["every_phase"])
    assert every_phase.migration.phase is phase
    with every_phase.unit_of_work(read_only=True) as uow:
        assert uow.artifacts.count() > 50
        assert len(uow.executions.list()) == 3
    if phase.compares:
        assert every_phase.migration.verify().clean


def test_every_flip_steps_to_the_neighbour(every_flip: Flip) -> None:
    """every_flip runs once for each step forward and back; what was read before it is read after it."""
    assert every_flip.store.migration.phase is every_flip.before
    assert abs(every_flip.before - every_flip.after) == 1
    with every_flip.store.unit_of_work(read_only=True) as uow:
        before = uow.artifacts.list(), uow.syntheses.list(), uow.runs.list(spec_id="SPEC-ODD")

    every_flip.flip()

    assert every_flip.store.migration.phase is every_flip.after
    with every_flip.store.unit_of_work(read_only=True) as uow:
        assert (uow.artifacts.list(), uow.syntheses.list(), uow.runs.list(spec_id="SPEC-ODD")) == before


@pytest.mark.sqlite
def test_counted_statements_are_those_sent(consensus_store: ConsensusStore, query_counter: QueryCounter) -> None:
    """Statements are listed in order and as written, without contents; what triggers do is not among them."""
    with consensus_store.unit_of_work() as uow:
        uow.session.connection().exec_driver_sql("CREATE TABLE t (a)")
        uow.session.connection().exec_driver_sql("CREATE TABLE u (a)")
        uow.session.connection().exec_driver_sql(
            "CREATE TRIGGER x AFTER INSERT ON t BEGIN INSERT INTO u VALUES (NEW.a); END"
        )
    with consensus_store.unit_of_work() as uow, query_counter(uow) as queries:
        uow._execute("INSERT INTO t VALUES (?)", ("secret",))
        uow._execute("SELECT 1")
        assert list(queries) == ["INSERT INTO t VALUES (?)", "SELECT 1"]
        assert queries.verbs == ["INSERT", "SELECT"]
        assert queries.mentioning("INTO T") == [queries[0]] == queries[:1]
        assert "secret" not in repr(queries)
        queries.clear()
        connection: Any = uow._connected
        connection.executemany("INSERT INTO t VALUES (?)", [(1,), (2,)])
        assert len(queries) == 1
    with query_counter(consensus_store) as queries, consensus_store.unit_of_work() as uow:
        pass
    assert queries.verbs[-3:] == ["PRAGMA", "SELECT", "COMMIT"]
    assert "BEGIN IMMEDIATE" in list(queries)


@pytest.mark.postgresql
def test_counted_statements_are_the_messages_sent_to_a_server(
    consensus_store: ConsensusStore, query_counter: QueryCounter
) -> None:
    """Begin and commit are among them, whoever sends them; contents and what triggers do are not."""
    with consensus_store.unit_of_work() as uow:
        uow.session.connection().exec_driver_sql("CREATE TABLE t (a TEXT)")
    with query_counter(consensus_store) as queries, consensus_store.unit_of_work() as uow:
        uow._execute("INSERT INTO t VALUES (?)", ("secret",))
        uow.session.connection().exec_driver_sql("SELECT 1")
    assert queries.verbs[0] == "BEGIN"
    assert queries.verbs[-1] == "COMMIT"
    assert len(queries.mentioning("INSERT INTO t")) == len(queries.mentioning("SELECT 1")) == 1
    assert "secret" not in repr(queries)


@pytest.mark.postgresql
def test_a_database_of_a_test_is_gone_after_it(
    pytester: pytest.Pytester, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fixtures of the installed plugin run wherever consensus_url says, and leave no database on the server."""
    url = servers.unused()
    monkeypatch.setenv("CONSENSUS_ORM_TRIED_ON", url)
    pytester.makepyfile(
        """
        import os
        import pytest

        @pytest.fixture
        def consensus_url():
            return os.environ["CONSENSUS_ORM_TRIED_ON"]

        def test_each(every_phase):
            with every_phase.unit_of_work() as uow:
                uow.artifacts.add(spec_id="S", stage="plan", agent_name="a", content_json="{}")
                assert uow.artifacts.count(spec_id="S") == 1
        """
    )
    result = pytester.runpytest_subprocess("-n", "0", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=5)
    name = make_url(url).database
    _, admin = servers.shared()
    left = admin.execute("SELECT datname FROM pg_database WHERE starts_with(datname, %s)", (name,))
    assert left.fetchall() == []


def test_counting_ends_with_its_block(consensus_store: ConsensusStore, query_counter: QueryCounter) -> None:
    """A connection is watched only while the block lasts."""
    with query_counter(consensus_store) as queries, consensus_store.unit_of_work(read_only=True):
        pass
    seen = len(queries)
    with consensus_store.unit_of_work(read_only=True) as uow:
        uow.artifacts.count()
        assert not {"cursor", "_send"} & set(vars(uow._connected))

    assert len(queries) == seen > 0
