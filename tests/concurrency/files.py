"""Files in a given phase to begin with, and raw SQL that judges them. Rows come from the frozen builders."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

from consensus_orm import ConsensusStore, Phase
from consensus_orm.settings import Settings
from tests.field.builders import ARTIFACTS, SYNTHESIS, build_legacy, create_executions
from tests.field.rows import insert_odd_rows
from tests.support import oracle

SETTINGS = Settings(chunk_rows=16, chunk_pause=timedelta(0))
"""Small chunks, so that a few dozen rows are many transactions."""


def legacy_file(path: Path) -> None:
    """A legacy file with the common rows and the odd ones, as another program leaves it (not WAL)."""
    build_legacy(path)
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        insert_odd_rows(connection, big=False)


def small_file(path: Path) -> None:
    """A legacy file with the common rows only."""
    build_legacy(path)


def empty_file(path: Path) -> None:
    """A legacy file without rows."""
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(ARTIFACTS + SYNTHESIS)
        create_executions(connection, 11)


def bring(store: ConsensusStore, to: Phase) -> None:
    """Take a store forward to a phase, by all its gates."""
    migration = store.migration
    migration.upgrade()
    while (now := migration.phase) < to:
        if now.compares:
            migration.backfill()
        if now.writes_normalized:
            assert migration.verify().clean
        migration.advance(now.next, soak=False)
        assert migration.phase is now.next


class Files:
    """Makes files in a phase, each kind once, and hands out copies.

    Args:
        folder: Where the originals are kept.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def copy(
        self,
        target: Path,
        phase: Phase,
        build: Callable[[Path], None] = legacy_file,
        *,
        wal: bool = True,
        change: Callable[[Path], None] | None = None,
    ) -> Path:
        """A copy of a file that is in a phase.

        Args:
            target: Where it goes.
            phase: The phase.
            build: Makes the legacy file.
            wal: Whether it is in WAL, else in DELETE.
            change: Done to the file after it has reached the phase.
        """
        name = f"{build.__name__}-{phase.name}-{wal}-{change.__name__ if change else ''}"
        original = self.folder / name
        if not original.exists():
            made = self.folder / f"{name}-making"
            build(made)
            with ConsensusStore.open(made, settings=SETTINGS) as store:
                bring(store, phase)
            if change is not None:
                change(made)
            with contextlib.closing(sqlite3.connect(made)) as connection:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                assert connection.execute(f"PRAGMA journal_mode = {'WAL' if wal else 'DELETE'}")
            made.rename(original)
        shutil.copyfile(original, target)
        return target


# Judging, by raw SQL ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def raw(path: Path) -> Iterator[sqlite3.Connection]:
    """The plain driver on a file, committing by itself."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=10)) as connection:
        yield connection


@contextlib.contextmanager
def kept_in(path: Path, *, wal: bool) -> Iterator[None]:
    """Keep a file in its journal mode: a store switches to WAL unless somebody else has the file open."""
    with contextlib.ExitStack() as stack:
        if not wal:
            stack.enter_context(raw(path)).execute("SELECT count(*) FROM sqlite_master").fetchone()
        yield
        with raw(path) as connection:
            assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal" if wal else "delete",)


def phase_of(path: Path) -> Phase:
    """The phase as the file holds it."""
    with raw(path) as connection:
        return Phase(connection.execute("SELECT phase FROM consensus_orm_state").fetchone()[0])


def flips(path: Path) -> list[tuple[str, int, int]]:
    """The changes of phase in the audit: action, from, to."""
    with raw(path) as connection:
        return connection.execute(
            "SELECT action, from_phase, to_phase FROM consensus_orm_history WHERE from_phase <> to_phase ORDER BY id"
        ).fetchall()


def truth(path: Path) -> dict[str, list[oracle.Row]]:
    """The rows of the source of truth, every cell in type and bytes."""
    return (oracle.legacy if phase_of(path) < Phase.CUTOVER else oracle.normalized)(path)


def assert_sound(path: Path) -> None:
    """A file is intact, and no transaction of ours was left half done in it."""
    with raw(path) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        phase, epoch, carrying = connection.execute("SELECT phase, epoch, carrying FROM consensus_orm_state").fetchone()
        assert carrying == 0
        changes = connection.execute(
            "SELECT from_phase, to_phase FROM consensus_orm_history WHERE from_phase <> to_phase ORDER BY id"
        ).fetchall()
        voided = "SELECT count(*) FROM consensus_orm_history WHERE action = 'clock set back'"
        assert epoch == len(changes) + connection.execute(voided).fetchone()[0]
        assert all(abs(after - before) == 1 for before, after in changes)
        assert [before for before, _ in changes[1:]] == [after for _, after in changes[:-1]]
        assert not changes or changes[-1][1] == phase
        orphans = (
            "SELECT count(*) FROM consensus_runs WHERE id NOT IN (SELECT run_id FROM agent_outputs)"
            " AND id NOT IN (SELECT run_id FROM consensus_syntheses)"
        )
        assert connection.execute(orphans).fetchone() == (0,)


def assert_sides_agree(path: Path) -> None:
    """Both sides hold the same rows, every cell in type and bytes, and nothing waits to be carried."""
    assert oracle.legacy(path) == oracle.normalized(path)
    with raw(path) as connection:
        assert connection.execute("SELECT count(*) FROM consensus_orm_changes").fetchone() == (0,)


NOT_COMPARED = {
    "consensus_orm_history",
    "consensus_orm_certificates",
    "consensus_orm_mismatches",
    "consensus_orm_backfill",
    "consensus_orm_samples",
    "consensus_orm_keeper",
}
"""Tables that hold times, or may say twice what was done twice."""


OF_RUNS = ("consensus_runs", "agent_outputs", "consensus_syntheses")
"""Tables that hold numbers of runs, which depend on how many rows were carried at once."""


def _by_identity(path: Path, table: str) -> list[oracle.Row]:
    """The rows of a table, with the identities of their runs in the place of numbers."""
    number = '"id"' if table == "consensus_runs" else '"run_id"'
    with oracle.reading(path) as connection:
        own = [f"t.{name}" for name in oracle.columns(connection, table) if name != number]
        run = f"FROM {table} AS t JOIN consensus_runs AS r ON r.id = t.{number}"
        return sorted(oracle.query(connection, [*own, "r.spec_id", "r.stage", "r.run_key"], run))


def image(path: Path) -> dict[str, object]:
    """All there is in a file but times and what tells of repetitions: two equal images are equal databases."""
    with raw(path) as connection:
        schema = connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_master").fetchall()
        state = "SELECT phase, epoch, step, carrying, mapping FROM consensus_orm_state"
        found: dict[str, object] = {
            "schema": sorted(schema, key=str),
            "state": connection.execute(state).fetchall(),
            "backfill": connection.execute("SELECT pair, finished FROM consensus_orm_backfill ORDER BY 1").fetchall(),
            "changes": connection.execute(
                "SELECT pair, key, side, op FROM consensus_orm_changes ORDER BY id"
            ).fetchall(),
            "images": connection.execute(
                "SELECT pair, key, side, table_name, image, cause FROM consensus_orm_images ORDER BY pair, key, id"
            ).fetchall(),
        }
    ours = {*NOT_COMPARED, *OF_RUNS, "consensus_orm_state", "consensus_orm_changes", "consensus_orm_images"}
    found |= {name: oracle.rows(path, name) for name in oracle.tables(path) if name not in ours}
    found |= {name: _by_identity(path, name) for name in OF_RUNS}
    given = oracle.sequences(path).items()
    found["sequences"] = {n: s for n, s in given if n != "consensus_runs" and not n.startswith("consensus_orm_")}
    found["flips"] = flips(path)
    return found


def records(store: ConsensusStore) -> list[object]:
    """Everything the repositories give."""
    with store.unit_of_work(read_only=True) as uow:
        runs = [uow.runs.list(spec_id=spec) for spec in ("SPEC-KIT-900", "SPEC-ODD", "SPEC-WRITTEN")]
        return [uow.artifacts.list(), uow.syntheses.list(), uow.artifacts.specs(), runs]
