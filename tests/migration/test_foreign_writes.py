"""What other programs write to one side: adopted, carried, or left for a choice; judged by raw SQL on both databases.

Nothing that a row held is lost by any of it: what is overwritten or deleted is kept whole, and can be put back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from consensus_orm import ConsensusStore, Phase
from consensus_orm.errors import GateClosedError, InvalidValueError
from consensus_orm.migration.reconcile import ReconcileReport
from consensus_orm.phase import Side
from consensus_orm.settings import Settings
from tests.support.databases import IGNORE, Database, build_legacy
from tests.support.keeping import assert_kept, images

SETTINGS = Settings(soak_dual_write=0, soak_cutover=0, soak_normalized=0, chunk_pause=0, mismatch_cap=3)
BOTH = (Phase.DUAL_WRITE, Phase.CUTOVER)

Rows = dict[str, list[Any]]

ARTIFACTS = {Side.LEGACY: ("consensus_artifacts", "content_json"), Side.NORMALIZED: ("agent_outputs", "content")}
"""Where the artifacts of a side stand, and the column of their content."""

ADD_LEGACY = "INSERT INTO consensus_artifacts (id, spec_id, stage, agent_name, content_json)"
ADD_RUN = "INSERT INTO consensus_runs (id, spec_id, stage, run_timestamp, consensus_ok)"
ADD_OUTPUT = "INSERT INTO agent_outputs (id, run_id, agent_name, content, output_timestamp)"


@pytest.fixture
def database(new_database: Database) -> Database:
    """A legacy database with the common rows."""
    build_legacy(new_database.where)
    return new_database


@pytest.fixture
def store(database: Database, tmp_path: Path) -> Iterator[ConsensusStore]:
    settings = SETTINGS.model_copy(update={"backup_dir": tmp_path})
    with ConsensusStore.open(database.where, settings=settings) as store:
        yield store


def bring(store: ConsensusStore, phase: Phase) -> None:
    """To a phase in which both sides agree, and are certified to."""
    store.migration.migrate(phase, soak=False)
    if phase is Phase.DUAL_WRITE:
        store.migration.backfill()
    assert store.migration.verify().clean


def rows(database: Database, side: Side) -> Rows:
    found: Rows = database.legacy() if side is Side.LEGACY else database.normalized()
    return found


def reconciled(store: ConsensusStore, foreign: Any = None) -> ReconcileReport:
    """What a reconcile did, which is exactly what its preview listed."""
    planned = store.migration.reconcile(foreign=foreign, dry_run=True)
    done = store.migration.reconcile(foreign=foreign)
    assert (planned.actions, planned.undecided) == (done.actions, done.undecided)
    assert (planned.dry_run, planned.images, done.dry_run) == (True, 0, False)
    return done


# Changed or deleted where nobody reads ---------------------------------------------------------------------


@dataclass(frozen=True)
class Write:
    """What another program does to the side that is not read.

    Args:
        phase: In which phase.
        sql: What it runs.
        rows: The rows it writes: pair, key, and what was done.
        only: The kind of database it can be done in.
    """

    phase: Phase
    sql: str
    rows: tuple[tuple[str, int, str], ...]
    only: str | None = None


LEGACY_ROW = "(id, spec_id, stage, agent_name, content_json) VALUES (1, 'T', 't', 'theirs', 'again')"
OUTPUT = "(id, run_id, agent_name, content, output_timestamp) SELECT 1, run_id, 'theirs', 'again', 5"
UNDECIDED = {
    "overwritten": Write(
        Phase.DUAL_WRITE, "UPDATE agent_outputs SET content = 'theirs' WHERE id = 1", (("artifacts", 1, "update"),)
    ),
    "nulled": Write(
        Phase.DUAL_WRITE, "UPDATE agent_outputs SET response_text = NULL WHERE id = 2", (("artifacts", 2, "update"),)
    ),
    "deleted": Write(Phase.DUAL_WRITE, "DELETE FROM agent_outputs WHERE id = 1", (("artifacts", 1, "delete"),)),
    "synthesis deleted": Write(
        Phase.DUAL_WRITE, "DELETE FROM consensus_syntheses WHERE id = 1", (("syntheses", 1, "delete"),)
    ),
    "key changed": Write(
        Phase.DUAL_WRITE,
        "UPDATE agent_outputs SET id = 900 WHERE id = 1",
        (("artifacts", 1, "delete"), ("artifacts", 900, "insert")),
    ),
    "parent changed": Write(
        Phase.DUAL_WRITE,
        "UPDATE consensus_runs SET stage = 'theirs' WHERE id = (SELECT run_id FROM agent_outputs WHERE id = 1)",
        (("artifacts", 1, "update"), ("artifacts", 2, "update"), ("artifacts", 4, "update")),
    ),
    "computed changed": Write(
        Phase.DUAL_WRITE, "UPDATE agent_outputs SET output_timestamp = 5 WHERE id = 1", (("artifacts", 1, "update"),)
    ),
    "moved to another run": Write(
        Phase.DUAL_WRITE,
        "UPDATE agent_outputs SET run_id = (SELECT max(id) FROM consensus_runs) WHERE id = 1",
        (("artifacts", 1, "update"),),
    ),
    "inserted again": Write(
        Phase.DUAL_WRITE,
        f"DELETE FROM agent_outputs WHERE id = 1; INSERT INTO agent_outputs {OUTPUT} FROM agent_outputs WHERE id = 2",
        (("artifacts", 1, "update"),),
    ),
    "replaced": Write(
        Phase.DUAL_WRITE,
        f"INSERT OR REPLACE INTO agent_outputs {OUTPUT} FROM agent_outputs WHERE id = 2",
        (("artifacts", 1, "update"),),
        only="sqlite",
    ),
    "legacy overwritten": Write(
        Phase.CUTOVER,
        "UPDATE consensus_artifacts SET content_json = 'theirs' WHERE id = 1",
        (("artifacts", 1, "update"),),
    ),
    "legacy moved to another run": Write(
        Phase.CUTOVER,
        "UPDATE consensus_artifacts SET run_id = 'theirs', created_at = NULL WHERE id = 1",
        (("artifacts", 1, "update"),),
    ),
    "legacy deleted": Write(
        Phase.CUTOVER,
        "DELETE FROM consensus_artifacts WHERE id IN (1, 2); DELETE FROM consensus_synthesis WHERE id = 1",
        (("artifacts", 1, "delete"), ("artifacts", 2, "delete"), ("syntheses", 1, "delete")),
    ),
    "legacy key changed": Write(
        Phase.CUTOVER,
        "UPDATE consensus_artifacts SET id = 900 WHERE id = 1",
        (("artifacts", 1, "delete"), ("artifacts", 900, "insert")),
    ),
    "legacy inserted again": Write(
        Phase.CUTOVER,
        f"DELETE FROM consensus_artifacts WHERE id = 1; INSERT INTO consensus_artifacts {LEGACY_ROW}",
        (("artifacts", 1, "update"),),
    ),
    "legacy replaced": Write(
        Phase.CUTOVER,
        f"INSERT OR REPLACE INTO consensus_artifacts {LEGACY_ROW}",
        (("artifacts", 1, "update"),),
        only="sqlite",
    ),
}


@pytest.fixture(params=UNDECIDED)
def write(request: pytest.FixtureRequest, store: ConsensusStore, database: Database) -> Write:
    """A write that waits for a choice, made in its phase."""
    write = UNDECIDED[request.param]
    if write.only not in (None, database.kind):
        pytest.skip(f"{database.kind} cannot be written so")
    bring(store, write.phase)
    return write


@pytest.mark.long
def test_a_write_where_nobody_reads_waits_for_a_choice(write: Write, store: ConsensusStore, database: Database) -> None:
    """Neither side is changed, the rows are listed by key, every flip is refused, and a second look changes nothing."""
    truth = write.phase.truth
    before = rows(database, truth)
    database.script(write.sql)
    theirs = rows(database, truth.other)
    for _ in range(2):
        done = reconciled(store)
        assert all(action.what == "derive" for action in done.actions), "only what follows from rows"
        assert rows(database, truth) == before
        assert rows(database, truth.other) == theirs
    found = tuple((row.pair, row.key, row.did) for row in done.undecided)
    assert found == write.rows
    listed = {(m.pair, m.key) for m in store.migration.mismatches() if m.key is not None}
    assert listed <= {(pair, key) for pair, key, _ in found}
    assert len(listed) >= min(len(found), 3)
    assert store.migration.status().undecided == len(found)
    for flip in (store.migration.advance, store.migration.rollback):
        with pytest.raises(GateClosedError, match="reconcile --adopt"):
            flip()
    assert store.migration.phase is write.phase
    assert rows(database, truth) == before


@pytest.mark.long
def test_adopted_it_is_on_both_sides_and_what_was_read_is_kept(
    write: Write, store: ConsensusStore, database: Database
) -> None:
    """The side that is read becomes what the other program wrote; each row it had is kept, and can be put back."""
    truth = write.phase.truth
    before = rows(database, truth)
    database.script(write.sql)
    theirs = rows(database, truth.other)
    assert reconciled(store, "adopt").undecided == ()
    after = rows(database, truth)
    # Written by a program that does not know created_at: it is made from the time that the row has.
    completed = [row for pair in before for row in after[pair] if row not in theirs[pair]]
    assert completed == [] or write is UNDECIDED["inserted again"] or write is UNDECIDED["replaced"]
    assert len(after["artifacts"]) == len(theirs["artifacts"])
    finish(store, database)
    assert_kept(database, truth, before, after)
    put_back(store)
    for pair, found in rows(database, truth).items():
        assert [row for row in before[pair] if row not in found] == []


@pytest.mark.long
def test_repaired_it_is_as_it_was_read_and_what_was_written_is_kept(
    write: Write, store: ConsensusStore, database: Database
) -> None:
    """The other side becomes what is read; each row that the other program wrote is kept whole."""
    truth = write.phase.truth
    before = rows(database, truth)
    database.script(write.sql)
    theirs = rows(database, truth.other)
    assert reconciled(store, "repair").undecided == ()
    assert rows(database, truth) == before
    finish(store, database)
    assert_kept(database, truth.other, theirs, before)


def finish(store: ConsensusStore, database: Database) -> None:
    """Both sides agree, nothing is open, and the gate opens after a verify."""
    assert database.legacy() == database.normalized()
    assert store.migration.mismatches() == []
    status = store.migration.status()
    assert (status.foreign_writes, status.undecided) == (0, 0)
    assert store.migration.verify().clean
    assert store.migration.status().gate == []


def put_back(store: ConsensusStore) -> None:
    """Put back every row that was overwritten or deleted."""
    for image in store.migration.images():
        if image.pair in ("artifacts", "syntheses"):
            store.migration.restore_image(image.id, reason="for a test")
    assert store.migration.verify().clean


# Without a choice ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", BOTH, ids=lambda p: p.name)
def test_rows_that_only_one_side_has_are_adopted(store: ConsensusStore, database: Database, phase: Phase) -> None:
    """Inserted on either side they need no choice, and are kept nowhere else, since nothing is overwritten."""
    bring(store, phase)
    database.script(
        f"{ADD_LEGACY} VALUES (801, 'S', 's', 'a', 'l');"
        f"{ADD_RUN} VALUES (900, 'N', 's', 1500, TRUE);"
        f"{ADD_OUTPUT} VALUES (802, 900, 'a', 'n', 1500);"
        "UPDATE agent_outputs SET content = 'changed' WHERE id = 802"
    )
    done = reconciled(store)
    assert [(a.key, a.what, a.side) for a in done.actions if a.pair == "artifacts"] == [
        (801, "insert", Side.NORMALIZED),
        (802, "insert", Side.LEGACY),
    ]
    finish(store, database)
    assert {row[0][1] for row in database.legacy()["artifacts"]} >= {b"801".hex(), b"802".hex()}
    assert [image for image in images(database) if image["pair"] == "artifacts"] == []


@pytest.mark.parametrize("phase", BOTH, ids=lambda p: p.name)
def test_what_was_written_where_it_is_read_is_carried(store: ConsensusStore, database: Database, phase: Phase) -> None:
    """The other side follows; the last copy of what was overwritten or deleted is kept."""
    bring(store, phase)
    table, content = ARTIFACTS[phase.truth]
    before = rows(database, phase.truth.other)
    database.script(f"UPDATE {table} SET {content} = 'theirs' WHERE id = 1; DELETE FROM {table} WHERE id = 2")
    theirs = rows(database, phase.truth)
    done = reconciled(store)
    assert [(a.key, a.what, a.side) for a in done.actions if a.pair == "artifacts"] == [
        (1, "overwrite", phase.truth.other),
        (2, "delete", phase.truth.other),
    ]
    assert rows(database, phase.truth) == theirs
    finish(store, database)
    assert_kept(database, phase.truth.other, before, theirs)


@pytest.mark.parametrize("phase", BOTH, ids=lambda p: p.name)
def test_what_was_changed_back_is_nothing(store: ConsensusStore, database: Database, phase: Phase) -> None:
    """A write that another one took back leaves nothing to decide, and nothing behind; decided or not before."""
    bring(store, phase)
    table, content = ARTIFACTS[phase.truth.other]
    before = rows(database, phase.truth)
    (old,) = database.rows_of(f"SELECT {content} FROM {table} WHERE id = 1")
    for look_between in (False, True):
        database.script(f"UPDATE {table} SET {content} = 'theirs' WHERE id = 1")
        if look_between:
            assert len(reconciled(store).undecided) == 1
        database.rows_of(f"UPDATE {table} SET {content} = ? WHERE id = 1 RETURNING id", *old)
        done = reconciled(store)
        assert (done.actions, done.undecided) == ((), ())
        assert rows(database, phase.truth) == before
        finish(store, database)
    assert images(database) == []
    told = database.rows_of("SELECT DISTINCT state, note FROM consensus_orm_mismatches")
    assert told == [("repaired", "both sides agree")]


@pytest.mark.parametrize("choice", ["adopt", "repair"])
@pytest.mark.parametrize("phase", BOTH, ids=lambda p: p.name)
def test_a_row_written_on_both_sides_waits_too(
    store: ConsensusStore, database: Database, phase: Phase, choice: str
) -> None:
    """Two programs changed it, one on each side: whichever is chosen, the other one's row is kept."""
    bring(store, phase)
    database.script(
        "UPDATE consensus_artifacts SET content_json = 'legacy' WHERE id = 1;"
        "UPDATE agent_outputs SET content = 'normalized' WHERE id = 1;"
        "UPDATE consensus_artifacts SET content_json = 'legacy' WHERE id = 2; DELETE FROM agent_outputs WHERE id = 2"
    )
    sides = {side: rows(database, side) for side in Side}
    assert {row.key for row in reconciled(store).undecided} == {1, 2}
    assert {side: rows(database, side) for side in Side} == sides
    reconciled(store, choice)
    winner = phase.truth if choice == "repair" else phase.truth.other
    finish(store, database)
    assert rows(database, Side.LEGACY) == sides[winner]
    assert_kept(database, winner.other, sides[winner.other], sides[winner])


@pytest.mark.parametrize("phase", BOTH, ids=lambda p: p.name)
def test_an_id_given_twice_is_a_reject_and_an_image(store: ConsensusStore, database: Database, phase: Phase) -> None:
    """Nobody has to choose: what is read stands on both sides; the other row is kept, and can be put back."""
    bring(store, phase)
    database.script(
        f"{ADD_LEGACY} VALUES (801, 'S', 's', 'a', 'l');"
        f"{ADD_RUN} VALUES (900, 'N', 's', 1500, TRUE);"
        f"{ADD_OUTPUT} VALUES (801, 900, 'a', 'n', 1500)"
    )
    loser = rows(database, phase.truth.other)
    done = reconciled(store)
    assert (done.rejects, done.undecided) == (1, ())
    assert database.legacy() == database.normalized()
    assert_kept(database, phase.truth.other, loser, rows(database, phase.truth))
    (image,) = [image for image in store.migration.images() if image.pair == "artifacts"]
    store.migration.restore_image(image.id)
    assert database.legacy() == database.normalized()
    content = b"n" if phase is Phase.DUAL_WRITE else b"l"
    assert [row[4][1] for row in database.legacy()["artifacts"]][-1] == content.hex().upper()


def test_above_the_cap_every_row_is_known(store: ConsensusStore, database: Database) -> None:
    """One mismatch stands for those above it; each of them waits all the same, is listed, repaired and kept."""
    bring(store, Phase.DUAL_WRITE)
    before = rows(database, Side.LEGACY)
    keys = [key for (key,) in database.rows_of("SELECT id FROM agent_outputs ORDER BY id")]
    assert len(keys) > SETTINGS.mismatch_cap + 2
    database.script("UPDATE agent_outputs SET content = 'theirs'")
    theirs = rows(database, Side.NORMALIZED)
    assert [row.key for row in reconciled(store).undecided] == keys
    found = store.migration.mismatches()
    assert [(m.kind, m.seen) for m in found] == [("foreign_update", 1)] * 3 + [("storm", len(keys) - 3)]
    assert [row.key for row in reconciled(store).undecided] == keys, "looked at again, they are the same"
    assert store.migration.mismatches() == found
    assert reconciled(store, "repair").images == len(keys)
    assert rows(database, Side.LEGACY) == before
    finish(store, database)
    assert_kept(database, Side.NORMALIZED, theirs, before)


@pytest.mark.parametrize("phase", BOTH, ids=lambda p: p.name)
def test_what_nobody_noticed_is_repaired_and_kept(store: ConsensusStore, database: Database, phase: Phase) -> None:
    """Without a trigger nobody knows who wrote it: what is read decides, and what stood there is kept."""
    bring(store, phase)
    before = rows(database, phase.truth)
    table, content = ARTIFACTS[phase.truth.other]
    database.unnoticed(f"UPDATE {table} SET {content} = 'damaged' WHERE id IN (1, 2)")
    damaged = rows(database, phase.truth.other)
    assert [(a.key, a.what) for a in reconciled(store).repairs] == [(1, "overwrite"), (2, "overwrite")]
    assert rows(database, phase.truth) == before
    finish(store, database)
    assert_kept(database, phase.truth.other, damaged, before)


def test_there_are_two_choices(store: ConsensusStore) -> None:
    """Another one is refused by its name, before anything is looked at."""
    bring(store, Phase.DUAL_WRITE)
    with pytest.raises(InvalidValueError, match="'both' is no choice") as refused:
        store.migration.reconcile(foreign="both")  # type: ignore[arg-type]
    assert refused.value.field == "foreign"


@pytest.mark.parametrize("phase", BOTH, ids=lambda p: p.name)
def test_what_putting_back_replaces_is_kept(store: ConsensusStore, database: Database, phase: Phase) -> None:
    """A row whose sides differ is kept as each of them has it, and what was open of it is settled; else it is one row.

    What is open of another row stays open.
    """
    bring(store, phase)
    truth, shadow = phase.truth, phase.truth.other
    table, content = ARTIFACTS[shadow]
    database.script(f"UPDATE {table} SET {content} = 'theirs' WHERE id IN (1, 2)")
    reconciled(store, "repair")
    (number,) = [image.id for image in store.migration.images() if (image.pair, image.key) == ("artifacts", 1)]
    cause = f"image {number} was put back"
    database.script(f"UPDATE {table} SET {content} = 'again' WHERE id IN (1, 2)")
    assert [row.key for row in reconciled(store).undecided] == [1, 2]
    for sides in ([truth, shadow], [truth]):
        before = [(image["id"], image["side"]) for image in images(database)]
        store.migration.restore_image(number, reason="a test")
        kept = f"SELECT {database.key}, side, cause FROM consensus_orm_images WHERE id > ? ORDER BY id"
        assert database.rows_of(kept, before[-1][0]) == [(1, side.value, cause) for side in sides]
        for of, its in ARTIFACTS.values():
            assert database.scalar(f"SELECT {its} FROM {of} WHERE id = 1") == "theirs"
    found = database.rows_of(f"SELECT {database.key}, state FROM consensus_orm_mismatches WHERE note = ?", cause)
    assert found == [(1, "repaired")]
    told = store.migration.history()[-1]
    assert (told.action, told.reason) == ("restore image", "a test")
    assert (told.detail["number"], told.detail["pair"], told.detail["key"]) == (number, "artifacts", 1)
    assert [(mismatch.key, mismatch.kind) for mismatch in store.migration.mismatches()] == [(2, "foreign_update")]
    assert [row.key for row in reconciled(store).undecided] == [2]


def test_what_a_unit_of_work_deletes_is_kept_as_another_program_wrote_it(
    store: ConsensusStore, database: Database
) -> None:
    """The unit of work decides: what the other program wrote is an image, and what was open of the row is settled."""
    bring(store, Phase.DUAL_WRITE)
    database.script("UPDATE agent_outputs SET content = 'theirs' WHERE id = 1")
    assert [row.key for row in reconciled(store).undecided] == [1]
    ((spec, stage),) = database.rows_of("SELECT spec_id, stage FROM consensus_artifacts WHERE id = 1")
    with store.unit_of_work() as uow:
        assert uow.artifacts.delete(spec_id=spec, stage=stage) > 0
    cause = "a unit of work deleted it"
    assert database.rows_of("SELECT state, note FROM consensus_orm_mismatches") == [("repaired", cause)]
    kept = f"SELECT {database.key}, side, cause FROM consensus_orm_images"
    assert database.rows_of(kept) == [(1, "normalized", cause)]


def test_an_entry_shows_its_row_as_each_side_has_it(store: ConsensusStore, database: Database) -> None:
    """Columns that differ are marked, in their parents too, under the names of an image; contents only when asked."""
    bring(store, Phase.DUAL_WRITE)
    (content,) = database.rows_of("SELECT content_json FROM consensus_artifacts WHERE id = 1")
    database.script(
        "UPDATE agent_outputs SET content = 'theirs', output_timestamp = 5 WHERE id = 1;"
        " UPDATE consensus_runs SET stage = 'other' WHERE id = (SELECT run_id FROM agent_outputs WHERE id = 1)"
    )
    reconciled(store)
    (number,) = [found.id for found in store.migration.mismatches() if (found.pair, found.key) == ("artifacts", 1)]
    shown, hidden = (store.migration.mismatch(number, contents=contents) for contents in (True, False))
    assert shown.on == (Side.LEGACY, Side.NORMALIZED)
    differing = {column.name for column in shown.columns if column.differs}
    assert differing == {"content_json", "stage", "agent_outputs.output_timestamp"}
    (there,) = [column for column in shown.columns if column.name == "content_json"]
    assert [cell and cell.value for cell in (there.legacy, there.normalized, there.image)] == [*content, "theirs", None]
    (kept,) = [column.normalized for column in hidden.columns if column.name == "content_json"]
    assert kept is not None
    assert (kept.type, kept.bytes, kept.value) == ("text", 6, None)
    reconciled(store, "repair")
    (number,) = [found.id for found in store.migration.images() if (found.pair, found.key) == ("artifacts", 1)]
    kept_whole = store.migration.image(number, contents=True)
    assert (kept_whole.entry.id, kept_whole.on) == (number, (Side.LEGACY, Side.NORMALIZED))
    (there,) = [column for column in kept_whole.columns if column.name == "content_json"]
    assert [cell and cell.value for cell in (there.legacy, there.normalized, there.image)] == [*content * 2, "theirs"]
    with pytest.raises(InvalidValueError, match="there is no image 99: see: consensus-orm images --all"):
        store.migration.image(99)


def test_a_reject_shows_the_row_as_it_was_kept(store: ConsensusStore, database: Database) -> None:
    """Beside what each side has now, which for a row that could not be carried is one side alone."""
    bring(store, Phase.DUAL_WRITE)
    database.fault("BEFORE INSERT", "agent_outputs", IGNORE)
    database.script(f"{ADD_LEGACY} VALUES (801, 'S', 's', 'a', 'kept')")
    store.migration.reconcile()
    database.heal()
    (reject,) = store.migration.rejects()
    shown = store.migration.reject(reject.id, contents=True)
    assert shown.on == (Side.LEGACY,)
    (there,) = [column for column in shown.columns if column.name == "content_json"]
    assert [cell and cell.value for cell in (there.legacy, there.normalized, there.image)] == ["kept", None, "kept"]
