"""One frozen builder per schema in the field: SQL and the plain driver, nothing of the package.

These files were made by programs that are not maintained any more, so nothing here follows a change of ours.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.field.rows import insert_odd_rows, insert_plain_rows

ARTIFACTS = """
CREATE TABLE consensus_artifacts (id INTEGER PRIMARY KEY AUTOINCREMENT, spec_id TEXT NOT NULL,
  stage TEXT NOT NULL, agent_name TEXT NOT NULL, content_json TEXT NOT NULL, response_text TEXT, run_id TEXT,
  created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP);
CREATE INDEX idx_spec_stage ON consensus_artifacts(spec_id, stage);
"""

SYNTHESIS = """
CREATE TABLE consensus_synthesis (id INTEGER PRIMARY KEY AUTOINCREMENT, spec_id TEXT NOT NULL,
  stage TEXT NOT NULL, output_markdown TEXT NOT NULL, output_path TEXT, status TEXT NOT NULL,
  artifacts_count INTEGER, agreements TEXT, conflicts TEXT, degraded BOOLEAN DEFAULT 0, run_id TEXT,
  created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP);
CREATE INDEX idx_synthesis_spec_stage ON consensus_synthesis(spec_id, stage);
"""

FOUNDING = """
CREATE TABLE consensus_runs (id INTEGER PRIMARY KEY AUTOINCREMENT, spec_id TEXT NOT NULL, stage TEXT NOT NULL,
  run_timestamp INTEGER NOT NULL, consensus_ok BOOLEAN NOT NULL, degraded BOOLEAN DEFAULT 0,
  synthesis_json TEXT, UNIQUE(spec_id, stage, run_timestamp));
CREATE TABLE agent_outputs (id INTEGER PRIMARY KEY AUTOINCREMENT,
  run_id INTEGER NOT NULL REFERENCES consensus_runs(id) ON DELETE CASCADE, agent_name TEXT NOT NULL,
  model_version TEXT, content TEXT NOT NULL, output_timestamp INTEGER NOT NULL);
CREATE INDEX idx_consensus_runs_spec_stage ON consensus_runs(spec_id, stage);
CREATE INDEX idx_consensus_runs_timestamp ON consensus_runs(run_timestamp);
CREATE INDEX idx_agent_outputs_run ON agent_outputs(run_id);
CREATE INDEX idx_agent_outputs_agent ON agent_outputs(agent_name);
"""

EXECUTIONS_CREATED = {
    8: "agent_id TEXT PRIMARY KEY, spec_id TEXT NOT NULL, stage TEXT NOT NULL, phase_type TEXT NOT NULL,"
    " agent_name TEXT NOT NULL, spawned_at TEXT NOT NULL, completed_at TEXT, response_text TEXT",
    9: "agent_id TEXT PRIMARY KEY, spec_id TEXT NOT NULL, stage TEXT NOT NULL, phase_type TEXT NOT NULL,"
    " agent_name TEXT NOT NULL, run_id TEXT, spawned_at TEXT NOT NULL, completed_at TEXT, response_text TEXT",
    10: "agent_id TEXT PRIMARY KEY, spec_id TEXT NOT NULL, stage TEXT NOT NULL, phase_type TEXT NOT NULL,"
    " agent_name TEXT NOT NULL, run_id TEXT, spawned_at TEXT NOT NULL, completed_at TEXT, response_text TEXT,"
    " extraction_error TEXT",
    11: "agent_id TEXT PRIMARY KEY, spec_id TEXT NOT NULL, stage TEXT NOT NULL, phase_type TEXT NOT NULL,"
    " agent_name TEXT NOT NULL, run_id TEXT, spawned_at TEXT NOT NULL, completed_at TEXT, response_text TEXT,"
    " extraction_error TEXT, branch_id TEXT",
}
"""agent_executions as a program of that day created it, by its number of columns."""

EXECUTIONS = [
    {
        "agent_id": agent_id,
        "spec_id": "SPEC-KIT-900",
        "stage": "spec-plan",
        "phase_type": phase_type,
        "agent_name": agent_name,
        "spawned_at": spawned_at,
        "completed_at": completed_at,
        "response_text": response_text,
    }
    for agent_id, phase_type, agent_name, spawned_at, completed_at, response_text in (
        ("a1", "regular_stage", "gemini", "2025-11-04T02:20:00Z", "2025-11-04T02:23:58Z", '{"ok": true}'),
        ("a2", "regular_stage", "claude", "2025-11-04T02:20:01Z", None, None),
        ("a3", "quality_gate", "code", "2025-11-04 02:20:02", "2025-11-04 02:24:00", "no JSON \U0001f600"),
    )
]
"""Rows of it: done, in flight, failed."""

EXECUTIONS_ALTERED = ("run_id TEXT", "extraction_error TEXT", "branch_id TEXT")
"""What later programs added to a table of 8 columns, so that these come last."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a file as the programs in the field did; committed and closed at the end."""
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        yield connection


def create_executions(connection: sqlite3.Connection, columns: int, *, altered: bool = False) -> None:
    """Make agent_executions with 8 to 11 columns and three rows: done, in flight, failed."""
    connection.execute(f"CREATE TABLE agent_executions ({EXECUTIONS_CREATED[8 if altered else columns]})")
    if altered:
        for column in EXECUTIONS_ALTERED[: columns - 8]:
            connection.execute(f"ALTER TABLE agent_executions ADD COLUMN {column}")
    connection.execute("CREATE INDEX idx_agent_executions_spec ON agent_executions(spec_id, stage)")
    if columns > 8:
        connection.execute("CREATE INDEX idx_agent_executions_run ON agent_executions(run_id)")
    if columns > 10:
        connection.execute("CREATE INDEX idx_agent_executions_branch ON agent_executions(spec_id, stage, branch_id)")
    for execution in EXECUTIONS:
        connection.execute(
            f"INSERT INTO agent_executions ({', '.join(execution)}) VALUES ({', '.join('?' * len(execution))})",
            tuple(execution.values()),
        )


def first_version(path: Path) -> None:
    """2025-11-02: artifacts and synthesis only."""
    with writing(path) as connection:
        connection.executescript(ARTIFACTS + SYNTHESIS)
        insert_plain_rows(connection)


def build_legacy(path: Path, *, columns: int = 10, altered: bool = True, user_version: int = 0) -> None:
    """2025-11-04 on: plus agent_executions. With 10 columns by ALTER, this is the commonest file of all."""
    with writing(path) as connection:
        connection.executescript(ARTIFACTS + SYNTHESIS)
        create_executions(connection, columns, altered=altered)
        insert_plain_rows(connection)
        connection.execute(f"PRAGMA user_version = {user_version}")


def odd_legacy(path: Path) -> None:
    """A legacy file with every row that breaks simple implementations."""
    build_legacy(path)
    with writing(path) as connection:
        insert_odd_rows(connection)


def empty_legacy(path: Path) -> None:
    """Legacy tables whose rows were all deleted: what is left is the sequence."""
    build_legacy(path)
    with writing(path) as connection:
        connection.execute("DELETE FROM consensus_artifacts")
        connection.execute("DELETE FROM consensus_synthesis")


def artifacts_only(path: Path) -> None:
    """A program stopped between its two CREATE TABLE statements."""
    with writing(path) as connection:
        connection.executescript(ARTIFACTS)


def executions_only(path: Path) -> None:
    """agent_executions alone."""
    with writing(path) as connection:
        create_executions(connection, 11)


def dual_write_build(path: Path) -> None:
    """2025-11-13: each artifact also as a run of its own, in a second transaction, with ids of its own."""
    with writing(path) as connection:
        connection.executescript(ARTIFACTS + SYNTHESIS + FOUNDING)
        create_executions(connection, 10)
        insert_plain_rows(connection)
        # Ids of its own: the first run is 1 while the first artifact left is 1 as well, and then they part.
        mirrored = connection.execute(
            "SELECT spec_id, stage, agent_name, content_json, id FROM consensus_artifacts ORDER BY id DESC"
        ).fetchall()
        for spec_id, stage, agent_name, content, artifact_id in mirrored:
            if artifact_id % 5 == 0:
                continue  # the program died between its two transactions
            ms = 1_762_222_238_000 + artifact_id * 7
            run = connection.execute(
                "INSERT INTO consensus_runs (spec_id, stage, run_timestamp, consensus_ok) VALUES (?, ?, ?, 1)",
                (spec_id, stage, ms),
            ).lastrowid
            connection.execute(
                "INSERT INTO agent_outputs (run_id, agent_name, content, output_timestamp) VALUES (?, ?, ?, ?)",
                (run, agent_name, content, ms),
            )
        connection.execute("PRAGMA user_version = 1")


def half_written_dual_writes(path: Path) -> None:
    """A dual-write file whose normalized side knows things the legacy side does not."""
    dual_write_build(path)
    with writing(path) as connection:
        connection.executescript(
            """
            -- 2: what the legacy side never had
            INSERT INTO consensus_runs VALUES (1001, 'SPEC-X', 'plan', 1762222300000, 1, 0, NULL);
            INSERT INTO agent_outputs VALUES (2001, 1001, 'gemini', NULL, 'only here', 1762222300000);
            -- equal to an artifact, once too often
            INSERT INTO consensus_artifacts (id, spec_id, stage, agent_name, content_json)
              VALUES (5001, 'SPEC-X', 'plan', 'code', 'twin');
            INSERT INTO consensus_runs VALUES (1002, 'SPEC-X', 'plan', 1762222300001, 1, 0, NULL);
            INSERT INTO agent_outputs VALUES (2002, 1002, 'code', NULL, 'twin', 1762222300001);
            INSERT INTO consensus_runs VALUES (1003, 'SPEC-X', 'plan', 1762222300002, 1, 0, NULL);
            INSERT INTO agent_outputs VALUES (2003, 1003, 'code', NULL, 'twin', 1762222300002);
            -- equal in all but the type of the content
            INSERT INTO consensus_artifacts (id, spec_id, stage, agent_name, content_json)
              VALUES (5002, 'SPEC-X', 'plan', 'blob', 'same bytes');
            INSERT INTO consensus_runs VALUES (1004, 'SPEC-X', 'plan', 1762222300003, 1, 0, NULL);
            INSERT INTO agent_outputs VALUES
              (2004, 1004, 'blob', NULL, CAST('same bytes' AS BLOB), 1762222300003);
            -- a model_version that the legacy side has no place for
            INSERT INTO consensus_artifacts (id, spec_id, stage, agent_name, content_json)
              VALUES (5003, 'SPEC-X', 'plan', 'model', 'with model');
            INSERT INTO consensus_runs VALUES (1005, 'SPEC-X', 'plan', 1762222300004, 1, 0, NULL);
            INSERT INTO agent_outputs VALUES (2005, 1005, 'model', 'gemini-2.5', 'with model', 1762222300004);
            -- runs that say something themselves
            INSERT INTO consensus_runs VALUES (1006, 'SPEC-X', 'plan', 1762222300005, 1, 0, NULL);
            INSERT INTO consensus_runs VALUES (1007, 'SPEC-X', 'plan', 1762222300006, 1, 0, '{"a": 1}');
            INSERT INTO consensus_artifacts (id, spec_id, stage, agent_name, content_json)
              VALUES (5004, 'SPEC-X', 'plan', 'bad', 'not ok');
            INSERT INTO consensus_runs VALUES (1008, 'SPEC-X', 'plan', 1762222300007, 0, 1, NULL);
            INSERT INTO agent_outputs VALUES (2008, 1008, 'bad', NULL, 'not ok', 1762222300007);
            -- an output whose run is gone, as happens without foreign keys
            INSERT INTO agent_outputs VALUES (2009, 9999, 'orphan', NULL, 'x', 1762222300008);
            """
        )


def final_build(path: Path) -> None:
    """The legacy side is gone: every artifact a run of its own, syntheses as runs without outputs."""
    with writing(path) as connection:
        connection.executescript(FOUNDING)
        create_executions(connection, 11)
        connection.executescript(
            """
            -- one round of three, the same second; one agent speaks twice, with the same words
            INSERT INTO consensus_runs VALUES (1, 'SPEC-KIT-900', 'spec-plan', 1762222238000, 1, 0, NULL);
            INSERT INTO agent_outputs VALUES (1, 1, 'gemini', NULL, '{"ok": true}', 1762222238000);
            INSERT INTO consensus_runs VALUES (2, 'SPEC-KIT-900', 'spec-plan', 1762222238123, 1, 0, NULL);
            INSERT INTO agent_outputs VALUES (2, 2, 'gemini', NULL, '{"ok": true}', 1762222238123);
            INSERT INTO consensus_runs VALUES (3, 'SPEC-KIT-900', 'spec-plan', 1762222238999, 1, 0, NULL);
            INSERT INTO agent_outputs VALUES (7, 3, 'claude', 'opus-4', 'not JSON ${X}', 1762222238999);
            -- the next second, and another stage in the same one
            INSERT INTO consensus_runs VALUES (4, 'SPEC-KIT-900', 'spec-plan', 1762222239000, 1, 0, NULL);
            INSERT INTO agent_outputs VALUES (8, 4, 'code', NULL, '', 1762222239000);
            INSERT INTO consensus_runs VALUES (5, 'SPEC-KIT-900', 'spec-tasks', 1762222239000, 1, 0, NULL);
            INSERT INTO agent_outputs VALUES (9, 5, 'code', NULL, CAST(x'610062' AS TEXT), 1762222239000);
            -- syntheses: two of one second, one of a stage without artifacts
            INSERT INTO consensus_runs VALUES (6, 'SPEC-KIT-900', 'spec-plan', 1762222238500, 1, 0,
              '{"output_markdown":"# first ‑ \\u2011","output_path":null,"status":"ok","artifacts_count":3,'
              || '"agreements":"[\\"a\\"]","conflicts":"[]"}');
            INSERT INTO consensus_runs VALUES (7, 'SPEC-KIT-900', 'spec-plan', 1762222238600, 1, 1,
              '{"status": "Degraded", "output_markdown": "# second", "output_path": "/tmp/x.md",'
              || ' "artifacts_count": null, "agreements": null, "conflicts": null}');
            INSERT INTO consensus_runs VALUES (8, 'SPEC-KIT-901', 'plan', 1762222240000, 0, 0,
              '{"output_markdown":"none","output_path":null,"status":"FAILED","artifacts_count":0,'
              || '"agreements":null,"conflicts":null}');
            -- what was deleted last had the highest ids
            INSERT INTO consensus_runs VALUES (50, 'SPEC-GONE', 'plan', 1762222250000, 1, 0, NULL);
            INSERT INTO agent_outputs VALUES (60, 50, 'gone', NULL, 'gone', 1762222250000);
            DELETE FROM agent_outputs WHERE id = 60;
            DELETE FROM consensus_runs WHERE id = 50;
            PRAGMA user_version = 2;
            """
        )


USUAL_SYNTHESIS = {
    "output_markdown": '"x"',
    "output_path": "null",
    "status": '"ok"',
    "artifacts_count": "1",
    "agreements": "null",
    "conflicts": "null",
}


def _synthesis_json(**changes: str) -> str:
    """The JSON of a synthesis, its values spelled as given, as an SQL literal."""
    pairs = ",".join(f'"{key}":{value}' for key, value in {**USUAL_SYNTHESIS, **changes}.items())
    return f"'{{{pairs}}}'"


ODD_SYNTHESES = {
    101: "'not JSON'",
    102: """'{"a": 1}'""",
    103: """'["output_markdown"]'""",
    104: _synthesis_json(agreements='["nested"]'),
    105: _synthesis_json(artifacts_count="1.0"),
    106: _synthesis_json(output_markdown='"x","output_markdown":"given twice"'),
    107: _synthesis_json(output_markdown='"\\ud800"'),
    108: _synthesis_json(artifacts_count="99999999999999999999"),
    109: _synthesis_json(output_markdown="null"),
    110: "CAST(x'7b22ff' AS TEXT)",
    111: f"CAST({_synthesis_json()} AS BLOB)",
    112: "replace(printf('%100000s', ''), ' ', '[')",
    113: _synthesis_json(artifacts_count="true"),
    114: _synthesis_json(extra="1"),
    115: _synthesis_json().replace(',"conflicts":null', ""),
}
"""id of a founding run -> its synthesis_json, none of them what the final build wrote."""


def odd_final_build(path: Path) -> None:
    """A final build with runs and times that no program of ours would write."""
    final_build(path)
    with writing(path) as connection:
        for run_id, expression in ODD_SYNTHESES.items():
            connection.execute(
                f"INSERT INTO consensus_runs VALUES (?, 'SPEC-ODD', 'plan', ?, 1, 0, {expression})",
                (run_id, 1_762_222_300_000 + run_id),
            )
        connection.executescript(
            """
            -- no outputs, no synthesis
            INSERT INTO consensus_runs VALUES (201, 'SPEC-ODD', 'plan', 1762222400001, 1, 0, NULL);
            -- says more than its output can
            INSERT INTO consensus_runs VALUES (202, 'SPEC-ODD', 'plan', 1762222400002, 0, 0, NULL);
            INSERT INTO agent_outputs VALUES (202, 202, 'a', NULL, 'not ok', 1762222400002);
            INSERT INTO consensus_runs VALUES (203, 'SPEC-ODD', 'plan', 1762222400003, 1, NULL, NULL);
            INSERT INTO agent_outputs VALUES (203, 203, 'a', NULL, 'degraded NULL', 1762222400003);
            -- consensus_ok is not what the status says
            INSERT INTO consensus_runs VALUES (204, 'SPEC-ODD', 'plan', 1762222400004, 0, 0,
              '{"output_markdown":"x","output_path":null,"status":"ok","artifacts_count":1,"agreements":null,'
              || '"conflicts":null}');
            -- a time of its own, moved on because of the UNIQUE
            INSERT INTO consensus_runs VALUES (205, 'SPEC-ODD', 'plan', 1762222400005, 1, 0, NULL);
            INSERT INTO agent_outputs VALUES (205, 205, 'a', NULL, 'moved', 1762222400000);
            -- an orphan
            INSERT INTO agent_outputs VALUES (206, 9999, 'a', NULL, 'orphan', 1762222400006);
            -- times
            INSERT INTO consensus_runs VALUES (301, 'SPEC-TIME', 'plan', -1, 1, 0, NULL);
            INSERT INTO agent_outputs VALUES (301, 301, 'a', NULL, 'before 1970', -1);
            INSERT INTO consensus_runs VALUES (302, 'SPEC-TIME', 'plan', 1762743600000000, 1, 0, NULL);
            INSERT INTO agent_outputs VALUES (302, 302, 'a', NULL, 'year 57957', 1762743600000000);
            INSERT INTO consensus_runs VALUES (303, 'SPEC-TIME', 'plan', -62135596800001, 1, 0, NULL);
            INSERT INTO agent_outputs VALUES (303, 303, 'a', NULL, 'year 0', -62135596800001);
            INSERT INTO consensus_runs VALUES (304, 'SPEC-TIME', 'plan', 'not a date', 1, 0, NULL);
            INSERT INTO agent_outputs VALUES (304, 304, 'a', NULL, 'text', 'not a date');
            INSERT INTO consensus_runs VALUES (305, 'SPEC-TIME', 'plan', 0.1, 1, 0, NULL);
            INSERT INTO agent_outputs VALUES (305, 305, 'a', NULL, 'real', 0.1);
            INSERT INTO consensus_runs VALUES (306, 'SPEC-TIME', 'plan', x'00ff', 1, 0, NULL);
            INSERT INTO agent_outputs VALUES (306, 306, 'a', NULL, x'00ff', x'00ff');
            INSERT INTO consensus_runs VALUES (307, 'SPEC-TIME', 'plan', '2025-11-04 02:23:58.5', 1, 0, NULL);
            INSERT INTO agent_outputs VALUES (307, 307, 'a', NULL, 'a time as text', '2025-11-04 02:23:58.5');
            INSERT INTO consensus_runs VALUES (308, 'SPEC-TIME', 'plan', 253402300799999, 1, 0, NULL);
            INSERT INTO agent_outputs VALUES (308, 308, 'a', NULL, 'the last ms', 253402300799999);
            INSERT INTO consensus_runs VALUES (309, 'SPEC-TIME', 'plan', 253402300800000, 1, 0, NULL);
            INSERT INTO agent_outputs VALUES (309, 309, 'a', NULL, 'one more', 253402300800000);
            INSERT INTO consensus_runs VALUES (5000000000, 'SPEC-TIME', 'plan', -1001, 1, 0, NULL);
            INSERT INTO agent_outputs VALUES (6000000000, 5000000000, 'a', NULL, CAST(x'ff' AS TEXT), -1001);
            """
        )


def runs_only(path: Path) -> None:
    """A final build stopped between its two CREATE TABLE statements."""
    with writing(path) as connection:
        connection.executescript(FOUNDING.partition("CREATE TABLE agent_outputs")[0])
        connection.execute("INSERT INTO consensus_runs VALUES (3, 'S', 'plan', 1762222238000, 1, 0, NULL)")


def damaged(path: Path) -> None:
    """A test program made a consensus_runs table of its own; the legacy side is full of rows."""
    first_version(path)
    with writing(path) as connection:
        connection.executescript(
            "CREATE TABLE consensus_runs (run TEXT, passed INTEGER); INSERT INTO consensus_runs VALUES ('r', 1);"
        )


def damaged_outputs(path: Path) -> None:
    """Founding tables with a column more: its values would have no place to go."""
    final_build(path)
    with writing(path) as connection:
        connection.execute("ALTER TABLE agent_outputs ADD COLUMN score REAL")


def damaged_artifacts(path: Path) -> None:
    """A legacy table that lacks a column."""
    with writing(path) as connection:
        connection.execute("CREATE TABLE consensus_artifacts (id INTEGER PRIMARY KEY, spec_id TEXT, stage TEXT)")


def damaged_key(path: Path) -> None:
    """A legacy table whose id is not the rowid."""
    with writing(path) as connection:
        connection.executescript(ARTIFACTS.replace("INTEGER PRIMARY KEY AUTOINCREMENT", "TEXT PRIMARY KEY"))


def damaged_required(path: Path) -> None:
    """A legacy table with a column that nobody of ours would fill."""
    with writing(path) as connection:
        connection.executescript(ARTIFACTS.replace("run_id TEXT,", "run_id TEXT, tenant TEXT NOT NULL,"))


def damaged_view(path: Path) -> None:
    """A view of our name."""
    with writing(path) as connection:
        connection.execute("CREATE VIEW consensus_artifacts AS SELECT 1 AS id")


def damaged_executions(path: Path) -> None:
    """agent_executions of somebody else."""
    first_version(path)
    with writing(path) as connection:
        connection.execute("CREATE TABLE agent_executions (agent_id TEXT PRIMARY KEY, name TEXT)")


def damaged_control(path: Path) -> None:
    """Control tables without a revision: somebody deleted it."""
    with writing(path) as connection:
        connection.execute("CREATE TABLE consensus_orm_state (id INTEGER PRIMARY KEY, phase INTEGER)")


def extra_column(path: Path) -> None:
    """A legacy file to which another program added a column."""
    first_version(path)
    with writing(path) as connection:
        connection.execute("ALTER TABLE consensus_artifacts ADD COLUMN tokens INTEGER DEFAULT 7")


def shared(path: Path) -> None:
    """A file that another application shares: tables, views and triggers of its own, and its own alembic."""
    half_written_dual_writes(path)
    with writing(path) as connection:
        connection.executescript(
            """
            CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY);
            INSERT INTO alembic_version VALUES ('feedc0ffee00');
            CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT COLLATE NOCASE, run INTEGER
              REFERENCES consensus_runs(id) ON DELETE CASCADE);
            INSERT INTO customers VALUES (1, 'Ada', 1), (2, 'Bob', 424242);
            CREATE VIEW broken AS SELECT x FROM nowhere;
            CREATE VIEW good_runs AS SELECT spec_id FROM consensus_runs WHERE consensus_ok = 1;
            CREATE TRIGGER customers_log AFTER INSERT ON customers BEGIN
              INSERT INTO alembic_version VALUES (NEW.name); END;
            """
        )


def new(path: Path) -> None:
    """An empty file."""
    path.touch()


Builder = Callable[[Path], None]

AGED: dict[str, Builder] = {
    f"{columns}_{'altered' if altered else 'created'}": (
        lambda path, columns=columns, altered=altered: build_legacy(path, columns=columns, altered=altered)  # type: ignore[misc]
    )
    for columns in (8, 9, 10, 11)
    for altered in (False, True)
}

KINDS: dict[str, tuple[str, int, Builder]] = {
    "new": ("new", 5, new),
    "first_version": ("legacy", 1, first_version),
    "odd_legacy": ("legacy", 1, odd_legacy),
    "empty_legacy": ("legacy", 1, empty_legacy),
    "artifacts_only": ("legacy", 1, artifacts_only),
    "extra_column": ("legacy", 1, extra_column),
    "legacy_user_version_2": ("legacy", 1, lambda path: build_legacy(path, user_version=2)),
    "executions_only": ("executions", 5, executions_only),
    "dual_write_build": ("dual_write_build", 1, dual_write_build),
    "half_written_dual_writes": ("dual_write_build", 1, half_written_dual_writes),
    "shared": ("dual_write_build", 1, shared),
    "final_build": ("final_build", 5, final_build),
    "odd_final_build": ("final_build", 5, odd_final_build),
    "runs_only": ("final_build", 5, runs_only),
    **{name: ("legacy", 1, builder) for name, builder in AGED.items()},
}
"""What can be adopted: name -> (what it is, the phase it starts in, its builder)."""

DAMAGED: dict[str, Builder] = {
    "damaged": damaged,
    "damaged_outputs": damaged_outputs,
    "damaged_artifacts": damaged_artifacts,
    "damaged_key": damaged_key,
    "damaged_required": damaged_required,
    "damaged_view": damaged_view,
    "damaged_executions": damaged_executions,
    "damaged_control": damaged_control,
}
"""What cannot."""
