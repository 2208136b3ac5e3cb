"""Rows and files to measure with: contents of 1 to 8 KB, three outputs to a run."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event

from consensus_orm import ConsensusStore, Phase
from consensus_orm.consensus.models.legacy import ConsensusArtifact, ConsensusSynthesis
from consensus_orm.models.base import Base

__all__ = [
    "CREATED",
    "artifact",
    "content",
    "copied",
    "database",
    "engine_on",
    "filled",
    "legacy_file",
    "raw_connection",
    "store_in",
    "synthesis",
]

CREATED = "2025-11-04 02:23:58"
MILLISECONDS = int(datetime(2025, 11, 4, 2, 23, 58, tzinfo=UTC).timestamp() * 1000)
PRAGMAS = ("synchronous = NORMAL", "cache_size = -16384", "mmap_size = 268435456", "foreign_keys = ON")
"""What the store sets too, so that nobody is compared with worse settings than its own."""

_CONTENTS = [f'{{"agent": "gemini", "text": "{"plan " * (205 * size - 10)}"}}' for size in range(1, 9)]


def content(number: int) -> str:
    """What an agent says: JSON of 1 to 8 KB."""
    return _CONTENTS[number % 8]


def artifact(number: int, text: str | None = None) -> dict[str, Any]:
    """The arguments of `artifacts.add`; three outputs to a run."""
    return {
        "spec_id": f"SPEC-KIT-{number // 300}",
        "stage": "spec-plan",
        "agent_name": ("gemini", "claude", "gpt_pro")[number % 3],
        "content_json": content(number) if text is None else text,
        "run_id": f"run_{number // 3}",
    }


def synthesis(number: int) -> dict[str, Any]:
    """The arguments of `syntheses.add`."""
    return {
        "spec_id": f"SPEC-KIT-{number // 300}",
        "stage": "spec-plan",
        "output_markdown": content(number),
        "status": "ok",
        "artifacts_count": 12,
        "agreements": "[]",
        "conflicts": "[]",
        "run_id": f"run_{number // 3}",
    }


def database(path: Path) -> Path:
    """A file with the legacy tables, in WAL mode."""
    engine = create_engine(f"sqlite:///{path}")
    tables = [Base.metadata.tables[model.__tablename__] for model in (ConsensusArtifact, ConsensusSynthesis)]
    Base.metadata.create_all(engine, tables)
    engine.dispose()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
    return path


def legacy_file(path: Path, rows: int, text: str | None = None) -> Path:
    """A legacy file with rows in it."""
    values = (artifact(number, text) | {"created_at": CREATED} for number in range(rows))
    with closing(sqlite3.connect(database(path))) as connection:
        connection.executemany(
            "INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json, run_id, created_at)"
            " VALUES (:spec_id, :stage, :agent_name, :content_json, :run_id, :created_at)",
            values,
        )
        connection.commit()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path


@contextmanager
def store_in(path: Path, phase: Phase, **settings: Any) -> Iterator[ConsensusStore]:
    """A store on a legacy file, taken to a phase through every gate but the soak times."""
    from consensus_orm.settings import Settings

    if not path.exists():
        database(path)
    with ConsensusStore.open(path, settings=Settings(**settings)) as store:
        store.migration.upgrade()
        store.migration.migrate(phase, soak=False)
        yield store


def writes_to(store: ConsensusStore, count: int) -> Callable[[int], None]:
    """The work of a case: so many artifacts, each in a unit of work of its own."""

    def work(round_: int) -> None:
        for number in range(count):
            with store.unit_of_work() as uow:
                uow.artifacts.add(**artifact(round_ + number))

    return work


def filled(path: Path, phase: Phase, rows: int, text: str | None = None) -> Path:
    """A file with rows, taken to a phase and closed."""
    with store_in(legacy_file(path, rows, text), phase):
        pass
    return path


def copied(path: Path, to: Path) -> Path:
    """A copy of a closed file, on the disk: else the first checkpoint would wait for all of it to be written."""
    for suffix in ("-wal", "-shm"):
        to.with_name(to.name + suffix).unlink(missing_ok=True)
    shutil.copyfile(path, to)
    with to.open("rb+") as copy:
        os.fsync(copy.fileno())
    return to


def raw_connection(path: Path) -> sqlite3.Connection:
    """The driver, with the pragmas of the store."""
    connection = sqlite3.connect(path, isolation_level=None, cached_statements=512, check_same_thread=False)
    for pragma in PRAGMAS:
        connection.execute(f"PRAGMA {pragma}")
    return connection


def engine_on(path: Path) -> Engine:
    """A plain SQLAlchemy engine, with the pragmas of the store."""
    engine = create_engine(f"sqlite:///{path}")

    @event.listens_for(engine, "connect")
    def _set(connection: Any, _record: Any) -> None:
        for pragma in PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")

    return engine
