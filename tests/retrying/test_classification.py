"""Classification: which errors are worth another try, and how long their servers ask to wait."""

from __future__ import annotations

import asyncio
import http.server
import socket
import sqlite3
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import create_engine, exc, text
from sqlalchemy.pool import QueuePool

from consensus_orm import errors
from consensus_orm.errors import PartialAnswersError
from consensus_orm.retrying.classification import (
    Classification,
    ErrorKind,
    RetryClassifiable,
    classify,
)

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "rows.db"
    connection = connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE t (x INTEGER PRIMARY KEY, y TEXT)")
    connection.execute("INSERT INTO t VALUES (1, 'secret')")
    connection.close()
    return path


def connect(path: Path | str, *, uri: bool = False) -> sqlite3.Connection:
    return sqlite3.connect(path, isolation_level=None, timeout=0, uri=uri)


def failure(connection: sqlite3.Connection, sql: str) -> sqlite3.Error:
    with pytest.raises(sqlite3.Error) as caught:
        connection.execute(sql).fetchall()
    return caught.value


class TestSqlite:
    def test_busy(self, path: Path) -> None:
        """A write lock that somebody else holds is worth another try."""
        holder, waiter = connect(path), connect(path)
        holder.execute("BEGIN IMMEDIATE")
        found = classify(failure(waiter, "BEGIN IMMEDIATE"))
        holder.close()
        waiter.close()
        assert found == Classification(ErrorKind.RETRYABLE, "SQLITE_BUSY")

    def test_busy_snapshot(self, path: Path) -> None:
        """Extended codes count by their primary one: a stale snapshot is worth another try."""
        reader, writer = connect(path), connect(path)
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM t").fetchall()
        writer.execute("INSERT INTO t VALUES (2, '')")
        error = failure(reader, "INSERT INTO t VALUES (3, '')")
        reader.close()
        writer.close()
        assert error.sqlite_errorcode == sqlite3.SQLITE_BUSY_SNAPSHOT
        assert classify(error) == Classification(ErrorKind.RETRYABLE, "SQLITE_BUSY_SNAPSHOT")

    def test_locked(self) -> None:
        """A table that a connection of the same shared cache has locked is worth another try."""
        first = connect("file:shared?mode=memory&cache=shared", uri=True)
        second = connect("file:shared?mode=memory&cache=shared", uri=True)
        first.executescript("CREATE TABLE t (x); BEGIN; INSERT INTO t VALUES (1)")
        error = failure(second, "SELECT * FROM t")
        first.close()
        second.close()
        assert error.sqlite_errorcode == sqlite3.SQLITE_LOCKED_SHAREDCACHE
        assert classify(error).kind is ErrorKind.RETRYABLE

    def test_protocol(self) -> None:
        """A lock protocol that was disturbed is worth another try (it cannot be provoked at will)."""
        error = sqlite3.OperationalError()
        error.sqlite_errorcode = sqlite3.SQLITE_PROTOCOL
        assert classify(error) == Classification(ErrorKind.RETRYABLE, "SQLITE_PROTOCOL")

    def test_constraint(self, path: Path) -> None:
        """A violated constraint is permanent, and the caller's fault; no contents are repeated."""
        connection = connect(path)
        found = classify(failure(connection, "INSERT INTO t VALUES (1, 'secret')"))
        connection.close()
        assert found == Classification(ErrorKind.PERMANENT, "SQLITE_CONSTRAINT_PRIMARYKEY", caller_fault=True)

    def test_full(self, path: Path) -> None:
        """A full database is permanent, and not the caller's fault."""
        connection = connect(path)
        connection.execute("PRAGMA max_page_count = 2")
        found = classify(failure(connection, "INSERT INTO t VALUES (2, zeroblob(100000))"))
        connection.close()
        assert found == Classification(ErrorKind.PERMANENT, "SQLITE_FULL")

    def test_readonly(self, path: Path) -> None:
        """A database that cannot be written is permanent, and not the caller's fault."""
        connection = connect(f"file:{path}?mode=ro", uri=True)
        found = classify(failure(connection, "INSERT INTO t VALUES (2, '')"))
        connection.close()
        assert (found.kind, found.caller_fault) == (ErrorKind.PERMANENT, False)

    def test_corrupt(self, tmp_path: Path) -> None:
        """A damaged file is permanent, and not the caller's fault."""
        path = tmp_path / "damaged.db"
        connection = connect(path)
        connection.execute("CREATE TABLE t (x)")
        connection.close()
        content = bytearray(path.read_bytes())
        content[4096:] = b"\xff" * (len(content) - 4096)
        path.write_bytes(content)
        connection = connect(path)
        error = failure(connection, "SELECT * FROM t")
        connection.close()
        assert error.sqlite_errorcode == sqlite3.SQLITE_CORRUPT
        assert classify(error) == Classification(ErrorKind.PERMANENT, "SQLITE_CORRUPT")

    def test_not_a_database(self, tmp_path: Path) -> None:
        """A file that is something else is permanent, and not the caller's fault."""
        path = tmp_path / "letter.txt"
        path.write_text("Dear Sir or Madam, " * 100)
        connection = connect(path)
        found = classify(failure(connection, "SELECT * FROM t"))
        connection.close()
        assert found == Classification(ErrorKind.PERMANENT, "SQLITE_NOTADB")

    def test_wrong_sql(self, path: Path) -> None:
        """A statement that cannot be understood is permanent, and the caller's fault."""
        connection = connect(path)
        found = classify(failure(connection, "SELEKT"))
        connection.close()
        assert found == Classification(ErrorKind.PERMANENT, "SQLITE_ERROR", caller_fault=True)

    def test_words_are_not_read(self) -> None:
        """A message decides nothing: without a code, "database is locked" is an unknown error."""
        assert classify(sqlite3.OperationalError("database is locked")).kind is ErrorKind.PERMANENT

    @given(high=st.integers(0, 255), primary=st.sampled_from([5, 6, 15, 8, 11, 13, 19, 26]))
    def test_extended_codes(self, high: int, primary: int) -> None:
        """The low byte of a code decides, whatever stands above it."""
        error = sqlite3.OperationalError()
        error.sqlite_errorcode = high << 8 | primary
        assert classify(error).retryable is (primary in (5, 6, 15))


class TestOurErrors:
    def test_translated_error_keeps_its_code(self) -> None:
        """Our own storage errors are known by the code they carry, without their cause."""
        error = errors.StorageError("x", sqlite_errorcode=sqlite3.SQLITE_BUSY_SNAPSHOT)
        assert classify(error) == Classification(ErrorKind.RETRYABLE, "SQLITE_BUSY")
        error = errors.StorageError("x", sqlite_errorcode=sqlite3.SQLITE_FULL)
        assert classify(error) == Classification(ErrorKind.PERMANENT, "SQLITE_FULL")

    def test_busy_says_how_long(self) -> None:
        """A busy error hands on the wait it suggests, with a code and without."""
        wait = timedelta(seconds=2)
        assert classify(errors.DatabaseBusyError(retry_after=wait)).wait == wait
        assert classify(errors.DatabaseBusyError(retry_after=wait, sqlite_errorcode=5)).wait == wait
        assert classify(errors.DatabaseBusyError()) == Classification(ErrorKind.RETRYABLE, "database busy")

    def test_storage_error_without_a_code(self) -> None:
        """A storage error is judged by its cause; without a known one, the database failed for good."""
        error = errors.BackupError()
        assert classify(error) == Classification(ErrorKind.PERMANENT, "BackupError")
        error.__cause__ = ConnectionResetError()
        assert classify(error).kind is ErrorKind.RETRYABLE

    @pytest.mark.parametrize(
        "error",
        [errors.InvalidValueError(), errors.GateClosedError(), errors.RetryCancelledError()],
        ids=lambda error: type(error).__name__,
    )
    def test_refusals_are_permanent(self, error: errors.ConsensusError) -> None:
        """What this package refuses stays refused, even where a transient error was its cause."""
        error.__cause__ = TimeoutError()
        assert classify(error) == Classification(ErrorKind.PERMANENT, type(error).__name__, caller_fault=True)

    def test_open_circuit(self) -> None:
        """An open breaker is not waited for, and does not count as a failure for another one."""
        error = errors.CircuitOpenError(retry_after=timedelta(seconds=7))
        found = classify(error)
        assert found == Classification(
            ErrorKind.PERMANENT, "circuit open", wait=timedelta(seconds=7), caller_fault=True
        )


class TestSqlalchemy:
    def test_driver_error_inside(self, path: Path) -> None:
        """An error of SQLAlchemy is what the driver's error inside it is."""
        engine = create_engine(f"sqlite:///{path}", connect_args={"timeout": 0})
        holder = connect(path)
        holder.execute("BEGIN IMMEDIATE")
        with engine.connect() as connection, pytest.raises(exc.OperationalError) as caught:
            connection.execute(text("INSERT INTO t VALUES (2, '')"))
        holder.close()
        engine.dispose()
        assert classify(caught.value) == Classification(ErrorKind.RETRYABLE, "SQLITE_BUSY")
        caught.value.__cause__ = None
        assert classify(caught.value).retryable

    def test_connection_lost(self) -> None:
        """A connection that SQLAlchemy gave up is worth another try, whatever the driver said."""
        error = exc.DBAPIError("SELECT 1", None, Exception("gone"), connection_invalidated=True)
        assert classify(error) == Classification(ErrorKind.RETRYABLE, "connection lost")
        assert not classify(exc.DBAPIError("SELECT 1", None, Exception("gone"))).retryable

    def test_pool_timeout(self, path: Path) -> None:
        """An exhausted pool is worth another try, as SQLAlchemy's error and as ours."""
        engine = create_engine(f"sqlite:///{path}", poolclass=QueuePool, pool_size=1, max_overflow=0, pool_timeout=0.01)
        with engine.connect(), pytest.raises(exc.TimeoutError) as caught:
            engine.connect()
        engine.dispose()
        expected = Classification(ErrorKind.RETRYABLE, "pool exhausted")
        assert classify(caught.value) == expected
        assert classify(errors.PoolExhaustedError()) == expected


class PostgresError(Exception):
    """The shape of an error of psycopg."""

    def __init__(self, sqlstate: str | None) -> None:
        super().__init__()
        self.sqlstate = sqlstate


class TestPostgres:
    @pytest.mark.parametrize("state", ["40001", "40P01", "55P03", "57P01", "08000", "08003", "08006", "08P01", "53300"])
    def test_transient(self, state: str) -> None:
        """Conflicts, locks, shutdowns, connections and their number are worth another try."""
        found = classify(PostgresError(state))
        assert found == Classification(ErrorKind.RETRYABLE, f"SQLSTATE {state}")

    @pytest.mark.parametrize("state", ["23505", "23503", "42P01", "42601", "28P01", "28000", "22001", "57014"])
    def test_callers_fault(self, state: str) -> None:
        """Constraints, wrong SQL, wrong passwords and cancelled statements are permanent."""
        found = classify(PostgresError(state))
        assert found == Classification(ErrorKind.PERMANENT, f"SQLSTATE {state}", caller_fault=True)

    @pytest.mark.parametrize("state", ["53100", "58030", "XX000"])
    def test_servers_fault(self, state: str) -> None:
        """A full disk, I/O errors and bugs of the server are permanent, and not the caller's fault."""
        assert classify(PostgresError(state)) == Classification(ErrorKind.PERMANENT, f"SQLSTATE {state}")

    def test_inside_of_sqlalchemy(self) -> None:
        """A SQLSTATE is found in the driver's error inside SQLAlchemy's."""
        error = exc.DBAPIError("SELECT 1", None, PostgresError("40001"))
        assert classify(error).reason == "SQLSTATE 40001"

    def test_no_state(self) -> None:
        """An error that has no SQLSTATE is not taken for one of PostgreSQL."""
        assert classify(PostgresError(None)).reason == "PostgresError"

    def test_lost_connection_of_psycopg(self) -> None:
        """Without SQLSTATE, an OperationalError of psycopg tells of a connection that is dead."""
        psycopg = pytest.importorskip("psycopg")
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        with pytest.raises(psycopg.OperationalError) as caught:
            psycopg.connect(host="127.0.0.1", port=port)
        assert classify(caught.value) == Classification(ErrorKind.RETRYABLE, "connection lost")


class Answer(http.server.BaseHTTPRequestHandler):
    """Answers /503/VALUE with status 503 and `retry-after: VALUE`."""

    def do_GET(self) -> None:
        _, status, value = self.path.split("/", 2)
        self.send_response(int(status))
        if value:
            self.send_header("retry-after", urllib.parse.unquote(value))
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def agent() -> Iterator[str]:
    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def answer(agent: str, status: int, retry_after: str = "") -> urllib.error.HTTPError:
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(f"{agent}/{status}/{urllib.parse.quote(retry_after)}")
    caught.value.close()
    return caught.value


class Response:
    """The shape of a response of httpx or requests."""

    def __init__(self, status_code: int, headers: Mapping[str, str] | None = None) -> None:
        self.status_code = status_code
        self.headers = headers or {}


class ResponseError(Exception):
    """The shape of an error of httpx or requests, whose facts are in its response."""

    def __init__(self, status_code: int, headers: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.response = Response(status_code, headers)


class TestHttp:
    @pytest.mark.parametrize("status", [408, 429, 502, 503, 504])
    def test_transient(self, agent: str, status: int) -> None:
        """An agent that is busy or behind a broken proxy is worth another try."""
        assert classify(answer(agent, status)) == Classification(ErrorKind.RETRYABLE, f"HTTP {status}")

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
    def test_callers_fault(self, agent: str, status: int) -> None:
        """A request that the agent refuses is permanent, and the caller's fault."""
        found = classify(answer(agent, status))
        assert found == Classification(ErrorKind.PERMANENT, f"HTTP {status}", caller_fault=True)

    def test_servers_fault(self, agent: str) -> None:
        """A server's bug is permanent, and not the caller's fault."""
        assert classify(answer(agent, 500)) == Classification(ErrorKind.PERMANENT, "HTTP 500")

    @pytest.mark.parametrize("status", [429, 503])
    def test_retry_after_seconds(self, agent: str, status: int) -> None:
        """A number of seconds in Retry-After is the suggested wait."""
        assert classify(answer(agent, status, "7")).wait == timedelta(seconds=7)

    def test_retry_after_date(self, agent: str) -> None:
        """A date in Retry-After is a wait until then; a date in the past is none."""
        later = format_datetime(NOW + timedelta(minutes=2), usegmt=True)
        earlier = format_datetime(NOW - timedelta(minutes=2), usegmt=True)
        assert classify(answer(agent, 503, later), now=lambda: NOW).wait == timedelta(minutes=2)
        assert classify(answer(agent, 503, earlier), now=lambda: NOW).wait == timedelta()
        unzoned = format_datetime((NOW + timedelta(minutes=2)).replace(tzinfo=None))
        assert unzoned.endswith("-0000")
        assert classify(answer(agent, 503, unzoned), now=lambda: NOW).wait == timedelta(minutes=2)

    @pytest.mark.parametrize("value", ["soon", "-1", "1.5", "9" * 30, "²", "Fri, 99 Foo 2026 00:00:00 GMT"])
    def test_retry_after_nonsense(self, value: str) -> None:
        """A Retry-After that cannot be read is none; the error stays what it is."""
        found = classify(ResponseError(429, {"Retry-After": value}))
        assert found == Classification(ErrorKind.RETRYABLE, "HTTP 429")

    @pytest.mark.long
    @given(st.text())
    def test_retry_after_never_raises(self, value: str) -> None:
        """Whatever an agent writes into Retry-After, classifying does not fail, nor is a wait negative."""
        wait = classify(ResponseError(503, {"Retry-After": value}), now=lambda: NOW).wait
        assert wait is None or wait >= timedelta()

    @pytest.mark.parametrize("name", ["Retry-After", "retry-after", "RETRY-AFTER"])
    def test_response_and_case_of_headers(self, name: str) -> None:
        """Status and headers are found in the response, and names of headers in any case."""
        found = classify(ResponseError(429, {"X-Other": "1", name: "3"}))
        assert found == Classification(ErrorKind.RETRYABLE, "HTTP 429", wait=timedelta(seconds=3))

    @pytest.mark.parametrize("status", ["503", None, True, 200, 7, 503.0])
    def test_what_is_no_status(self, status: object) -> None:
        """An attribute that only looks like a status decides nothing."""
        error = ValueError()
        error.status = status  # type: ignore[attr-defined]
        assert classify(error).reason == "ValueError"


class TestNetwork:
    def test_refused(self) -> None:
        """A connection that is refused is worth another try."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        with pytest.raises(ConnectionError) as caught:
            socket.create_connection(("127.0.0.1", port))
        assert classify(caught.value) == Classification(ErrorKind.RETRYABLE, "ConnectionRefusedError")

    def test_timeouts(self) -> None:
        """A timeout is worth another try, whoever's it is."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            server.settimeout(0.001)
            with pytest.raises(TimeoutError) as caught:
                server.accept()
        assert classify(caught.value).retryable
        with pytest.raises(TimeoutError) as caught:
            asyncio.run(asyncio.wait_for(asyncio.sleep(1), timeout=0.001))
        assert classify(caught.value).retryable

    def test_other_os_errors(self, tmp_path: Path) -> None:
        """A file that is not there is no trouble of the network."""
        with pytest.raises(OSError) as caught:  # noqa: PT011
            (tmp_path / "missing").read_text()
        assert classify(caught.value).kind is ErrorKind.PERMANENT


class ToldError(ConnectionError):
    """Says of itself that it is permanent, though its type says otherwise."""

    sqlite_errorcode = sqlite3.SQLITE_BUSY

    def retry_classification(self) -> Classification:
        return Classification(ErrorKind.PERMANENT, "told", caller_fault=True)


def fail_while_handling(error: Exception) -> None:
    try:
        raise error
    except TimeoutError:
        raise ValueError("bug")  # noqa: B904


class TestChain:
    def test_own_word_wins(self) -> None:
        """What an error says of itself goes above its code and its type."""
        assert isinstance(ToldError(), RetryClassifiable)
        assert classify(ToldError()).reason == "told"

    def test_cause_is_asked(self) -> None:
        """An unknown error is what it was explicitly raised from, however far down."""
        error = ValueError()
        error.__cause__ = RuntimeError()
        error.__cause__.__cause__ = ToldError()
        assert classify(error).reason == "told"

    def test_outermost_known_error_decides(self) -> None:
        """A known error hides its cause."""
        error = PostgresError("23505")
        error.__cause__ = TimeoutError()
        assert classify(error).kind is ErrorKind.PERMANENT

    def test_context_is_not_asked(self) -> None:
        """An error made while a transient one was handled is not transient."""
        with pytest.raises(ValueError, match="bug") as caught:
            fail_while_handling(TimeoutError())
        assert isinstance(caught.value.__context__, TimeoutError)
        assert classify(caught.value) == Classification(ErrorKind.PERMANENT, "ValueError", caller_fault=True)

    def test_circle_of_causes(self) -> None:
        """Causes that go round in a circle end."""
        first, second = ValueError(), RuntimeError()
        first.__cause__, second.__cause__ = second, first
        assert classify(first).reason == "ValueError"

    def test_interruptions(self) -> None:
        """Who interrupts the program does not want it to try again."""
        error = KeyboardInterrupt()
        error.__cause__ = TimeoutError()
        assert classify(error) == Classification(ErrorKind.PERMANENT, "KeyboardInterrupt", caller_fault=True)

    def test_reasons_hold_no_contents(self) -> None:
        """Nothing of a message gets into a reason."""
        for error in (ValueError("secret"), TimeoutError("secret"), errors.StorageError("secret")):
            assert "secret" not in classify(error).reason


class TestPartialAnswers:
    def test_degraded(self) -> None:
        """Some answers out of several are a degraded success."""
        error = PartialAnswersError(answered=2, asked=3, missing=["gemini"])
        assert classify(error) == Classification(ErrorKind.DEGRADED, "partial answers")
        assert (error.answered, error.asked, error.missing) == (2, 3, ("gemini",))

    @pytest.mark.parametrize(("answered", "asked"), [(0, 3), (3, 3), (4, 3), (-1, 3)])
    def test_not_partial(self, answered: int, asked: int) -> None:
        """None and all are no partial success."""
        with pytest.raises(errors.InvalidValueError):
            PartialAnswersError(answered=answered, asked=asked)
