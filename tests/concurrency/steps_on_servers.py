"""The steps that are interrupted on PostgreSQL, and what there is afterwards: judged by psycopg."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consensus_orm import ConsensusStore, Phase
from tests.concurrency import steps
from tests.concurrency.databases import (
    SETTINGS,
    Change,
    Side,
    assert_sides_agree,
    assert_sound,
    connect,
    image,
    made,
    phase_of,
    query,
    settings,
    truth,
)
from tests.concurrency.files import bring, records
from tests.concurrency.processes import wait_for
from tests.concurrency.steps import Work, advance_to, roll_back_to, write
from tests.support import servers

__all__ = ["STEPS", "Judge", "Step", "template"]


@dataclass(frozen=True)
class Step:
    """Something that can be interrupted.

    Args:
        start: The phase it starts in.
        end: The phase it ends in.
        work: The step; done again after a kill, it finishes what was begun, or undoes it first.
        change: Done to the database before.
        atomic: Whether it is one transaction, so that a kill leaves the database as before or as after it.
        writes: Whether it changes what is read. Ids are then not compared: a sequence gives none back.
        carries: Whether both sides agree at its end.
        varies: What of the image depends on how it was interrupted.
    """

    start: Phase
    end: Phase
    work: Work
    change: Change | None = None
    atomic: bool = False
    writes: bool = False
    carries: bool = False
    varies: tuple[str, ...] = ()


def ready(url: str) -> None:
    """Everything that the next gate wants."""
    with ConsensusStore.open(url, settings=SETTINGS) as store:
        if store.migration.phase.compares:
            store.migration.backfill()
        assert store.migration.verify().clean


def written_to(url: str) -> None:
    """Some rows added and deleted in the phase, so that there is something to carry back."""
    with ConsensusStore.open(url, settings=SETTINGS) as store:
        write(store)


def written_to_by_others(url: str) -> None:
    """A program that knows one side only has inserted, updated and deleted; and a row was damaged unseen."""
    ready(url)
    with connect(url) as connection:
        connection.execute(
            """
            INSERT INTO consensus_artifacts (spec_id, stage, agent_name, content_json)
              VALUES ('SPEC-RAW', 'plan', 'raw', 'one'), ('SPEC-RAW', 'plan', 'raw', 'two');
            UPDATE consensus_artifacts SET content_json = 'changed' WHERE id IN (1, 2);
            DELETE FROM consensus_artifacts WHERE id IN (4, 5);
            DELETE FROM consensus_synthesis WHERE id = 1;
            SET session_replication_role = replica;
            UPDATE agent_outputs SET content = 'damaged' WHERE id IN (6, 7);
            DELETE FROM agent_outputs WHERE id = 8
            """
        )


STEPS = {
    "write_in_expand": Step(Phase.EXPAND, Phase.EXPAND, write, writes=True),
    "write_in_dual_write": Step(Phase.DUAL_WRITE, Phase.DUAL_WRITE, write, ready, writes=True, carries=True),
    "write_in_cutover": Step(Phase.CUTOVER, Phase.CUTOVER, write, writes=True, carries=True),
    "write_in_contract": Step(Phase.CONTRACT, Phase.CONTRACT, write, writes=True),
    "backfill": Step(Phase.DUAL_WRITE, Phase.DUAL_WRITE, steps.backfill, carries=True),
    "flip_1_2": Step(Phase.EXPAND, Phase.DUAL_WRITE, advance_to(Phase.DUAL_WRITE), atomic=True),
    "flip_2_3": Step(Phase.DUAL_WRITE, Phase.CUTOVER, advance_to(Phase.CUTOVER), ready, atomic=True, carries=True),
    "flip_3_4": Step(Phase.CUTOVER, Phase.NORMALIZED, advance_to(Phase.NORMALIZED), ready, atomic=True),
    "rollback_2_1": Step(Phase.DUAL_WRITE, Phase.EXPAND, roll_back_to(Phase.EXPAND), ready, atomic=True),
    "rollback_3_2": Step(Phase.CUTOVER, Phase.DUAL_WRITE, roll_back_to(Phase.DUAL_WRITE), carries=True),
    "rollback_4_3": Step(Phase.NORMALIZED, Phase.CUTOVER, roll_back_to(Phase.CUTOVER), written_to, carries=True),
    "contract": Step(Phase.NORMALIZED, Phase.CONTRACT, advance_to(Phase.CONTRACT), ready),
    "rebuild": Step(Phase.CONTRACT, Phase.NORMALIZED, roll_back_to(Phase.NORMALIZED), written_to),
    "rebuild_undone": Step(
        Phase.CONTRACT,
        Phase.CONTRACT,
        lambda store: rebuild_and_stay(store),
        written_to,
        varies=("flips", "state"),
    ),
    "reconcile": Step(Phase.DUAL_WRITE, Phase.DUAL_WRITE, steps.reconcile, written_to_by_others, carries=True),
    "migrate": Step(Phase.EXPAND, Phase.NORMALIZED, lambda store: bring(store, Phase.NORMALIZED)),
}


def rebuild_and_stay(store: ConsensusStore) -> None:
    """Roll back from CONTRACT; where a kill left that half done, the second call undoes it and stays."""
    if query(url_of(store), "SELECT step FROM consensus_orm_state") == [("rebuild",)]:
        store.migration.advance(soak=False)
    elif store.migration.phase is Phase.CONTRACT:
        store.migration.rollback(Phase.NORMALIZED)
    if store.migration.phase is Phase.NORMALIZED:
        assert store.migration.verify().clean
        store.migration.advance(soak=False)


def url_of(store: ConsensusStore) -> str:
    return store.engine.url.set(drivername="postgresql").render_as_string(hide_password=False)


def template(name: str) -> str:
    """What `servers.database` takes to make one in which a step may begin."""
    step = STEPS[name]
    return servers.template(f"step_{name}", lambda url: made(url, step.start, step.change))


# Judging -----------------------------------------------------------------------------------------------------------


def _without_ids(side: Side) -> dict[str, list[tuple[Any, ...]]]:
    return {kind: sorted((row[1:] for row in rows), key=repr) for kind, rows in side.items()}


def nobody_is_left(url: str) -> None:
    """Wait until the server has noticed that a process was killed; what it had been told by then is done."""
    others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    with connect(url) as connection:
        wait_for(lambda: connection.execute(others.encode()).fetchone() == (0,), 30)


class Judge:
    """Says of a step that was interrupted whether all is well: made before the step, shown its end once.

    It reads clones until the step has ended: the server counts reads of frozen tables, which shut the gate to CONTRACT.

    Args:
        step: The step.
        url: The database before it.
    """

    def __init__(self, step: Step, url: str) -> None:
        self.step = step
        with servers.twin(url) as twin:
            self.before, self.truth_before = image(twin), truth(twin)

    def see_end(self, url: str) -> None:
        """Remember what there is after a step that nobody interrupted."""
        self.after, self.truth_after = image(url), truth(url)
        with ConsensusStore.open(url, settings=SETTINGS) as store:
            self.records = records(store)

    def judge(self, url: str, folder: Path, what: str) -> None:
        """Nothing is lost, and done again the step comes to its end.

        Args:
            url: A database in which the step was interrupted.
            folder: For backups.
            what: Where; said where something is wrong.
        """
        nobody_is_left(url)
        with servers.twin(url) as twin:
            self._assert_nothing_is_lost(twin)
        with ConsensusStore.open(url, settings=settings(folder)) as store:
            self.step.work(store)
            if not self.step.writes:
                assert records(store) == self.records, what
        assert_sound(url)
        assert _without_ids(truth(url)) == _without_ids(self.truth_after), what
        if not self.step.writes:
            found = image(url)
            assert {
                key: value for key, value in found.items() if value != self.after[key] and key not in self.step.varies
            } == {}, what
        if self.step.carries:
            assert_sides_agree(url)

    def _assert_nothing_is_lost(self, url: str) -> None:
        """The truth is as it was, or all of a unit of work is there; nothing is half done but what is resumed."""
        found, step = phase_of(url), self.step
        assert step.start is step.end or min(step.start, step.end) <= found <= max(step.start, step.end)
        assert_sound(url)
        if step.writes:
            assert _without_ids(truth(url)) in (_without_ids(self.truth_before), _without_ids(self.truth_after))
        elif step.change is not written_to_by_others:
            assert truth(url) == self.truth_before == self.truth_after
        if step.atomic:
            assert image(url) in (self.before, self.after)
