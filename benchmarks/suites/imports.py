"""What importing the package costs, in CPU time of a fresh interpreter."""

from __future__ import annotations

import resource
import subprocess
import sys
from collections.abc import Iterator

from benchmarks.harness import Bench, Group, Target, Work

LATER = ("alembic", "rich", "click", "stamina", "consensus_orm.migration")
GROUP = Group(
    "import",
    unit="import",
    count=1,
    baseline="sqlalchemy_and_pydantic",
    targets=(
        Target("import consensus_orm, to sqlalchemy.orm and pydantic", "ours", 1.15, than="sqlalchemy_and_pydantic"),
        Target("the same, with ConsensusStore", "ours_and_store", 1.15, than="sqlalchemy_and_pydantic"),
        Target("modules loaded too early (alembic, rich, click, stamina)", "ours_and_store", 0, None, "loaded early"),
    ),
)
GROUPS = (GROUP,)


def _import(modules: str) -> dict[str, float]:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    code = f"import sys, {modules}; print(sum(name in sys.modules for name in {LATER!r}))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": cpu, "loaded early": float(printed)}


@GROUP.case()
def nothing(bench: Bench) -> Iterator[Work]:
    """the interpreter alone"""
    yield lambda _: {"seconds": _import("os")["seconds"]}


@GROUP.case()
def sqlalchemy_and_pydantic(bench: Bench) -> Iterator[Work]:
    """sqlalchemy.orm and pydantic, BaseModel (which pydantic loads when first asked for)"""
    yield lambda _: {"seconds": _import("sqlalchemy.orm, pydantic; pydantic.BaseModel")["seconds"]}


@GROUP.case()
def ours(bench: Bench) -> Iterator[Work]:
    """consensus_orm, whose names are loaded when first asked for"""
    yield lambda _: {"seconds": _import("consensus_orm")["seconds"]}


@GROUP.case()
def ours_and_store(bench: Bench) -> Iterator[Work]:
    """consensus_orm, ConsensusStore: all that opening, writing and reading need"""
    yield lambda _: _import("consensus_orm; consensus_orm.ConsensusStore")


@GROUP.case()
def alembic(bench: Bench) -> Iterator[Work]:
    """alembic"""
    yield lambda _: {"seconds": _import("alembic.command")["seconds"]}
