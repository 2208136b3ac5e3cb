"""A real pgbouncer in front of a server of the tests.

It reaches every database of the server by its own name, and listens on a socket in its own folder.
"""

from __future__ import annotations

import contextlib
import functools
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
from sqlalchemy import make_url

from tests.support import servers

__all__ = ["TRACKING", "Pooler", "pooled", "version"]

PROGRAM = shutil.which("pgbouncer") or next((p for p in ["/usr/sbin/pgbouncer"] if Path(p).exists()), None)
TRACKING = (1, 21)
"""The first version that keeps track of the prepared statements of its clients."""


@functools.cache
def version() -> tuple[int, ...]:
    """The version of pgbouncer; () where it is not installed."""
    if PROGRAM is None:
        return ()
    said = subprocess.run([PROGRAM, "--version"], check=True, capture_output=True, text=True).stdout
    found = re.search(r"(\d+)\.(\d+)", said)
    assert found is not None, said
    return int(found[1]), int(found[2])


class Pooler:
    """A pgbouncer that runs; its settings are those of its configuration file."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes]) -> None:
        self.folder = folder
        self._process = process

    def url(self, url: str) -> str:
        """How the database of a URL is reached through the pooler."""
        there = make_url(url)
        query = {**there.query, "host": str(self.folder)}
        return there.set(host=None, port=6432, query=query).render_as_string(hide_password=False)

    def show(self, what: str) -> list[dict[str, Any]]:
        """What its console shows."""
        there = f"host={self.folder} port=6432 user=postgres dbname=pgbouncer"
        with psycopg.connect(there, autocommit=True, prepare_threshold=None) as console:
            cursor = psycopg.ClientCursor(console)
            cursor.execute(f"SHOW {what}".encode())
            names = [column.name for column in cursor.description or ()]
            return [dict(zip(names, row, strict=True)) for row in cursor]

    def answers(self) -> bool:
        """Whether it takes connections."""
        try:
            self.show("VERSION")
        except psycopg.OperationalError:
            return False
        return True

    @property
    def log(self) -> str:
        """What it has logged."""
        return (self.folder / "log").read_text(errors="replace")

    def stop(self) -> None:
        """Stop it at once."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(servers.PATIENCE)


@contextlib.contextmanager
def pooled(url: str, mode: str, **settings: object) -> Iterator[Pooler]:
    """A pooler in front of the server of a URL, gone when the block ends.

    Args:
        url: Of any database of the server.
        mode: The `pool_mode`: session, transaction or statement.
        **settings: Further settings of pgbouncer.
    """
    assert PROGRAM is not None
    with servers.folder() as folder:
        there = make_url(url)
        options = {
            "listen_addr": "",
            "listen_port": 6432,
            "unix_socket_dir": folder,
            "auth_type": "any",
            "admin_users": "postgres",
            "pool_mode": mode,
            "max_client_conn": 200,
            "default_pool_size": 4,
        } | settings
        host = there.query.get("host") or there.host
        (folder / "ini").write_text(
            f"[databases]\n* = host={host} port={there.port or 5432} user={there.username}\n[pgbouncer]\n"
            + "".join(f"{name} = {value}\n" for name, value in options.items())
        )
        with (folder / "log").open("ab") as log:
            process = servers.spawned([PROGRAM, folder / "ini"], folder, stdout=log, stderr=log)
        pooler = Pooler(folder, process)
        try:
            servers.until(lambda: process.poll() is not None or pooler.answers(), "start", "the pooler")
            assert process.poll() is None, pooler.log
            yield pooler
        finally:
            pooler.stop()
