"""The stages: gates, certificates, the soak, the lag, force, the audit, and the way back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from consensus_orm import ConsensusStore
from consensus_orm.errors import GateClosedError, InvalidValueError, MigrationError, SinkUnavailableError
from consensus_orm.external import Mirror, Stage
from consensus_orm.testing.sinks import MemorySink
from tests.external.conftest import SETTINGS, add, mirrored
from tests.support.databases import Database


def ready(store: ConsensusStore, sink: MemorySink | None = None) -> Mirror:
    """At MIRROR, with everything that the gate to DETACHED wants."""
    mirror = mirrored(store, sink or MemorySink())
    add(store, 3)
    mirror.relay.run(until_empty=True)
    assert mirror.verify().clean
    return mirror


def test_all_stages_forward_and_back(store: ConsensusStore) -> None:
    """Each step is in the audit, with who and why; back at MIRROR the store becomes what the database is."""
    sink = MemorySink()
    mirror = ready(store, sink)
    assert mirror.status().gate == []
    assert mirror.advance(reason="done") is Stage.DETACHED
    add(store, 2)
    with store.unit_of_work() as uow:
        uow.repository("artifacts").delete(key=1)
    assert mirror.status().waiting == 0
    assert mirror.rollback(reason="back") is Stage.MIRROR
    mirror.relay.run(until_empty=True)
    assert len(sink.items) == 5
    assert [(each.kind, each.key) for each in mirror.verify().differences] == [("surplus", 1)]
    mirror.repair()
    mirror.relay.run(until_empty=True)
    assert len(sink.items) == 4
    assert mirror.verify().clean
    assert [mirror.rollback(), mirror.rollback()] == [Stage.IMPORT, Stage.OFF]
    with pytest.raises(MigrationError, match="first"):
        mirror.rollback()
    steps = [e for e in store.migration.history() if e.action in ("sink advance", "sink rollback")]
    assert [(e.detail["before"], e.detail["after"]) for e in steps] == [
        *[("OFF", "IMPORT"), ("IMPORT", "MIRROR"), ("MIRROR", "DETACHED"), ("DETACHED", "MIRROR")],
        *[("MIRROR", "IMPORT"), ("IMPORT", "OFF")],
    ]
    assert [e.reason for e in steps[2:4]] == ["done", "back"]


def test_rows_that_were_there_before_are_exported(store: ConsensusStore) -> None:
    """What was written before MIRROR arrives, too."""
    add(store, 3)
    sink = MemorySink()
    mirror = mirrored(store, sink)
    mirror.relay.run(until_empty=True)
    assert sorted(sink.items) == ["artifacts:1", "artifacts:2", "artifacts:3"]


def test_mirror_needs_an_import_that_came_to_its_end(store: ConsensusStore) -> None:
    """Nothing that only the external store holds is left behind."""
    mirror = Mirror(store, MemorySink())
    mirror.advance()
    with pytest.raises(GateClosedError, match="no import"):
        mirror.advance()


def test_a_write_that_is_not_sent_shuts_the_gate_at_the_recorded_sequence(store: ConsensusStore) -> None:
    """Entries older than the comparison must be sent; younger ones do not keep a busy store from its end."""
    mirror = mirrored(store, MemorySink())
    add(store)
    assert mirror.verify().in_flight
    assert any("older than the comparison wait" in reason for reason in mirror.status().gate)
    mirror.relay.run(until_empty=True)
    add(store)
    assert mirror.status().gate == []


DAMAGES: dict[str, tuple[str, str]] = {
    "another mapping": ("UPDATE consensus_orm_sink_certificates SET mapping = 'x'", "declaration"),
    "another stage": ("UPDATE consensus_orm_sink_certificates SET epoch = epoch - 1", "nothing was compared"),
    "differences": ("UPDATE consensus_orm_sink_certificates SET differences = 1", "1 difference;"),
    "a date in the future": ("UPDATE consensus_orm_sink_certificates SET at = at + 9999999999", "old"),
    "an old comparison": ("UPDATE consensus_orm_sink_certificates SET at = at - 99999999", "old"),
    "not provable": ("UPDATE consensus_orm_sink_certificates SET provable = FALSE", "could not prove"),
    "a later finding": (
        (
            "INSERT INTO consensus_orm_sink_findings (sink, kind, item, reason, state, found_at)"
            " VALUES ('memory', 'different', 'x', 'x', 'settled', 0)"
        ),
        "a finding since",
    ),
    "no export": ("UPDATE consensus_orm_sinks SET exported_at = NULL", "not all rows"),
    "a slow relay": ("UPDATE consensus_orm_outbox SET at = at - 70000", "p99"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_voids_a_certificate(store: ConsensusStore, new_database: Database, damage: str) -> None:
    """The gate opens on what was seen at this stage with this declaration, and not since then."""
    mirror = ready(store)
    statement, reason = DAMAGES[damage]
    new_database.rows_of(statement)
    if damage == "a slow relay":  # its lag counts during the soak
        new_database.rows_of("UPDATE consensus_orm_sinks SET soak = 60000, since = since - 120000")
    with pytest.raises(GateClosedError, match=reason):
        mirror.advance()


@pytest.mark.sqlite
def test_what_is_not_sent_for_long_shuts_the_gate(new_database: Database) -> None:
    """The lag of an entry that waits is its age: a relay that has stopped after the comparison is no fast one."""
    clock = Clock()
    with ConsensusStore.open(new_database.where, settings=SETTINGS.model_copy(update={"clock": clock})) as store:
        store.upgrade()
        mirror = ready(store)
        add(store)
        assert mirror.status().gate == []
        clock.now += store.settings.relay_lag_limit + timedelta(seconds=1)
        with pytest.raises(GateClosedError, match="oldest entry waits"):
            mirror.advance()
        mirror.relay.run(until_empty=True)
        assert ["p99" in reason for reason in mirror.status().gate] == [True]
        assert mirror.advance(force=True, reason="sent late") is Stage.DETACHED


class Clock:
    def __init__(self) -> None:
        self.now = datetime.now(UTC)

    def __call__(self) -> datetime:
        return self.now


def test_the_soak_is_stored_when_it_begins(new_database: Database) -> None:
    """Settings can only demand more; a clock that was set back does not end it; force skips it, with a reason."""
    clock = Clock()
    settings = SETTINGS.model_copy(update={"soak_mirror": timedelta(days=7), "clock": clock})
    with ConsensusStore.open(new_database.where, settings=settings) as store:
        store.upgrade()
        ready(store)
    with ConsensusStore.open(new_database.where, settings=SETTINGS.model_copy(update={"clock": clock})) as store:
        sink = MemorySink()
        mirror = Mirror(store, sink)
        clock.now += timedelta(days=6)
        sink.items.update(_items(store))
        mirror.verify()
        with pytest.raises(GateClosedError, match="soak of 7 days"):
            mirror.advance()
        with pytest.raises(InvalidValueError, match="reason"):
            mirror.advance(force=True)
        clock.now -= timedelta(days=30)
        with pytest.raises(GateClosedError, match="soak of 7 days"):
            mirror.advance()
        clock.now += timedelta(days=30)
        assert mirror.advance(force=True, reason="no one is left") is Stage.DETACHED
        (entry,) = [e for e in store.migration.history() if e.detail.get("after") == "DETACHED"]
        assert entry.forced
        assert "soak" in str(entry.detail["skipped"])


def _items(store: ConsensusStore) -> dict[str, str]:
    """What a sink holds that was mirrored in another process."""
    from consensus_orm.external import rows
    from consensus_orm.external.canonical import name_of

    with store.unit_of_work(read_only=True) as uow:
        pair = uow.statements.moves["artifacts"]
        return {name_of(pair, key): content for key, content in rows.page(uow, pair, None, 100)}


def test_a_server_that_does_not_start_is_refused_before_the_first_stage(store: ConsensusStore) -> None:
    """The stage stays where it was."""
    sink = MemorySink()

    def away(call: str, name: str) -> None:
        raise SinkUnavailableError

    sink.before = away
    with pytest.raises(SinkUnavailableError):
        Mirror(store, sink).advance()
    assert Mirror(store, sink).stage is Stage.OFF


@pytest.mark.parametrize("step", ["import_entries", "verify", "repair", "export"])
def test_steps_need_their_stage(store: ConsensusStore, step: str) -> None:
    """A step at another stage is refused, and changes nothing."""
    with pytest.raises(MigrationError, match="OFF"):
        getattr(Mirror(store, MemorySink()), step)()


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("advance", {"to": "nowhere"}),
        ("advance", {"to": 7}),
        ("advance", {"to": "off"}),
        ("rollback", {"to": "detached"}),
        ("accept", {"number": 1, "reason": "none of this number"}),
        ("accept", {"number": -1, "reason": "x"}),
        ("accept_many", {"numbers": [1, 2], "reason": "none of these numbers"}),
        ("accept_many", {"numbers": "12", "reason": "a text"}),
        ("accept", {"number": 1, "reason": " "}),
        ("kept", {"number": "x"}),
        ("kept", {"number": 1}),
    ],
)
def test_hostile_arguments(store: ConsensusStore, method: str, arguments: dict[str, Any]) -> None:
    """One clear error each, and the stage stays."""
    mirror = mirrored(store, MemorySink(), Stage.IMPORT)
    with pytest.raises(InvalidValueError):
        getattr(mirror, method)(**arguments)
    assert mirror.stage is Stage.IMPORT


def test_what_a_repair_overwrites_is_kept(store: ConsensusStore) -> None:
    """What another program wrote to the external store can be read afterwards."""
    sink = MemorySink()
    mirror = ready(store, sink)
    sink.items["artifacts:1"] = '{"mine": "ä"}'
    assert [each.kind for each in mirror.verify().differences] == ["different"]
    (finding,) = mirror.findings()
    mirror.repair()
    mirror.relay.run(until_empty=True)
    assert mirror.verify().clean
    assert "mine" in str(mirror.kept(finding.id))


def test_what_another_program_writes_to_the_database_is_found(store: ConsensusStore, new_database: Database) -> None:
    """It leaves no entry in the outbox; a comparison finds it, and a repair sends it."""
    sink = MemorySink()
    mirror = ready(store, sink)
    new_database.rows_of("UPDATE agent_outputs SET content = 'foreign' WHERE id = 1")
    new_database.rows_of("DELETE FROM agent_outputs WHERE id = 2")
    columns = ", ".join(name for name in new_database.columns("agent_outputs") if name != "id")
    new_database.rows_of(
        f"INSERT INTO agent_outputs (id, {columns}) SELECT 90, {columns} FROM agent_outputs WHERE id = 3"
    )
    assert mirror.status().waiting == 0
    found = {each.item: each.kind for each in mirror.verify().differences}
    assert found == {"artifacts:1": "different", "artifacts:2": "surplus", "artifacts:90": "missing"}
    assert mirror.status().gate
    mirror.repair()
    mirror.relay.run(until_empty=True)
    assert mirror.verify().clean
    assert sorted(sink.items) == ["artifacts:1", "artifacts:3", "artifacts:90"]
