"""Databases of a PostgreSQL server in a given phase, and raw SQL that judges them: psycopg, nothing of the package."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from consensus_orm import ConsensusStore, Phase
from consensus_orm.settings import Settings
from tests.concurrency.files import bring
from tests.field import server as field
from tests.support import engines, oracle, servers

__all__ = [
    "SETTINGS", "assert_sides_agree", "assert_sound", "connect", "flips", "image", "in_phase", "legacy", "made",
    "normalized", "phase_of", "settings", "truth",
]  # fmt: skip

SETTINGS = Settings(chunk_rows=16, chunk_pause=timedelta(0), busy_timeout=timedelta(seconds=20))
"""Small chunks, so that a few dozen rows are many transactions."""


def settings(backups: Path | str) -> Settings:
    """The same, with a folder for the backup that is made before CONTRACT."""
    return SETTINGS.model_copy(update={"backup_dir": Path(backups)})


Change = Callable[[str], object]
Side = dict[str, list[tuple[Any, ...]]]

ARTIFACTS = ("id", "spec_id", "stage", "agent_name", "content_json", "response_text", "run_id", "created_at")
SYNTHESES = (
    "id", "spec_id", "stage", "output_markdown", "output_path", "status", "artifacts_count", "agreements",
    "conflicts", "degraded", "run_id", "created_at",
)  # fmt: skip


def made(url: str, phase: Phase, change: Change | None = None) -> None:
    """Make a database with the common rows, in a phase.

    Args:
        url: An empty database.
        phase: The phase to bring it to.
        change: Done to it at the end.
    """
    field.build_legacy(url)
    with (
        tempfile.TemporaryDirectory() as backups,
        ConsensusStore.open(url, settings=settings(backups)) as store,
    ):
        bring(store, phase)
    if change is not None:
        change(url)


@contextlib.contextmanager
def in_phase(phase: Phase, change: Change | None = None, *, lacking: Sequence[bytes] = ()) -> Iterator[str]:
    """A database of the shared server with the common rows, in a phase; a clone of one that is made once.

    Args:
        phase: The phase.
        change: Done to the one that is cloned.
        lacking: Words that the engine it is reached through does not know.

    Returns:
        Its URL.
    """
    name = f"hostile_{phase.name.lower()}{'_' + change.__name__ if change else ''}"
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(servers.database(servers.template(name, partial(made, phase=phase, change=change))))
        yield stack.enter_context(engines.lacking(url, *lacking)) if lacking else url


def connect(url: str, **options: Any) -> psycopg.Connection[Any]:
    """The plain driver, committing by itself."""
    return psycopg.connect(url, autocommit=True, **options)


def query(url: str, statement: str) -> list[tuple[Any, ...]]:
    """The rows of one statement."""
    with connect(url) as connection:
        return connection.execute(statement.encode()).fetchall()


def phase_of(url: str) -> Phase:
    """The phase as the database holds it."""
    return Phase(query(url, "SELECT phase FROM consensus_orm_state")[0][0])


def flips(url: str) -> list[tuple[str, int, int]]:
    """The changes of phase in the audit: action, from, to."""
    return query(
        url, "SELECT action, from_phase, to_phase FROM consensus_orm_history WHERE from_phase <> to_phase ORDER BY id"
    )


def legacy(url: str) -> Side:
    """The rows of the legacy side."""
    return {
        "artifacts": query(url, f"SELECT {', '.join(ARTIFACTS)} FROM consensus_artifacts ORDER BY id"),
        "syntheses": query(url, f"SELECT {', '.join(SYNTHESES)} FROM consensus_synthesis ORDER BY id"),
    }


def normalized(url: str) -> Side:
    """The rows of the normalized side, in the shape of the legacy one."""

    def shaped(columns: tuple[str, ...], table: str, **renamed: str) -> list[tuple[Any, ...]]:
        of_the_run = {"spec_id", "stage", "run_id"}
        names = ", ".join(f"{'r' if c in of_the_run else 'o'}.{renamed.get(c, c)}" for c in columns)
        return query(url, f"SELECT {names} FROM {table} AS o JOIN consensus_runs AS r ON r.id = o.run_id ORDER BY o.id")

    return {
        "artifacts": shaped(ARTIFACTS, "agent_outputs", content_json="content"),
        "syntheses": shaped(SYNTHESES, "consensus_syntheses"),
    }


def truth(url: str) -> Side:
    """The rows of the source of truth."""
    return (legacy if phase_of(url) < Phase.CUTOVER else normalized)(url)


def assert_sides_agree(url: str) -> None:
    """Both sides hold the same rows, and nothing waits to be carried."""
    assert legacy(url) == normalized(url)
    assert query(url, "SELECT pair, key, side, op FROM consensus_orm_changes") == []


WRONG_RUNS = """
SELECT r.id, r.run_timestamp, r.degraded, r.consensus_ok, r.synthesis_json IS NULL, s.id
FROM consensus_runs AS r
LEFT JOIN LATERAL (SELECT min(t) AS earliest FROM (
  SELECT output_timestamp AS t FROM agent_outputs WHERE run_id = r.id UNION ALL
  SELECT synthesis_timestamp FROM consensus_syntheses WHERE run_id = r.id) AS rows) AS e ON true
LEFT JOIN LATERAL (SELECT * FROM consensus_syntheses WHERE run_id = r.id
  ORDER BY synthesis_timestamp DESC, id DESC LIMIT 1) AS s ON true
WHERE e.earliest IS NULL OR r.run_timestamp <> e.earliest
  OR r.consensus_ok IS DISTINCT FROM coalesce(position('failed' IN lower(s.status)) = 0, true)
  OR r.degraded IS DISTINCT FROM (coalesce(s.degraded, 0) <> 0
    OR coalesce(position('degraded' IN lower(s.status)), 0) > 0)
  OR (r.synthesis_json::json ->> 'output_markdown') IS DISTINCT FROM s.output_markdown
"""
"""Runs without rows, or whose columns are not what the mapping of DESIGN says in words."""


def assert_sound(url: str) -> None:
    """Runs are what follows from their rows, the audit tells how the phase came about, and no id stands to be given."""
    with connect(url) as connection:
        state = connection.execute("SELECT phase, epoch FROM consensus_orm_state").fetchone()
        assert state is not None
        phase, epoch = state
        changes = flips(url)
        voided = "SELECT count(*) FROM consensus_orm_history WHERE action = 'clock set back'"
        assert (epoch,) == tuple(n + len(changes) for n in connection.execute(voided).fetchone() or ())
        assert all(abs(after - before) == 1 for _, before, after in changes)
        assert [before for _, before, _ in changes[1:]] == [after for _, _, after in changes[:-1]]
        assert not changes or changes[-1][2] == phase
        if phase > Phase.EXPAND:  # there the normalized side is left as it was
            assert connection.execute(WRONG_RUNS.encode()).fetchall() == []
        # At CONTRACT a view stands where each table was: a sign for older programs.
        legacy_tables = "SELECT relname FROM pg_class WHERE relkind = 'r' AND relname IN (%s, %s) ORDER BY 1"
        rebuilding = query(url, "SELECT step FROM consensus_orm_state") == [("rebuild",)]
        there = Phase(phase).has_legacy or rebuilding
        found = [name for (name,) in connection.execute(legacy_tables, oracle.LEGACY)]
        assert found == (list(oracle.LEGACY) if there else [])


NOT_COMPARED = {
    "consensus_orm_reads",  # counters of the server, and times
    "alembic_version", "consensus_orm_history", "consensus_orm_certificates", "consensus_orm_mismatches",
    "consensus_orm_backfill", "consensus_orm_ranges", "consensus_orm_state", "consensus_orm_changes",
    "consensus_orm_saved_schema", "consensus_orm_images", "consensus_orm_guards", "consensus_orm_samples",
    "consensus_orm_keeper",
}  # fmt: skip
"""Tables that hold times, or may say twice what was done twice; what matters of them is told beside."""


def image(url: str) -> dict[str, object]:
    """All there is in a database but times, numbers of runs and what tells of repetitions."""
    with connect(url) as connection:
        names = {
            name
            for (name,) in connection.execute(
                "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
            )
        }

        def rows(statement: str) -> list[tuple[Any, ...]]:
            return connection.execute(statement.encode()).fetchall()

        found: dict[str, object] = {
            "tables": names,
            "triggers": rows(
                "SELECT t.tgrelid::regclass::text, t.tgname, pg_get_triggerdef(t.oid), t.tgenabled, p.prosrc"
                " FROM pg_trigger AS t JOIN pg_proc AS p ON p.oid = t.tgfoid"
                " WHERE NOT t.tgisinternal AND t.tgenabled <> 'D' ORDER BY 1, 2"
            ),
            "indexes": rows("SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1"),
            "state": rows("SELECT phase, epoch, step, mapping FROM consensus_orm_state"),
            "backfill": rows("SELECT pair, finished FROM consensus_orm_backfill ORDER BY 1"),
            "changes": rows("SELECT pair, key, side, op FROM consensus_orm_changes ORDER BY id"),
            "images": rows("SELECT pair, key, side, image, cause FROM consensus_orm_images ORDER BY pair, key, id"),
            "guards": rows(
                "SELECT kind, name, table_name, CASE kind WHEN 'trigger' THEN definition"
                " ELSE (definition = CAST(CAST(to_regclass(name) AS oid) AS text))::text END"
                " FROM consensus_orm_guards ORDER BY 1, 2"
            ),
            "saved": rows("SELECT type, name, sql FROM consensus_orm_saved_schema ORDER BY position"),
            "runs": rows(
                "SELECT spec_id, stage, run_id, run_key, run_timestamp, consensus_ok, degraded, synthesis_json"
                " FROM consensus_runs ORDER BY spec_id, stage, run_key"
            ),
            "normalized": normalized(url),
            "kept": rows("SELECT id, model_version, mirrored FROM agent_outputs ORDER BY id"),
            "flips": flips(url),
        }
        of_runs = {"consensus_runs", "agent_outputs", "consensus_syntheses"}
        for name in sorted(names - NOT_COMPARED - of_runs):
            statement = sql.SQL("SELECT * FROM {} ORDER BY 1").format(sql.Identifier(name))
            found[name] = connection.execute(statement).fetchall()
    return found
