"""Files: a database has one name however it is spelled, and no name, link or other kind of file loses a row."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from consensus_orm import ConsensusStore, Phase, errors, files, restore
from consensus_orm.databases.sqlite import vacuum as vacuum_module
from tests.support import oracle
from tests.support.databases import build_legacy


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """Where the file is, in a folder to which no link leads yet."""
    folder = tmp_path / "real"
    folder.mkdir()
    return folder / "store.db"


def add(store: ConsensusStore, text: str) -> None:
    with store.unit_of_work() as uow:
        uow.artifacts.add(spec_id="S", stage="plan", agent_name="a", content_json=text)


def contents(path: Path) -> list[str]:
    """What is stored, by plain SQL."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return [text for (text,) in connection.execute("SELECT content FROM agent_outputs ORDER BY id")]


# How a path is spelled ------------------------------------------------------------------------------------


def link(real: Path) -> str:
    spelled = real.parent.parent / "link.db"
    spelled.symlink_to(real)
    return str(spelled)


def link_to_a_link(real: Path) -> str:
    spelled = real.parent.parent / "second.db"
    spelled.symlink_to(link(real))
    return str(spelled)


def linked_folder(real: Path) -> str:
    folder = real.parent.parent / "folder"
    folder.symlink_to(real.parent, target_is_directory=True)
    return str(folder / real.name)


def up_from_a_linked_folder(real: Path) -> str:
    """`..` after a link is the parent of what the link leads to."""
    (real.parent / "deep").mkdir()
    folder = real.parent.parent / "deep"
    folder.symlink_to(real.parent / "deep", target_is_directory=True)
    return str(folder / ".." / real.name)


def relative(real: Path) -> str:
    return os.path.relpath(real)


def relative_link(real: Path) -> str:
    return os.path.relpath(link(real))


def home(real: Path) -> str:
    return f"~/{real.parent.name}/{real.name}"


def url(real: Path) -> str:
    return f"sqlite:///{link(real)}"


def uri(real: Path) -> str:
    return f"file:{quote(link(real))}"


def uri_with_slashes(real: Path) -> str:
    return f"file://{quote(str(real.parent))}/st%6Fre.db?mode=rwc"


def url_of_a_uri(real: Path) -> str:
    return f"sqlite:///file:{link(real)}?uri=true"


@pytest.mark.parametrize(
    "spell",
    [
        *(link, link_to_a_link, linked_folder, up_from_a_linked_folder, relative, relative_link, home, url, uri),
        *(uri_with_slashes, url_of_a_uri),
    ],
)
def test_a_file_has_one_name_however_it_is_spelled(
    spell: Callable[[Path], str], real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A log that was removed is noticed, so acknowledged writes stay; also after the current folder has changed."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with ConsensusStore.open(spell(real)) as store:
        assert store.path == real
        add(store, "before")
        monkeypatch.chdir(tmp_path / "elsewhere")
        Path(f"{real}-wal").unlink()
        for number in range(5):
            add(store, str(number))
        store.migration.status()
    assert contents(real) == ["before", "0", "1", "2", "3", "4"]
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert {each.name for each in real.parent.iterdir() if each.is_file()} == {real.name}


def test_a_link_that_is_changed_later_leaves_the_store_where_it_is(real: Path, tmp_path: Path) -> None:
    """The path is resolved once: writes go on to the file that was opened, and none to the other."""
    spelled = Path(link(real))
    with ConsensusStore.open(spelled) as store:
        add(store, "first")
        spelled.unlink()
        spelled.symlink_to(tmp_path / "other.db")
        add(store, "second")
    assert contents(real) == ["first", "second"]
    assert not (tmp_path / "other.db").exists()


def test_a_link_to_a_file_that_is_not_there_makes_that_file(real: Path) -> None:
    """As SQLite does; with mode 0600."""
    with ConsensusStore.open(link(real)) as store:
        add(store, "row")
    assert contents(real) == ["row"]
    assert real.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("spelled", "said"),
    [
        ("file:/x.db?mode=ro", "sets mode"),
        ("sqlite:////x.db?immutable=1&nolock=1", "sets immutable, nolock"),
        ("file:/x.db?vfs=unix-none", "sets vfs"),
        ("file:/x.db?cache=shared", "sets cache"),
        ("file://server/x.db", "names no host"),
        ("nul\0.db", "null byte"),
        ("sqlite+pysqlcipher:///x.db", "'pysqlcipher' are not supported"),
    ],
)
def test_a_path_or_parameter_that_cannot_be_is_refused(
    spelled: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A parameter that would be passed over in silence is an error, and nothing is made."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(errors.ConfigurationError, match=said):
        ConsensusStore.open(spelled)
    assert list(tmp_path.iterdir()) == []


def test_a_link_that_leads_to_itself_is_refused(tmp_path: Path) -> None:
    """With the reason, as an error of this package."""
    circle = tmp_path / "circle.db"
    circle.symlink_to(circle)
    with pytest.raises(errors.ConfigurationError, match="leads back to itself"):
        ConsensusStore.open(circle)


def test_a_file_with_two_names_is_refused(real: Path, tmp_path: Path) -> None:
    """Each name of a file has a log of its own: what one holds is not seen through the other, and lost."""
    build_legacy(real)
    before = oracle.sha256(real)
    os.link(real, tmp_path / "second.db")
    for name in (real, tmp_path / "second.db"):
        with pytest.raises(errors.StorageError, match=r"has 2 names \(hard links\)"):
            ConsensusStore.open(name)
    (tmp_path / "second.db").unlink()
    with ConsensusStore.open(real) as store:
        assert store.migration.phase is Phase.EXPAND
    assert oracle.sha256(real) == before


def test_a_second_name_does_not_end_a_store_at_work(real: Path, tmp_path: Path) -> None:
    """A program that makes a hard link of a file in use, as some backups do, disturbs nobody."""
    with ConsensusStore.open(real) as store:
        add(store, "first")
        os.link(real, tmp_path / "second.db")
        add(store, "second")
    assert contents(real) == ["first", "second"]


def fifo(path: Path) -> None:
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("make", [fifo, folder])
def test_what_is_no_file_is_refused_at_once(make: Callable[[Path], None], real: Path) -> None:
    """A FIFO does not hold anybody up."""
    make(real)
    with pytest.raises(errors.NotADatabaseError, match="not a regular file"):
        ConsensusStore.open(real)


# Where other files go -------------------------------------------------------------------------------------


@pytest.fixture
def store(real: Path) -> Iterator[ConsensusStore]:
    with ConsensusStore.open(real) as opened:
        add(opened, "row")
        yield opened


def test_a_backup_goes_where_a_link_leads(store: ConsensusStore, tmp_path: Path) -> None:
    """The link stays a link, and the file it leads to is the backup."""
    target, spelled = tmp_path / "backup.db", tmp_path / "link.db"
    target.write_text("old")
    spelled.symlink_to(target)
    assert store.maintenance.backup(spelled, overwrite=True).path == target
    assert spelled.is_symlink()
    assert contents(target) == ["row"]
    assert target.stat().st_nlink == 1


def test_a_backup_is_never_put_over_a_database_in_use_by_a_link(store: ConsensusStore, tmp_path: Path) -> None:
    """The log beside the file that a link leads to is seen."""
    with ConsensusStore.open(tmp_path / "other.db") as other:
        add(other, "theirs")
        spelled = tmp_path / "link.db"
        spelled.symlink_to(tmp_path / "other.db")
        with pytest.raises(errors.BackupError, match="-wal file beside it"):
            store.maintenance.backup(spelled, overwrite=True)
    assert contents(tmp_path / "other.db") == ["theirs"]


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", "-journal"])
def test_neither_backup_nor_report_replaces_a_file_of_the_database(
    store: ConsensusStore, real: Path, tmp_path: Path, suffix: str
) -> None:
    """Not by a link to it either."""
    from consensus_orm import report

    spelled = tmp_path / "page.html"
    spelled.symlink_to(f"{real}{suffix}")
    for target in (spelled, Path(f"{real}{suffix}")):
        with pytest.raises(errors.ConsensusError, match="is the database itself"):
            report.write(store, target)
        with pytest.raises(errors.BackupError, match="is the database itself"):
            store.maintenance.backup(target, overwrite=True)
    add(store, "more")
    assert contents(real) == ["row", "more"]


def test_neither_backup_nor_report_replaces_what_is_not_a_file(store: ConsensusStore, tmp_path: Path) -> None:
    """Root could: /dev/null would be a database from then on, also where a link leads to it."""
    from consensus_orm import report

    target, link = tmp_path / "fifo", tmp_path / "link"
    link.symlink_to(target)
    for make in (os.mkfifo, lock_socket, Path.mkdir):
        make(target)
        before = target.lstat()
        for path in (target, link):
            for overwrite in (True, False):
                with pytest.raises(errors.BackupError):
                    store.maintenance.backup(path, overwrite=overwrite)
            with pytest.raises(errors.InvalidValueError, match="is not a regular file"):
                report.write(store, path)
            with pytest.raises(errors.RestoreError, match="is not a regular file"):
                restore(store.maintenance.backup(tmp_path / "b.db", overwrite=True).path, path)
        with pytest.raises(OSError, match="is not a regular file"):
            files.write_whole(target, "text")
        assert target.lstat() == before
        target.rmdir() if target.is_dir() else target.unlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.db", "link", "real"]


def test_the_driver_of_a_url_does_not_matter(real: Path) -> None:
    """Of a server neither does it: the package uses its own."""
    for driver in ("", "+pysqlite", "+aiosqlite"):
        with ConsensusStore.open(f"sqlite{driver}:///{real}") as store:
            add(store, driver)
    assert contents(real) == ["", "+pysqlite", "+aiosqlite"]


# A file that is replaced ----------------------------------------------------------------------------------


@pytest.mark.long
def test_a_store_whose_file_was_replaced_writes_to_neither(store: ConsensusStore, real: Path, tmp_path: Path) -> None:
    """It refuses, also to read, until it is opened again."""
    with ConsensusStore.open(tmp_path / "new.db") as other:
        add(other, "new")
    for suffix in ("-wal", "-shm"):
        Path(f"{real}{suffix}").unlink()
    (tmp_path / "new.db").replace(real)
    for _ in range(2):
        with pytest.raises(errors.StorageError, match="was replaced by another file while it was in use"):
            add(store, "lost")
        with (
            pytest.raises(errors.StorageError, match="was replaced by another file"),
            store.unit_of_work(read_only=True),
        ):
            pass
    store.close()
    assert contents(real) == ["new"]
    with ConsensusStore.open(real) as again:
        add(again, "again")
    assert contents(real) == ["new", "again"]


WRITE = (
    "import sqlite3, sys, os, time; c = sqlite3.connect(sys.argv[1], isolation_level=None);"
    " c.execute('PRAGMA journal_mode = WAL'); c.execute('CREATE TABLE theirs (a)');"
    " c.execute('INSERT INTO theirs VALUES (1)'); print('ready', flush=True); sys.stdin.readline();"
    " c.execute('INSERT INTO theirs VALUES (2)'); print('written', flush=True); time.sleep(30)"
)


@pytest.mark.long
def test_closing_a_replaced_file_leaves_the_log_of_the_new_one(store: ConsensusStore, real: Path) -> None:
    """SQLite removes a log by its name: what another program has committed to its own log would be lost with it."""
    for suffix in ("", "-wal", "-shm"):
        Path(f"{real}{suffix}").unlink()
    command = [sys.executable, "-c", WRITE, str(real)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stdin is not None
        assert program.stdout.readline() == "ready\n"
        store.close()
        program.stdin.write("\n")
        program.stdin.flush()
        assert program.stdout.readline() == "written\n"
        program.kill()
    with contextlib.closing(sqlite3.connect(real)) as connection:
        assert connection.execute("SELECT a FROM theirs ORDER BY a").fetchall() == [(1,), (2,)]


# Long names -----------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("size", [200, 228, 240, 247])
def test_long_names_work_to_the_end(tmp_path: Path, size: int) -> None:
    """Whatever is named after a file finds a name that fits: backups, evidence, the lock of a vacuum, copies."""
    path = tmp_path / f"{'n' * (size - 3)}.db"
    build_legacy(path)
    with ConsensusStore.open(path) as store:
        report = store.migration.rehearse()
        store.maintenance.vacuum(full=True)
        store.migration.migrate(Phase.CONTRACT, soak=False)
        store.maintenance.backup(tmp_path / f"{'b' * 244}.db")
    assert report.passed
    (evidence,) = report.evidence
    (backup,) = (each for each in tmp_path.iterdir() if ".before-contract-" in each.name)
    assert evidence.name.startswith("nnn")
    assert oracle.tables(backup)


def test_a_name_of_more_bytes_than_characters_is_cut_between_characters(tmp_path: Path) -> None:
    """A name of 120 characters may have 240 bytes; two long names that differ at their end stay two."""
    path = tmp_path / f"{'ü' * 118}.db"
    names = {
        files.derived(path.with_suffix(suffix), ".before-contract-20251104T022358.123456Z").name
        for suffix in (".db", ".dc")
    }
    assert len(names) == 2
    for name in names:
        assert name.startswith("üüü")
        assert len(os.fsencode(name)) <= 255 - len("-journal")


@pytest.mark.parametrize("size", [248, 255, 256, 1000])
def test_a_name_that_is_too_long_is_refused_with_the_reason(tmp_path: Path, size: int) -> None:
    """At once, before SQLite would fail at its log; and nothing is made."""
    with pytest.raises(errors.ConfigurationError, match=f"the file name has {size} bytes: SQLite appends up to 8"):
        ConsensusStore.open(tmp_path / ("n" * size))
    assert list(tmp_path.iterdir()) == []


def deep(folder: Path, size: int) -> Path:
    """A path of so many bytes below a folder, with a short name at its end."""
    while (left := size - len(str(folder)) - 1) > 120:
        folder /= "d" * 100
    return folder / ("e" * (left - 9)) / "store.db"


def test_the_longest_path_works_and_a_longer_one_is_refused(tmp_path: Path) -> None:
    """SQLite itself opens paths of 512 bytes, with what it appends."""
    longest = deep(tmp_path, 504)
    with ConsensusStore.open(longest) as store:
        add(store, "row")
        with pytest.raises(errors.BackupError, match=r"the path has \d+ bytes"):
            store.maintenance.backup(longest.with_name("b"))
        store.maintenance.backup(tmp_path / "b.db")
    assert contents(longest) == ["row"] == contents(tmp_path / "b.db")
    with pytest.raises(errors.ConfigurationError, match="the path has 505 bytes"):
        ConsensusStore.open(f"{longest}f")


# The lock of a vacuum -------------------------------------------------------------------------------------


def lock_link(lock: Path) -> None:
    lock.symlink_to(lock.parent.parent / "precious")


def lock_dangling_link(lock: Path) -> None:
    lock.symlink_to(lock.parent.parent / "not there")


def lock_fifo(lock: Path) -> None:
    os.mkfifo(lock)


def lock_folder(lock: Path) -> None:
    lock.mkdir()


def lock_socket(lock: Path) -> None:
    os.mknod(lock, stat.S_IFSOCK | 0o600)  # to bind one, its path must have less than 108 bytes


@pytest.mark.parametrize("make", [lock_link, lock_dangling_link, lock_fifo, lock_folder, lock_socket])
def test_the_lock_of_a_vacuum_is_nothing_that_somebody_put_there(
    make: Callable[[Path], None], store: ConsensusStore, real: Path, tmp_path: Path
) -> None:
    """No link is followed, nobody waits for a FIFO, and what is there stays; afterwards the vacuum works."""
    precious = tmp_path / "precious"
    precious.write_text("theirs")
    lock = real.with_name(f".{real.name}.vacuum")
    make(lock)
    with pytest.raises(errors.StorageError, match="not a regular file"):
        store.maintenance.vacuum()
    assert os.path.lexists(lock)
    assert precious.read_text() == "theirs"
    assert not (tmp_path / "not there").exists()
    lock.rmdir() if lock.is_dir() and not lock.is_symlink() else lock.unlink()
    assert store.maintenance.vacuum().notes == ()
    assert not os.path.lexists(lock)


def test_a_lock_file_that_a_killed_vacuum_left_is_taken_over(store: ConsensusStore, real: Path) -> None:
    """The lock went with its holder; the file alone holds nobody up."""
    lock = real.with_name(f".{real.name}.vacuum")
    lock.touch()
    with vacuum_module._only_one(real), pytest.raises(errors.DatabaseBusyError), vacuum_module._only_one(real):
        pass
    assert store.maintenance.vacuum().notes == ()
    assert not lock.exists()
