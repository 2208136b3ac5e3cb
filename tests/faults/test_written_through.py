"""What is put in its place is on the disk before its name says so; and a lock is the file that has its name."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from consensus_orm import ConsensusStore, files
from tests.field import builders

pytestmark = pytest.mark.long


class Disk:
    """What was written through, in order: the inode, and whether a path had its name by then.

    Args:
        path: The path.
    """

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = path
        self.seen: list[tuple[int, int | None]] = []
        self._fsync = os.fsync
        monkeypatch.setattr(os, "fsync", self.fsync)

    def fsync(self, handle: int) -> None:
        there = self.path.stat().st_ino if self.path.exists() else None
        self.seen.append((os.fstat(handle).st_ino, there))
        self._fsync(handle)


@pytest.mark.parametrize("before", [None, "an older backup"])
def test_a_backup_is_on_the_disk_before_it_has_its_name(
    before: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bytes are written through while the name is free or an older file's, and then the name itself."""
    source, target = tmp_path / "artifacts.db", tmp_path / "backups" / "copy.db"
    builders.build_legacy(source)
    target.parent.mkdir()
    if before is not None:
        target.write_text(before)
    older = target.stat().st_ino if target.exists() else None
    with ConsensusStore.open(source) as store:
        disk = Disk(target, monkeypatch)
        store.maintenance.backup(target, overwrite=True)
    backup, folder = target.stat().st_ino, target.parent.stat().st_ino
    assert disk.seen == [(backup, older), (folder, backup)]


def test_a_text_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evidence that is replaced is the old one or the new one, whenever the power fails."""
    target = tmp_path / "evidence.json"
    target.write_text("old")
    older = target.stat().st_ino
    disk = Disk(target, monkeypatch)
    files.write_whole(target, "new")
    assert target.read_text() == "new"
    assert disk.seen == [(target.stat().st_ino, older), (tmp_path.stat().st_ino, target.stat().st_ino)]
    assert list(tmp_path.iterdir()) == [target]


def taken_away(lock: Path) -> None:
    lock.unlink()


def taken_over(lock: Path) -> None:
    lock.unlink()
    lock.write_text("of the next one")


@pytest.mark.parametrize("meanwhile", [taken_away, taken_over])
def test_a_lock_of_a_file_that_lost_its_name_is_none(
    meanwhile: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever opened the file before its holder removed it does not hold the lock, and leaves the next one's alone."""
    lock, flock = tmp_path / "lock", fcntl.flock

    def flock_later(handle: int, how: int) -> None:
        meanwhile(lock)
        flock(handle, how)

    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "flock", flock_later)
        with files.exclusively(lock) as held:
            assert not held
    assert [path.read_text() for path in tmp_path.iterdir()] == ([] if meanwhile is taken_away else ["of the next one"])
    with files.exclusively(lock) as held, files.exclusively(lock) as again:
        assert (held, again) == (True, False)
    assert not lock.exists()
