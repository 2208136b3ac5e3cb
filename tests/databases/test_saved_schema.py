"""What stands in a database is data (rule 13): a file that was handed over harms no other file of the operator."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from consensus_orm import ConsensusStore, Phase, errors
from consensus_orm.settings import Settings
from tests.databases.contracted import SETTINGS, contracted
from tests.field import builders, rows
from tests.support import databases, oracle
from tests.support.databases import Database


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file at CONTRACT with saved tables, an index, a trigger and a row."""
    path = tmp_path_factory.mktemp("saved") / "original.db"
    builders.build_legacy(path, columns=11)
    with builders.writing(path) as connection:
        connection.execute("CREATE TRIGGER theirs AFTER DELETE ON consensus_artifacts BEGIN SELECT 1; END")
    contracted(databases.at(path))
    return path


@pytest.fixture
def path(original: Path, tmp_path: Path) -> Path:
    """A copy of that file, to be written into."""
    return Path(shutil.copyfile(original, tmp_path / "handed_over.db"))


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Path]:
    """Another file of the operator: whatever is done with the one that was handed over, it stays as it is."""
    other = tmp_path / "victim.db"
    builders.first_version(other)
    before = oracle.sha256(other)
    names = sorted(file.name for file in tmp_path.iterdir())
    yield other
    assert oracle.sha256(other) == before
    ours = ("handed_over.db", "target.db", "back.db")
    assert sorted(f.name for f in tmp_path.iterdir() if f.name in names or not f.name.startswith(ours)) == names


def save(path: Path, kind: str, table: str, text: Any) -> None:
    """Write into the saved schema as somebody else may; a table takes the place of the one that was saved."""
    with builders.writing(path) as connection:
        where = "type = 'table' AND table_name = ?"
        if kind == "table" and table in oracle.LEGACY:
            connection.execute(f"UPDATE consensus_orm_saved_schema SET sql = ? WHERE {where}", (text, table))
            return
        connection.execute(
            "INSERT INTO consensus_orm_saved_schema SELECT max(position) + 1, ?, ?, ?, ?, NULL"
            " FROM consensus_orm_saved_schema",
            (kind, table if kind == "table" else "x", table, text),
        )


def refuses(path: Path, match: str = "says something else") -> None:
    """A rollback says so in one error of ours, and the file stays at CONTRACT, with all that it had."""
    with ConsensusStore.open(path) as store, store.unit_of_work():
        pass  # the first that writes after another program changed the schema takes note of that
    before = {table: oracle.image(path, table) for table in oracle.tables(path)}
    with ConsensusStore.open(path, settings=SETTINGS) as store:
        with pytest.raises(errors.UnsafeDefinitionError, match=match) as raised:
            store.migration.rollback()
        assert raised.value.hint
        assert store.migration.phase is Phase.CONTRACT
    assert {table: oracle.image(path, table) for table in oracle.tables(path)} == before


# Definitions -----------------------------------------------------------------------------------------------

ARTIFACTS = builders.ARTIFACTS.partition(";")[0].strip()

HARMFUL: dict[str, tuple[str, str]] = {
    "attach": ("table", "ATTACH DATABASE '{victim}' AS v"),
    "attach, then a table": ("table", f"ATTACH '{{victim}}' AS v; {ARTIFACTS}"),
    "a table, then attach": ("table", f"{ARTIFACTS}; ATTACH '{{victim}}' AS v"),
    "a table of an attached file": ("table", "CREATE TABLE v.consensus_artifacts (id INTEGER PRIMARY KEY)"),
    "a temporary table": ("table", ARTIFACTS.replace("CREATE TABLE", "CREATE TEMP TABLE")),
    "a table of another name": ("table", "CREATE TABLE other (id INTEGER PRIMARY KEY)"),
    "a table filled by a query": ("table", "CREATE TABLE consensus_artifacts AS SELECT * FROM agent_outputs"),
    "a virtual table": ("table", "CREATE VIRTUAL TABLE consensus_artifacts USING fts5(id)"),
    "a view": ("table", "CREATE VIEW consensus_artifacts AS SELECT 1 AS id"),
    "an index as a table": ("table", "CREATE INDEX consensus_artifacts ON agent_outputs(id)"),
    "explain": ("table", f"EXPLAIN {ARTIFACTS}"),
    "vacuum into": ("index", "VACUUM INTO '{victim}.copy'"),
    "pragma": ("index", "PRAGMA writable_schema = ON"),
    "user_version": ("index", "PRAGMA user_version = 1"),
    "detach": ("index", "DETACH main"),
    "delete": ("index", "DELETE FROM agent_outputs"),
    "drop": ("index", "DROP TABLE agent_outputs"),
    "alter": ("index", "ALTER TABLE agent_outputs RENAME TO x"),
    "the schema itself": ("index", "DELETE FROM sqlite_master"),
    "an index of another table": ("index", "CREATE INDEX i ON agent_outputs(content)"),
    "an index, then delete": ("index", "CREATE INDEX i ON consensus_artifacts(stage); DELETE FROM agent_outputs"),
    "a query": ("index", "SELECT 1"),
    "nothing": ("index", ""),
    "a comment": ("index", "-- CREATE INDEX i ON consensus_artifacts(stage)"),
    "no SQL": ("index", "\0"),
    "analyze": ("index", "ANALYZE"),
    "reindex": ("index", "REINDEX"),
    "savepoint": ("index", "SAVEPOINT x"),
    "commit": ("index", "COMMIT"),
    "attach as a trigger": ("trigger", "ATTACH '{victim}' AS v"),
    "a temporary trigger": (
        "trigger",
        "CREATE TEMP TRIGGER t AFTER INSERT ON consensus_artifacts BEGIN DELETE FROM agent_outputs; END",
    ),
    "a trigger of another table": ("trigger", "CREATE TRIGGER t AFTER INSERT ON agent_outputs BEGIN SELECT 1; END"),
    "a trigger, then attach": (
        "trigger",
        "CREATE TRIGGER t AFTER INSERT ON consensus_artifacts BEGIN SELECT 1; END; ATTACH '{victim}' AS v",
    ),
    "an index as a trigger": ("trigger", "CREATE INDEX i ON consensus_artifacts(stage)"),
}


@pytest.mark.long
@pytest.mark.sqlite
@pytest.mark.parametrize("name", HARMFUL)
def test_only_what_makes_the_legacy_side_is_run(name: str, path: Path, victim: Path) -> None:
    """Of saved text a rollback runs one CREATE of the legacy table, or on it, and nothing else."""
    kind, text = HARMFUL[name]
    save(path, kind, "consensus_artifacts", text.format(victim=victim))
    refuses(path)


@pytest.mark.sqlite
@pytest.mark.parametrize("value", [None, 7, b"CREATE INDEX i ON consensus_artifacts(stage)"])
def test_what_is_no_text_is_not_run(value: object, path: Path) -> None:
    """The column has no type that SQLite holds to, so anything may stand in it."""
    with builders.writing(path) as connection:
        connection.execute("PRAGMA ignore_check_constraints = ON")
        connection.execute("UPDATE consensus_orm_saved_schema SET sql = ? WHERE type = 'index'", (value or b"",))
    refuses(path)


@pytest.mark.sqlite
@pytest.mark.parametrize("kind", ["table", "index", "trigger", "image", "row"])
def test_tables_of_others_are_none_of_the_legacy_side(kind: str, path: Path) -> None:
    """What is saved under the name of another table is not made, whatever it says."""
    texts = {
        "table": "CREATE TABLE other (id INTEGER PRIMARY KEY)",
        "index": "CREATE INDEX i ON agent_outputs(content)",
        "trigger": "CREATE TRIGGER t AFTER INSERT ON agent_outputs BEGIN SELECT 1; END",
        "image": '{"id": ["integer", "31"]}',
        "row": 'INSERT OR IGNORE INTO "agent_outputs" ("id") VALUES (1)',
    }
    save(path, kind, {"table": "other"}.get(kind, "agent_outputs"), texts[kind])
    refuses(path)


def declared(path: Path) -> list[tuple[str, str, str, str | None]]:
    """The legacy side as other programs declared it."""
    found = [entry for table in oracle.LEGACY for entry in oracle.definitions(path, table)]
    return [entry for entry in found if not entry[1].startswith("consensus_orm_")]


@pytest.mark.sqlite
def test_what_other_programs_declare_comes_back_verbatim(tmp_path: Path) -> None:
    """Everything that a table may have is made again: constraints, defaults, generated columns, odd names."""
    path = tmp_path / "field.db"
    artifacts = builders.ARTIFACTS.replace(
        "created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP",
        "created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP, size INTEGER AS (length(content_json)),"
        " UNIQUE (id, stage), CHECK (length(agent_name) < max(800, id) AND stage <> ';') -- : ; 'odd'\n",
    )
    with builders.writing(path) as connection:
        connection.executescript(artifacts + builders.SYNTHESIS)
        connection.executescript(
            """
            CREATE UNIQUE INDEX "the ""odd"" index" ON consensus_artifacts(lower(agent_name), id DESC)
              WHERE stage <> ';';
            CREATE INDEX collated ON consensus_artifacts(spec_id COLLATE NOCASE);
            CREATE TABLE log (what TEXT);
            CREATE TRIGGER "the ""odd"" trigger" AFTER UPDATE OF stage ON consensus_artifacts FOR EACH ROW
              WHEN NEW.stage <> (SELECT count(*) FROM log) BEGIN
              INSERT INTO log SELECT upper(NEW.stage); DELETE FROM log WHERE what IS NULL; END;
            """
        )
        rows.insert_plain_rows(connection)
    before = declared(path), oracle.legacy(path), oracle.sequences(path)
    with ConsensusStore.open(path, settings=SETTINGS) as store:
        store.migration.migrate(soak=False)
        store.migration.rollback("expand")
    given = oracle.sequences(path)
    assert (declared(path), oracle.legacy(path), {table: given[table] for table in before[2]}) == before


# Copies -----------------------------------------------------------------------------------------------------


def copied(source: Path | str, target: Path | str) -> None:
    with ConsensusStore.open(source, settings=SETTINGS) as one, ConsensusStore.open(target, settings=SETTINGS) as other:
        one.copy_to(other)


@pytest.mark.long
@pytest.mark.sqlite
def test_a_copy_makes_nothing_but_the_tables_it_copies(path: Path, tmp_path: Path, victim: Path) -> None:
    """What is saved in a file goes along as it is, and is not run there either."""
    save(path, "trigger", "consensus_artifacts", f"ATTACH '{victim}' AS v")
    copied(path, tmp_path / "target.db")
    refuses(tmp_path / "target.db")


@pytest.mark.postgresql
@pytest.mark.parametrize("name", ["attach", "a temporary table", "drop", "attach as a trigger", "a query"])
def test_definitions_out_of_a_server_are_read_as_those_of_a_file(
    name: str, database: Database, tmp_path: Path, victim: Path
) -> None:
    """A copy from a server to a file makes tables from what the server keeps of them: by the same rule."""
    kind, text = HARMFUL[name]
    with ConsensusStore.open(database.where, settings=SETTINGS) as store:
        store.migration.upgrade()
    saved = "INSERT INTO consensus_orm_saved_schema VALUES (?, ?, ?, 'consensus_artifacts', ?, NULL)"
    if kind != "table":
        database.rows_of(saved, -2, "sqlite table", "consensus_artifacts", ARTIFACTS)
    database.rows_of(saved, -1, f"sqlite {kind}", "consensus_artifacts", text.format(victim=victim))
    with pytest.raises(errors.UnsafeDefinitionError):
        copied(str(database.where), tmp_path / "target.db")


@pytest.mark.postgresql
def test_tables_that_are_not_copied_are_not_made(database: Database, tmp_path: Path) -> None:
    """A server may keep what it likes under the name of another table."""
    with ConsensusStore.open(database.where, settings=SETTINGS) as store:
        store.migration.upgrade()
    database.rows_of(
        "INSERT INTO consensus_orm_saved_schema VALUES (-1, 'sqlite table', 'other', 'other', ?, NULL)",
        "CREATE TABLE other (id)",
    )
    copied(str(database.where), tmp_path / "target.db")
    assert "other" not in oracle.tables(tmp_path / "target.db")


def half_copied(source: Path, target: Path | str) -> Database:
    """A copy that is not finished."""
    with ConsensusStore.open(source, settings=SETTINGS) as one, ConsensusStore.open(target, settings=SETTINGS) as other:
        one.copy_to(other, finish=False)
    return databases.at(target)


def with_facts(database: Database, **facts: object) -> None:
    """Write into what an unfinished copy keeps, as somebody else may."""
    kept = json.loads(database.scalar("SELECT facts FROM consensus_orm_copy WHERE name = ''"))
    database.rows_of("UPDATE consensus_orm_copy SET facts = ? WHERE name = ''", json.dumps({**kept, **facts}))


@pytest.mark.sqlite
def test_an_unfinished_copy_holds_no_statements(tmp_path: Path, victim: Path) -> None:
    """The file of an unfinished copy may be handed over, too: what it keeps of itself is not run when it goes on."""
    source = tmp_path / "handed_over.db"
    builders.first_version(source)
    half = half_copied(source, tmp_path / "target.db")
    statement = f"ATTACH '{victim}' AS v"
    with_facts(half, restore=[statement], foreign_keys=[statement])
    copied(source, tmp_path / "target.db")
    assert oracle.legacy(tmp_path / "target.db") == oracle.legacy(source)


FOREIGN_KEYS = "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE contype = 'f' ORDER BY 1"


@pytest.mark.postgresql
def test_foreign_keys_come_back_behind_a_copy(new_database: Database, tmp_path: Path) -> None:
    """What a copy to a server takes away meanwhile is there again at the end, as it was."""
    builders.first_version(tmp_path / "source.db")
    with ConsensusStore.open(tmp_path / "source.db", settings=SETTINGS) as store:
        store.migration.upgrade()
    half = half_copied(tmp_path / "source.db", str(new_database.where))
    assert half.rows_of(FOREIGN_KEYS) == []
    copied(tmp_path / "source.db", str(new_database.where))
    assert half.rows_of(FOREIGN_KEYS) == [
        (f"fk_{table}_run_id_consensus_runs", "FOREIGN KEY (run_id) REFERENCES consensus_runs(id) ON DELETE CASCADE")
        for table in ("agent_outputs", "consensus_syntheses")
    ]


@pytest.mark.postgresql
@pytest.mark.parametrize(
    "harm",
    [
        {"options": {"ondelete": "CASCADE; DROP TABLE theirs"}},
        {"options": {"match": "FULL; DROP TABLE theirs"}},
        {"options": {"deferrable": "x"}},
        {"options": {"info": {}}},
        {"table": "theirs"},
        {"name": 'x" CHECK (true); DROP TABLE theirs; --'},
        {"to_table": 'consensus_runs"; DROP TABLE theirs; --'},
        {"columns": ['run_id"); DROP TABLE theirs; --']},
    ],
    ids=str,
)
def test_a_foreign_key_is_names_and_known_words(harm: dict[str, Any], new_database: Database, tmp_path: Path) -> None:
    """Whoever writes into an unfinished copy on a server has the last pass run no statement of theirs."""
    builders.first_version(tmp_path / "source.db")
    with ConsensusStore.open(tmp_path / "source.db", settings=SETTINGS) as store:
        store.migration.upgrade()
    half = half_copied(tmp_path / "source.db", str(new_database.where))
    half.script("CREATE TABLE theirs (id BIGINT)")
    facts = json.loads(half.scalar("SELECT facts FROM consensus_orm_copy WHERE name = ''"))
    key = {**facts["foreign_keys"][0], **harm}
    with_facts(half, foreign_keys=[key])
    with contextlib.suppress(errors.ConsensusError):
        copied(tmp_path / "source.db", str(new_database.where))
    assert "theirs" in half.tables()


@pytest.mark.sqlite
def test_the_columns_of_a_source_are_names(tmp_path: Path) -> None:
    """A column that nobody knows goes from file to file, whatever it is called."""
    column = 'x", (SELECT 7)) --'
    source, target = tmp_path / "source.db", tmp_path / "target.db"
    builders.build_legacy(source)
    with builders.writing(source) as connection:
        for table in ("consensus_artifacts", "agent_executions"):
            quoted = column.replace('"', '""')
            connection.execute(f"ALTER TABLE {table} ADD COLUMN \"{quoted}\" TEXT DEFAULT 'kept'")
    copied(source, target)
    for table in ("consensus_artifacts", "agent_executions"):
        with contextlib.closing(sqlite3.connect(target)) as connection:
            cursor = connection.execute(f"SELECT * FROM {table}")
            assert cursor.description[-1][0] == column
            assert {row[-1] for row in cursor} == {"kept"}


# Functions --------------------------------------------------------------------------------------------------


@pytest.mark.sqlite
def test_the_schema_of_a_file_is_not_trusted(path: Path) -> None:
    """No trigger, view or constraint of a file calls a function that the program made, unless the settings say so."""
    with builders.writing(path) as connection:
        connection.execute("CREATE TABLE theirs (id)")
        connection.execute("CREATE TRIGGER calls AFTER INSERT ON theirs BEGIN SELECT launch(NEW.id); END")
    called: list[int] = []

    def insert(settings: Settings) -> None:
        with ConsensusStore.open(path, settings=settings) as store, store.unit_of_work() as uow:
            connection = uow.session.connection()
            driver: Any = connection.connection.driver_connection
            driver.create_function("launch", 1, called.append)
            assert driver.pragma("trusted_schema") == settings.trusted_schema
            connection.exec_driver_sql("INSERT INTO theirs VALUES (7)")

    with pytest.raises(errors.StorageError, match=r"unsafe use of launch.*CONSENSUS_ORM_TRUSTED_SCHEMA"):
        insert(SETTINGS)
    assert called == []
    insert(SETTINGS.model_copy(update={"trusted_schema": True}))
    assert called == [7]


@pytest.mark.sqlite
def test_what_sqlite_itself_brings_goes_on(tmp_path: Path) -> None:
    """Full-text indexes kept by triggers, generated columns and checks of a legacy table work as they did."""
    path = tmp_path / "indexed.db"
    builders.first_version(path)
    with builders.writing(path) as connection:
        connection.executescript(
            """
            CREATE VIRTUAL TABLE said USING fts5(content_json, content='consensus_artifacts', content_rowid='id');
            CREATE TRIGGER indexed AFTER INSERT ON consensus_artifacts BEGIN
              INSERT INTO said(rowid, content_json) VALUES (NEW.id, NEW.content_json);
              SELECT json_extract('{"a": 1}', '$.a'), strftime('%s', 'now'), printf('%d', 7), hex(randomblob(4)); END;
            CREATE VIEW latest AS SELECT max(rowid), count(*) FROM said WHERE said MATCH 'found';
            """
        )
    with ConsensusStore.open(path, settings=SETTINGS) as store:
        store.migration.migrate(Phase.CUTOVER, soak=False)
        with store.unit_of_work() as uow:
            added = uow.artifacts.add(spec_id="S", stage="s", agent_name="a", content_json="found")
            (found,) = uow.session.connection().exec_driver_sql("SELECT * FROM latest").all()
        assert tuple(found) == (added.id, 1)
        assert store.migration.verify().clean
