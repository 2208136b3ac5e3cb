"""Programs of the field beside an upgrade: who refuses the file, who goes on, and what the operator is asked."""

from __future__ import annotations

import contextlib
import json
import logging
import sqlite3
from collections.abc import Callable, Iterator
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
from tests.support.commands import SCRIPT, one_line_of, without_settings

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


@contextlib.contextmanager
def untouched(path: Path) -> Iterator[None]:
    """Nothing in a file changes meanwhile, and nothing is left beside it."""
    before, beside = oracle.sha256(path), sorted(path.parent.iterdir())
    yield
    assert (oracle.sha256(path), sorted(path.parent.iterdir())) == (before, beside)


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


def test_a_rehearsal_leaves_the_number(path: Path) -> None:
    """It protects its copy, not the file."""
    builders.first_version(path)
    with untouched(path):
        with ConsensusStore.open(path) as store:
            assert store.migration.rehearse().passed
        path.with_name(f"{path.name}.rehearsal.json").unlink()


# Tables that are made anew -----------------------------------------------------------------------------------

REWRITTEN = ["dual_write_build", "half_written_dual_writes", "final_build", "odd_final_build", "runs_only"]


@pytest.mark.parametrize("name", REWRITTEN)
def test_nothing_is_made_anew_before_somebody_says_so(name: str, path: Path) -> None:
    """A program that pipes its input, and every other step, get one error that says what would be done."""
    builders.KINDS[name][2](path)
    for words in (["upgrade"], ["upgrade", "--json"], ["migrate"], ["advance", "contract"], ["rollback", "expand"]):
        with untouched(path):
            result = CliRunner().invoke(main, ["--url", str(path), *words])
        if words == ["rollback", "expand"] and result.exit_code == 0:
            continue  # it is there already
        assert result.exit_code == 1, words
        line = one_line_of(result)
        assert "consensus_runs" in line
        assert f"{path}.before-upgrade-TIME" in line
        assert f"consensus-orm --url {path} upgrade --yes" in line


@pytest.mark.parametrize("name", REWRITTEN)
def test_the_library_makes_nothing_anew_by_itself(name: str, path: Path) -> None:
    """The first unit of work that writes names the command; what was read before can still be read."""
    builders.KINDS[name][2](path)
    with untouched(path), ConsensusStore.open(path) as store:
        for act in (store.upgrade, store.migration.upgrade, store.migration.migrate, store.unit_of_work().__enter__):
            with pytest.raises(errors.RewriteNotConfirmedError, match="consensus-orm upgrade --yes") as raised:
                act()
            assert raised.value.rewrite == store.pending_rewrite()
        assert store.migration.status().prepared is False
        if store.initial_phase is Phase.EXPAND:
            with store.unit_of_work(read_only=True) as uow:
                assert uow.artifacts.count() == len(oracle.legacy(path)["artifacts"])


def test_where_an_upgrade_leaves_all_tables_alone_nobody_is_asked(path: Path) -> None:
    """There is nothing to confirm for other files, nor twice."""
    for name in ("first_version", "new", "executions_only", "odd_legacy"):
        file = path.with_name(name)
        builders.KINDS[name][2](file)
        with ConsensusStore.open(file) as store:
            assert store.pending_rewrite() is None
        call(file, "upgrade")
    builders.final_build(path)
    call(path, "upgrade", "--yes")
    call(path, "upgrade")


@pytest.mark.parametrize("name", REWRITTEN)
def test_a_backup_is_made_first_and_named(name: str, path: Path) -> None:
    """With --yes the file is backed up as it was, and the command says where; its program fails after it."""
    builders.KINDS[name][2](path)
    before = oracle.everything(path), oracle.user_version(path)
    told = call(path, "upgrade", "--yes").output
    (backup,) = path.parent.glob("*.before-upgrade-*")
    assert f"backup: {backup}" in told.splitlines()
    assert (oracle.everything(backup), oracle.user_version(backup)) == before
    with pytest.raises(NewerDatabaseError):
        FinalBuild(path).store_artifact("S", "plan", "gemini", "{}")
    assert json.loads(call(path, "upgrade", "--yes", "--json").stdout)["backup"] is None


def test_who_has_the_file_open_is_told(path: Path) -> None:
    """The question is for an operator who may not know that the program is running."""
    builders.final_build(path)
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("SELECT count(*) FROM consensus_runs").fetchone()
        with ConsensusStore.open(path) as store:
            found = store.pending_rewrite()
    assert found is not None
    assert "another connection in this process has the file open now" in str(found)
    assert dict(found.rows) == {"agent_outputs": 5, "consensus_runs": 8}


def test_alembic_makes_nothing_anew(path: Path) -> None:
    """`alembic upgrade` takes no backup, so it names the command that does."""
    from tests.schema.test_revisions import alembic

    builders.final_build(path)
    before = oracle.sha256(path)
    done = alembic("-x", f"url={path}", "upgrade", "head")
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "consensus-orm upgrade --yes" in done.stderr + done.stdout
    assert oracle.sha256(path) == before


def test_alembic_gives_the_number_back(path: Path) -> None:
    """From the checkout, too: up makes 3 of it, down to base what it was."""
    from tests.schema.test_revisions import alembic

    builders.build_legacy(path, user_version=2)
    for words, version in ((("upgrade", "head"), 3), (("downgrade", "base"), 2)):
        done = alembic("-x", f"url={path}", *words)
        assert done.returncode == 0, done.stderr
        assert oracle.user_version(path) == version


def answered(path: Path, answer: bytes) -> tuple[int, str]:
    """Call upgrade on a terminal, and answer its question: exit code, and what was shown."""
    import os
    import pty
    import subprocess

    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [str(SCRIPT), "--url", str(path), "upgrade"], stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        seen = b""
        with contextlib.suppress(OSError):  # Linux says so at the end of a terminal
            while more := os.read(ours, 65536):
                seen += more
                if seen.endswith(b"[y/N]: "):
                    os.write(ours, answer)
        process.wait(30)
    os.close(ours)
    return process.returncode, seen.decode()


@pytest.mark.parametrize(("answer", "code"), [(b"y\n", 0), (b"n\n", 1), (b"\n", 1)])
def test_on_a_terminal_the_question_is_asked(answer: bytes, code: int, path: Path) -> None:
    """Only a yes goes on; anything else leaves the file as it is."""
    builders.final_build(path)
    before = oracle.sha256(path)
    returned, seen = answered(path, answer)
    assert returned == code, seen
    assert "was made by the final build" in seen
    assert (oracle.sha256(path) == before) is (code == 1)


# Rehearsals of such files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dual_write_build", "final_build", "odd_final_build", "runs_only"])
def test_a_rehearsal_covers_tables_that_are_made_anew(name: str, path: Path) -> None:
    """The copy is upgraded as the file would be, its rows are proved, and it is said who fails afterwards."""
    builders.KINDS[name][2](path)
    with untouched(path):
        with ConsensusStore.open(path) as store:
            report = store.migration.rehearse()
        path.with_name(f"{path.name}.rehearsal.json").unlink()
    assert report.passed
    assert report.steps[0].action == "upgrade"
    assert any("fails on them after the upgrade" in note for note in report.notes)
    if name != "dual_write_build":
        assert [(proof.table, proof.equal) for proof in report.proofs] == [
            ("agent_outputs", True),
            ("consensus_syntheses", True),
        ]
    with oracle.reading(path) as connection:
        outputs = 0 if name == "runs_only" else connection.execute("SELECT count(*) FROM agent_outputs").fetchone()[0]
    if name in ("final_build", "odd_final_build"):
        assert report.proofs[0].rows == outputs - (name == "odd_final_build")  # one has no run


LOSSES: dict[str, str] = {
    "an output": "DELETE FROM agent_outputs WHERE id = 2",
    "a content": "UPDATE agent_outputs SET content = content || ' ' WHERE id = 7",
    "a synthesis": "DELETE FROM consensus_syntheses WHERE id = 6",
    "a field": "UPDATE consensus_syntheses SET conflicts = NULL WHERE id = 6",
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_rehearsal_sees_what_an_upgrade_would_lose(name: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Were the revisions to lose or change a row, the rehearsal would not pass."""
    builders.final_build(path)
    upgrade: Callable[..., list[str]] = revisions.upgrade

    def careless(*args: object, **kwargs: object) -> list[str]:
        applied = upgrade(*args, **kwargs)
        engine = args[0]
        with engine.begin() as connection:  # type: ignore[attr-defined]
            connection.exec_driver_sql(LOSSES[name])
        return applied

    monkeypatch.setattr(revisions, "upgrade", careless)
    with ConsensusStore.open(path) as store:
        report = store.migration.rehearse()
    assert not report.passed
    assert [proof.table for proof in report.proofs if not proof.equal] == [
        "consensus_syntheses" if "syntheses" in LOSSES[name] else "agent_outputs"
    ]


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
    assert entries[0]["detail"] == {"numbers": [second, third], "all_of": None}
    assert entries[1]["detail"]["all_of"] == reason
