"""Subscribers of a published legacy table are told nothing of its rename and its emptying."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from consensus_orm import ConsensusStore, Phase, errors
from tests.migration.steps import BASE, forward
from tests.support.databases import ServerDatabase, build_legacy
from tests.support.dependencies import accept_dependencies
from tests.support.servers import Server

PUBLICATIONS = {
    "of the table": "FOR TABLE consensus_artifacts (id, spec_id), consensus_synthesis",
    "of the schema": "FOR TABLES IN SCHEMA public",
    "of all": "FOR ALL TABLES",
}
TRUNCATED = ord("T")
RELATION = ord("R")
MEMBERS = (
    "SELECT tablename, attnames FROM pg_publication_tables WHERE pubname = 'p' AND tablename LIKE 'consensus_%'"
    " AND tablename NOT LIKE 'consensus_orm_%' ORDER BY 1"
)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(settings={"wal_level": "logical", "max_replication_slots": "8", "fsync": "off"}) as server:
        yield server


def messages(database: ServerDatabase) -> list[bytes]:
    """What a subscriber would get, and has not got yet."""
    sql = (
        "SELECT data FROM pg_logical_slot_get_binary_changes('subscriber', NULL, NULL,"
        " 'proto_version', '1', 'publication_names', 'p')"
    )
    return [data for (data,) in database.rows_of(sql)]


@pytest.mark.parametrize("how", PUBLICATIONS)
def test_neither_the_rename_nor_the_emptying_is_published(server: Server, how: str, tmp_path: Path) -> None:
    """No message names a table that was put away, none empties one; on the way back all is published as before."""
    name = f"published_{list(PUBLICATIONS).index(how)}"
    ServerDatabase(server.url()).rows_of("SELECT 1")
    with server.connect() as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    database = ServerDatabase(server.url(name))
    build_legacy(database.where)
    database.script(f"CREATE PUBLICATION p {PUBLICATIONS[how]}")
    settings = BASE.model_copy(update={"backup_dir": tmp_path})
    with ConsensusStore.open(database.where, settings=settings) as store:
        forward(store, Phase.NORMALIZED)
        members = legacy_members(database)
        assert members
        database.rows_of("SELECT pg_create_logical_replication_slot('subscriber', 'pgoutput')")
        with pytest.raises(errors.GateClosedError, match="publication p depends on consensus_artifacts"):
            forward(store, Phase.CONTRACT)
        accept_dependencies(store)
        forward(store, Phase.CONTRACT)
        got = messages(database)
        assert not [data for data in got if data[0] == TRUNCATED]
        assert not [data for data in got if data[0] == RELATION and b"dropped" in data]

        with store.unit_of_work() as uow:
            uow.artifacts.add(spec_id="new", stage="s", agent_name="a", content_json="x")
        store.migration.rollback()
        assert legacy_members(database) == members
        unlogged = "SELECT count(*) FROM pg_class WHERE relpersistence = 'u' AND relkind = 'r'"
        assert database.scalar(unlogged) == 0
        assert not [data for data in messages(database) if data[0] == TRUNCATED]
    database.rows_of("SELECT pg_drop_replication_slot('subscriber')")


def legacy_members(database: ServerDatabase) -> list[tuple[Any, ...]]:
    return [row for row in database.rows_of(MEMBERS) if row[0] in ("consensus_artifacts", "consensus_synthesis")]


def test_a_publication_that_filters_rows_has_to_let_go_of_the_table(server: Server, tmp_path: Path) -> None:
    """Its condition could not be given back: it cannot be accepted, and the remedy is told."""
    with server.connect() as connection:
        connection.execute(b"CREATE DATABASE filtered")
    database = ServerDatabase(server.url("filtered"))
    build_legacy(database.where)
    database.script("CREATE PUBLICATION p FOR TABLE consensus_artifacts WHERE (id > 1)")
    with ConsensusStore.open(database.where, settings=BASE) as store:
        store.migration.upgrade()
        with pytest.raises(errors.InvalidValueError, match="ALTER PUBLICATION"):
            store.migration.accept_dependencies(["p"], reason="a test")
