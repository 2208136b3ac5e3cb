"""Dependencies that only a server has: on tables that inherit, on partitions, and on what subscriptions write."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from consensus_orm import ConsensusStore, Phase, errors
from tests.migration.steps import BASE
from tests.support import servers
from tests.support.databases import ServerDatabase, build_legacy

EARLY = {
    "inheriting table public.more": "CREATE TABLE more () INHERITS (consensus_artifacts)",
    "subscription subscribed": (
        "CREATE SUBSCRIPTION subscribed CONNECTION 'dbname=nowhere' PUBLICATION p"
        " WITH (connect = false, enabled = false, create_slot = false, slot_name = NONE);"
        " INSERT INTO pg_subscription_rel (srsubid, srrelid, srsubstate)"
        " SELECT oid, 'consensus_artifacts'::regclass, 'r' FROM pg_subscription WHERE subname = 'subscribed'"
    ),
}
"""What writes a legacy table, or a part of it, past every trigger."""


@pytest.fixture
def database() -> Iterator[ServerDatabase]:
    with servers.database() as url:
        build_legacy(url)
        yield ServerDatabase(url)
        for name in ("subscribed",):  # the database cannot be dropped with it
            ServerDatabase(url).script(f"DROP SUBSCRIPTION IF EXISTS {name}")


@pytest.fixture
def store(database: ServerDatabase, tmp_path: Path) -> Iterator[ConsensusStore]:
    with ConsensusStore.open(database.where, settings=BASE.model_copy(update={"backup_dir": tmp_path})) as store:
        yield store


@pytest.mark.parametrize("name", EARLY)
def test_what_is_written_past_the_triggers_shuts_the_first_gate(
    store: ConsensusStore, database: ServerDatabase, name: str
) -> None:
    """Nothing would notice such writes in any phase: DUAL_WRITE is shut until it is accepted."""
    database.script(EARLY[name])
    store.migration.upgrade()
    with pytest.raises(errors.GateClosedError, match=f"{name} depends on consensus_artifacts"):
        store.migration.advance()
    store.migration.accept_dependencies([name], reason="nobody writes there")
    assert store.migration.advance() is Phase.DUAL_WRITE


def test_a_table_above_a_legacy_table_loses_its_rows(store: ConsensusStore, database: ServerDatabase) -> None:
    """Reads of it include the rows of the legacy table until CONTRACT."""
    database.script("CREATE TABLE everything (id BIGINT NOT NULL); ALTER TABLE consensus_artifacts INHERIT everything")
    (entry,) = store.migration.dependencies()
    assert (entry.kind, entry.name, entry.shuts) == ("inherited table", "public.everything", Phase.CONTRACT)


def test_a_name_with_signs_in_it_is_found_in_functions(store: ConsensusStore, database: ServerDatabase) -> None:
    """Only a whole name counts, and what this package or an extension made does not."""
    database.script(
        "CREATE FUNCTION one() RETURNS BIGINT LANGUAGE plpgsql AS"
        ' $$ BEGIN RETURN (SELECT count(*) FROM public."consensus_artifacts"); END $$;'
        " CREATE FUNCTION two() RETURNS BIGINT LANGUAGE plpgsql AS"
        " $$ BEGIN RETURN (SELECT count(*) FROM my_consensus_artifacts); END $$"
    )
    store.migration.migrate(Phase.DUAL_WRITE)
    assert [each.name for each in store.migration.dependencies()] == ["public.one()"]
