"""What others have made upon the legacy tables is named from the first day on, and keeps the gate shut."""

from __future__ import annotations

import pytest

from consensus_orm import ConsensusStore, Phase, errors
from tests.migration.steps import FORCED, forward, refused
from tests.support.databases import Database

DEPENDENCIES = {
    "sqlite": {
        "view report": "CREATE VIEW report AS SELECT spec_id FROM Consensus_Artifacts",
        "view report of report": 'CREATE VIEW "report of report" AS SELECT * FROM "report"',
        "trigger counting": (
            "CREATE TABLE other (id INTEGER); CREATE TRIGGER counting AFTER INSERT ON other BEGIN"
            " DELETE FROM consensus_artifacts WHERE id = NEW.id; END"
        ),
    },
    "postgresql": {
        "view public.report": "CREATE VIEW report AS SELECT spec_id FROM consensus_artifacts",
        'view public."Report of report"': 'CREATE VIEW "Report of report" AS SELECT * FROM report',
        "materialized view public.kept": "CREATE MATERIALIZED VIEW kept AS SELECT count(*) FROM report",
        "rule also on public.consensus_artifacts": (
            "CREATE TABLE log (id BIGINT); CREATE RULE also AS ON DELETE TO consensus_artifacts"
            " WHERE OLD.id < 0 DO ALSO INSERT INTO log VALUES (0)"
        ),
        "rule on_log on public.log": (
            "CREATE RULE on_log AS ON DELETE TO log DO ALSO DELETE FROM consensus_artifacts WHERE id = OLD.id"
        ),
        "function public.reading(wanted text)": (
            "CREATE FUNCTION reading(wanted TEXT) RETURNS BIGINT LANGUAGE plpgsql AS"
            " $$ DECLARE found consensus_artifacts%ROWTYPE; BEGIN RETURN 1; END $$"
        ),
        "function public.typed()": (
            "CREATE FUNCTION typed() RETURNS SETOF consensus_artifacts LANGUAGE plpgsql AS $$ BEGIN RETURN; END $$"
        ),
        "function public.atomic()": (
            "CREATE FUNCTION atomic() RETURNS BIGINT LANGUAGE sql BEGIN ATOMIC SELECT count(*) FROM report; END"
        ),
        "column public.holder.whole": "CREATE TABLE holder (whole consensus_artifacts)",
        "policy mine on public.holder": (
            "CREATE POLICY mine ON holder USING (EXISTS (SELECT FROM consensus_artifacts AS c WHERE c.id = 1))"
        ),
        "publication named": "CREATE PUBLICATION named FOR TABLE consensus_artifacts",
        "publication all_of_it": "CREATE PUBLICATION all_of_it FOR ALL TABLES",
        "publication of_schema": "CREATE PUBLICATION of_schema FOR TABLES IN SCHEMA public",
    },
}
"""What names a legacy table, directly or through another one, each with what makes it."""

BYSTANDERS = {
    "sqlite": "CREATE TABLE consensus_artifacts_copy (id INTEGER); CREATE VIEW bystander AS SELECT id FROM"
    " consensus_artifacts_copy",
    "postgresql": "CREATE TABLE consensus_artifacts_copy (id BIGINT); CREATE VIEW bystander AS SELECT id FROM"
    " consensus_artifacts_copy; CREATE FUNCTION bystander() RETURNS BIGINT LANGUAGE sql AS"
    " $$ SELECT count(*) FROM consensus_artifacts_copy $$",
}


@pytest.fixture
def named(database: Database) -> set[str]:
    """The names of what depends on the artifacts of the database."""
    database.script(";".join([BYSTANDERS[database.kind], *DEPENDENCIES[database.kind].values()]))
    return set(DEPENDENCIES[database.kind])


def names_of(store: ConsensusStore) -> set[str]:
    return {
        f"{each.kind} {each.name}" for each in store.migration.dependencies() if each.table == "consensus_artifacts"
    }


def test_what_depends_on_a_legacy_table_is_named_before_anything_is_written(
    store: ConsensusStore, database: Database, named: set[str]
) -> None:
    """Each kind is found, through views too, and nothing else is; the status has them, of an untouched database."""
    assert names_of(store) == named
    assert {f"{d.kind} {d.name}" for d in store.migration.status().dependencies} >= named
    assert "consensus_orm_state" not in database.tables()


def test_the_gate_to_contract_is_shut_until_each_is_gone_or_accepted(
    store: ConsensusStore, database: Database, named: set[str]
) -> None:
    """Force does not open it, earlier gates are open; what is accepted stays so, what comes later shuts it again."""
    forward(store, Phase.NORMALIZED)
    assert store.migration.verify().clean
    mine = {name for name in named if not name.startswith("publication")}
    for name in mine:
        refused(store, name, **FORCED)
    if database.kind == "postgresql":
        database.script("ALTER TABLE holder DROP COLUMN whole")  # cannot be accepted
    everything = [f"{each.kind} {each.name}" for each in store.migration.dependencies()]
    assert [e.name for e in store.migration.accept_dependencies(everything, reason="the report is dead")]
    assert {each.accepted for each in store.migration.dependencies()} == {"the report is dead"}
    assert store.migration.status().gate == []
    database.script("CREATE VIEW late AS SELECT 1 AS one FROM consensus_synthesis")
    refused(store, "late depends on consensus_synthesis")
    database.script("DROP VIEW late")
    assert store.migration.history()[-1].reason == "the report is dead"
    assert store.migration.advance() is Phase.CONTRACT
    assert store.migration.dependencies() == []


def test_only_what_is_there_can_be_accepted(store: ConsensusStore, database: Database) -> None:
    """All names or none are accepted; a foreign key cannot be."""
    database.script("CREATE VIEW report AS SELECT spec_id FROM consensus_artifacts")
    store.migration.upgrade()
    with pytest.raises(errors.InvalidValueError, match="nothing named 'nowhere', 'else' depends") as unknown:
        store.migration.accept_dependencies(["nowhere", names_of(store).pop(), "else"], reason="a test")
    assert unknown.value.field == "names"
    with pytest.raises(errors.InvalidValueError, match="reason"):
        store.migration.accept_dependencies(list(names_of(store)), reason=" ")
    assert [each.accepted for each in store.migration.dependencies()] == [None]


def test_a_foreign_key_into_a_legacy_table_has_to_go(store: ConsensusStore, database: Database) -> None:
    """The table could not be emptied, or the rows that refer to it would go: the gate names it, and accepts nothing."""
    key = "INTEGER" if database.kind == "sqlite" else "BIGINT"
    database.script(f"CREATE TABLE notes (artifact {key} REFERENCES consensus_artifacts(id))")
    forward(store, Phase.NORMALIZED)
    assert store.migration.verify().clean
    refused(store, "notes")
    (entry,) = store.migration.dependencies()
    with pytest.raises(errors.InvalidValueError, match="drop"):
        store.migration.accept_dependencies([entry.name], reason="a test")
    database.script("DROP TABLE notes")
    assert store.migration.status().gate == []
