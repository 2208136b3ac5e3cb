"""What an operator decides on by number, range or table: those entries, and no others."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner, Result

from consensus_orm import ConsensusStore, Phase
from consensus_orm.cli import main
from consensus_orm.errors import GateClosedError, InvalidValueError
from tests.migration.steps import forward, ready
from tests.support.databases import Database


def damaged(store: ConsensusStore, database: Database) -> list[int]:
    """Three artifacts and a synthesis whose sides differ; gives the numbers of their mismatches."""
    ready(store, Phase.DUAL_WRITE)
    for (key,) in database.rows_of("SELECT id FROM agent_outputs ORDER BY id LIMIT 3"):
        database.unnoticed(f"UPDATE agent_outputs SET content = 'damaged' WHERE id = {key}")
    database.unnoticed("UPDATE consensus_syntheses SET output_markdown = 'damaged' WHERE id = 1")
    assert not store.migration.verify().clean
    found = store.migration.mismatches()
    assert [entry.pair for entry in found] == ["artifacts"] * 3 + ["syntheses"]
    return [entry.id for entry in found]


def still(database: Database) -> int:
    return int(database.scalar("SELECT count(*) FROM agent_outputs WHERE content = 'damaged'")) + int(
        database.scalar("SELECT count(*) FROM consensus_syntheses WHERE output_markdown = 'damaged'")
    )


def call(database: Database, *words: str, code: int = 0) -> Result:
    result = CliRunner().invoke(main, ["--url", str(database.where), *words])
    assert result.exit_code == code, result.output
    return result


def test_reconcile_settles_the_rows_that_are_named(store: ConsensusStore, database: Database) -> None:
    """By number, by range and by table: every other row keeps its difference, and the audit has the reason."""
    first, second, third, of_synthesis = damaged(store, database)
    planned = store.migration.reconcile([first], dry_run=True)
    assert [(action.pair, action.key) for action in planned.actions] == [("artifacts", 1)]
    report = store.migration.reconcile([first], reason="looked at")
    assert (len(report.actions), report.images, still(database)) == (1, 1, 3)
    entry = store.migration.history()[-1]
    assert (entry.action, entry.reason, entry.detail["selected"]) == ("reconcile", "looked at", [str(first)])
    assert [m.id for m in store.migration.mismatches()] == [second, third, of_synthesis]
    call(database, "reconcile", f"{first}-{third}")
    assert [m.id for m in store.migration.mismatches()] == [of_synthesis]
    call(database, "reconcile", "--table", "consensus_synthesis", "--reason", "all of them")
    assert (still(database), store.migration.mismatches()) == (0, [])
    assert store.migration.verify().clean


def test_a_table_is_compared_whole(store: ConsensusStore, database: Database) -> None:
    """Rows of the table are repaired that no verify has found yet; those of another table are left alone."""
    ready(store, Phase.DUAL_WRITE)
    database.unnoticed("UPDATE agent_outputs SET content = 'damaged' WHERE id = 1")
    database.unnoticed("UPDATE consensus_syntheses SET output_markdown = 'damaged' WHERE id = 1")
    store.migration.reconcile(table="agent_outputs")
    assert database.scalar("SELECT count(*) FROM agent_outputs WHERE content = 'damaged'") == 0
    assert still(database) == 1


def test_mismatches_are_accepted_together_or_not_at_all(store: ConsensusStore, database: Database) -> None:
    """A number that is none of an open mismatch leaves all of them open."""
    first, second, third, of_synthesis = damaged(store, database)
    with pytest.raises(InvalidValueError, match="no open mismatch 9999"):
        store.migration.accept_mismatches([first, 9999], reason="why")
    assert len(store.migration.mismatches()) == 4
    assert store.migration.accept_mismatches([range(first, second + 1)], reason="why") == [first, second]
    told = call(database, "mismatches", "accept", "--table", "syntheses", "--reason", "why").stdout
    assert f"mismatch {of_synthesis} is accepted" in told
    assert [m.id for m in store.migration.mismatches()] == [third]
    assert still(database) == 4


def test_images_are_put_back_together_or_not_at_all(store: ConsensusStore, database: Database) -> None:
    """A number that no image has leaves the rows as they are; of several images of one row the newest counts."""

    def contents() -> list[object]:
        rows = database.rows_of("SELECT content FROM agent_outputs WHERE id IN (1, 2) ORDER BY id")
        return [content for (content,) in rows]

    ready(store, Phase.CUTOVER)
    before = contents()
    for what in ("older", "newer"):
        database.script(f"UPDATE consensus_artifacts SET content_json = '{what}' WHERE id IN (1, 2)")
        store.migration.reconcile(foreign="repair")
    numbers = [image.id for image in store.migration.images() if image.key in (1, 2)]
    told = call(database, "images", "restore", *map(str, numbers), "800", "900", "--yes", code=2).stderr
    assert "there are no images 800, 900" in told
    assert contents() == before
    call(database, "images", "restore", f"{numbers[0]}-{numbers[-1]}", "--yes")
    assert contents() == ["newer", "newer"]
    assert database.legacy() == database.normalized()
    refused = call(database, "images", "restore", f"{numbers[0]}-{numbers[-1]}", "--yes", code=2).stderr
    assert f"no image from {numbers[0]} to {numbers[-1]}" in refused, "a range has only those not yet put back"
    call(database, "images", "restore", str(numbers[0]), "--yes")
    assert contents()[0] == "older"


@pytest.mark.parametrize(
    ("numbers", "table", "message"),
    [
        ([range(5, 5)], None, "no range"),
        ([1], "artifacts", "select different entries"),
        ([], "nowhere", "no move has a table"),
        ([range(900, 910)], None, "from 900 to 909"),
    ],
)
def test_what_selects_nothing_is_refused(
    numbers: list[int | range], table: str | None, message: str, store: ConsensusStore
) -> None:
    """An empty range, a table that no move has, and numbers beside a table change nothing."""
    forward(store, Phase.DUAL_WRITE)
    with pytest.raises(InvalidValueError, match=message):
        store.migration.reconcile(numbers, table=table)
    with pytest.raises(InvalidValueError, match=message):
        store.migration.accept_mismatches(numbers, table=table, reason="why")


@pytest.mark.parametrize("odd", ["7-3", "0", "a", "1-", "-5", "1-2-3"])
def test_a_range_that_is_none_is_wrong_usage(odd: str, store: ConsensusStore, database: Database) -> None:
    """The command says so, and changes nothing."""
    forward(store, Phase.DUAL_WRITE)
    call(database, "mismatches", "accept", "--reason", "why", "--", odd, code=2)


def test_rows_that_the_backfill_has_not_reached_are_no_differences(store: ConsensusStore, database: Database) -> None:
    """A verify before the backfill counts them, finds no difference, and opens no gate, not even after the backfill."""
    forward(store, Phase.DUAL_WRITE)
    rows = sum(pair.legacy_rows or 0 for pair in store.migration.status().pairs)
    report = store.migration.verify()
    assert (report.not_carried, report.compared, report.differences, report.clean) == (rows, 0, (), False)
    assert store.migration.mismatches() == []
    told = call(database, "verify", code=1).stdout
    assert f"{rows:,} rows not yet carried; run: consensus-orm --url" in told
    assert json.loads(call(database, "verify", "--json", code=1).stdout)["not_carried"] == rows
    store.migration.backfill()
    with pytest.raises(GateClosedError, match="which were not compared; run: consensus-orm verify"):
        store.migration.advance()


def test_next_command_is_reconcile_while_differences_are_open_and_verify_after_it(
    store: ConsensusStore, database: Database
) -> None:
    """A verify before the repair finds the same again; one after it is what opens the gate."""
    damaged(store, database)
    assert store.migration.status().next_command == "consensus-orm reconcile"
    store.migration.reconcile()
    assert store.migration.status().next_command == "consensus-orm verify"
    assert store.migration.verify().clean
    assert store.migration.status().next_command == "consensus-orm advance cutover"
