"""How far one operation walks through the package: files it enters, changes from file to file, calls.

    python -m benchmarks.walks

A reader follows the same way through the code, so fewer files and fewer changes are easier to read. Calls into other
packages are not counted. The numbers are exact: they do not depend on the machine or its load.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import consensus_orm
from consensus_orm import ConsensusStore, Phase

PACKAGE = str(Path(consensus_orm.__file__).parent)


@dataclass
class Walk:
    """What one operation passed.

    Attributes:
        files: Files of the package whose functions were called.
        changes: How often a function of another file was called than of the one before.
        calls: Calls of functions of the package.
    """

    files: set[str] = field(default_factory=set)
    changes: int = 0
    calls: int = 0
    _last: str = ""

    def note(self, frame: FrameType, event: str, _: Any) -> None:
        """Count a call; a profile function."""
        name = frame.f_code.co_filename
        if event != "call" or not name.startswith(PACKAGE):
            return
        self.calls += 1
        self.files.add(name)
        self.changes += name != self._last
        self._last = name


def walk(operation: Callable[[], object], *, again: bool = True) -> Walk:
    """Follow an operation.

    Args:
        operation: What to follow.
        again: Follow its second call, when everything is loaded and compiled.
    """
    if again:
        operation()
    found = Walk()
    sys.setprofile(found.note)
    try:
        operation()
    finally:
        sys.setprofile(None)
    return found


def _add(store: ConsensusStore) -> None:
    with store.unit_of_work() as uow:
        uow.artifacts.add(spec_id="S", stage="plan", agent_name="a", content_json="{}")


def _read(store: ConsensusStore) -> None:
    with store.unit_of_work(read_only=True) as uow:
        uow.artifacts.list(spec_id="S", limit=1)


def _flip(store: ConsensusStore) -> None:
    """There and back, so that it can be done twice."""
    store.migration.rollback(Phase.DUAL_WRITE)
    store.migration.verify()
    store.migration.advance(Phase.CUTOVER, soak=False)


def main() -> None:
    """Print the walks of one write in each phase, a read, a backfill of one chunk, and a flip there and back."""
    with tempfile.TemporaryDirectory() as folder, ConsensusStore.open(_legacy_file(Path(folder))) as store:
        print(f"{'operation':42}{'files':>7}{'changes':>9}{'calls':>7}")
        store.migration.upgrade()
        for phase in Phase:
            if phase > Phase.DUAL_WRITE:
                store.migration.migrate(phase, soak=False)
            elif phase is Phase.DUAL_WRITE:
                store.migration.advance(phase)
            show(f"artifacts.add in {phase.name}", walk(lambda: _add(store)))
            if phase is Phase.DUAL_WRITE:
                show("a read", walk(lambda: _read(store)))
                show("backfill of one chunk", walk(store.migration.backfill, again=False))
            if phase is Phase.CUTOVER:
                show("rollback, verify and advance to CUTOVER", walk(lambda: _flip(store)))


def show(name: str, found: Walk) -> None:
    """Print one line."""
    print(f"{name:42}{len(found.files):>7}{found.changes:>9}{found.calls:>7}")


def _legacy_file(folder: Path) -> Path:
    from benchmarks.data import legacy_file

    return legacy_file(folder / "walks.db", rows=10)


if __name__ == "__main__":
    main()
