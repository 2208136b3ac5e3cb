"""Rows much longer than any that agents write: how much memory one takes, and the setting that bounds it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from consensus_orm import ConsensusStore, Phase
from consensus_orm.errors import InvalidValueError, StorageError
from tests.concurrency.processes import start
from tests.migration.steps import BASE, Open, forward
from tests.support.databases import Database, at, build_legacy

MIB = 2**20
LONG = 8 * MIB
STATUS = Path("/proc/self/status")


def insert(database: Database, length: int) -> int:
    """Let another program write a legacy row with a content of some bytes; its id."""
    is_file = isinstance(database.where, Path)
    content = f"replace(hex(zeroblob({length // 2})), '0', 'x')" if is_file else f"repeat('x', {length})"
    columns, values = "spec_id, stage, agent_name, content_json, run_id", f"'long', 's', 'a', {content}, 'r'"
    database.script(f"INSERT INTO consensus_artifacts ({columns}) VALUES ({values})")
    return int(database.scalar("SELECT max(id) FROM consensus_artifacts"))


def write(store: ConsensusStore, content: str) -> int:
    with store.unit_of_work() as uow:
        return uow.artifacts.add(spec_id="long", stage="s", agent_name="a", content_json=content, run_id="r").id


def kilobytes(name: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1])


def peak(work: Callable[[], Any]) -> float:
    """The most memory that this process takes in excess of what it had, as a multiple of a long row."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    before = kilobytes("VmRSS")
    work()
    return (kilobytes("VmHWM") - before) * 1024 / LONG


def take_steps(pipe: Connection, where: str | Path, backups: Path) -> None:
    """Carry, write and repair a long row; tell what each step took. In a process where nothing else takes memory."""
    database = at(where)
    settings = BASE.model_copy(update={"backup_dir": backups, "mmap_size": 0, "cache_size": -1024})
    with ConsensusStore.open(where, settings=settings) as store:  # pages of a file are no memory that the row needs
        forward(store, Phase.DUAL_WRITE)
        key = insert(database, LONG)
        took = {"backfill": peak(store.migration.backfill), "verify": peak(store.migration.verify)}
        content = "y" * LONG
        took["write"] = peak(lambda: write(store, content))
        database.unnoticed(f"UPDATE agent_outputs SET agent_name = 'altered' WHERE id = {key}")
        assert [found.key for found in store.migration.verify().differences] == [key]
        (mismatch,) = store.migration.mismatches()
        took["mismatch"] = peak(lambda: store.migration.mismatch(mismatch.id))
        took["reconcile"] = peak(store.migration.reconcile)
        assert store.migration.verify().clean
    pipe.send(took)


@pytest.mark.long
@pytest.mark.skipif(not STATUS.exists(), reason="the peak of a process is read from Linux")
def test_a_long_row_takes_a_few_times_its_length(database: Database, tmp_path: Path) -> None:
    """Each step holds a small multiple of a long row, and none of them a copy for each column of its image."""
    child = start(take_steps, database.where, tmp_path)
    took = child.hear(120)
    assert child.join() == 0
    at_most = {"backfill": 8, "verify": 4, "write": 8, "mismatch": 12, "reconcile": 16}
    assert took.keys() == at_most.keys()
    assert {name: multiple for name, multiple in took.items() if multiple > at_most[name]} == {}


def test_a_row_longer_than_the_setting_is_refused(database: Database, open_store: Open) -> None:
    """A repository writes no longer row, in bytes of UTF-8, and says what to set; one as long is written and read."""
    store = open_store(max_row_bytes=MIB)
    forward(store, Phase.DUAL_WRITE)
    with pytest.raises(InvalidValueError, match="longer than MAX_ROW_BYTES") as raised:
        write(store, "\u00e9" * (MIB // 2))
    assert "CONSENSUS_ORM_MAX_ROW_BYTES" in str(raised.value.hint)
    assert database.scalar("SELECT count(*) FROM consensus_artifacts WHERE spec_id = 'long'") == 0
    key = write(store, "\u00e9" * (MIB // 2 - 100))
    with store.unit_of_work() as uow, pytest.raises(InvalidValueError, match="longer than MAX_ROW_BYTES"):
        uow.artifacts.update(key, content_json="x" * (MIB + 1))
    store.migration.backfill()
    assert store.migration.verify().clean


def test_sqlite_reads_no_row_of_three_times_the_setting(path: Path) -> None:
    """A step that meets a row far longer than the setting stops and says what to set; with that it goes on."""
    build_legacy(path, columns=10, altered=True)
    key = insert(at(path), 3 * MIB)
    with ConsensusStore.open(path, settings=BASE.model_copy(update={"max_row_bytes": MIB})) as store:
        store.migration.advance(Phase.DUAL_WRITE)
        for step in (store.migration.backfill, lambda: store.run(lambda uow: uow.artifacts.get(key))):
            with pytest.raises(StorageError, match="string or blob too big") as raised:
                step()
            assert "CONSENSUS_ORM_MAX_ROW_BYTES" in str(raised.value.hint)
    with ConsensusStore.open(path, settings=BASE) as store:
        store.migration.backfill()
        assert store.migration.verify().clean
