"""The history of revisions: linear, in agreement with the models, atomic, and safe to run at any time."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy.dialects import sqlite
from sqlalchemy.schema import CreateIndex, CreateTable

from consensus_orm import ConsensusStore, Phase, errors
from consensus_orm.consensus import application, programs
from consensus_orm.consensus.application import APPLICATION
from consensus_orm.schema import inspection, revisions
from consensus_orm.settings import Settings
from tests.conftest import Open
from tests.field import builders
from tests.support import oracle

pytestmark = pytest.mark.sqlite

SETTINGS = Settings()
ROOT = Path(__file__).parents[2]


def execute(path: Path, script: str) -> None:
    with builders.writing(path) as connection:
        connection.executescript(script)


def images(path: Path, *tables: str) -> dict[str, object]:
    """All that is to be said of some tables, of all where none is named; and the number of the file."""
    found: dict[str, object] = {table: oracle.image(path, table) for table in tables or oracle.tables(path)}
    return found | {"user_version": oracle.user_version(path)}


@pytest.fixture
def own_revisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Add a revision of the test's own after the newest."""
    folder = tmp_path / "alembic"
    shutil.copytree(revisions.script_location(), folder, ignore=shutil.ignore_patterns("__pycache__"))

    def add(body: str) -> None:
        text = f"revision = '9000'\ndown_revision = {revisions.head()!r}\nfrom alembic import op\n{body}"
        (folder / "versions" / "9000_own.py").write_text(text)
        monkeypatch.setattr(inspection, "REVISIONS", (*inspection.REVISIONS, "9000"))
        monkeypatch.setattr(revisions, "script_location", lambda: folder)

    return add


def test_history_is_one_line_and_the_program_knows_it() -> None:
    """There is one head and one base, and what the package knows without alembic is what alembic finds."""
    config = revisions.configuration(APPLICATION)
    scripts = ScriptDirectory.from_config(config)

    assert scripts.get_heads() == [revisions.head()]
    assert len(scripts.get_bases()) == 1
    walked = [script.revision for script in scripts.walk_revisions()]
    assert walked == list(reversed(inspection.REVISIONS))


def test_revisions_import_no_model() -> None:
    """A revision goes on doing what it does today: it takes nothing from modules that change."""
    for script in (revisions.script_location() / "versions").glob("*.py"):
        lines = script.read_text().splitlines()
        imports = [line for line in lines if line.lstrip().startswith(("from consensus", "import consensus"))]
        wanted = "from consensus_orm.errors import DowngradeRefusedError"
        assert imports in ([], [wanted], [f"{wanted}, RewriteNotConfirmedError"])


def test_models_and_migrations_make_the_same_tables(path: Path, open_engine: Open) -> None:
    """A new file has, table by table, the DDL that the models would give it."""
    revisions.upgrade(open_engine(path), SETTINGS, APPLICATION, rewrite=True)

    for table in application.metadata().tables.values():
        if table.name in programs.LEGACY:
            continue
        wanted = [str(CreateTable(table).compile(dialect=sqlite.dialect()))]
        wanted += sorted(str(CreateIndex(index).compile(dialect=sqlite.dialect())) for index in table.indexes)
        made = [sql for _, _, _, sql in oracle.definitions(path, table.name) if sql is not None]
        # A column that a later revision added stands behind the others, without a line of its own.
        assert [_spaced(sql) for sql in (made[0], *sorted(made[1:]))] == [_spaced(sql) for sql in wanted]


def _spaced(sql: str) -> str:
    return re.sub(r" (?=[,)])", "", " ".join(sql.split()))


def test_models_match_the_legacy_tables_in_the_field(path: Path, open_engine: Open) -> None:
    """The legacy models have the columns, types, defaults and indexes of the tables as programs made them.

    One index is ours, and made only where the table is: what another program made stays as it is.
    """
    application.metadata().create_all(engine := open_engine(path), checkfirst=True)
    engine.dispose()
    builders.build_legacy(other := path.with_name("field"), columns=11, altered=False)

    for table in (*programs.LEGACY, programs.EXECUTIONS):
        facts = []
        for file in (path, other):
            with oracle.reading(file) as connection:
                columns = connection.execute(
                    'SELECT name, type, "notnull" OR pk, dflt_value, pk FROM pragma_table_info(?)', (table,)
                ).fetchall()
                indexes = connection.execute(
                    "SELECT l.name, i.name FROM pragma_index_list(?) AS l, pragma_index_info(l.name) AS i"
                    " WHERE l.origin = 'c' AND l.name <> 'idx_agent_executions_completed' ORDER BY l.name, i.seqno",
                    (table,),
                ).fetchall()
            facts.append((columns, indexes))
        assert facts[0] == facts[1]


RUN = "INSERT INTO consensus_runs VALUES (1, 's', 't', NULL, 'k', 0, 1, 0, NULL);"

REFUSALS: dict[str, tuple[builders.Builder, str, str]] = {
    "an output": (
        builders.new,
        "base",
        f"""{RUN} INSERT INTO agent_outputs (run_id, agent_name, output_timestamp, content)
        VALUES (1, 'a', 0, 'c')""",
    ),
    "ids given once": (builders.new, "base", "INSERT INTO sqlite_sequence VALUES ('agent_outputs', 7)"),
    "a synthesis without legacy": (
        builders.first_version,
        "base",
        f"""{RUN} INSERT INTO consensus_syntheses (id, run_id, status, synthesis_timestamp, output_markdown)
        VALUES (77, 1, 'ok', 0, 'm')""",
    ),
    "a model_version": (
        builders.first_version,
        "base",
        f"""{RUN} INSERT INTO agent_outputs (id, run_id, agent_name, model_version, output_timestamp, content)
        VALUES (1, 1, 'a', 'opus', 0, 'c')""",
    ),
    "a phase that writes both": (
        builders.first_version,
        "base",
        "UPDATE consensus_orm_state SET phase = 2",
    ),
    "a reject": (builders.half_written_dual_writes, "base", ""),
    "an adopted final build": (builders.final_build, "0001", ""),
    "an audit": (
        builders.new,
        "base",
        "INSERT INTO consensus_orm_history (action, at, by) VALUES ('advance', 1, 'me')",
    ),
    "an execution": (
        builders.new,
        "0003",
        """INSERT INTO agent_executions (agent_id, spec_id, stage, phase_type, agent_name, spawned_at)
        VALUES ('a', 's', 't', 'p', 'n', 'now')""",
    ),
}
"""What would be lost -> (file, downgrade to, what was written meanwhile)."""


@pytest.mark.parametrize("name", REFUSALS)
def test_downgrade_refuses_to_lose_a_row(name: str, path: Path, open_engine: Open) -> None:
    """A downgrade that would lose a row or an id says so, and leaves the file as it is."""
    build, target, script = REFUSALS[name]
    build(path)
    engine = open_engine(path)
    revisions.upgrade(engine, SETTINGS, APPLICATION, rewrite=True)
    execute(path, script)
    before = images(path)

    with pytest.raises(errors.DowngradeRefusedError) as raised:
        revisions.downgrade(engine, target, APPLICATION)

    assert raised.value.hint
    assert images(path) == before
    assert not revisions.inspect(engine, APPLICATION).needs_upgrade


def test_downgrade_drops_copies_that_stand_in_legacy(path: Path, open_engine: Open) -> None:
    """In EXPAND, normalized rows with a legacy row of their id are copies; triggers of ours go with them."""
    builders.first_version(path)
    before = images(path)
    engine = open_engine(path)
    revisions.upgrade(engine, SETTINGS, APPLICATION, rewrite=True)
    execute(
        path,
        """
        INSERT INTO consensus_runs VALUES (1, 's', 't', NULL, 'k', 0, 1, 0, NULL);
        INSERT INTO agent_outputs (id, run_id, agent_name, output_timestamp, content)
          VALUES (1, 1, 'a', 0, 'c');
        CREATE TRIGGER consensus_orm_notice AFTER UPDATE ON consensus_artifacts BEGIN
          INSERT INTO consensus_orm_changes (pair, key, side, op) VALUES ('artifacts', OLD.id, 'legacy', 'update'); END;
        """,
    )

    revisions.downgrade(engine, "base", APPLICATION)

    assert images(path) == before
    execute(path, "UPDATE consensus_artifacts SET content_json = 'still works'")


def test_downgrade_leaves_the_triggers_of_other_programs(path: Path, open_engine: Open) -> None:
    """A name that begins as ours makes no trigger ours: what does not speak of our tables stays, whatever its name."""
    builders.first_version(path)
    execute(
        path,
        """
        CREATE TABLE letters (n INTEGER);
        CREATE TRIGGER consensus_orm_mine AFTER INSERT ON letters BEGIN UPDATE letters SET n = 1; END;
        CREATE TRIGGER "consensus_orm_"" -- " AFTER INSERT ON letters BEGIN UPDATE letters SET n = 2; END;
        """,
    )
    before = images(path, "letters")
    engine = open_engine(path)
    revisions.upgrade(engine, SETTINGS, APPLICATION)

    revisions.downgrade(engine, "base", APPLICATION)

    assert images(path, "letters") == before


def test_downgrade_to_nowhere_is_one_clear_error(path: Path, open_engine: Open) -> None:
    """A revision that does not exist is an error of ours, and changes nothing."""
    engine = open_engine(path)
    revisions.upgrade(engine, SETTINGS, APPLICATION, rewrite=True)

    with pytest.raises(errors.SchemaError):
        revisions.downgrade(engine, "nowhere", APPLICATION)

    assert not revisions.inspect(engine, APPLICATION).needs_upgrade


@pytest.mark.parametrize("name", ["new", "first_version", "half_written_dual_writes", "odd_final_build"])
def test_a_failing_revision_leaves_nothing_behind(
    name: str, path: Path, open_engine: Open, own_revisions: Callable[[str], None]
) -> None:
    """Where the last of the revisions fails, the first is undone too: no table, no row, no version."""
    build = builders.KINDS[name][2]
    build(path)
    before = images(path)
    own_revisions("def upgrade():\n    op.execute('CREATE TABLE half (x)')\n    op.execute('SELECT nonsense')\n")

    with pytest.raises(errors.StorageError):
        revisions.upgrade(open_engine(path), SETTINGS, APPLICATION, rewrite=True)

    assert images(path) == before
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.long
def test_a_revision_that_breaks_references_is_undone(
    path: Path, open_engine: Open, own_revisions: Callable[[str], None]
) -> None:
    """Foreign keys are off while the schema changes, so they are checked before the commit."""
    builders.final_build(path)
    engine = open_engine(path)
    revisions.upgrade(engine, SETTINGS, APPLICATION, rewrite=True)
    before = images(path)
    own_revisions("def upgrade():\n    op.execute('DELETE FROM consensus_runs')\n")

    with pytest.raises(errors.SchemaError, match="refer to rows"):
        revisions.upgrade(engine, SETTINGS, APPLICATION, rewrite=True)

    assert images(path) == before
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1


@pytest.mark.parametrize("phase", [1, 2, 3, 4, 5])
def test_a_later_release_reaches_every_phase(
    phase: int, path: Path, open_engine: Open, own_revisions: Callable[[str], None]
) -> None:
    """A revision added later is applied alone, whatever the phase, and the phase stays."""
    builders.build_legacy(path)
    engine = open_engine(path)
    revisions.upgrade(engine, SETTINGS, APPLICATION, rewrite=True)
    execute(path, f"UPDATE consensus_orm_state SET phase = {phase}")
    if phase == 5:
        execute(path, "DROP TABLE consensus_artifacts; DROP TABLE consensus_synthesis")
    own_revisions("def upgrade():\n    op.execute('ALTER TABLE consensus_runs ADD COLUMN later TEXT')\n")

    assert revisions.inspect(engine, APPLICATION).needs_upgrade
    assert revisions.upgrade(engine, SETTINGS, APPLICATION, rewrite=True) == ["9000"]

    with oracle.reading(path) as connection:
        assert connection.execute("SELECT phase FROM consensus_orm_state").fetchone() == (phase,)
        assert '"later"' in oracle.columns(connection, "consensus_runs")
    assert (phase == 5) == ("consensus_artifacts" not in oracle.tables(path))


UPGRADE = """
import sys
from consensus_orm.databases import opening
from consensus_orm.consensus.application import APPLICATION
from consensus_orm.databases import engine
from consensus_orm.schema import revisions
from consensus_orm.settings import Settings
sys.stdin.readline()
engine = opening.create(sys.argv[1], Settings(busy_timeout=30))
print(len(revisions.upgrade(engine, Settings(), APPLICATION, rewrite=True)))
engine.dispose()
"""


@pytest.mark.long
@pytest.mark.parametrize("name", ["new", "odd_final_build"])
def test_two_processes_upgrade_at_once(name: str, path: Path) -> None:
    """Of processes that upgrade the same file at the same time, one does it and the others find it done."""
    builders.KINDS[name][2](path)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", UPGRADE, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    answers = [process.communicate(timeout=60) for process in processes]

    # Whoever finds the others at the file logs that it cannot have WAL, which is no error.
    assert [process.returncode for process in processes] == [0, 0, 0], answers
    assert sorted(int(out) for out, _ in answers) == [0, 0, len(inspection.REVISIONS)]
    with oracle.reading(path) as connection:
        assert connection.execute("SELECT count(*) FROM consensus_orm_history").fetchone() == (1,)


def alembic(*arguments: str, url: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "CONSENSUS_ORM_URL"}
    return subprocess.run(
        [sys.executable, "-m", "alembic", *arguments],
        cwd=ROOT,
        env=environment | ({"CONSENSUS_ORM_URL": url} if url else {}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.long
def test_alembic_command_line_upgrades_from_the_checkout(path: Path, open_engine: Open) -> None:
    """`alembic upgrade head` does what the package does, with the URL from -x or from the settings."""
    builders.odd_legacy(path)

    done = alembic("-x", f"url=sqlite:///{path}", "upgrade", "head")
    assert done.returncode == 0, done.stderr
    assert oracle.user_version(path) == programs.PROTECTED
    assert not revisions.inspect(open_engine(path), APPLICATION).needs_upgrade

    checked = alembic("check", url=str(path))
    assert checked.returncode == 0, checked.stderr
    assert "No new upgrade operations detected" in checked.stdout


@pytest.mark.long
def test_alembic_command_line_says_errors_in_one_line(path: Path) -> None:
    """What cannot be adopted is refused by alembic in one line, without a traceback, the file untouched."""
    builders.damaged(path)
    before = oracle.sha256(path)

    done = alembic("-x", f"url={path}", "upgrade", "head")

    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "consensus_runs" in done.stderr + done.stdout
    assert oracle.sha256(path) == before


def test_migrations_are_found_without_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a wheel the migrations lie inside the package; where there are none, the error says what to do."""
    package = tmp_path / "site" / "consensus_orm"
    package.mkdir(parents=True)
    monkeypatch.setattr(revisions, "__file__", str(package / "schema" / "revisions.py"))
    with pytest.raises(errors.ConfigurationError):
        revisions.script_location()

    shutil.copytree(ROOT / "alembic", package / "_alembic")

    assert revisions.script_location() == package / "_alembic"


@pytest.mark.long
def test_a_current_file_opens_without_alembic(path: Path, open_engine: Open) -> None:
    """An upgrade that has nothing to do does not pay for importing alembic."""
    revisions.upgrade(open_engine(path), SETTINGS, APPLICATION, rewrite=True)
    code = UPGRADE + "assert 'alembic' not in sys.modules"

    done = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        cwd=ROOT,
        input="go\n",
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.stdout, done.stderr) == ("0\n", "")


def test_percent_in_the_path_of_the_migrations(
    tmp_path: Path, path: Path, open_engine: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An installation folder may have any name, though alembic reads % as the start of a variable."""
    folder = tmp_path / "100%(here)s odd" / "alembic"
    shutil.copytree(revisions.script_location(), folder)
    monkeypatch.setattr(revisions, "script_location", lambda: folder)

    assert revisions.upgrade(open_engine(path), SETTINGS, APPLICATION, rewrite=True) == list(inspection.REVISIONS)


@pytest.mark.parametrize("phase", list(Phase), ids=lambda phase: phase.name)
def test_the_status_of_an_earlier_revision_names_the_upgrade(path: Path, open_engine: Open, phase: Phase) -> None:
    """It is given in every phase, says which command helps, and leaves out what that revision could not know."""
    builders.first_version(path)
    soak: dict[str, Any] = {"soak_dual_write": 0, "soak_cutover": 0, "soak_normalized": 0}
    with ConsensusStore.open(path, settings=Settings(**soak, backup_dir=path.parent)) as store:
        store.migration.migrate(phase)
    revisions.downgrade(open_engine(path), "0004", APPLICATION)
    with ConsensusStore.open(path) as store:
        status = store.migration.status()
        assert (status.phase, status.next_command) == (phase, "consensus-orm upgrade")
        assert len(status.gate) == (1 if phase.next else 0)
        store.upgrade()  # as another process would
        assert store.migration.status().next_command != "consensus-orm upgrade"
