"""The benchmarks run, skip loudly what is not installed, and notice what has become worse."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import main
from benchmarks.harness import Bench, Group, Measured, Spread, Target, Work, run
from benchmarks.report import as_json, worse
from benchmarks.suites import NAMES, groups_of
from benchmarks.suites.growth import OPERATIONS, growth_file
from consensus_orm import ConsensusStore
from consensus_orm.consensus.artifacts import Artifacts
from consensus_orm.consensus.executions import Executions
from consensus_orm.consensus.runs import Runs
from consensus_orm.consensus.syntheses import Syntheses
from consensus_orm.migration import Migration
from tests.support.documentation import ROOT

pytestmark = pytest.mark.long


def measured(seconds: dict[str, list[float]], *targets: Target) -> Measured:
    group = Group("work", unit="row", count=1, baseline="raw", targets=targets)

    def nothing(bench: Bench) -> Iterator[Work]:
        yield lambda round_: None

    for name in seconds:
        nothing.__name__ = nothing.__doc__ = name
        group.case()(nothing)
    return Measured(group, seconds, {name: [{} for _ in values] for name, values in seconds.items()})


def found(ours: list[float]) -> dict[str, Any]:
    raw = [1.0] * len(ours)
    return as_json([("writes", measured({"raw": raw, "ours": ours, "plain_orm": ours}))], {}, 1)


@pytest.mark.parametrize("suite", ["batches", "verify", "postgresql"])
def test_a_smoke_run_measures_our_own_cases(suite: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run of one round of a few operations prints targets and writes what it measured."""
    file = tmp_path / "run.json"
    arguments = [suite, "--rounds", "1", "--scale", "0.005", "--rows", "20", "--folder", str(tmp_path)]
    assert main([*arguments, "--json", str(file)]) == 0
    groups = json.loads(file.read_text())["groups"]
    assert len(groups) == len(groups_of(suite))
    for group in groups.values():
        assert group["baseline"] in group["cases"]
        assert all(target["measured"] is not None for target in group["targets"])
    assert "Targets" in capsys.readouterr().out
    assert not list(tmp_path.glob("benchmark-*"))


@pytest.mark.parametrize("suite", NAMES)
def test_targets_speak_of_cases_that_are_there(suite: str) -> None:
    """No target or baseline names a case that its group does not have, and every case has a label of its own."""
    for group in groups_of(suite):
        names = {case.name for case in group.cases}
        assert group.baseline in names
        assert {target.case for target in group.targets} | {t.than for t in group.targets if t.than} <= names
        assert len({case.label for case in group.cases}) == len(names) == len(group.cases)


STEPS = {"migrate", "rehearse", "backup_before", "finish_contract"}
"""Of the migration: these do what others do, on all rows; the suites backfill, verify and flips tell more of them."""

OF_AN_ENTRY = {"mismatch", "reject", "image", "accept_reject", "accept_rejects", "resolve_reject", "restore_image"}
OF_AN_ENTRY |= {"accept_mismatch", "accept_mismatches", "accept_dependencies", "resolve_rejects", "restore_images"}
"""These look at entries of a ledger, which do not become more with the rows."""


def test_growth_is_measured_of_every_public_operation() -> None:
    """No method of a repository or of the migration is left out of the suite that says what a large file costs."""
    public = {
        f"{name}.{method}"
        for name, kind in {
            "artifacts": Artifacts,
            "syntheses": Syntheses,
            "runs": Runs,
            "executions": Executions,
            "migration": Migration,
        }.items()
        for method in dir(kind)
        if not method.startswith("_")
    }
    measured = {re.split("[ ,]", name)[0] for name in OPERATIONS}
    assert measured == public - {f"migration.{name}" for name in STEPS | OF_AN_ENTRY}


def test_what_growth_measures_is_done(tmp_path: Path) -> None:
    """Each operation of the suite runs in its order, as often as one likes, and does at least one thing."""
    with ConsensusStore.open(growth_file(tmp_path / "file.db", 40)) as store:
        for new, (name, operation) in enumerate([*OPERATIONS.items()] * 2, start=40):
            if operation.before is not None:
                operation.before(store, 30, new)
            assert operation.of(operation.work(store, 30, new), 40) >= 1, name


def test_a_missing_peer_is_skipped_loudly(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A case whose library cannot be imported is named with what to install; the others are measured."""
    group = Group("work", unit="row", count=1, baseline="raw")

    @group.case()
    def raw(bench: Bench) -> Iterator[Work]:
        """It is there."""
        yield lambda round_: None

    @group.case()
    def peer(bench: Bench) -> Iterator[Work]:
        """A peer."""
        raise ModuleNotFoundError("No module named 'peer'", name="peer")
        yield

    result = run(group, Bench(tmp_path), rounds=2)
    assert set(result.seconds) == {"raw"}
    assert "SKIPPED A peer.: peer is not installed; pip install" in capsys.readouterr().err


def test_worse_beyond_tolerance_and_spread_is_named() -> None:
    """A ratio half as large again counts as worse; so does only our own case, not that of a peer."""
    now, before = found([1.5, 1.52, 1.54]), found([1.0, 1.01, 1.02])
    (line,) = worse(now, before, 1.1)
    assert "ours" in line
    assert "was" in line
    assert worse(now, before, 1.6) == []


def test_many_rounds_know_their_median_better_than_few() -> None:
    """What is a third worse within quartiles that are as wide is a finding after many rounds, and none after three."""
    few, many = [0.8, 1.0, 1.2], [0.8, 1.0, 1.2] * 20
    assert worse(found([1.3 * each for each in few]), found(few), 1.25) == []
    assert len(worse(found([1.3 * each for each in many]), found(many), 1.25)) == 1


def test_ci_compares_every_case_of_ours_with_a_stored_ratio() -> None:
    """The stored ratios that CI compares with are those of the suite, measured with as many operations in a round."""
    stored = json.loads((ROOT / "benchmarks" / "results" / "ratios.json").read_text())
    cases = {f"ratios: {group.title}": {case.name for case in group.cases} for group in groups_of("ratios")}
    assert {title: set(group["cases"]) for title, group in stored["groups"].items()} == cases
    (check,) = (
        line for line in (ROOT / ".ci" / "run").read_text().splitlines() if "--check" in line and "benchmarks" in line
    )
    scale = "--scale 0.05"
    assert scale in check
    assert scale in stored["machine"]["command"]


def test_cpu_time_is_measured_of_the_cases_named(tmp_path: Path) -> None:
    """A group in CPU time keeps its cases with the targets on them, beside another baseline; a wait costs nothing."""
    group = measured({"raw": [], "ours": [], "peer": []}, Target("a", "ours", 1, "raw"), Target("b", "peer", 1, "raw"))

    @group.group.case()
    def waits(bench: Bench) -> Iterator[Work]:
        """It waits."""
        yield lambda round_: time.sleep(0.2)

    chosen = group.group.in_cpu_time("peer", "waits")
    assert ([case.name for case in chosen.cases], chosen.targets) == (["peer", "waits"], ())
    assert [each.text for each in group.group.in_cpu_time("raw", "ours").targets] == ["a"]
    assert run(chosen, Bench(tmp_path), rounds=1).seconds["waits"][0] < 0.1


@pytest.mark.parametrize(
    ("now", "before"),
    [
        ([1.05, 1.06, 1.07], [1.0, 1.01, 1.02]),  # within the tolerance
        ([1.0, 1.5, 2.0], [0.9, 1.2, 1.9]),  # within the spread
        ([0.5, 0.5, 0.5], [1.0, 1.0, 1.0]),  # better
    ],
)
def test_what_is_not_worse_passes(now: list[float], before: list[float]) -> None:
    """A ratio that moved less than tolerance or spread, or for the better, is no finding."""
    assert worse(found(now), found(before), 1.1) == []


def test_cases_of_one_run_alone_are_left_out() -> None:
    """A case or group that the earlier run does not have is compared with nothing."""
    assert worse(found([9.0, 9.0]), {"groups": {}}, 1.1) == []


def test_targets_compare_times_rates_and_extras() -> None:
    """A limit on times is an upper one, `at_least` compares rates, and of the longest the worst round counts."""
    times = Target("times", "ours", 2.0, than="raw")
    rates = Target("rates", "ours", 0.4, than="raw", at_least=True)
    longest = Target("longest", "ours", 5, extra="longest ms")
    result = measured({"raw": [1.0, 1.0], "ours": [2.0, 2.0]}, times, rates, longest)
    result.extras["ours"] = [{"longest ms": 1.0}, {"longest ms": 9.0}]
    spreads = [target.measured(result) for target in (times, rates, longest)]
    assert spreads == [Spread(2.0, 2.0, 2.0), Spread(0.5, 0.5, 0.5), Spread(9.0, 1.0, 9.0)]
    assert [target.met(s) for target, s in zip((times, rates, longest), spreads, strict=True) if s] == [
        True,
        True,
        False,
    ]
    assert Target("more rows", "ours", 3.0, than="raw", rows=10).verdict(spreads[0], 5) == "met, at 5 of 10 rows"
    assert times.verdict(Spread(1.9, 1.8, 2.1), 5) == "met, but the spread crosses the limit"
    assert Target("absent", "nobody", 1, than="raw").measured(result) is None
