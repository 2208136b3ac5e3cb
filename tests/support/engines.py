"""Engines that speak PostgreSQL's protocol and lack some of it, or are lost: a server, reached through somebody else.

What is sent to the server passes message by message (postgresql.org/docs/current/protocol-message-formats.html). A
word that the engine shall not know is misspelled in the text of a statement, so that the server itself refuses it,
in whatever state the transaction is. An engine that is lost passes no more. What comes back passes as it is.
"""

from __future__ import annotations

import contextlib
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import make_url

__all__ = ["TABLE_LOCKS_AND_NUMBERS", "Losable", "lacking", "losable"]

TABLE_LOCKS_AND_NUMBERS = (b"LOCK TABLE", b"pg_current_xact_id", b"pg_xact_status", b"pg_stat_bgwriter")
"""What engines on many machines do not have: locks on tables, and numbers by which a transaction is found again."""


@contextlib.contextmanager
def lacking(url: str, *words: bytes, seen: Callable[[bytes], object] = lambda text: None) -> Iterator[str]:
    """An engine that knows all that a server knows, but some words.

    Args:
        url: The database.
        words: The words.
        seen: Called with the text of each statement that is sent, as it was sent.

    Returns:
        The URL by which the database is reached through the engine.
    """
    with _reached(_Spoiler(url, words, seen)) as engine:
        yield engine


@contextlib.contextmanager
def losable(url: str) -> Iterator[tuple[Losable, str]]:
    """An engine that can be lost.

    Args:
        url: The database.

    Returns:
        What says when, and the URL by which the database is reached through it.
    """
    engine = Losable(url)
    with _reached(engine) as reached:
        yield engine, reached


@contextlib.contextmanager
def _reached(engine: _Engine) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="engine-") as folder, socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(Path(folder) / ".s.PGSQL.5432"))
        listening.listen(64)
        threading.Thread(target=engine.serve, args=(listening,), daemon=True).start()
        try:
            there = make_url(engine.url)
            yield there.set(host=None, port=None, query={"host": folder}).render_as_string(hide_password=False)
        finally:
            listening.shutdown(socket.SHUT_RDWR)


class _Engine:
    def __init__(self, url: str) -> None:
        self.url = url

    def serve(self, listening: socket.socket) -> None:
        """Take connections until nobody listens any more."""
        with contextlib.suppress(OSError):
            while True:
                client, _ = listening.accept()
                threading.Thread(target=self._pass_on, args=(client,), daemon=True).start()

    def _pass_on(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), self._server() as server:
            back = threading.Thread(target=_copy, args=(server, client), daemon=True)
            back.start()
            with contextlib.suppress(OSError):  # a client that was killed
                self._messages(client, server)
            _end(server, socket.SHUT_WR)  # as the client did; the server ends the session
            back.join()

    def _server(self) -> socket.socket:
        wanted = conninfo_to_dict(self.url)
        host, port = str(wanted.get("host") or "localhost"), int(wanted.get("port") or 5432)
        if not host.startswith("/"):
            return socket.create_connection((host, port))
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(f"{host}/.s.PGSQL.{port}")
        except OSError:
            server.close()
            raise
        return server

    def _messages(self, client: socket.socket, server: socket.socket) -> None:
        with client.makefile("rb") as sent:
            length = sent.read(4)  # the first message has no kind
            while length:
                kind, length = length[:-4], length[-4:]
                text = sent.read(int.from_bytes(length, "big") - 4)
                self._pass(client, server, kind, length, text)
                length = sent.read(5)

    def _pass(self, client: socket.socket, server: socket.socket, kind: bytes, length: bytes, text: bytes) -> None:
        """Pass a message on.

        Raises:
            OSError: The connection is lost.
        """
        server.sendall(kind + length + text)


class _Spoiler(_Engine):
    def __init__(self, url: str, words: tuple[bytes, ...], seen: Callable[[bytes], object]) -> None:
        super().__init__(url)
        self._words = words
        self._seen = seen

    def _pass(self, client: socket.socket, server: socket.socket, kind: bytes, length: bytes, text: bytes) -> None:
        if kind in (b"Q", b"P"):  # a statement, or one to be prepared
            self._seen(text)
            for word in self._words:
                text = text.replace(word, word[:-1] + b"_")
        super()._pass(client, server, kind, length, text)


class Losable(_Engine):
    """An engine that is lost when a message comes: every connection is.

    Args:
        url: The database.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.sent = 0
        """Messages so far, those that begin a connection among them."""
        self.lost_at: int | None = None
        """The number of the message at which it is lost."""
        self.does_it = False
        """Whether the server gets that message; the answer is lost in any case."""
        self.stays_away = False
        """Whether nothing passes afterwards, either."""
        self._clients: set[socket.socket] = set()
        self._turn = threading.Lock()

    def _pass_on(self, client: socket.socket) -> None:
        self._clients.add(client)
        try:
            super()._pass_on(client)
        finally:
            self._clients.discard(client)

    def _pass(self, client: socket.socket, server: socket.socket, kind: bytes, length: bytes, text: bytes) -> None:
        with self._turn:
            self.sent += 1
            now = self.sent == self.lost_at
            after = self.stays_away and self.lost_at is not None and self.sent > self.lost_at
            for other in list(self._clients) if now else [client] if after else []:
                _end(other, socket.SHUT_RDWR)
        if now and self.does_it:
            super()._pass(client, server, kind, length, text)
        if now or after:
            raise ConnectionResetError
        super()._pass(client, server, kind, length, text)


def _copy(server: socket.socket, client: socket.socket) -> None:
    with contextlib.suppress(OSError):  # a server that was killed
        while said := server.recv(65536):
            client.sendall(said)
    _end(client, socket.SHUT_RDWR)


def _end(peer: socket.socket, how: int) -> None:
    with contextlib.suppress(OSError):
        peer.shutdown(how)
