"""Rule 10: what a session writes to a side that its phase does not write is refused, as is what nobody could carry.

An authorizer refuses it on SQLite, before the statement runs; triggers refuse it on PostgreSQL, row by row. So a server
refuses no change of the tables themselves (ownership does), and nothing where a statement finds no row. What is written
to the other sides is carried: `tests/repository/test_session.py`.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Table, insert, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from consensus_orm import ConsensusStore, Phase
from consensus_orm.consensus.models import ConsensusRun
from consensus_orm.errors import (
    ConsensusError,
    ReadOnlyUnitOfWorkError,
    StorageError,
    UnmirroredWriteError,
    WrongPhaseError,
)
from consensus_orm.testing import artifact_values, synthesis_values
from consensus_orm.testing.phases import take_to
from consensus_orm.testing.plugin import QueryCounter
from tests.databases.session_writes import LEGACY, NEW_ROWS, NORMALIZED, OF_FILES, ON_SERVERS, ROWS, add_entity, legacy
from tests.support.databases import Database, behind, build_legacy

Raw = Callable[..., list[tuple[Any, ...]]]


class Own(DeclarativeBase):
    pass


class Note(Own):
    """A table of the user's own."""

    __tablename__ = "notes"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str] = mapped_column(unique=True)


@pytest.fixture
def store(every_phase: ConsensusStore) -> ConsensusStore:
    """A store in each phase, with a run to write to."""
    with every_phase.unit_of_work() as uow:
        uow.artifacts.add(**artifact_values(spec_id="SPEC-NEW"))
        uow.syntheses.add(**synthesis_values(spec_id="SPEC-NEW"))
    return every_phase


def contents(store: ConsensusStore) -> object:
    with store.unit_of_work(read_only=True) as uow:
        return uow.artifacts.list(), uow.syntheses.list()


def require_refused(store: ConsensusStore, write: Callable[[Session], None], error: type[ConsensusError]) -> None:
    """A write is refused with an error that names the table and no contents, and nothing changes, no log either."""
    database = behind(store)
    before = database.everything()

    with store.unit_of_work() as uow:
        with pytest.raises(error) as raised:
            write(uow.session)
        uow.session.rollback()

    assert raised.value.hint
    assert "changed" not in str(raised.value)
    assert database.everything() == before
    with pytest.raises(error), store.unit_of_work() as uow:
        uow.artifacts.add(**artifact_values(spec_id="SPEC-LOST"))
        write(uow.session)
    assert database.everything() == before


@pytest.mark.parametrize("every_phase", ["EXPAND"], indirect=True)
@pytest.mark.parametrize("name", [*NEW_ROWS, *(pytest.param(name, marks=pytest.mark.sqlite) for name in OF_FILES)])
def test_a_side_that_is_not_written_yet_is_refused(store: ConsensusStore, name: str) -> None:
    """However rows of the normalized side are written before its phase, the statement raises WrongPhaseError."""
    require_refused(store, NORMALIZED[name], WrongPhaseError)


@pytest.mark.parametrize("every_phase", ["NORMALIZED"], indirect=True)
@pytest.mark.parametrize("name", list(LEGACY))
def test_a_side_that_is_written_no_more_is_refused(store: ConsensusStore, name: str) -> None:
    """However rows of the frozen legacy side are written, the statement raises WrongPhaseError."""
    require_refused(store, LEGACY[name], WrongPhaseError)


@pytest.mark.parametrize(
    "every_phase",
    [
        "DUAL_WRITE",
        "NORMALIZED",
        *(pytest.param(of, marks=pytest.mark.long) for of in ("EXPAND", "CUTOVER", "CONTRACT")),
    ],
    indirect=True,
)
@pytest.mark.parametrize(
    "name",
    [
        "bulk_save",
        pytest.param("truncate", marks=pytest.mark.postgresql),
        *(pytest.param(name, marks=pytest.mark.sqlite) for name in NORMALIZED if name not in (*ROWS, "bulk_save")),
    ],
)
def test_what_nobody_could_carry_is_refused(store: ConsensusStore, name: str) -> None:
    """In every phase the session changes no table, none of the package's own, and not the transaction."""
    if name == "legacy_table" and store.migration.phase.has_legacy:
        pytest.skip("the table is there, so nothing would be created")
    if name in ("drop", "truncate", "bulk_save") and not store.migration.phase.writes_normalized:
        require_refused(store, (NORMALIZED | ON_SERVERS)[name], ConsensusError)
        return
    require_refused(store, (NORMALIZED | ON_SERVERS)[name], UnmirroredWriteError)


@pytest.mark.parametrize("every_phase", ["EXPAND"], indirect=True)
def test_a_refused_write_fails_the_unit_of_work(store: ConsensusStore) -> None:
    """Where nobody catches the error, it leaves the unit of work as it is, and nothing of it is kept."""
    before = contents(store)

    with pytest.raises(WrongPhaseError), store.unit_of_work() as uow:
        uow.artifacts.add(**artifact_values())
        add_entity(uow.session)

    assert contents(store) == before


@pytest.mark.parametrize("every_phase", ["EXPAND"], indirect=True)
def test_a_refused_statement_can_be_taken_back(store: ConsensusStore) -> None:
    """After the session's own rollback the unit of work goes on, and keeps what the repositories write then."""
    with store.unit_of_work() as uow:
        uow.session.begin_nested()
        with pytest.raises(WrongPhaseError):
            NORMALIZED["core_insert"](uow.session)
        uow.session.rollback()
        kept = uow.artifacts.add(**artifact_values(spec_id="SPEC-KEPT"))
    with store.unit_of_work(read_only=True) as uow:
        assert uow.artifacts.list(spec_id="SPEC-KEPT") == [kept]


@pytest.mark.parametrize("every_phase", ["EXPAND"], indirect=True)
def test_an_unflushed_write_is_refused_at_the_end(store: ConsensusStore) -> None:
    """What was only added to the session is refused when the unit of work flushes it."""
    before = contents(store)

    with pytest.raises(WrongPhaseError), store.unit_of_work() as uow:
        uow.session.add(ConsensusRun(spec_id="S", stage="p", run_key="k", run_timestamp=0, consensus_ok=True))

    assert contents(store) == before


def test_tables_spelled_in_other_letters_are_guarded(tmp_path: Path) -> None:
    """A legacy table that its program spelled in capitals is guarded all the same."""
    from tests.field import builders

    path = tmp_path / "capitals.db"
    with builders.writing(path) as connection:
        connection.executescript(builders.ARTIFACTS.replace("consensus_artifacts", "Consensus_Artifacts"))
    with ConsensusStore.open(path) as store:
        store.upgrade()
        store.migration.migrate(Phase.NORMALIZED, soak=False)
        with store.unit_of_work() as uow, pytest.raises(WrongPhaseError):
            uow.session.execute(text("INSERT INTO consensus_artifacts (spec_id) VALUES ('x')"))


def test_a_session_on_a_database_that_is_not_prepared(new_database: Database) -> None:
    """It reads what is there, and writes no mapped table: there is no phase to say where to."""
    build_legacy(new_database.where)
    with ConsensusStore.open(new_database.where) as store, store.unit_of_work(read_only=True) as uow:
        assert not uow.prepared
        rows = uow.session.scalars(select(legacy().ConsensusArtifact)).all()
        assert len(rows) == new_database.scalar("SELECT count(*) FROM consensus_artifacts") > 0


def test_mapped_entities_can_be_queried(store: ConsensusStore) -> None:
    """Reading mapped entities through the session works, relationships included."""
    with store.unit_of_work() as uow:
        if uow.phase.writes_normalized:
            run = uow.session.scalars(select(ConsensusRun).where(ConsensusRun.spec_id == "SPEC-NEW")).one()
            assert [len(run.outputs), len(run.syntheses)] == [1, 1]
        if uow.phase.writes_legacy:
            artifacts = uow.session.scalars(select(legacy().ConsensusArtifact.spec_id)).all()
            assert "SPEC-NEW" in artifacts


def create_notes(connection: Connection) -> None:
    assert isinstance(Note.__table__, Table)
    Note.__table__.create(connection)


def test_a_table_of_ones_own_is_written_in_the_same_transaction(store: ConsensusStore, raw: Raw) -> None:
    """Rows of the user's own and of the repositories are committed together, or not at all."""
    with store.unit_of_work() as uow:
        create_notes(uow.session.connection())
        uow.session.add(Note(text="kept"))
        uow.artifacts.add(**artifact_values(spec_id="SPEC-KEPT"))
    with pytest.raises(ZeroDivisionError), store.unit_of_work() as uow:
        uow.session.add(Note(text="lost"))
        uow.session.flush()
        uow.artifacts.add(**artifact_values(spec_id="SPEC-LOST"))
        raise ZeroDivisionError

    assert raw(store, "SELECT text FROM notes") == [("kept",)]
    with store.unit_of_work(read_only=True) as uow:
        assert {"SPEC-KEPT", "SPEC-LOST"} & set(uow.artifacts.specs()) == {"SPEC-KEPT"}


def test_the_session_sees_what_the_repositories_wrote(store: ConsensusStore) -> None:
    """Session and repositories share one transaction: neither waits for the other's commit."""
    with store.unit_of_work() as uow:
        made = uow.artifacts.add(**artifact_values(spec_id="SPEC-SEEN"))
        table = "agent_outputs" if uow.phase.writes_normalized else "consensus_artifacts"
        assert uow.session.scalar(text(f"SELECT count(*) FROM {table} WHERE id = :id"), {"id": made.id}) == 1


def test_commit_of_the_session_is_not_the_end(consensus_store: ConsensusStore, raw: Raw) -> None:
    """session.commit() reaches as far as a savepoint: a later failure of the unit takes it back."""
    with consensus_store.unit_of_work() as uow:
        create_notes(uow.session.connection())

    with pytest.raises(ZeroDivisionError), consensus_store.unit_of_work() as uow:
        uow.session.add(Note(text="committed within"))
        uow.session.commit()
        raise ZeroDivisionError

    assert raw(consensus_store, "SELECT count(*) FROM notes") == [(0,)]


def test_rollback_of_the_session_leaves_the_rest(consensus_store: ConsensusStore, raw: Raw) -> None:
    """session.rollback() takes back what the session wrote, not what the repositories wrote before it."""
    with consensus_store.unit_of_work() as uow:
        create_notes(uow.session.connection())

    with consensus_store.unit_of_work() as uow:
        uow.artifacts.add(**artifact_values(spec_id="SPEC-BEFORE"))
        uow.session.add(Note(text="taken back"))
        uow.session.flush()
        uow.session.rollback()
        uow.artifacts.add(**artifact_values(spec_id="SPEC-AFTER"))

    assert raw(consensus_store, "SELECT count(*) FROM notes") == [(0,)]
    with consensus_store.unit_of_work(read_only=True) as uow:
        assert uow.artifacts.specs() == ["SPEC-AFTER", "SPEC-BEFORE"]


@pytest.mark.parametrize("commit_inner", [False, True])
def test_rows_of_the_repositories_are_never_taken_back_silently(
    consensus_store: ConsensusStore, commit_inner: bool
) -> None:
    """Where a rollback of the session undoes a repository's write, the unit fails instead of losing it."""
    with consensus_store.unit_of_work() as uow:
        create_notes(uow.session.connection())
        uow.session.add(Note(text="one"))

    with pytest.raises(StorageError, match="rollback of the session"), consensus_store.unit_of_work() as uow:
        uow.session.execute(select(Note))  # begins the savepoint
        if commit_inner:
            with uow.session.begin_nested():
                uow.session.execute(select(Note))  # the inner savepoint begins when the session is used
                uow.artifacts.add(**artifact_values())
        else:
            uow.artifacts.add(**artifact_values())
        uow.session.add(Note(text="one"))
        with pytest.raises(IntegrityError):
            uow.session.flush()
        uow.session.rollback()


def test_a_rollback_after_a_commit_of_the_session_loses_nothing(consensus_store: ConsensusStore) -> None:
    """What was written before session.commit() is out of reach of a later session.rollback()."""
    with consensus_store.unit_of_work() as uow:
        uow.session.execute(text("SELECT 1"))
        uow.artifacts.add(**artifact_values())
        uow.session.commit()
        uow.session.execute(text("SELECT 1"))
        uow.session.rollback()

    with consensus_store.unit_of_work(read_only=True) as uow:
        assert uow.artifacts.count() == 1


@pytest.mark.sqlite  # in SQLite's words
@pytest.mark.parametrize("every_phase", ["EXPAND"], indirect=True)
def test_a_trigger_of_ones_own_cannot_write_a_side_that_is_not_open(store: ConsensusStore) -> None:
    """A write to one's own table is refused where its trigger would write a mapped side."""
    from tests.field import builders

    assert store.path is not None
    with builders.writing(store.path) as connection:
        connection.executescript(
            "CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT);"
            " CREATE TRIGGER sneak AFTER INSERT ON notes BEGIN DELETE FROM agent_outputs; END"
        )
    before = contents(store)

    with store.unit_of_work() as uow, pytest.raises(WrongPhaseError):
        uow.session.execute(insert(Note).values(text="x"))

    assert contents(store) == before


def test_repositories_write_while_a_session_is_in_use(store: ConsensusStore) -> None:
    """The guard is for the session alone: adds and deletes of the repositories go through, compared as ever."""
    with store.unit_of_work() as uow:
        uow.session.execute(text("SELECT 1"))
        added = uow.artifacts.add(**artifact_values(spec_id="SPEC-OTHER"))
        assert uow.artifacts.delete(spec_id="SPEC-NEW") == 1

    with store.unit_of_work(read_only=True) as uow:
        assert uow.artifacts.get(added.id) == added
        assert "SPEC-NEW" not in uow.artifacts.specs()
    assert store.migration.status().foreign_writes == 0
    if store.migration.phase.compares:
        assert store.migration.verify().clean


def test_the_guard_ends_with_the_unit_of_work(consensus_store: ConsensusStore) -> None:
    """A connection that goes back to the pool is not guarded any more: migrations use it next."""
    with consensus_store.unit_of_work() as uow:
        uow.session.execute(text("SELECT 1"))
    with consensus_store.engine.begin() as connection:
        connection.execute(text("UPDATE consensus_orm_state SET phase = phase"))


@pytest.mark.sqlite  # which keeps prepared statements from loan to loan
@pytest.mark.parametrize("every_phase", ["EXPAND"], indirect=True)
def test_a_session_gets_no_statement_that_was_prepared_without_its_guard(every_phase: ConsensusStore) -> None:
    """What the engine has prepared, or a session of another phase, is refused to a session as if it were new."""
    state, legacy_rows = text("UPDATE consensus_orm_state SET phase = phase"), text("DELETE FROM consensus_artifacts")
    for _ in range(2):
        with every_phase.engine.begin() as connection:
            connection.execute(state)
        with every_phase.unit_of_work() as uow, pytest.raises(UnmirroredWriteError):
            uow.session.execute(state)
    with every_phase.unit_of_work() as uow:
        uow.session.execute(legacy_rows)
    take_to(every_phase, Phase.NORMALIZED)
    with every_phase.unit_of_work() as uow, pytest.raises(WrongPhaseError):
        uow.session.execute(legacy_rows)


@pytest.mark.sqlite  # which prepares every statement again after an authorizer is set
@pytest.mark.parametrize("every_phase", ["EXPAND"], indirect=True)
def test_sessions_of_a_connection_share_its_authorizer(every_phase: ConsensusStore) -> None:
    """Nothing is prepared again for the next session, unless what it may write has changed."""

    def authorizer() -> object:
        with every_phase.unit_of_work() as uow:
            uow.session.execute(text("SELECT 1"))
            connection: Any = uow._connected
        return connection.authorizer

    first = authorizer()
    assert authorizer() is first
    take_to(every_phase, Phase.DUAL_WRITE)
    assert authorizer() is not first


@pytest.mark.sqlite  # on a server, triggers see no savepoint of a text
def test_a_text_that_names_a_savepoint_is_followed_each_time(consensus_store: ConsensusStore) -> None:
    """A rollback to a savepoint of the user's own takes back no row of a repository without an error."""
    for _ in range(2):
        with pytest.raises(StorageError, match="rollback of the session"), consensus_store.unit_of_work() as uow:
            uow.session.execute(text("SAVEPOINT own"))
            uow.session.execute(text("ROLLBACK TO own"))
            uow.artifacts.add(**artifact_values())
            uow.session.execute(text("ROLLBACK TO own"))


@pytest.mark.sqlite  # which a pragma could turn off
def test_a_read_only_session_cannot_write(consensus_store: ConsensusStore) -> None:
    """Whatever the session of a read-only unit writes, even a table of one's own, says what is wrong."""
    with consensus_store.unit_of_work() as uow:
        create_notes(uow.session.connection())

    with consensus_store.unit_of_work(read_only=True) as uow:
        with pytest.raises(UnmirroredWriteError):
            uow.session.execute(text("PRAGMA query_only = OFF"))
        uow.session.rollback()
        uow.session.add(Note(text="x"))
        with pytest.raises(ReadOnlyUnitOfWorkError):
            uow.session.flush()
        uow.session.rollback()


def test_own_tables_can_refer_to_ours(consensus_store: ConsensusStore, raw: Raw) -> None:
    """Rows of the user's own may refer to an output by its id, which survives every phase."""
    with consensus_store.unit_of_work() as uow:
        uow.session.execute(
            text("CREATE TABLE marks (id INTEGER PRIMARY KEY, output BIGINT REFERENCES agent_outputs(id))")
        )
        made = uow.artifacts.add(**artifact_values())
        uow.session.execute(text("INSERT INTO marks VALUES (1, :id)"), {"id": made.id})

    assert raw(consensus_store, "SELECT output FROM marks") == [(made.id,)]


def test_a_unit_without_a_session_is_not_slowed_by_a_guard(
    consensus_store: ConsensusStore, query_counter: QueryCounter
) -> None:
    """Without a session there is neither a guard nor a savepoint."""
    with query_counter(consensus_store) as queries, consensus_store.unit_of_work() as uow:
        uow.artifacts.add(**artifact_values())
        assert uow._guard is None

    assert not queries.mentioning("savepoint")


@pytest.mark.long
def test_an_engine_in_the_place_of_an_earlier_one_is_explained_too(tmp_path: Path) -> None:
    """Events are told apart by the address of their engine, which a later one may have again."""
    places: set[int] = set()
    kept = []
    again = 0
    for number in range(2000):
        with ConsensusStore.open(tmp_path / "consensus.db") as store:
            again += id(store.engine) in places
            places.add(id(store.engine))
            with pytest.raises(UnmirroredWriteError), store.unit_of_work() as uow:
                uow.session.execute(text("DELETE FROM consensus_orm_state"))
            kept.append(store.engine.dialect.dispatch.handle_error)
        del store, uow
        if number % 3 == 0:
            gc.collect()
        if again == 3:
            return
    pytest.skip("no engine was put where an earlier one had been")
