"""Legacy tables that are partitioned go through every phase and back, or are refused by `check` on the first day."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from consensus_orm import ConsensusStore, Phase
from consensus_orm.cli import main
from tests.migration.steps import BASE, forward
from tests.support import servers
from tests.support.databases import ServerDatabase, build_legacy

pytestmark = pytest.mark.long

PARTITIONS = {
    "RANGE (id)": ("FOR VALUES FROM (MINVALUE) TO (5)", "FOR VALUES FROM (5) TO (MAXVALUE)"),
    "HASH (id)": ("FOR VALUES WITH (MODULUS 2, REMAINDER 0)", "FOR VALUES WITH (MODULUS 2, REMAINDER 1)"),
    "LIST (stage)": ("FOR VALUES IN ('spec-plan')", "DEFAULT"),
}
KEYS = {"RANGE (id)": "id", "HASH (id)": "id", "LIST (stage)": "id, stage"}


def partitioned(url: str, by: str) -> ServerDatabase:
    """A legacy database whose table of artifacts is partitioned, with the rows that it had."""
    build_legacy(url)
    database = ServerDatabase(url)
    database.script(
        f"""
        ALTER TABLE consensus_artifacts RENAME TO whole;
        ALTER SEQUENCE consensus_artifacts_id_seq OWNED BY NONE;
        CREATE TABLE consensus_artifacts (LIKE whole INCLUDING DEFAULTS) PARTITION BY {by};
        ALTER TABLE consensus_artifacts ADD PRIMARY KEY ({KEYS[by]});
        ALTER TABLE consensus_artifacts ALTER id SET DEFAULT nextval('consensus_artifacts_id_seq');
        ALTER SEQUENCE consensus_artifacts_id_seq OWNED BY consensus_artifacts.id;
        CREATE TABLE part_0 PARTITION OF consensus_artifacts {PARTITIONS[by][0]};
        CREATE TABLE part_1 PARTITION OF consensus_artifacts {PARTITIONS[by][1]};
        INSERT INTO consensus_artifacts SELECT * FROM whole;
        DROP TABLE whole;
        """
    )
    return database


def contents(database: ServerDatabase) -> list[object]:
    return [database.rows("consensus_artifacts"), *(sorted(map(str, database.rows(f"part_{n}"))) for n in range(2))]


@pytest.mark.timeout(240)
@pytest.mark.parametrize("by", [by for by in PARTITIONS if KEYS[by] == "id"])
def test_there_and_back(by: str, tmp_path: Path) -> None:
    """Every row comes back into its partition, what was written meanwhile too; at the end nothing is left of them."""
    settings = BASE.model_copy(update={"backup_dir": tmp_path})
    with servers.database() as url:
        database = partitioned(url, by)
        before = contents(database)
        with ConsensusStore.open(url, settings=settings) as store:
            assert store.migration.check() == []
            forward(store, Phase.CONTRACT)
            store.migration.rollback(Phase.EXPAND)
            assert contents(database) == before
            for phase in Phase:
                forward(store, phase)
                with store.unit_of_work() as uow:
                    uow.artifacts.add(spec_id="s", stage="spec-plan", agent_name=phase.name, content_json="{}")
                database.script("ANALYZE")
            store.migration.rollback(Phase.EXPAND)
            written = "SELECT agent_name FROM {} WHERE spec_id = 's' ORDER BY id"
            names = [(phase.name,) for phase in Phase]
            assert database.rows_of(written.format("consensus_artifacts")) == names
            parts = [row for n in range(2) for row in database.rows_of(written.format(f"part_{n}"))]
            assert sorted(parts) == sorted(names)
            forward(store, Phase.CONTRACT)
            store.migration.finish_contract(reason="it is over")
        left = "SELECT relname FROM pg_class WHERE relname LIKE 'part_%' OR relname LIKE '%dropped%'"
        assert database.rows_of(left) == []
        assert database.scalar("SELECT count(*) FROM agent_outputs WHERE agent_name = 'EXPAND'") == 1


def test_a_key_of_several_columns_is_refused_on_the_first_day() -> None:
    """Partitions by another column need it in the primary key: `check` says what to do, and nothing is written."""
    with servers.database() as url:
        database = partitioned(url, "LIST (stage)")
        before = database.tables()
        checked = CliRunner().invoke(main, ["--url", url, "check"])
        assert checked.exit_code == 1
        assert "the primary key of table consensus_artifacts is not id alone: it has id, stage" in checked.stderr
        assert "partition the table by id (RANGE or HASH)" in checked.stderr
        assert database.tables() == before
