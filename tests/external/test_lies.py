"""An external store that lies: each lie is found by the read-back or by the comparison, and shuts the gate."""

from __future__ import annotations

import pytest

from consensus_orm import ConsensusStore
from consensus_orm.errors import GateClosedError
from consensus_orm.external import Capabilities, Stage
from consensus_orm.testing.sinks import Lie, LyingSink, MemorySink
from tests.external.conftest import add, hurry, mirrored
from tests.support.databases import Database


@pytest.mark.parametrize("lie", list(Lie), ids=lambda lie: lie.name)
def test_every_lie_shuts_the_gate(store: ConsensusStore, new_database: Database, lie: Lie) -> None:
    """DETACHED stays shut while the store lies, and opens when it has been told the truth again."""
    sink = LyingSink(lie)
    sink.lying = False
    mirror = mirrored(store, sink)
    sink.lying = True
    ids = add(store, 3)
    for turn in range(3):
        with store.unit_of_work() as uow:
            uow.repository("artifacts").update(ids[0], {"content_json": str(turn)})
            if turn == 1:
                uow.repository("artifacts").delete(key=ids[1])
        mirror.relay.run(until_empty=True)
        hurry(new_database)
    mirror.relay.run(until_empty=True)
    report = mirror.verify()
    assert report.differences or mirror.findings(), "the lie was believed"
    with pytest.raises(GateClosedError) as shut:
        mirror.advance()
    assert shut.value.reasons
    sink.lying = False
    mirror.repair()
    hurry(new_database)
    mirror.relay.run(until_empty=True)
    for finding in mirror.findings():
        mirror.accept(finding.id, reason="the store invented it")
    assert mirror.verify().clean
    assert mirror.advance() is Stage.DETACHED


@pytest.mark.parametrize("lacking", ["exact_key", "complete_list"])
def test_a_store_that_cannot_prove_keeps_the_gate_shut(store: ConsensusStore, lacking: str) -> None:
    """A comparison says that nothing can be proved, though nothing differs; force does not help."""
    declared = {"exact_key": True, "complete_list": True, "atomic_update": True, lacking: False}
    mirror = mirrored(store, MemorySink(capabilities=Capabilities(**declared)))
    add(store)
    mirror.relay.run(until_empty=True)
    report = mirror.verify()
    assert (report.differences, report.provable, report.clean, report.lacking) == ((), False, False, (lacking,))
    with pytest.raises(GateClosedError, match="not provable"):
        mirror.advance(force=True, reason="in a hurry")
