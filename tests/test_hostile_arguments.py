"""Hostile arguments to everything public: one clear error each, nothing written, and the store works on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import consensus_orm
from consensus_orm import ConsensusError, ConsensusStore, ExecutionTracker, Phase, Settings, Store
from consensus_orm.consensus.declaration import CONSENSUS
from consensus_orm.errors import InvalidValueError
from consensus_orm.testing import artifact_values, spawn_values, synthesis_values, take_to
from tests.support.databases import Database, build_legacy
from tests.test_surface import SURFACE

pytestmark = pytest.mark.long

ODD: dict[str, Any] = {
    "None": None,
    "True": True,
    "negative": -1,
    "2**63": 2**63,
    "2**200": 2**200,
    "fraction": 1.5,
    "NaN": math.nan,
    "infinity": math.inf,
    "empty": "",
    "unknown": "nonesuch",
    "NUL": "a\0b",
    "surrogate": "a\ud800",
    "escaped": "\udcff",
    "long": "x" * 5000,
    "bytes": b"\xff",
    "object": object(),
    "numbers": [2**63],
    "texts": ["x"],
    "mapping": {"a": 1},
    "naive time": datetime(2025, 11, 4, 2, 23, 58),
    "longest": timedelta.max,
    "backwards": -timedelta(1),
    "error": ValueError("x"),
    "folder": Path("/"),
    "nowhere": Path("/nowhere/at/all.db"),
    "device": Path("/dev/null"),
}

NO_TIME = timedelta(0)
SETTINGS = Settings(
    soak_dual_write=NO_TIME, soak_cutover=NO_TIME, soak_normalized=NO_TIME, chunk_pause=NO_TIME, retry_attempts=1
)
ROW = {"spec_id": "S", "stage": "s", "agent_name": "a", "content_json": "{}", "created_at": "2025-11-04 02:23:58"}
ROUND: dict[str, Any] = {"spec_id": "S", "stage": "s", "run_id": "r"}
STAGE = {"spec_id": "S", "stage": "s"}
SOME: dict[str, Any] = {"limit": 1, "newest_first": True}
PAGE: dict[str, Any] = {"limit": 1, "after": 1, "oldest_first": True}
SYNTHESIS = synthesis_values() | {
    "output_path": "p",
    "artifacts_count": 1,
    "agreements": "a",
    "conflicts": "c",
    "degraded": False,
    "run_id": "r",
}
AGENT = {"agent_id": "agent"}
RESTORE = Path("/nowhere/backup.db")

VALID: dict[str, dict[str, dict[str, Any]]] = {
    "Artifacts": {
        "add": artifact_values() | {"run_id": "r", "response_text": "t", "model_version": "m", "created_at": None},
        "add_many": {"rows": [artifact_values()]},
        "update": {"id": 1} | artifact_values() | {"run_id": "r", "response_text": "t", "model_version": "m"},
        "get": {"id": 1},
        "get_many": {"ids": [1]},
        "exists": {"id": 1},
        "list": ROUND | {"agent_name": "a"} | PAGE,
        "iterate": ROUND | {"agent_name": "a", "oldest_first": True},
        "list_and_count": ROUND | {"agent_name": "a"} | PAGE,
        "count": ROUND | {"agent_name": "a"},
        "delete": {"id": 1, "spec_id": "S", "stage": "s"},
        "specs": {},
    },
    "Syntheses": {
        "add": SYNTHESIS | {"created_at": None},
        "put": SYNTHESIS | {"created_at": None},
        "update": {"id": 1} | SYNTHESIS,
        "get": {"id": 1},
        "get_many": {"ids": [1]},
        "exists": {"id": 1},
        "latest": {"spec_id": "S", "stage": "s"},
        "list": ROUND | PAGE,
        "iterate": ROUND | {"oldest_first": True},
        "list_and_count": ROUND | PAGE,
        "count": ROUND,
        "delete": {"id": 1, "spec_id": "S", "stage": "s"},
    },
    "Runs": {
        "list": STAGE | {"with_synthesis": True, "limit": 1, "after": None, "oldest_first": True},
        "iterate": STAGE | {"with_synthesis": True, "oldest_first": True},
        "latest": STAGE | {"with_synthesis": True},
    },
    "Executions": {
        "record_spawn": spawn_values() | {"run_id": "r", "branch_id": "b"},
        "record_completion": AGENT | {"response_text": "{}"},
        "record_extraction_failure": AGENT | {"raw_output": "", "error": "no JSON"},
        "get": AGENT,
        "get_many": {"agent_ids": ["agent"]},
        "exists": AGENT,
        "list": ROUND | {"agent_name": "a", "after": "agent"} | SOME,
        "iterate": ROUND | {"agent_name": "a", "newest_first": True},
        "list_and_count": ROUND | {"agent_name": "a", "after": "agent"} | SOME,
        "count": ROUND | {"agent_name": "a"},
        "delete": {"agent_id": "none"},
        "in_flight": {"spec_id": "S", "run_id": "r"} | SOME,
        "extraction_failures": {"spec_id": "S"} | SOME,
        "for_branch": STAGE | {"branch_id": "b"} | SOME,
        "cleanup": {"older_than": timedelta(1)},
    },
    "Repository": {
        "add": {"row": ROW},
        "add_many": {"rows": [ROW]},
        "update": {"key": 1, "values": {"agent_name": "b"}},
        "put": {"row": ROW},
        "delete": {"filters": {"spec_id": "none"}, "key": 1},
        "get": {"key": 1},
        "get_many": {"keys": [1]},
        "exists": {"key": 1},
        "rows": {"filters": {"spec_id": "S"}, "limit": 1, "oldest_first": False, "after": 1},
        "iterate": {"filters": {"spec_id": "S"}, "oldest_first": True},
        "list_and_count": {"filters": {"spec_id": "S"}, "limit": 1, "oldest_first": False, "after": 1},
        "count": {"filters": {"spec_id": "S"}},
        "distinct": {"field": "agent_name"},
    },
    "ConsensusUnitOfWork": {
        "on_commit": {"callback": lambda: None},
        "repository": {"move": "artifacts"},
        "model": {"move": "artifacts"},
    },
    "ExecutionTracker": {
        "spawn": AGENT | {"phase_type": "p", "agent_name": "a", "branch_id": "b"},
        "complete": AGENT | {"response_text": "{}"},
        "fail": AGENT | {"raw_output": "", "error": "no JSON"},
        "resync": {},
    },
    "Migration": {
        "status": {},
        "upgrade": {"progress": None, "rewrite": False, "protect": None},
        "backfill": {"progress": None, "workers": None},
        "verify": {"progress": None},
        "advance": {
            "to": "cutover",
            "reason": None,
            "force": False,
            "soak": True,
            "wait": None,
            "keep_tables": False,
            "progress": None,
        },
        "rollback": {"to": "expand", "reason": None, "progress": None},
        "migrate": {"to": "dual_write", "soak": True, "reason": None, "wait": None, "progress": None, "tell": None},
        "mismatches": {"everything": False},
        "rejects": {"everything": False},
        "images": {"everything": False},
        "mismatch": {"number": 1, "contents": False},
        "reject": {"number": 1, "contents": False},
        "image": {"number": 1, "contents": False},
        "reconcile": {
            "numbers": (),
            "table": None,
            "reason": None,
            "foreign": None,
            "rebuild": None,
            "dry_run": False,
            "progress": None,
        },
        "rehearse": {"keep": None, "writers": 0, "progress": None, "tell": None},
        "history": {},
        "check": {},
        "dependencies": {},
        "accept_dependencies": {"names": ["n"], "reason": "r"},
        "accept_reject": {"number": 1, "reason": "r"},
        "accept_rejects": {"numbers": [1], "table": None, "all_of": None, "reason": "r"},
        "resolve_reject": {"number": 1},
        "resolve_rejects": {"numbers": [1], "table": None, "all_of": None},
        "accept_mismatch": {"number": 1, "reason": "r"},
        "accept_mismatches": {"numbers": [1], "table": None, "reason": "r"},
        "control": {},
        "pause": {"reason": None},
        "resume": {"reason": None},
        "throttle": {"rows_per_second": 1000, "reason": None},
        "hold": {"reason": None},
        "release": {"reason": None},
        "restore_image": {"number": 1, "reason": "r"},
        "restore_images": {"numbers": [1], "reason": "r"},
        "backup_before": {"step": "contract", "progress": None},
        "finish_contract": {"reason": "r", "progress": None},
    },
    "Maintenance": {
        "stats": {},
        "vacuum": {"full": False, "progress": None},
        "schedule_vacuum": {"interval": timedelta(1)},
        "backup": {"path": Path("/nowhere/backup.db"), "overwrite": False, "progress": None},
        "leftovers": {},
        "close": {},
    },
    "Store": {"open": {"url": RESTORE, "moves": CONSENSUS, "settings": SETTINGS, "password": None}},
    "ConsensusStore": {
        "open": {"url": RESTORE, "settings": SETTINGS, "password": None},
        "unit_of_work": {"read_only": True, "exclusive": False},
        "run": {"work": lambda uow: None, "read_only": True, "exclusive": False, "cancel": None},
        "in_unit_of_work": {"work": lambda uow: None},
        "upgrade": {"progress": None, "rewrite": False, "protect": None},
        "pending_rewrite": {},
        "health": {},
        "copy_to": {"target": None, "reject": False, "finish": True, "lock": True, "progress": None},
        "close": {},
    },
    "functions": {
        "restore": {"backup": RESTORE, "url": RESTORE, "create": False, "settings": SETTINGS},
        "Settings": dict.fromkeys(set(Settings.model_fields) - {"clock"}),
        "Phase.parse": {"value": "cutover"},
    },
}
"""Each public call with arguments that it would take, but for the target of a copy; each in turn is then an odd one."""

STEPS = {"rehearse", "advance", "rollback", "migrate", "finish_contract"}
"""What takes any text for its reason, or makes the folder that it is given: `test_no_step_fails_for_its_reason`."""

WRITING = {"Migration", "ConsensusStore"}
"""Where an odd argument that is taken may have written something: True where False is usual."""


class _Undo(Exception):
    """Takes back what an accepted call wrote."""


def calls_of(owner: str, store: ConsensusStore) -> Iterator[tuple[str, str, str, Callable[[], object]]]:
    """Each call with one odd argument: its name, the argument, what is odd, and the call."""
    for name, valid in VALID[owner].items():
        for argument in valid:
            for what, odd in ODD.items():
                if odd is valid[argument]:
                    continue
                if name in STEPS and argument in ("reason", "keep") and isinstance(odd, str | Path):
                    continue
                yield name, argument, what, _call(owner, name, store, valid | {argument: odd})


def _call(owner: str, name: str, store: ConsensusStore, given: dict[str, Any]) -> Callable[[], object]:
    of_uow: dict[str, Callable[[Any], Any]] = {
        "Artifacts": lambda uow: uow.artifacts,
        "Syntheses": lambda uow: uow.syntheses,
        "Runs": lambda uow: uow.runs,
        "Executions": lambda uow: uow.executions,
        "Repository": lambda uow: uow.repository("artifacts"),
        "ConsensusUnitOfWork": lambda uow: uow,
    }
    if owner in of_uow:
        return lambda: _in_unit(store, lambda uow: getattr(of_uow[owner](uow), name)(**given))
    if owner == "ExecutionTracker":
        tracker = ExecutionTracker(spec_id="S", stage="s")
        return lambda: _in_unit(store, lambda uow: getattr(tracker, name)(uow, **given))
    if owner == "functions":
        call: Any = {"restore": consensus_orm.restore, "Settings": _settings, "Phase.parse": Phase.parse}[name]
        return lambda: call(**given)
    if name == "open":
        return lambda: (Store if owner == "Store" else ConsensusStore).open(**given).close()
    on: Any = {"Migration": store.migration, "Maintenance": store.maintenance, "ConsensusStore": store}[owner]
    return lambda: getattr(on, name)(**given)


def _settings(**given: Any) -> Settings:
    return Settings(**{name: value for name, value in given.items() if value is not None})


def _in_unit(store: ConsensusStore, work: Callable[[Any], object]) -> None:
    """Make a call in a unit of work that is committed where the call is refused: nothing may be left of it then."""
    refused: Exception | None = None
    try:
        with store.unit_of_work() as uow:
            try:
                work(uow)
            except Exception as error:
                refused = error
            else:
                raise _Undo
    except _Undo:
        return
    assert refused is not None
    raise refused


@pytest.fixture
def phase() -> Phase:
    """DUAL_WRITE, where nothing else is asked for: a write goes to both sides, and a step leads either way."""
    return Phase.DUAL_WRITE


@pytest.fixture
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder of its own: what is taken for a relative path makes files there, and none where the tests run."""
    here = Path.cwd()
    before = {path.name for path in here.iterdir()}
    monkeypatch.chdir(tmp_path)
    yield
    made = {path.name for path in here.iterdir()} - before
    assert not made & {str(odd) for odd in ODD.values()}


@pytest.fixture
def store(phase: Phase, new_database: Database, tmp_path: Path, _elsewhere: None) -> Iterator[ConsensusStore]:
    build_legacy(new_database.where)
    settings = SETTINGS.model_copy(update={"backup_dir": tmp_path})
    with ConsensusStore.open(new_database.where, settings=settings) as opened:
        take_to(opened, phase)
        with opened.unit_of_work() as uow:
            uow.executions.record_spawn(**spawn_values(agent_id="agent"))
        yield opened


WALKS = [
    (owner, phase)
    for owner in VALID
    for phase in (Phase.DUAL_WRITE, Phase.CONTRACT)
    if phase is Phase.DUAL_WRITE or owner != "functions"  # these know no phase
]


@pytest.mark.parametrize(("owner", "phase"), WALKS, ids=[f"{owner}-{phase.name}" for owner, phase in WALKS])
def test_an_odd_argument_is_refused_clearly(
    owner: str, phase: Phase, store: ConsensusStore, new_database: Database
) -> None:
    """What is raised is an error of the one tree, with a hint, whatever was given; the rows are what they were."""
    wrong: list[str] = []
    refused = 0
    for (name, argument), odd_calls in itertools.groupby(calls_of(owner, store), key=lambda found: found[:2]):
        # An argument that was taken may have stopped the steps, or led on, or back.
        for let_go in (store.migration.resume, store.migration.release, partial(store.migration.throttle, None)):
            let_go()
        take_to(store, phase)
        before = new_database.everything()
        for *_, what, call in odd_calls:
            try:
                call()
            except ConsensusError as error:
                refused += 1
                if not error.hint or not error.message or len(str(error)) > 1000:
                    wrong.append(f"{name}({argument}={what}): {type(error).__name__} says {str(error)[:80]!r}")
            except Exception as error:
                wrong.append(f"{name}({argument}={what}): {error!r:.120}")
            else:
                before = {} if owner in WRITING else before
        if before and new_database.everything() != before:
            wrong.append(f"{name}({argument}=...): it was refused, and something was written")
    assert wrong == []
    assert refused > 10
    with store.unit_of_work() as uow:
        added = uow.artifacts.add(**artifact_values())
    with store.unit_of_work(read_only=True) as uow:
        assert uow.artifacts.get(added.id) == added
    for stop in (Phase.DUAL_WRITE, phase):
        take_to(store, stop)
        assert store.migration.phase is stop
    if phase.compares:
        assert store.migration.verify().clean


def test_the_walk_leaves_no_method_out() -> None:
    """Whatever is public is walked over, with every argument that can be odd."""
    for owner, methods in SURFACE.items():
        if not owner.__name__.startswith("Async"):
            inherited = VALID["ConsensusStore"].keys() if owner is Store else ()  # each is walked over there
            assert methods.keys() <= VALID[owner.__name__].keys() | {"unit_of_work", *inherited}, owner
    for name, arguments in SURFACE[consensus_orm.migration.Migration].items():
        assert all(given in arguments for given in VALID["Migration"][name])


def test_a_call_that_does_not_match_is_a_type_error(store: ConsensusStore) -> None:
    """An argument that a method does not have, or that is missing, is Python's own TypeError."""
    for call in (
        lambda: store.migration.advance(nonesuch=1),  # type: ignore[call-arg]
        lambda: store.migration.mismatch(),  # type: ignore[call-arg]
        lambda: store.maintenance.backup(),  # type: ignore[call-arg]
        lambda: store.unit_of_work(1),  # type: ignore[call-arg, arg-type]
    ):
        with pytest.raises(TypeError, match="argument"):
            call()


@pytest.mark.parametrize("odd", [None, 1, "store", object()], ids=["nothing", "a number", "a text", "an object"])
def test_a_copy_wants_a_store(odd: Any, store: ConsensusStore) -> None:
    """What is no store is refused as target."""
    with pytest.raises(InvalidValueError, match="must be Store"):
        store.copy_to(odd)


@pytest.mark.parametrize("reason", ["a\0b", "a\ud800", "caf\udce9", "x" * 5000], ids=lambda reason: ascii(reason)[:20])
def test_no_step_fails_for_its_reason(reason: str, store: ConsensusStore, new_database: Database) -> None:
    """A reason in bytes that are no UTF-8, or with a NUL, is kept as text with escapes, and the step is taken."""
    assert store.migration.rollback(reason=reason) is Phase.EXPAND
    (kept,) = new_database.rows_of("SELECT reason FROM consensus_orm_history ORDER BY id DESC LIMIT 1")[0]
    assert kept == reason.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
    assert store.migration.history()[-1].reason == kept


def test_a_column_that_nobody_declared_is_not_lost(store: ConsensusStore) -> None:
    """A misspelled column of a row is refused by its name, where it would be left out."""
    with store.unit_of_work() as uow, pytest.raises(InvalidValueError, match="artifacts has no field 'contnt'"):
        uow.repository("artifacts").add({**ROW, "contnt": "{}"})
