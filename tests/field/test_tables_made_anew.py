"""Tables that an upgrade makes anew: only when an operator says so, and rehearsed before."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from consensus_orm import ConsensusStore, Phase, errors
from consensus_orm.cli import main
from consensus_orm.schema import revisions
from tests.field import builders
from tests.field.programs import FinalBuild, NewerDatabaseError
from tests.field.test_programs_of_the_field import call
from tests.support import oracle
from tests.support.commands import SCRIPT, one_line_of, without_settings
from tests.support.oracle import untouched

pytestmark = [pytest.mark.sqlite, pytest.mark.long]


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    without_settings(monkeypatch)


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
    with contextlib.closing(sqlite3.connect(path)) as connection:
        audited = connection.execute("SELECT detail FROM consensus_orm_history WHERE action = 'backup'").fetchall()
    assert [str(backup) in detail for (detail,) in audited] == [True]
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
