"""The public surface: written down once, so that it changes only where somebody means it."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import consensus_orm
from consensus_orm import (
    AsyncConsensusStore,
    AsyncConsensusUnitOfWork,
    ConsensusStore,
    ConsensusUnitOfWork,
    ExecutionTracker,
    Phase,
    Store,
    copying,
    errors,
)
from consensus_orm.consensus.artifacts import Artifacts
from consensus_orm.consensus.executions import Executions
from consensus_orm.consensus.runs import Runs
from consensus_orm.consensus.syntheses import Syntheses
from consensus_orm.databases.maintenance import Maintenance
from consensus_orm.migration import Migration

NAMES = (
    "AgentOutput Artifact AsyncConsensusStore AsyncConsensusUnitOfWork AsyncStore AsyncUnitOfWork Computed"
    " ConsensusStore ConsensusUnitOfWork Convert Default Earliest EnumMap Execution ExecutionTracker Explode JsonItems"
    " Latest Many"
    " Move Moves OnMismatch Parent Part Phase Run Settings Side Split Store Synthesis __version__"
    " declare_tables include_object original owns restore"
)

SYNTHESIS = (
    "*, spec_id, stage, output_markdown, output_path=None, status, artifacts_count=None, agreements=None,"
    " conflicts=None, degraded=False, run_id=None, created_at=None"
)

STORE = {
    "unit_of_work": "*, read_only=False, exclusive=False",
    "run": "work, *, read_only=False, exclusive=False, cancel=None",
    "in_unit_of_work": "work",
    "upgrade": "progress=None, *, rewrite=False, protect=None",
    "pending_rewrite": "",
    "copy_to": "target, *, reject=False, finish=True, lock=True, progress=None",
    "health": "",
    "close": "",
}

SURFACE: dict[type, dict[str, str]] = {
    Store: {"open": "url, *, moves, settings=None, echo=False, password=None", **STORE},
    ConsensusStore: {"open": "url=None, *, settings=None, echo=False, moves=", **STORE},
    ConsensusUnitOfWork: {"on_commit": "callback", "model": "move", "repository": "move"},
    # Their repositories, migration and maintenance have the methods written below: see tests/asyncio.
    AsyncConsensusStore: {
        "open": "url=None, *, settings=None, echo=False, moves=",
        "unit_of_work": "*, read_only=False, exclusive=False",
        "run": "work, *, read_only=False, exclusive=False",
        "in_unit_of_work": "work",
        "upgrade": "progress=None, *, rewrite=False, protect=None",
        "pending_rewrite": "",
        "copy_to": "target, *, reject=False, finish=True, lock=True, progress=None",
        "health": "",
        "close": "",
    },
    AsyncConsensusUnitOfWork: {
        "model": "move",
        "on_commit": "callback",
        "repository": "move",
        "run_sync": "fn, args, kwargs",
    },
    Artifacts: {
        "add": "*, spec_id, stage, agent_name, content_json, response_text=None, run_id=None, model_version=None,"
        " created_at=None",
        "add_many": "rows",
        "update": "id, changes",
        "get": "id",
        "get_many": "ids",
        "exists": "id",
        "list": "*, spec_id=None, stage=None, run_id=None, agent_name=None, limit=None, after=None, oldest_first=False",
        "iterate": "*, spec_id=None, stage=None, run_id=None, agent_name=None, oldest_first=False",
        "list_and_count": "*, spec_id=None, stage=None, run_id=None, agent_name=None, limit=None, after=None,"
        " oldest_first=False",
        "count": "*, spec_id=None, stage=None, run_id=None, agent_name=None",
        "delete": "id=None, *, spec_id=None, stage=None",
        "specs": "",
    },
    Syntheses: {
        "add": SYNTHESIS,
        "put": SYNTHESIS,
        "update": "id, changes",
        "get": "id",
        "get_many": "ids",
        "exists": "id",
        "latest": "*, spec_id, stage",
        "list": "*, spec_id=None, stage=None, run_id=None, limit=None, after=None, oldest_first=False",
        "iterate": "*, spec_id=None, stage=None, run_id=None, oldest_first=False",
        "list_and_count": "*, spec_id=None, stage=None, run_id=None, limit=None, after=None, oldest_first=False",
        "count": "*, spec_id=None, stage=None, run_id=None",
        "delete": "id=None, *, spec_id=None, stage=None",
    },
    Runs: {
        "list": "*, spec_id=None, stage=None, with_synthesis=False, limit=None, after=None, oldest_first=False",
        "iterate": "*, spec_id=None, stage=None, with_synthesis=False, oldest_first=False",
        "latest": "*, spec_id, stage, with_synthesis=False",
    },
    Executions: {
        "record_spawn": "*, agent_id, spec_id, stage, phase_type, agent_name, run_id=None, branch_id=None",
        "record_completion": "agent_id, response_text",
        "record_extraction_failure": "agent_id, raw_output, error",
        "get": "agent_id",
        "get_many": "agent_ids",
        "exists": "agent_id",
        "list": "*, spec_id=None, stage=None, run_id=None, agent_name=None, limit=None, after=None, newest_first=False",
        "iterate": "*, spec_id=None, stage=None, run_id=None, agent_name=None, newest_first=False",
        "list_and_count": "*, spec_id=None, stage=None, run_id=None, agent_name=None, limit=None, after=None,"
        " newest_first=False",
        "count": "*, spec_id=None, stage=None, run_id=None, agent_name=None",
        "in_flight": "*, spec_id=None, run_id=None, limit=None, newest_first=False",
        "extraction_failures": "spec_id, *, limit=None, newest_first=False",
        "for_branch": "*, spec_id, stage, branch_id, limit=None, newest_first=False",
        "cleanup": "older_than",
        "delete": "agent_id",
    },
    Migration: {
        "status": "",
        "upgrade": "progress=None, *, rewrite=False, protect=None",
        "backfill": "progress=None, *, workers=None",
        "verify": "progress=None",
        "advance": "to=None, *, reason=None, force=False, soak=True, wait=None, keep_tables=False, progress=None",
        "rollback": "to=None, *, reason=None, progress=None",
        "migrate": "to=<Phase.CONTRACT: 5>, *, soak=True, reason=None, wait=None, progress=None, tell=None",
        "mismatches": "*, everything=False",
        "rejects": "*, everything=False",
        "images": "*, everything=False",
        "mismatch": "number, *, contents=False",
        "reject": "number, *, contents=False",
        "image": "number, *, contents=False",
        "reconcile": "numbers=(), *, table=None, reason=None, foreign=None, rebuild=None, dry_run=False, progress=None",
        "rehearse": "*, keep=None, writers=0, progress=None, tell=None",
        "history": "",
        "check": "",
        "dependencies": "",
        "accept_dependencies": "names, *, reason",
        "accept_reject": "number, *, reason",
        "accept_rejects": "numbers=(), *, table=None, all_of=None, reason",
        "resolve_reject": "number",
        "resolve_rejects": "numbers=(), *, table=None, all_of=None",
        "accept_mismatch": "number, *, reason",
        "accept_mismatches": "numbers=(), *, table=None, reason",
        "control": "",
        "pause": "*, reason=None",
        "resume": "*, reason=None",
        "throttle": "rows_per_second, *, reason=None",
        "hold": "*, reason=None",
        "release": "*, reason=None",
        "restore_image": "number, *, reason=None",
        "restore_images": "numbers, *, reason=None",
        "backup_before": "step, progress=None",
        "finish_contract": "*, reason, progress=None",
    },
    Maintenance: {
        "stats": "",
        "vacuum": "*, full=False, progress=None",
        "schedule_vacuum": "interval=datetime.timedelta(days=1)",
        "backup": "path, *, overwrite=False, progress=None",
        "leftovers": "",
        "close": "",
    },
    ExecutionTracker: {
        "spawn": "uow, *, agent_id, phase_type, agent_name, branch_id=None",
        "complete": "uow, agent_id, response_text",
        "fail": "uow, agent_id, raw_output, error",
        "resync": "uow",
    },
}
PROPERTIES = {
    ConsensusStore: "engine initial_phase maintenance migration path retrier settings telemetry",
    ConsensusUnitOfWork: "artifacts engine epoch executions now now_text phase prepared runs session syntheses",
    Migration: "phase",
    ExecutionTracker: "completed expected in_flight is_complete",
}


def spelled(method: Any) -> str:
    """The parameters of a method, as in its definition."""
    parameters = list(inspect.signature(method).parameters.values())
    words: list[str] = []
    keyword_only = False
    for parameter in parameters:
        if parameter.name in ("self", "cls"):
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            words, keyword_only = [*words, "*"], True
        default = "" if parameter.default is parameter.empty else f"={parameter.default!r}"
        words.append(parameter.name + default)
    return ", ".join(words)


def test_names_of_the_package() -> None:
    """What `consensus_orm` exports is what is written here, sorted, all errors, and there."""
    assert consensus_orm.__all__ == sorted(NAMES.split()) + errors.__all__
    assert all(hasattr(consensus_orm, name) for name in consensus_orm.__all__)


@pytest.mark.parametrize("owner", SURFACE, ids=lambda owner: owner.__name__)
def test_methods_and_their_arguments(owner: type) -> None:
    """Each public method has the arguments that are written here, and there is no other."""
    wanted = SURFACE[owner]
    found = [member for kind in owner.__mro__ if kind is not object for member in vars(kind).items()]
    public = {name for name, value in found if callable(value) or isinstance(value, classmethod)}
    inherited = {"on_commit"} & wanted.keys()
    assert {name for name in public if not name.startswith("_")} | inherited == set(wanted)
    for name, arguments in wanted.items():
        given = spelled(getattr(owner, name))
        assert given == arguments or (arguments.endswith("=") and given.startswith(arguments)), name
        assert inspect.getdoc(getattr(owner, name)), f"{name} has no docstring"


@pytest.mark.parametrize("owner", PROPERTIES, ids=lambda owner: owner.__name__)
def test_properties_are_there(owner: type) -> None:
    """Each public attribute that is written here exists on an instance."""
    with ConsensusStore.open(":memory:") as store, store.unit_of_work() as uow:
        tracker = ExecutionTracker(spec_id="S", stage="plan")
        (instance,) = [i for i in (store, uow, store.migration, tracker) if type(i) is owner]
        for name in PROPERTIES[owner].split():
            assert hasattr(type(instance), name) or name in vars(instance), name


def test_copy() -> None:
    """The function that copies a store has the arguments that are written here."""
    assert spelled(copying.copy) == "source, target, *, reject=False, finish=True, lock=True, progress=None"
    assert sorted(copying.__all__) == ["CopiedTable", "CopyReport", "Unfit", "copy"]


def test_restore() -> None:
    """The function that restores a backup has the arguments that are written here."""
    assert spelled(consensus_orm.restore).startswith("backup, url=None, *, create=False, settings=None, moves=")


def test_five_phases() -> None:
    """The phases have the names and numbers that are written down in databases."""
    assert {phase.name: phase.value for phase in Phase} == {
        "EXPAND": 1,
        "DUAL_WRITE": 2,
        "CUTOVER": 3,
        "NORMALIZED": 4,
        "CONTRACT": 5,
    }
