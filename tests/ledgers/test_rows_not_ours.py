"""Rows of ledgers that another program has changed: each call tells it in one error, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from consensus_orm import ConsensusStore, Phase
from consensus_orm.errors import CorruptDatabaseError
from consensus_orm.migration import Migration
from consensus_orm.settings import Settings
from tests.support.databases import Database, build_legacy

SETTINGS = Settings(soak_dual_write=0, soak_cutover=0, soak_normalized=0, chunk_pause=0)
IMAGE = "UPDATE consensus_orm_images SET image = "
REJECT = (
    "INSERT INTO consensus_orm_rejects (pair, key, table_name, reason, image, state, found_at)"
    " VALUES ('artifacts', {key}, 'consensus_artifacts', 'odd', 'no image', 'open', 5)"
)
CHANGE = (
    "INSERT INTO consensus_orm_changes (pair, key, side, op, undecided)"
    " SELECT pair, key, 'middle', 'insert', 1 = 0 FROM consensus_orm_images"
)
CHANGED: dict[str, tuple[str, Callable[[Migration], object]]] = {
    "an image that is no JSON": (f"{IMAGE}'no image'", lambda m: m.image(1)),
    "an image that is a list": (f"{IMAGE}'[]'", lambda m: m.restore_image(1)),
    "an image without types": (f"{IMAGE}'{{\"content\": 5}}'", lambda m: m.restore_image(1)),
    "an image with odd digits": (
        f'{IMAGE}\'{{"content": ["text", "no digits"]}}\'',
        lambda m: m.image(1, contents=True),
    ),
    "an image of no side": ("UPDATE consensus_orm_images SET side = 'middle'", lambda m: m.restore_image(1)),
    "images of no side": ("UPDATE consensus_orm_images SET side = 'middle'", lambda m: m.images()),
    "a reject without an image": (REJECT.format(key="'5'"), lambda m: m.reject(1)),
    "rejects without a key": (REJECT.format(key="NULL"), lambda m: m.rejects()),
    "a detail that is no JSON": ("UPDATE consensus_orm_history SET detail = 'none'", lambda m: m.history()),
    "a detail that is a number": ("UPDATE consensus_orm_history SET detail = '5'", lambda m: m.history()),
    "a phase that does not exist": ("UPDATE consensus_orm_history SET from_phase = 77", lambda m: m.history()),
    "a change on no side": (
        CHANGE,
        lambda m: m.reconcile(),
    ),
}


@pytest.fixture
def store(new_database: Database, tmp_path: Path) -> Iterator[ConsensusStore]:
    """A migration with an image of one row."""
    build_legacy(new_database.where)
    settings = SETTINGS.model_copy(update={"backup_dir": tmp_path})
    with ConsensusStore.open(new_database.where, settings=settings) as store:
        store.migration.migrate(Phase.DUAL_WRITE, soak=False)
        store.migration.backfill()
        new_database.script("UPDATE agent_outputs SET content = 'theirs' WHERE id = 1")
        store.migration.reconcile(foreign="repair")
        yield store


@pytest.mark.parametrize("change", CHANGED)
def test_a_row_that_is_not_what_was_written_is_told(store: ConsensusStore, new_database: Database, change: str) -> None:
    """The error names the table and the way out, in the one tree, without the contents; every row stays as it was."""
    sql, call = CHANGED[change]
    new_database.script(sql)
    before = new_database.legacy(), new_database.normalized()
    with pytest.raises(
        CorruptDatabaseError, match=r"a row of consensus_orm_\w+ .*is not what this package wrote"
    ) as told:
        call(store.migration)
    assert "correct or delete that row" in told.value.hint
    assert "no image" not in str(told.value)
    assert (new_database.legacy(), new_database.normalized()) == before
