"""Programs of the field beside an upgrade: who refuses the file, who goes on, and what the operator is asked."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from consensus_orm import ConsensusStore, Phase, errors
from consensus_orm.cli import main
from consensus_orm.consensus.application import APPLICATION
from consensus_orm.schema import revisions
from consensus_orm.settings import Settings
from tests.concurrency.files import bring
from tests.conftest import Open
from tests.field import builders
from tests.field.programs import PROGRAMS, DualWriteBuild, FinalBuild, FirstVersion, NewerDatabaseError
from tests.support import oracle
from tests.support.commands import without_settings
from tests.support.oracle import untouched

pytestmark = pytest.mark.sqlite

OBEYING = (DualWriteBuild, FinalBuild)
NO_PROTECT = Settings(protect=False)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    without_settings(monkeypatch)


def call(path: Path, *words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["--url", str(path), *words])
    assert result.exit_code == code, (result.output, result.stderr)
    return result


def set_version(path: Path, version: int) -> None:
    with builders.writing(path) as connection:
        connection.execute(f"PRAGMA user_version = {version}")


def kept_version(path: Path) -> int | None:
    with oracle.reading(path) as connection:
        version: int | None = connection.execute("SELECT user_version FROM consensus_orm_state").fetchone()[0]
        return version


def downgraded(path: Path, engine_of: Open) -> None:
    engine = engine_of(path)
    revisions.downgrade(engine, "base", APPLICATION)
    engine.dispose()


# The stand-ins do what the programs do ---------------------------------------------------------------------


def test_below_version_2_the_final_build_drops_all_rows(path: Path) -> None:
    """The harm that an upgrade keeps from a file: to open it is enough."""
    builders.build_legacy(path)
    FinalBuild(path).store_artifact("S", "plan", "gemini", "{}")
    assert not set(oracle.LEGACY) & set(oracle.tables(path))


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_makes_a_file_of_its_kind(name: str, path: Path, open_engine: Open) -> None:
    """What a stand-in leaves behind is told apart as the file of that program."""
    PROGRAMS[name](path).store_artifact("S", "plan", "gemini", "{}")
    kind = revisions.inspect(open_engine(path), APPLICATION).kind
    assert kind == {"first_version": "legacy"}.get(name, name)


# Protection ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("program", OBEYING)
def test_in_no_phase_does_a_later_build_touch_the_file(
    program: type[DualWriteBuild | FinalBuild], phase: Phase, path: Path
) -> None:
    """From the upgrade on, and on the way back, the dual-write and the final build refuse, and nothing changes."""
    builders.first_version(path)
    with ConsensusStore.open(path) as store:
        bring(store, phase)
    before = oracle.everything(path), oracle.user_version(path)
    with pytest.raises(NewerDatabaseError):
        program(path).store_artifact("S", "plan", "gemini", "{}")
    assert (oracle.everything(path), oracle.user_version(path)) == before
    with ConsensusStore.open(path) as store:
        store.migration.rollback(Phase.EXPAND)
    with pytest.raises(NewerDatabaseError):
        program(path).store_artifact("S", "plan", "gemini", "{}")


@pytest.mark.long
@pytest.mark.parametrize("version", [0, 1, 2])
@pytest.mark.parametrize("name", ["first_version", "build_legacy", "executions_only", "dual_write_build"])
def test_what_the_number_was_comes_back(name: str, version: int, path: Path, open_engine: Open) -> None:
    """An upgrade makes 3 of 0, 1 and 2, and `alembic downgrade base` gives back what it was, tables and all."""
    getattr(builders, name)(path)
    set_version(path, version)
    founding = {"consensus_runs", "agent_outputs"}  # in a dual-write file they stand on the legacy side, too
    before = {table: oracle.image(path, table) for table in oracle.tables(path) if table not in founding}

    call(path, "upgrade", "--yes")

    assert (oracle.user_version(path), kept_version(path)) == (3, version)
    for program in OBEYING:
        with pytest.raises(NewerDatabaseError):
            program(path).store_artifact("S", "plan", "gemini", "{}")
    downgraded(path, open_engine)
    assert oracle.user_version(path) == version
    assert {table: oracle.image(path, table) for table in oracle.tables(path)} == before
    call(path, "upgrade")
    assert (oracle.user_version(path), kept_version(path)) == (3, version)


@pytest.mark.parametrize("version", [-1, -(2**31), 4, 7, 2**31 - 1])
def test_the_number_of_another_application_stays(
    version: int, path: Path, open_engine: Open, caplog: pytest.LogCaptureFixture
) -> None:
    """A number that no program of the field sets is left alone, with a warning, on the way up and down."""
    builders.first_version(path)
    set_version(path, version)
    with caplog.at_level(logging.WARNING, "consensus_orm"):
        told = call(path, "upgrade").output
    assert f"user_version is {version}, another application's" in caplog.text
    assert f"user_version: {version}, which is another application's" in told
    assert (oracle.user_version(path), kept_version(path)) == (version, None)
    downgraded(path, open_engine)
    assert oracle.user_version(path) == version


def test_a_number_set_since_is_not_overwritten_by_a_downgrade(path: Path, open_engine: Open) -> None:
    """What another application has set after the upgrade is its own."""
    builders.first_version(path)
    call(path, "upgrade")
    set_version(path, 9)
    downgraded(path, open_engine)
    assert oracle.user_version(path) == 9


def test_a_new_file_is_protected(path: Path, open_engine: Open) -> None:
    """A file that the upgrade makes is one that the final build would take for its own, too."""
    call(path, "upgrade", "--create")
    assert (oracle.user_version(path), kept_version(path)) == (3, 0)
    with pytest.raises(NewerDatabaseError):
        FinalBuild(path).store_artifact("S", "plan", "gemini", "{}")
    downgraded(path, open_engine)
    assert oracle.user_version(path) == 0


def test_the_first_unit_that_writes_protects_too(path: Path) -> None:
    """Whoever brings the schema up to date protects the file, unless its settings say otherwise."""
    for name, settings, version in (("a", None, 3), ("b", NO_PROTECT, 0)):
        file = path.with_name(name)
        builders.first_version(file)
        with ConsensusStore.open(file, settings=settings) as store, store.unit_of_work() as uow:
            uow.artifacts.add(spec_id="S", stage="plan", agent_name="a", content_json="{}")
        assert oracle.user_version(file) == version


@pytest.mark.long
def test_no_protect_is_a_choice_that_later_steps_keep(path: Path) -> None:
    """A file left unprotected stays so in every step, and becomes protected by the next plain upgrade."""
    builders.first_version(path)
    assert "user_version: 0, left as it is" in call(path, "upgrade", "--no-protect").output
    call(path, "advance")
    call(path, "backfill")
    call(path, "rollback")
    call(path, "migrate", "--to", "cutover", "--no-soak")
    assert (oracle.user_version(path), kept_version(path)) == (0, None)
    assert json.loads(call(path, "upgrade", "--json").stdout)["user_version"] == 3
    assert (oracle.user_version(path), kept_version(path)) == (3, 0)


def test_the_environment_can_leave_the_number_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CONSENSUS_ORM_PROTECT is --no-protect for every program."""
    monkeypatch.setenv("CONSENSUS_ORM_PROTECT", "false")
    builders.first_version(path)
    call(path, "upgrade")
    assert oracle.user_version(path) == 0


def test_a_file_of_an_earlier_revision_becomes_protected(path: Path, open_engine: Open) -> None:
    """A file that was upgraded before this was done is protected by the revisions that it has not seen."""
    builders.first_version(path)
    call(path, "upgrade")
    engine = open_engine(path)
    revisions.downgrade(engine, "0004", APPLICATION)
    engine.dispose()
    assert oracle.user_version(path) == 0
    call(path, "upgrade")
    assert (oracle.user_version(path), kept_version(path)) == (3, 0)


def test_an_upgrade_that_fails_leaves_the_number(path: Path) -> None:
    """It changes in the transaction of the upgrade: where the last check fails, it is what it was."""
    builders.final_build(path)
    with ConsensusStore.open(path) as store, pytest.MonkeyPatch.context() as patch:

        def refuse(*_: object) -> None:
            assert store.engine.pool.source.connections  # type: ignore[attr-defined]
            raise errors.SchemaError("refused at the end")

        patch.setattr(revisions, "_check_foreign_keys", refuse)
        with pytest.raises(errors.SchemaError, match="refused at the end"):
            store.upgrade(rewrite=True)
    assert oracle.user_version(path) == 2
    assert "consensus_orm_state" not in oracle.tables(path)


@pytest.mark.parametrize("phase", [Phase.EXPAND, Phase.DUAL_WRITE, Phase.CUTOVER])
def test_the_first_version_goes_on(phase: Phase, path: Path) -> None:
    """It never looks at the number: until its tables are frozen it writes as ever, and its rows are noticed."""
    program = FirstVersion(path)
    program.store_artifact("S", "plan", "gemini", "before")
    with ConsensusStore.open(path) as store:
        bring(store, phase)
        program.store_artifact("S", "plan", "gemini", "meanwhile")
        if phase.compares:
            store.migration.reconcile()
        with store.unit_of_work(read_only=True) as uow:
            assert [artifact.content_json for artifact in uow.artifacts.list()] == ["meanwhile", "before"]


# What is not a file of consensus data -----------------------------------------------------------------------


def test_copies_and_backups_are_protected_as_their_source(path: Path, open_engine: Open) -> None:
    """A backup has the number as it is; a copy is a new file, and gives back what the source had."""
    builders.build_legacy(path, user_version=2)
    call(path, "upgrade")
    backup, copy = path.with_name("backup.db"), path.with_name("copy.db")
    call(path, "backup", str(backup))
    assert (oracle.user_version(backup), kept_version(backup)) == (3, 2)
    assert CliRunner().invoke(main, ["copy", "--create", str(path), str(copy)]).exit_code == 0
    assert (oracle.user_version(copy), kept_version(copy)) == (3, 2)
    raw = path.with_name("raw.db")
    builders.build_legacy(raw, user_version=1)
    assert CliRunner().invoke(main, ["copy", "--create", str(raw), f"{raw}.copy"]).exit_code == 0
    assert (oracle.user_version(raw), kept_version(Path(f"{raw}.copy"))) == (1, 1)
    assert oracle.user_version(Path(f"{raw}.copy")) == 3


@pytest.mark.long
def test_a_rehearsal_leaves_the_number(path: Path) -> None:
    """It protects its copy, not the file."""
    builders.first_version(path)
    with untouched(path):
        with ConsensusStore.open(path) as store:
            assert store.migration.rehearse().passed
        path.with_name(f"{path.name}.rehearsal.json").unlink()


# What is left behind as rejects ------------------------------------------------------------------------------


def test_rejects_name_the_run_they_belong_to(path: Path) -> None:
    """A row of a founding table has no key that anybody knows: spec, stage and time of its run tell which it is."""
    builders.half_written_dual_writes(path)
    call(path, "upgrade", "--yes")
    listed = call(path, "rejects", code=1).stdout
    assert "SPEC-X plan 2025-11-04 02:11:40" in listed
    assert " -  " not in listed.partition("SPEC-X")[0]
    found = json.loads(call(path, "rejects", "--json", code=1).stdout)
    assert found[0]["belongs_to"] == {"spec_id": "SPEC-X", "stage": "plan", "run_timestamp": 1762222300000}
    # An output whose run is gone belongs to nothing.
    (orphan,) = [each for each in found if each["belongs_to"].get("spec_id") is None]
    assert orphan["table"] == "agent_outputs"
    assert all(content not in listed for content in ("only here", "same bytes", "not ok"))


def test_odd_times_and_names_are_shown_as_they_are(path: Path) -> None:
    """Whatever a program has put there, the list can be shown, and is one line for each reject."""
    with builders.writing(path) as connection:
        connection.executescript(builders.ARTIFACTS + builders.SYNTHESIS + builders.FOUNDING)
        for number, (spec, at) in enumerate(
            [("a\nb", 2**62), (b"\xff", -(2**62)), ("S", "not a time"), ("S", 0.5), ("S", b"\x00")], 1
        ):
            connection.execute("INSERT INTO consensus_runs VALUES (?, ?, 'plan', ?, 1, 0, NULL)", (number, spec, at))
        connection.execute("INSERT INTO consensus_runs VALUES (9, CAST(x'ff' AS TEXT), 'plan', -1, 1, 0, NULL)")
    call(path, "upgrade", "--yes")
    lines = call(path, "rejects", code=1).stdout.splitlines()
    assert len(lines) == 1 + 6
    assert "FF plan -4611686018427387904" in lines[2]
    assert "1969-12-31 23:59:59" in lines[6]


def test_many_rejects_are_accepted_at_once(path: Path) -> None:
    """By their numbers, or all that were rejected for one reason: all of them, or none."""
    builders.half_written_dual_writes(path)
    call(path, "upgrade", "--yes")
    first, second, third, *_ = [each["id"] for each in json.loads(call(path, "rejects", "--json", code=1).stdout)]
    result = call(path, "rejects", "accept", str(first), "999", "--reason", "r", code=2)
    assert "no open reject 999" in result.stderr
    assert len(json.loads(call(path, "rejects", "--json", code=1).stdout)) == 8
    told = call(path, "rejects", "accept", str(second), str(third), "--reason", "known").stdout
    assert told == f"2 rejects are accepted: {second}, {third}\n"
    call(path, "rejects", "accept", "--all-of", "nobody's", "--reason", "r", code=2)
    call(path, "rejects", "accept", "--reason", "r", code=2)
    reason = "the legacy side has no such row"
    (one,) = [r["id"] for r in json.loads(call(path, "rejects", "--json", code=1).stdout) if r["reason"] == reason][:1]
    told = call(path, "rejects", "accept", str(one), "--all-of", reason, "--reason", "seen").stdout
    assert "rejects are accepted" in told
    left = json.loads(call(path, "rejects", "--json", code=1).stdout)
    assert left
    assert reason not in {each["reason"] for each in left}
    entries = [e for e in json.loads(call(path, "history", "--json").stdout) if e["action"] == "accept rejects"]
    assert [e["reason"] for e in entries] == ["known", "seen"]
    assert entries[0]["detail"] == {"numbers": [second, third], "table": None, "all_of": None}
    assert entries[1]["detail"]["all_of"] == reason
