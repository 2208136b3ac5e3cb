"""The demonstration of external stores: a real memory server is imported, mirrored, tampered with, killed, and left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from consensus_orm.consensus.store import ConsensusStore
from consensus_orm.errors import SinkUnavailableError
from consensus_orm.external.artifacts import read_artifact
from consensus_orm.external.comparison import ComparisonReport
from consensus_orm.external.declarations import GraphMemory
from consensus_orm.external.mcp_sink import McpSink
from consensus_orm.external.mirror import Mirror
from consensus_orm.settings import Settings

__all__ = ["ExternalReport", "memory_server", "play_external"]

PROGRAM = "mcp-server-memory"
ENTRIES, ROWS = 12, 20

Tell = Callable[[str], object]


@dataclass
class ExternalReport:
    """What the demonstration did.

    Attributes:
        imported: Entries of the server that became rows.
        sent: Entries of the outbox that the server gave back.
        provoked: Differences that were provoked.
        found: Those that a comparison found.
        caught_up: Entries sent after the server was killed.
        mismatches: Those of the last comparison.
        rejects: Open ones at the end.
        stage: The last stage.
        seconds: How long it took.
        steps: What happened, in words.
    """

    imported: int = 0
    sent: int = 0
    provoked: int = 0
    found: int = 0
    caught_up: int = 0
    mismatches: int = -1
    rejects: int = -1
    stage: str = ""
    seconds: float = 0.0
    steps: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether everything is as it should be."""
        done = self.imported == ENTRIES and self.sent > 0 and self.caught_up > 0
        return done and self.provoked == self.found > 0 and not self.mismatches and not self.rejects


def memory_server(command: Sequence[str] | None = None) -> list[str]:
    """The command of the memory server: the given one, else `mcp-server-memory` of the PATH or of npm in this folder.

    Raises:
        SinkUnavailableError: There is none.
    """
    if command:
        return list(command)
    local = Path("node_modules", ".bin", PROGRAM)
    found = str(local.resolve()) if local.exists() else shutil.which(PROGRAM)
    if found is None:
        raise SinkUnavailableError(
            f"there is no {PROGRAM} on the PATH, nor in ./node_modules",
            hint="run: npm install @modelcontextprotocol/server-memory, or give --server COMMAND",
            sink="memory",
        )
    return [found]


def play_external(command: Sequence[str] | None = None, *, tell: Tell = lambda line: None) -> ExternalReport:
    """Play the demonstration in a folder that is removed afterwards.

    Args:
        command: The command of a graph memory server that keeps its entries in the file MEMORY_FILE_PATH.
        tell: Called with each line of what happens.

    Raises:
        SinkUnavailableError: The server cannot be started.
    """
    started = time.monotonic()
    server = memory_server(command)
    with ExitStack() as exit_:
        folder = Path(exit_.enter_context(tempfile.TemporaryDirectory(prefix="consensus-orm-demo-")))
        settings = Settings().model_copy(
            update={"read_url": None, "soak_mirror": timedelta(), "retry_initial": timedelta(milliseconds=50)}
        )
        sink = exit_.enter_context(closing(_sink(server, folder, settings)))
        store = exit_.enter_context(ConsensusStore.open(folder / "demo.db", settings=settings))
        report = ExternalReport()
        for line in _steps(Mirror(store, sink, read=read_artifact), store, sink, folder, report):
            report.steps.append(line)
            tell(line)
    report.seconds = time.monotonic() - started
    return report


def _sink(server: Sequence[str], folder: Path, settings: Settings) -> McpSink:
    """The server, started by a process that notes its number and becomes it."""
    note = "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid())); os.execvp(sys.argv[2], sys.argv[2:])"
    environment = {"MEMORY_FILE_PATH": str(folder / "memory.jsonl"), "PATH": os.environ.get("PATH", os.defpath)}
    command = [sys.executable, "-c", note, str(folder / "pid"), *server]
    return McpSink(command, GraphMemory(), environment=environment, settings=settings)


def _steps(mirror: Mirror, store: ConsensusStore, sink: McpSink, folder: Path, report: ExternalReport) -> Iterator[str]:
    for number in range(ENTRIES):
        entry = {"spec_id": "SPEC-KIT-900", "stage": "quality-gate", "agent": f"agent {number % 3}", "content": number}
        sink.put(f"quality-gate-{number}", json.dumps(entry))
    yield f"A memory server holds {ENTRIES} quality-gate entries, which a tool wrote before there was a database."

    mirror.advance("import")
    report.imported = mirror.import_entries().imported
    again = mirror.import_entries()
    yield f"IMPORT    {report.imported} entries became rows; a second import takes in {again.imported}"

    mirror.advance("mirror")
    _write(store, "mirrored", ROWS)
    with store.unit_of_work() as uow:
        uow.artifacts.delete(spec_id="mirrored", stage="stage 3")
    report.sent = mirror.relay.run(until_empty=True).sent
    seen = mirror.verify()
    yield f"MIRROR    {report.sent} entries of the outbox sent and read back; {_seen(seen)}"

    sink.put("artifacts:1", '{"changed": "by another program"}')
    sink.delete("artifacts:2")
    sink.put("artifacts:900", "{}")
    report.provoked = 3
    seen = mirror.verify()
    report.found = len(seen.differences)
    yield f"          another program changes, deletes and adds an entry: {_seen(seen)}"
    repaired = mirror.repair(reason="demo")
    mirror.relay.run(until_empty=True)
    yield f"          {repaired} repaired; what the server held is kept; {_seen(mirror.verify())}"

    sink.get("artifacts:1")
    os.kill(int((folder / "pid").read_text()), signal.SIGKILL)
    _write(store, "written while the server is dead", ROWS)
    waiting = mirror.status().waiting
    report.caught_up = mirror.relay.run(until_empty=True).sent
    yield f"          the server is killed (-9), {waiting} entries wait; started again, it takes {report.caught_up}"

    seen = mirror.verify()
    report.mismatches, report.rejects = len(seen.differences), mirror.status().rejects
    report.stage = mirror.advance("detached").name
    yield f"{report.stage}  {_seen(seen)}, {report.rejects} rejects: the database does without the server from here on"


def _write(store: ConsensusStore, spec: str, rows: int) -> None:
    for number in range(rows):
        with store.unit_of_work() as uow:
            content = json.dumps({"number": number, "text": "\N{SNOWMAN} \0"})
            uow.artifacts.add(spec_id=spec, stage=f"stage {number % 5}", agent_name="claude", content_json=content)


def _seen(report: ComparisonReport) -> str:
    return f"{report.rows} rows and {report.items} entries compared: {len(report.differences)} mismatches"
