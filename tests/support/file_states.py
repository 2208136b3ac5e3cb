"""Files as programs leave them: with a log, with a journal to roll back, damaged, empty."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from pathlib import Path

from consensus_orm import ConsensusStore

BESIDE = ("-wal", "-shm", "-journal")


def add(store: ConsensusStore, *texts: str) -> None:
    with store.unit_of_work() as uow:
        for text in texts:
            uow.artifacts.add(spec_id="S", stage="plan", agent_name="a", content_json=text)


def taken_while_open(path: Path, *, journal_mode: str = "wal") -> None:
    """A database as a killed process leaves it: with a log, or in the middle of a transaction."""
    made = path.with_name("made.db")
    with ConsensusStore.open(made) as store:
        add(store, "old")
        if journal_mode == "wal":
            add(store, "in the log")
            copy_all(made, path)
    if journal_mode == "delete":
        with contextlib.closing(sqlite3.connect(made, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode = DELETE")
            connection.execute("PRAGMA cache_size = 1")
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("UPDATE agent_outputs SET content = 'never committed'")
            connection.execute("CREATE TABLE filler AS SELECT zeroblob(100000) AS a")
            copy_all(made, path)
    for suffix in ("", *BESIDE):
        Path(f"{made}{suffix}").unlink(missing_ok=True)


def copy_all(source: Path, target: Path) -> None:
    for suffix in ("", "-wal", "-journal"):
        with contextlib.suppress(FileNotFoundError):
            shutil.copyfile(f"{source}{suffix}", f"{target}{suffix}")


def with_a_log(path: Path) -> list[str]:
    taken_while_open(path)
    assert Path(f"{path}-wal").stat().st_size > 0
    return ["old", "in the log"]


def with_a_hot_journal(path: Path) -> list[str]:
    taken_while_open(path, journal_mode="delete")
    assert Path(f"{path}-journal").stat().st_size > 0
    return ["old"]


def in_wal_without_a_log(path: Path) -> list[str]:
    with ConsensusStore.open(path) as store:
        add(store, "old")
    return ["old"]


def with_a_log_of_another(path: Path) -> None:
    """Somebody copied a file over a database whose log was left there."""
    taken_while_open(path)
    with ConsensusStore.open(path.with_name("made.db")) as store:
        add(store, *map(str, range(100)))
    path.with_name("made.db").replace(path)


def damaged(path: Path) -> None:
    path.write_bytes(b"garbage" * 10_000)


def damaged_with_a_log(path: Path) -> None:
    taken_while_open(path)
    damaged(path)
    with path.with_name(f"{path.name}-wal").open("r+b") as file:
        file.truncate(32 + 2 * (24 + 4096))


def damaged_inside(path: Path) -> None:
    in_wal_without_a_log(path)
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096 * 4)


def empty(path: Path) -> None:
    path.touch()


def log_alone(path: Path) -> None:
    taken_while_open(path)
    path.unlink()


def nothing(path: Path) -> None:
    """No file at all."""
