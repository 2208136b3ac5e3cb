"""Power cuts: what is acknowledged is on the disk as far as the settings promise, and steps of the migration always."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from consensus_orm import ConsensusStore
from tests.field import builders
from tests.support import servers
from tests.support.databases import build_legacy
from tests.support.file_states import damaged, in_wal_without_a_log, with_a_hot_journal, with_a_log
from tests.support.power_cuts import record

pytestmark = pytest.mark.long

SEED = int(os.environ.get("POWER_CUT_SEED", "1"))
IMAGES = int(os.environ.get("POWER_CUT_IMAGES", "60"))
"""Cuts at random moments; there is one behind each acknowledgement, too."""

SIDES = {
    "legacy": "SELECT content_json FROM consensus_artifacts UNION ALL SELECT output_markdown FROM consensus_synthesis",
    "normalized": "SELECT content FROM agent_outputs UNION ALL SELECT output_markdown FROM consensus_syntheses",
}

WORK = """
import json, os, sqlite3, sys
from pathlib import Path
from consensus_orm import ConsensusStore, Phase
from consensus_orm.settings import Settings

path, journal_mode, synchronous = Path(sys.argv[1]) / "store.db", sys.argv[2], sys.argv[3]
other = sqlite3.connect(path, isolation_level=None)
other.execute("SELECT * FROM consensus_artifacts").fetchall()
if journal_mode == "wal":
    other.close()  # else the file stays in the mode it has
settings = Settings(synchronous=synchronous, wal_autocheckpoint=40, chunk_pause=0)
units, mark = 0, "row"

def say(durable):
    state = {"epoch": store.unit_of_work(read_only=True), "units": units, "mark": mark, "durable": durable}
    with state["epoch"] as uow:
        state["epoch"] = uow.epoch
    os.write(1, (json.dumps(state) + "\\n").encode())

def write(number):
    global units
    for _ in range(number):
        with store.unit_of_work() as uow:
            one = {"spec_id": "S", "stage": "plan", "run_id": f"unit {units}"}
            for part in "ab":
                uow.artifacts.add(agent_name="a", content_json=f"unit {units} {part}", **one)
            uow.syntheses.add(output_markdown=f"unit {units} s", status="ok", **one)
        units += 1
        say(False)

def to(phase, back=False):
    move = store.migration.rollback if back else store.migration.migrate
    move(phase) if back else move(phase, soak=False)
    say(True)
    write(3)

with ConsensusStore.open(path, settings=settings) as store:
    store.migration.upgrade()
    say(True)
    write(3)
    to(Phase.DUAL_WRITE)
    with sqlite3.connect(path, timeout=10) as raw:  # by another program, on the side that is not the truth
        raw.execute("UPDATE agent_outputs SET content = 'broken' WHERE content = 'row'")
    mark = "broken"
    say(False)
    store.migration.reconcile(foreign="repair")
    mark = "row"
    say(True)
    to(Phase.CUTOVER)
    to(Phase.NORMALIZED)
    to(Phase.CONTRACT)
    to(Phase.NORMALIZED, back=True)
    to(Phase.CUTOVER, back=True)
    to(Phase.DUAL_WRITE, back=True)
    to(Phase.EXPAND, back=True)
"""


@contextlib.contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        yield connection


def read(path: Path) -> tuple[int, int, str]:
    """What an image holds, by plain SQL: changes of phase, whole units, and a row that is repaired in between.

    No unit is there by half, on no side that is written.
    """
    with opened(path) as connection:
        try:
            phase, epoch = connection.execute("SELECT phase, epoch FROM consensus_orm_state").fetchone()
        except sqlite3.OperationalError:
            phase, epoch = 1, -1  # before the upgrade
        written = {1: ["legacy"], 2: ["legacy", "normalized"], 3: ["legacy", "normalized"]}.get(phase, ["normalized"])
        seen = {side: sorted(text for (text,) in connection.execute(SIDES[side])) for side in written}
    truth = list(seen["legacy" if phase < 3 else "normalized"])
    rows = {text for texts in seen.values() for text in texts if not text.startswith("unit ")}
    units = [text for text in truth if text.startswith("unit ")]
    assert units == sorted(f"unit {number} {part}" for number in range(len(units) // 3) for part in "abs")
    for texts in seen.values():
        assert [text for text in texts if text.startswith("unit ")] == units or phase == 2
    return epoch, len(units) // 3, "broken" if "broken" in rows else "row"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with a legacy file in it, all of it on the disk."""
    folder = tmp_path / "root"
    folder.mkdir()
    with builders.writing(folder / "store.db") as connection:
        connection.executescript(builders.ARTIFACTS + builders.SYNTHESIS)
        connection.execute(
            "INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json)"
            " VALUES ('S', 'plan', 'a', 'row')"
        )
    return folder


@pytest.mark.parametrize(
    ("journal_mode", "synchronous", "all_of_it"),
    [
        ("wal", "NORMAL", False),
        ("delete", "NORMAL", False),
        ("wal", "FULL", True),
        ("delete", "FULL", False),
        ("delete", "EXTRA", True),
    ],
)
def test_what_is_acknowledged_outlives_a_power_cut(
    journal_mode: str, synchronous: str, all_of_it: bool, root: Path, tmp_path: Path
) -> None:
    """What is there is a beginning of what was done, no unit by half, and holds what was promised.

    That is all that was acknowledged where every commit is synced; and with any setting each upgrade, change of phase
    and repair, with all that was acknowledged before it.
    """
    recording = record(WORK, root, tmp_path / "before", journal_mode, synchronous)
    everything = [json.loads(line) for line in recording.printed]
    states = [(-1, 0, "row"), *((s["epoch"], s["units"], s["mark"]) for s in everything)]
    durable = [0, *(at for at, s in enumerate(everything, 1) if s["durable"])]
    lost: list[int] = []
    for image, printed in recording.images(IMAGES, SEED, tmp_path):
        found = read(image / "store.db")
        assert found in states, (found, len(printed))
        acknowledged = len(printed)
        promised = acknowledged if all_of_it else max(at for at in durable if at <= acknowledged)
        reached = max(at for at, state in enumerate(states[: acknowledged + 2]) if state == found)
        assert reached >= promised, (found, states[promised])
        lost.append(max(acknowledged - reached, 0))
    print(f"{journal_mode} {synchronous}: {len(lost)} images, {sum(map(bool, lost))} lost up to {max(lost)} units")
    assert any(lost) is not all_of_it  # else the images would show nothing


RESTORE = """
import os, sys
from pathlib import Path
from consensus_orm import restore
root = Path(sys.argv[1])
restore(root / "backup.db", root / "store.db", create=True)
os.write(1, b"restored\\n")
"""


def texts(path: Path) -> list[str] | str:
    """What is in a database; what SQLite says where it cannot be read."""
    try:
        with opened(path) as connection:
            return [text for (text,) in connection.execute("SELECT content FROM agent_outputs ORDER BY id")]
    except sqlite3.DatabaseError as error:
        return str(error)


@pytest.mark.parametrize("make", [with_a_log, with_a_hot_journal, in_wal_without_a_log, damaged])
def test_a_restore_is_whole_or_not_at_all(make: Callable[[Path], list[str] | None], tmp_path: Path) -> None:
    """A power cut leaves the database as it was, its log included, or the backup; what is acknowledged stays."""
    root = tmp_path / "root"
    root.mkdir()
    was = make(root / "store.db") or "file is not a database"
    with ConsensusStore.open(root / "backup.db") as store, store.unit_of_work() as uow:
        uow.artifacts.add(spec_id="S", stage="plan", agent_name="a", content_json="of the backup")
    recording = record(RESTORE, root, tmp_path / "before")
    seen = []
    for image, printed in recording.images(IMAGES, SEED, tmp_path):
        seen.append(texts(image / "store.db"))
        assert seen[-1] == ["of the backup"] or (seen[-1] == was and not printed)
    assert was in seen
    assert ["of the backup"] in seen


KEPT = """
import os, sys
from pathlib import Path
from consensus_orm import ConsensusStore
root = Path(sys.argv[1])
with ConsensusStore.open(root / "store.db") as store:
    store.maintenance.backup(root / "backup.db")
    os.write(1, b"backup.db\\n")
    store.maintenance.backup(root / "backup.db", overwrite=True)
    store.migration.rehearse()
    os.write(1, b"store.db.rehearsal.json\\n")
"""


def test_a_backup_and_evidence_are_whole_or_not_there(root: Path, tmp_path: Path) -> None:
    """What was acknowledged is there; and at no moment is half of it at its path."""
    recording = record(KEPT, root, tmp_path / "before")
    for image, printed in recording.images(IMAGES, SEED, tmp_path):
        backup, evidence = image / "backup.db", image / "store.db.rehearsal.json"
        assert {each.name for each in (backup, evidence) if each.exists()} >= set(printed)
        if backup.exists():
            with opened(backup) as connection:
                assert connection.execute("SELECT content_json FROM consensus_artifacts").fetchall() == [("row",)]
        if evidence.exists():
            assert json.loads(evidence.read_bytes())["passed"] is True


NEW = """
import os, sys
from pathlib import Path
from consensus_orm import ConsensusStore
from consensus_orm.settings import Settings
path = Path(sys.argv[1]) / "new" / "folder" / "store.db"
with ConsensusStore.open(path, settings=Settings(synchronous=sys.argv[2])) as store:
    store.migration.upgrade()
    os.write(1, b"made\\n")
    with store.unit_of_work() as uow:
        uow.artifacts.add(spec_id="S", stage="plan", agent_name="a", content_json="first")
    os.write(1, b"written\\n")
"""


@pytest.mark.parametrize("synchronous", ["NORMAL", "FULL"])
def test_a_new_database_has_its_name(synchronous: str, tmp_path: Path) -> None:
    """The names of the file and of the folders made for it are on the disk, without which no row would be."""
    root = tmp_path / "root"
    root.mkdir()
    recording = record(NEW, root, tmp_path / "before", synchronous)
    for image, printed in recording.images(IMAGES, SEED, tmp_path):
        path = image / "new" / "folder" / "store.db"
        assert path.exists() or not printed
        if "written" in printed and synchronous == "FULL":
            assert texts(path) == ["first"]
        elif printed:
            assert texts(path) in ([], ["first"])


def write(store: ConsensusStore, *texts: str) -> None:
    with store.unit_of_work() as uow:
        for text in texts:
            uow.artifacts.add(spec_id="S", stage="plan", agent_name="a", content_json=text)


def advance(store: ConsensusStore) -> None:
    store.migration.advance(soak=False)


def repair(store: ConsensusStore) -> None:
    with psycopg.connect(store.engine.url.set(drivername="postgresql").render_as_string()) as other:
        other.execute("UPDATE agent_outputs SET content = 'theirs' WHERE content = 'written before'")
    store.migration.reconcile(foreign="repair")


STEPS: list[Callable[[ConsensusStore], object]] = [lambda store: store.upgrade(), advance, repair]


def test_a_server_that_does_not_wait_for_its_disk_waits_for_steps() -> None:
    """With synchronous_commit off, a crash of the server takes no upgrade, flip or repair, nor anything before it."""
    lazy = {"synchronous_commit": "off", "wal_writer_delay": "10s", "autovacuum": "off"}
    with servers.Server(settings=lazy) as server:
        build_legacy(server.url())
        lost = 0
        for number, step in enumerate(STEPS):
            with ConsensusStore.open(server.url()) as store:
                if number:
                    write(store, "written before")
                step(store)
                phase, epoch = store.migration.phase, len(store.migration.history())
                if number:
                    write(store, "written after")
                server.kill()
            server.start()
            with ConsensusStore.open(server.url()) as store:
                assert (store.migration.phase, len(store.migration.history())) == (phase, epoch)
            with server.connect() as connection:
                table = "SELECT content_json FROM consensus_artifacts WHERE content_json LIKE 'written %'"
                found = [text for (text,) in connection.execute(table)]
            assert found.count("written before") == number
            lost += number - found.count("written after")
        assert lost  # else a crash would show nothing here
        with server.connect() as connection:
            assert connection.execute("SELECT 1 FROM agent_outputs WHERE content = 'theirs'").fetchall() == []
