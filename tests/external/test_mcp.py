"""Memory servers by the Model Context Protocol: the npm package and a legacy one, as they are and as they misbehave."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from consensus_orm import ConsensusStore, Settings
from consensus_orm.errors import (
    ConfigurationError,
    ConsensusError,
    InvalidValueError,
    SinkContractError,
    SinkError,
    SinkUnavailableError,
)
from consensus_orm.external import GraphMemory, Item, McpSink, Sink, Stage, TaggedMemory
from consensus_orm.external.demo import ENTRIES, play_external
from tests.external.conftest import add, mirrored
from tests.support import memory_servers
from tests.support.memory_servers import graph_sink, tagged_sink

pytest.importorskip("mcp")
pytestmark = [pytest.mark.timeout(600), pytest.mark.long]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("memory")


@pytest.fixture(scope="module", params=["graph", "tagged"])
def sink(request: pytest.FixtureRequest, folder: Path) -> Iterator[McpSink]:
    """Each kind of server, started once."""
    made = graph_sink(folder) if request.param == "graph" else tagged_sink(folder)
    yield made
    made.close()


def test_put_get_update_delete_and_add_again(sink: McpSink) -> None:
    """Entries are what was put last; a put that is made again changes nothing."""
    assert isinstance(sink, Sink)
    assert sink.get("a:1") is None
    for content in ("{}", '{"a":1}', '{"a":1}', "{}"):
        sink.put("a:1", content)
        assert sink.get("a:1") == content
    sink.put("a:11", "other")
    sink.delete("a:1")
    sink.delete("a:1")
    assert (sink.get("a:1"), sink.get("a:11")) == (None, "other")
    sink.put("a:1", "again")
    assert {*sink.list().items} == {Item("a:1", "again"), Item("a:11", "other")}


@pytest.mark.parametrize("content", ["", "x" * 1_000_000, '"\\u0000\\ud800"', "\\\\n\n\r\t"])
def test_odd_contents_arrive(sink: McpSink, content: str) -> None:
    """Anything in ASCII comes back as it was put."""
    sink.put("odd:1", content)
    assert sink.get("odd:1") == content


@pytest.mark.parametrize("content", ["\N{SNOWMAN}", "\ud800", "ä"])
def test_what_is_not_ascii_is_not_sent(sink: McpSink, content: str) -> None:
    """A lone surrogate would end the session of the client; nothing of the kind is sent, and the session goes on."""
    with pytest.raises(InvalidValueError):
        sink.put("odd:1", content)
    sink.put("odd:1", "fine")
    assert sink.get("odd:1") == "fine"


def test_an_update_keeps_the_relations_of_an_entity(tmp_path: Path) -> None:
    """Only the observations of an entity are exchanged."""
    sink = graph_sink(tmp_path)
    sink.put("a:1", "1")
    sink.put("a:2", "2")
    assert sink._session is not None
    sink._session.call("create_relations", {"relations": [{"from": "a:1", "to": "a:2", "relationType": "knows"}]})
    sink.put("a:1", "changed")
    answer = sink._session.call("read_graph", {})
    assert answer["relations"] == [{"from": "a:1", "to": "a:2", "relationType": "knows"}]
    sink.close()


def test_a_name_that_the_file_has_twice_becomes_one_entry(tmp_path: Path) -> None:
    """What another program has merged into the file is listed and read whole, and a put leaves one entry."""
    lines = [{"type": "entity", "name": "a:1", "entityType": "t", "observations": [text]} for text in ("old", "new")]
    (tmp_path / "memory.jsonl").write_text("\n".join(map(json.dumps, lines)))
    sink = graph_sink(tmp_path)
    assert sink.list().items == (Item("a:1", "old"), Item("a:1", "new"))
    assert sink.get("a:1") == '["old", "new"]'
    sink.put("a:1", "new")
    assert sink.list().items == (Item("a:1", "new"),)
    sink.close()


@pytest.mark.sqlite
def test_half_a_character_on_the_server_is_in_nobodys_way(store: ConsensusStore, tmp_path: Path) -> None:
    """A text that a tool has cut in two is one reject, kept whole; all others come in, and the gate opens."""
    gate = json.dumps({"spec_id": "S", "stage": "s", "agent": "a", "content": 1})
    texts = {"gate": gate, "cut": "a\ud83d", "cut \ud83d": "b", "\N{SNOWMAN}": gate}
    lines = [
        {"type": "entity", "name": name, "entityType": "t", "observations": [text]} for name, text in texts.items()
    ]
    (tmp_path / "memory.jsonl").write_text("\n".join(map(json.dumps, lines)))
    sink = graph_sink(tmp_path)
    mirror = mirrored(store, sink, Stage.IMPORT)
    report = mirror.import_entries()
    assert (report.imported, report.rejects) == (2, 2)
    kept = [json.loads(str(mirror.kept(each.id))) for each in mirror.findings()]
    assert [(each["name"], each["content"]) for each in kept] == [("cut", "a\ud83d"), ("cut \ud83d", "b")]
    for each in mirror.findings():
        mirror.accept(each.id, reason="cut in two")
    mirror.advance()
    mirror.relay.run(until_empty=True)
    assert mirror.verify().clean
    sink.put("gate", "changed by the tool")
    assert [each.kind for each in mirror.verify().differences] == ["changed"]
    sink.close()


def test_a_killed_server_is_started_again(tmp_path: Path) -> None:
    """The call during which it died fails as something that may be tried again; the next one starts it."""
    sink = graph_sink(tmp_path)
    sink.put("a:1", "1")
    memory_servers.kill(tmp_path)
    with pytest.raises(SinkUnavailableError):
        sink.get("a:1")
    assert sink.get("a:1") == "1"
    sink.close()


@pytest.mark.sqlite
def test_a_store_is_mirrored_to_the_graph_server(store: ConsensusStore, tmp_path: Path) -> None:
    """Entries of the tool come in, rows are mirrored, the file of the server holds exactly them, and the gate opens."""
    sink = graph_sink(tmp_path)
    sink.put("gate", json.dumps({"spec_id": "S", "stage": "s", "agent": "a", "content": 1}))
    mirror = mirrored(store, sink)
    add(store, 3, content_json="\N{SNOWMAN}\0\ud800")
    mirror.relay.run(until_empty=True)
    assert mirror.verify().clean
    sink.close()
    entities = [json.loads(line) for line in (tmp_path / "memory.jsonl").read_text().splitlines()]
    names = sorted(each["name"] for each in entities)
    assert names == [*(f"artifacts:{number}" for number in range(1, 5)), "gate"]
    assert all(len(each["observations"]) == 1 for each in entities)
    assert mirror.advance() is Stage.DETACHED


@pytest.mark.sqlite
def test_a_store_is_mirrored_to_the_legacy_server_and_nothing_is_proved(store: ConsensusStore, tmp_path: Path) -> None:
    """The legacy server gets each version once, and cannot prove that it has everything."""
    sink = tagged_sink(tmp_path)
    mirror = mirrored(store, sink)
    (key,) = add(store)
    for _ in range(2):
        mirror.relay.run(until_empty=True)
        mirror.export()
    mirror.relay.run(until_empty=True)
    memories = [json.loads(line) for line in (tmp_path / "memories.jsonl").read_text().splitlines()]
    assert len(memories) == 1, "it was searched before it was stored"
    assert f"key=artifacts:{key}" in memories[0]["tags"]
    report = mirror.verify()
    assert (report.differences, report.clean) == ((), False)
    assert any("not provable" in reason for reason in mirror.status().gate)
    sink.close()


TALKS_NONSENSE = "import sys\nfor line in sys.stdin: print('a secret', flush=True)"
SETTINGS = Settings(sink_timeout=3)


def misbehaving(tmp_path: Path) -> dict[str, tuple[McpSink, type[ConsensusError], str]]:
    script = str(Path(memory_servers.__file__).with_name("legacy_memory.py"))
    legacy = [sys.executable, script, str(tmp_path / "memories.jsonl")]
    tagged = TaggedMemory()
    return {
        "no such program": (McpSink(["/nonexistent/program"], tagged), SinkUnavailableError, "no program"),
        "ends at once": (McpSink([sys.executable, "-c", ""], tagged), SinkUnavailableError, "does not start"),
        "talks nonsense": (
            McpSink([sys.executable, "-c", TALKS_NONSENSE], tagged, settings=SETTINGS),
            SinkUnavailableError,
            "does not start",
        ),
        "no such tool": (McpSink([*legacy, "no search"], tagged), SinkContractError, "no tool 'search'"),
        "other tool": (McpSink(legacy, replace(tagged, store="save")), SinkContractError, "no tool 'save'"),
        "other arguments": (McpSink(legacy, _OtherArguments()), SinkContractError, "no argument 'words'"),
        "another kind of server": (McpSink(legacy, GraphMemory()), SinkContractError, "no tool"),
        "no JSON": (McpSink([*legacy, "no JSON"], tagged), SinkContractError, "no JSON"),
        "deep JSON": (McpSink([*legacy, "deep JSON"], tagged), SinkContractError, "no JSON"),
        "refuses": (McpSink([*legacy, "refuses"], tagged), SinkError, "refused"),
        "refuses by the protocol": (
            McpSink([*legacy, "refuses by the protocol"], tagged),
            SinkError,
            "'store_memory' of memory refused .*-32603",
        ),
        "answers too late": (
            McpSink([*legacy, "is slow"], tagged, settings=SETTINGS),
            SinkUnavailableError,
            "did not answer search",
        ),
    }


TWICE = """
import subprocess, sys
server = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE)
for line in server.stdout:
    sys.stdout.buffer.write(line * 2)
    sys.stdout.buffer.flush()
"""
"""Pass on what a server says, each answer twice."""


def test_a_server_that_answers_twice_is_heard_once(tmp_path: Path) -> None:
    """A second answer with the id of the first is not taken for that of the next call."""
    script = str(Path(memory_servers.__file__).with_name("legacy_memory.py"))
    command = [sys.executable, "-c", TWICE, sys.executable, script, str(tmp_path / "memories.jsonl")]
    sink = McpSink(command, TaggedMemory(), settings=Settings(sink_timeout=20))
    for number in range(5):
        sink.put(f"a:{number}", str(number))
    assert [sink.get(f"a:{number}") for number in range(6)] == ["0", "1", "2", "3", "4", None]
    sink.close()


class _OtherArguments(TaggedMemory):
    @property
    def tools(self) -> dict[str, tuple[str, ...]]:
        return {"search": ("words",)}


@pytest.mark.parametrize(
    "how",
    [
        "no such program",
        "ends at once",
        "talks nonsense",
        "no such tool",
        "other tool",
        "other arguments",
        "another kind of server",
        "no JSON",
        "deep JSON",
        "refuses",
        "refuses by the protocol",
        "answers too late",
    ],
)
def test_a_server_that_misbehaves_is_one_clear_error(
    tmp_path: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The error says what is wrong and what to do, and neither it nor a log line repeats what the server said."""
    sink, kind, words = misbehaving(tmp_path)[how]
    with caplog.at_level(logging.DEBUG, "consensus_orm"), pytest.raises(kind, match=words) as error:
        sink.put("a:1", "a secret")
    assert type(error.value) is kind
    assert error.value.hint
    assert getattr(error.value, "sink", None) == sink.name
    assert "secret" not in f"{error.value} {[record.exc_text for record in caplog.records]}"
    sink.close()


@pytest.mark.sqlite
@pytest.mark.parametrize("how", ["no such program", "no such tool", "other arguments", "no JSON"])
def test_nothing_is_lost_by_a_server_that_misbehaves(store: ConsensusStore, tmp_path: Path, how: str) -> None:
    """The outbox keeps its entries, no row becomes a reject, and a right server gets them."""
    sink = tagged_sink(tmp_path)
    mirror = mirrored(store, sink)
    add(store, 2)
    sink.close()
    bad, kind, _ = misbehaving(tmp_path)[how]
    bad.name = sink.name
    with pytest.raises(kind):
        type(mirror)(store, bad).relay.run(until_empty=True)
    bad.close()
    assert (mirror.status().waiting, mirror.status().rejects) == (2, 0)
    assert mirror.relay.run(until_empty=True).sent == 2
    sink.close()


@pytest.mark.sqlite
def test_a_row_of_which_the_server_dies_stops_its_own_key(store: ConsensusStore, tmp_path: Path) -> None:
    """The server is started again for the others, and the row becomes a reject."""
    sink = tagged_sink(tmp_path, "dies of poison")
    mirror = mirrored(store, sink)
    add(store, content_json="poison")
    add(store, 2)
    report = mirror.relay.run(until_empty=True)
    assert (report.sent, report.postponed, report.waiting) == (2, 1, 1)
    deadline = time.monotonic() + 60
    while mirror.status().waiting and time.monotonic() < deadline:
        mirror.relay.run(until_empty=True)
        time.sleep(0.1)
    assert [each.kind for each in mirror.findings()] == ["unsent"]
    sink.close()


def test_without_the_extra_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK is an extra."""
    monkeypatch.setitem(sys.modules, "mcp", None)
    with pytest.raises(ConfigurationError, match=r"consensus-orm\[mcp\]"):
        McpSink(["x"], GraphMemory())


@pytest.mark.parametrize("command", [[], "mcp-server-memory", [1], None])
def test_a_command_is_several_words(command: object) -> None:
    """One text would be taken for its letters."""
    with pytest.raises(InvalidValueError):
        McpSink(command, GraphMemory())  # type: ignore[arg-type]


@pytest.mark.sqlite
def test_the_demonstration_ends_with_no_mismatch() -> None:
    """Entries imported, rows mirrored, differences found and repaired, the server killed and caught up."""
    started = time.monotonic()
    report = play_external([memory_servers.graph_command()])
    assert report.ok, report
    assert (report.imported, report.mismatches, report.rejects, report.stage) == (ENTRIES, 0, 0, "DETACHED")
    assert report.provoked == report.found == 3
    assert report.seconds <= time.monotonic() - started
