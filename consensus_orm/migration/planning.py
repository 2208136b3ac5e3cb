"""The plan for rows whose sides differ: reconcile carries it out, and its preview shows the same plan.

Truth and shadow are the sides of the phase: reads are answered from the truth, and the shadow follows it.

| what was written by another program | what is done |
|---|---|
| nothing: the sides differ all the same | the shadow becomes what the truth says |
| the truth | the shadow follows |
| a row that only the shadow has | it is adopted: the truth gets it |
| the shadow, a row that the truth has or had (update, delete, move) | undecided, until the operator chooses |
| rows of one key inserted on both sides | the truth decides, the other row is a reject |

The choice is to *adopt*, so that the truth becomes what the shadow says, or to *repair*, so that the shadow becomes
what the truth says.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from consensus_orm import errors
from consensus_orm.declaration.keys import is_usable
from consensus_orm.declaration.move import Move
from consensus_orm.ledgers import changes, mismatches
from consensus_orm.ledgers.binding import Key, among, keys_of
from consensus_orm.ledgers.changes import Written
from consensus_orm.phase import Side
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["Action", "Choice", "Plan", "Undecided", "What", "Why", "differing", "plan_rows", "require_choice"]

Choice = Literal["adopt", "repair"] | None
"""What is done with writes of another program to the side that is not the truth; None leaves them as they are."""


def require_choice(choice: str | None) -> None:
    """Refuse a choice that does not exist.

    Raises:
        InvalidValueError: It does not.
    """
    if choice not in (None, "adopt", "repair"):
        raise errors.InvalidValueError(
            f"{choice!r:.40} is no choice for writes of other programs", hint="choose adopt or repair", field="foreign"
        )


class What(StrEnum):
    """What is done to a row on one side."""

    INSERT = "insert"
    OVERWRITE = "overwrite"
    DELETE = "delete"
    DERIVE = "derive"
    """Columns that follow from other columns, or from other rows, are computed again."""


class Why(StrEnum):
    """Why it is done."""

    DIFFERENT = "the sides differ, and no write of another program was noticed"
    MISSING = "only one side has it"
    KEPT = "it was deleted, and one side has kept it"
    DERIVED = "it does not follow from its rows"
    INSERTED = "another program inserted it"
    WRITTEN = "another program wrote it on the side that is read"
    ADOPTED = "another program wrote it on the side that is not read; taken over"
    REPAIRED = "another program wrote it on the side that is not read; repaired"
    TWICE = "both sides gave its id to different rows"

    @property
    def foreign(self) -> bool:
        """Whether a write of another program is the reason."""
        return self in (Why.INSERTED, Why.WRITTEN, Why.ADOPTED, Why.REPAIRED, Why.TWICE)


@dataclass(frozen=True)
class Action:
    """One thing that is done to one row.

    Attributes:
        pair: The pair, or the name of a parent table.
        key: The key of the row.
        what: What is done.
        side: The side that is written.
        why: Why.
    """

    pair: str
    key: Key
    what: What
    side: Side
    why: Why


@dataclass(frozen=True)
class Undecided:
    """A row that another program wrote on the side that is not the truth: the operator has to choose.

    Attributes:
        pair: The pair.
        key: The key of the row.
        side: The side that was written.
        did: What was done to it there: update, delete or insert.
    """

    pair: str
    key: Key
    side: Side
    did: str


@dataclass(frozen=True)
class _State:
    """How a row stands: on which sides it is, whether what is carried agrees, and whether what is computed does."""

    legacy: bool
    normalized: bool
    carried: bool
    computed: bool

    @property
    def agrees(self) -> bool:
        return (self.carried and self.computed) if self.legacy and self.normalized else not self.on_one_side

    @property
    def on_one_side(self) -> bool:
        return self.legacy is not self.normalized

    @property
    def conflict(self) -> bool:
        """Whether both sides have different rows."""
        return self.legacy and self.normalized and not self.carried

    def on(self, side: Side) -> bool:
        return self.legacy if side is Side.LEGACY else self.normalized


_NOWHERE = _State(legacy=False, normalized=False, carried=True, computed=True)


@dataclass
class Plan:
    """What is to be done about some rows of a pair.

    Attributes:
        pair: The pair.
        actions: What is done.
        undecided: What waits for a choice.
        settled: Keys of rows that agree by now.
        written: What was recorded of the rows.
    """

    pair: Move
    actions: list[Action] = field(default_factory=list)
    undecided: list[Undecided] = field(default_factory=list)
    settled: list[Key] = field(default_factory=list)
    written: dict[Key, Written] = field(default_factory=dict)


def plan_rows(uow: UnitOfWork, pair: Move, keys: Iterable[Key], choice: Choice) -> Plan:
    """Plan what is to be done about some rows; under the write lock where the plan is carried out."""
    wanted = [key for key in dict.fromkeys(keys) if is_usable(pair, key)]  # the others: `keyless`
    plan = Plan(pair, written=changes.of_rows(uow, pair, wanted))
    if not wanted:
        return plan
    states = _states(uow, pair, wanted)
    kept = mismatches.kept_on_one_side(uow, pair, wanted)
    never_adopted = set(keys_of(uow, uow.statements[pair].foreign_in_keys, among(wanted)))
    for key in wanted:
        state = states.get(key, _NOWHERE)
        written = plan.written.get(key, Written())
        if state.agrees:
            plan.settled.append(key)
            continue
        truth = uow.phase.truth
        source, why = _source(state, truth, written, choice, kept=key in kept, unknown=key in never_adopted)
        if source is None:
            plan.undecided.append(Undecided(pair.name, key, truth.other, _did(state, truth, written)))
        else:
            plan.actions.append(_action(pair, key, state, source, why))
    return plan


def _source(
    state: _State, truth: Side, written: Written, choice: Choice, *, kept: bool, unknown: bool
) -> tuple[Side | None, Why]:
    """The side whose row counts, and why; no side where the operator has to choose.

    Args:
        state: How the row stands.
        truth: The side that reads are answered from.
        written: What other programs did to it.
        choice: The choice of the operator.
        kept: Whether this package deleted it, and one side has kept it.
        unknown: Whether the normalized row is another program's, and was never adopted.
    """
    shadow = truth.other
    on_truth, on_shadow = written.ops[truth], written.ops[shadow]
    if not on_shadow:
        if on_truth:
            twice = unknown and shadow is Side.NORMALIZED and state.conflict
            return truth, Why.TWICE if twice else Why.WRITTEN
        if state.on(shadow) and state.on_one_side:
            return (truth, Why.KEPT) if kept else (shadow, Why.MISSING)
        return truth, Why.MISSING if state.on_one_side else Why.DIFFERENT
    if on_shadow[0] != "move" and not state.on(truth) and not on_truth and not kept:
        return shadow, Why.INSERTED
    if on_truth[:1] == on_shadow[:1] == ["insert"] and state.conflict:
        return truth, Why.TWICE
    if choice is None:
        return None, Why.DIFFERENT
    return (shadow, Why.ADOPTED) if choice == "adopt" else (truth, Why.REPAIRED)


def _action(pair: Move, key: Key, state: _State, source: Side, why: Why) -> Action:
    if not state.on_one_side and state.carried:
        return Action(pair.name, key, What.DERIVE, Side.NORMALIZED, why)
    what = What.OVERWRITE if not state.on_one_side else What.INSERT if state.on(source) else What.DELETE
    return Action(pair.name, key, what, source.other, why)


def _did(state: _State, truth: Side, written: Written) -> str:
    if not state.on(truth.other):
        return "delete"
    return "insert" if written.ops[truth.other][0] in ("insert", "move") and not state.on(truth) else "update"


def _states(uow: UnitOfWork, pair: Move, keys: list[Key]) -> dict[Key, _State]:
    """How rows stand; those that neither side has are left out."""
    of_legacy, lone = uow.statements[pair].both_sides
    parameters = among(keys)
    found = {
        key: _State(legacy=True, normalized=bool(there), carried=bool(carried), computed=bool(computed))
        for key, there, carried, computed in uow._rows(of_legacy, parameters)
    }
    for key in keys_of(uow, lone, parameters):
        found.setdefault(key, _State(legacy=False, normalized=True, carried=False, computed=False))
    return found


def differing(uow: UnitOfWork, pair: Move, keys: Iterable[Key]) -> list[Key]:
    """Those of some rows whose sides differ."""
    wanted = list(keys)
    states = _states(uow, pair, wanted) if wanted else {}
    return [key for key in wanted if not states.get(key, _NOWHERE).agrees]
