"""How a login on a server fails, what is said of it, and where its password comes from."""

from __future__ import annotations

import shlex
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from sqlalchemy import make_url

from consensus_orm import ConsensusStore
from consensus_orm.cli import main
from consensus_orm.errors import (
    ConfigurationError,
    ConsensusError,
    DatabaseUnavailableError,
    InvalidValueError,
    ReadOnlyDatabaseError,
)
from consensus_orm.settings import Settings
from tests.concurrency import clients
from tests.field import server as field
from tests.support.servers import Server

pytestmark = pytest.mark.postgresql

ONCE = Settings(retry_attempts=1)
PASSWORD = "p:a/s#s?w%o r&d@[x]'\""
"""With every character that has a meaning in a URL."""


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@pytest.fixture(scope="module")
def locked() -> Iterator[tuple[Server, int]]:
    """A server that asks for passwords on its port, with the roles app and few."""
    port = free_port()
    with Server(settings={"listen_addresses": "127.0.0.1", "port": str(port)}) as server:
        field.build_legacy(server.url())
        with server.connect() as admin:
            literal = PASSWORD.replace("'", "''")
            admin.execute(f"CREATE ROLE app LOGIN PASSWORD '{literal}'".encode())
            admin.execute(f"CREATE ROLE few LOGIN CONNECTION LIMIT 1 PASSWORD '{literal}'".encode())
            (server.data / "pg_hba.conf").write_text(
                "local all all trust\n"
                "host all nobody 127.0.0.1/32 reject\n"
                "hostnossl all all 127.0.0.1/32 scram-sha-256\n"
            )
            admin.execute("SELECT pg_reload_conf()")
        yield server, port


def at(port: int, user: str = "app", password: str = PASSWORD, database: str = "postgres", **query: str) -> str:
    url = make_url("postgresql://").set(
        username=user, password=password, host="127.0.0.1", port=port, database=database, query=query
    )
    return url.render_as_string(hide_password=False)


def connect(store: ConsensusStore) -> None:
    with store.engine.connect() as connection:
        connection.exec_driver_sql("SELECT 1")


def refused(url: str) -> ConsensusError:
    with pytest.raises(ConsensusError) as caught:
        ConsensusStore.open(url, settings=ONCE)
    return caught.value


def test_each_failure_keeps_what_libpq_says_and_has_a_hint_of_its_own(locked: tuple[Server, int]) -> None:
    """A wrong password, a missing database, an unknown host and others are told apart, in words and in what to do."""
    _, port = locked
    few = {"user": "few", "password": PASSWORD, "host": "127.0.0.1", "port": port, "dbname": "postgres"}
    with psycopg.connect(**few):  # type: ignore[arg-type]
        found = {
            reason: (refused(url), words)
            for reason, url, words in [
                ("password", at(port, password="wrong"), "password authentication failed"),
                ("database", at(port, database="nosuch"), 'database "nosuch" does not exist'),
                ("host", at(port).replace("127.0.0.1", "no-such-host.invalid"), "no-such-host.invalid"),
                ("ssl", at(port, sslmode="require"), "does not support SSL"),
                ("access", at(port, "nobody"), "pg_hba.conf"),
                ("connections", at(port, "few"), "too many connections"),
                ("listening", at(free_port()), "Connection refused"),
                ("standby", at(port, target_session_attrs="standby"), "hot standby"),
            ]
        }
    for reason, (error, words) in found.items():
        assert isinstance(error, DatabaseUnavailableError), reason
        assert (error.reason, words in error.message) == (reason, True), error
    assert len({error.hint for error, _ in found.values()}) == len(found)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("sslmode=perhaps", "sslmode"),
        ("connect_timeout=soon", "connect_timeout"),
        ("sslmde=require", "'sslmde'"),
        ("autocommit=true", "'autocommit'"),
        ("prepare_threshold=often", "prepare_threshold"),
        ("options=-cwork_mem%3Da-lot", "work_mem"),
    ],
)
def test_a_parameter_that_is_unknown_or_cannot_be_used_is_named(
    locked: tuple[Server, int], more: str, said: str
) -> None:
    """It is an error of the configuration, so that it is not tried again."""
    _, port = locked
    error = refused(f"{at(port)}?{more}")
    assert isinstance(error, ConfigurationError)
    assert said in error.message


@pytest.mark.parametrize("at_sign", ["", "@"])
@pytest.mark.parametrize("character", list(":/?#%&@[]' =+\\"))
def test_no_part_of_a_password_is_told(locked: tuple[Server, int], character: str, at_sign: str) -> None:
    """Though it is written into the URL as it is, no message, hint, name or printed command has a part of it."""
    _, port = locked
    parts = ("Zeroth", "Firsty", "Second")
    for host in (f"127.0.0.1:{port}", "no-such-host.invalid"):
        url = f"postgresql://app:{parts[0]}{character}{parts[1]}{at_sign}{parts[2]}@{host}/nosuch?connect_timeout=2"
        error = refused(url)
        seen = f"{error!r} {error.facts}"
        result = CliRunner().invoke(main, ["--url", url, "status"])
        seen += result.output + result.stderr
        assert [part for part in parts if part in seen] == []


def test_passwords_in_parameters_are_not_told(locked: tuple[Server, int]) -> None:
    """`?password=` and `?sslpassword=` are left out of the name of the store."""
    server, _ = locked
    with ConsensusStore.open(f"{server.url()}&password=Secret1&sslpassword=Secret2", settings=ONCE) as store:
        assert "Secret" not in store.name
        assert "Secret1" not in repr(store.engine)


def test_a_password_is_sent_as_it_is(locked: tuple[Server, int]) -> None:
    """Every character of it, escaped in the URL; `postgres://` names a server, too."""
    _, port = locked
    for url in (at(port), at(port).replace("postgresql:", "postgres:")):
        with ConsensusStore.open(url, settings=ONCE) as store:
            assert store.name == f"postgresql://app:***@127.0.0.1:{port}/postgres"


# Passwords that change --------------------------------------------------------------------------------------


def test_a_callable_is_asked_at_each_connect(locked: tuple[Server, int]) -> None:
    """A token that was replaced meanwhile is the one that the next connection logs in with."""
    server, port = locked
    with server.connect() as admin:
        asked: list[str] = []

        def token() -> str:
            asked.append(f"token-{len(asked)}")
            admin.execute(f"ALTER ROLE app PASSWORD '{asked[-1]}'".encode())
            return asked[-1]

        try:
            with ConsensusStore.open(at(port, password="stale"), settings=ONCE, password=token) as store:
                first = len(asked)
                store.engine.dispose()
                connect(store)
                assert len(asked) > first > 0
        finally:
            literal = PASSWORD.replace("'", "''")
            admin.execute(f"ALTER ROLE app PASSWORD '{literal}'".encode())


def test_a_command_prints_the_password(locked: tuple[Server, int], tmp_path: Path) -> None:
    """It is run at each connect, without a shell, and knows host, port, user and database."""
    _, port = locked
    (tmp_path / "token").write_text(PASSWORD)
    script = tmp_path / "print_token.py"
    script.write_text(
        "import os, sys, pathlib\n"
        "here = pathlib.Path(sys.argv[1])\n"
        "with (here / 'asked').open('a') as asked:\n"
        "    print(*(os.environ[name] for name in ('PGHOST', 'PGPORT', 'PGUSER', 'PGDATABASE')), file=asked)\n"
        "print((here / 'token').read_text())\n"
    )
    command = shlex.join([sys.executable, str(script), str(tmp_path)])
    with ConsensusStore.open(at(port, password="stale"), settings=Settings(password_command=command)) as store:
        connect(store)
        before = len((tmp_path / "asked").read_text().splitlines())
        store.engine.dispose()
        connect(store)
    asked = (tmp_path / "asked").read_text().splitlines()
    assert len(asked) > before
    assert set(asked) == {f"127.0.0.1 {port} app postgres"}


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("no-such-command-anywhere Secret", "FileNotFoundError"),
        (f"{sys.executable} -c \"raise SystemExit('Secret')\"", "ended with 1"),
        (f"{sys.executable} -c pass", "printed 0 lines"),
        ("'unclosed Secret", "ValueError"),
    ],
)
def test_a_command_that_prints_no_password_is_an_error(locked: tuple[Server, int], command: str, said: str) -> None:
    """What it is and what it printed is not repeated, since it may be secret; nothing is tried again."""
    _, port = locked
    with pytest.raises(ConfigurationError) as caught:
        ConsensusStore.open(at(port), settings=Settings(password_command=command))
    assert said in caught.value.message
    assert "Secret" not in str(caught.value)
    assert "CONSENSUS_ORM_PASSWORD_COMMAND" in caught.value.hint


def test_a_password_that_is_no_text_is_refused(locked: tuple[Server, int]) -> None:
    """Neither what is not callable, nor what returns something else than text."""
    _, port = locked
    nothing: Any = lambda: None  # noqa: E731 - as a caller may write it
    with pytest.raises(ConfigurationError, match="NoneType"):
        ConsensusStore.open(at(port), settings=ONCE, password=nothing)
    text: Any = "text"
    with pytest.raises(InvalidValueError, match="password"):
        ConsensusStore.open(at(port), settings=ONCE, password=text)


# What is said of servers ------------------------------------------------------------------------------------


def test_a_missing_privilege_is_named_with_its_table_and_schema(locked: tuple[Server, int]) -> None:
    """The hint is the GRANT that helps, and gives it; no word of files."""
    server, port = locked
    with ConsensusStore.open(server.url(), settings=ONCE) as store:
        store.upgrade()
    with server.connect() as admin:
        admin.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO app")
        admin.execute("GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO app")
        admin.execute("REVOKE INSERT ON consensus_synthesis FROM app")
        with ConsensusStore.open(at(port), settings=ONCE) as store:
            with pytest.raises(ReadOnlyDatabaseError) as caught:
                store.run(lambda uow: clients.add_one(uow, "FORBIDDEN"))
            error = caught.value
            assert (error.schema, error.table) == ("public", "consensus_synthesis")
            assert "INSERT" in str(error.privilege)
            assert "folder" not in str(error)
            grant = error.hint.partition("run: ")[2]
            admin.execute(grant.encode())
            store.run(lambda uow: clients.add_one(uow, "ALLOWED"))


def test_the_next_command_can_be_pasted(locked: tuple[Server, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """It names the URL as it was typed; one with a password is taken from the environment, and said to be."""
    server, port = locked

    def status(url: str) -> tuple[str, str]:
        result = CliRunner().invoke(main, ["--url", url, "status"])
        (line,) = (line for line in result.stdout.splitlines() if line.startswith("next:"))
        return line, result.stderr

    monkeypatch.delenv("CONSENSUS_ORM_URL", raising=False)
    with ConsensusStore.open(server.url(), settings=ONCE) as store:
        store.upgrade()
    with server.connect() as admin:
        admin.execute("GRANT ALL ON ALL TABLES IN SCHEMA public TO app")
    line, warned = status(server.url())
    assert (shlex.split(line)[2:4], warned) == (["--url", server.url()], "")
    line, warned = status(at(port))
    assert '--url "$CONSENSUS_ORM_URL" ' in line
    assert "***" not in line
    assert "export" in warned
    monkeypatch.setenv("CONSENSUS_ORM_URL", at(port))
    line, warned = status(at(port))
    assert (line.startswith("next: consensus-orm "), "--url" in line, warned) == (True, False, "")
