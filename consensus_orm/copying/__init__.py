"""Copies a store to another database of the same or another kind, in any phase; the source is only read.

The rows of a table are copied in the order of their keys, each chunk with its checkpoint, where a copy that was killed
continues. What is written to the source meanwhile is found by comparing ranges of keys, and the last pass reads one
snapshot. At the end every row of the target is compared with the source.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from sqlalchemy import PrimaryKeyConstraint, Table, UniqueConstraint

from consensus_orm import errors
from consensus_orm.copying.definitions import definitions
from consensus_orm.copying.finish import finish as finish_copy
from consensus_orm.copying.finish import remainder
from consensus_orm.copying.report import CopiedTable, CopyReport, Unfit
from consensus_orm.copying.source import Source, opened
from consensus_orm.copying.sweeps import Passes
from consensus_orm.copying.tables import Copied, inventory, normalized
from consensus_orm.copying.target import Target
from consensus_orm.formats import count
from consensus_orm.phase import Side
from consensus_orm.progress import Watch
from consensus_orm.unit_of_work.factory import UnitOfWorkFactory

__all__ = ["CopiedTable", "CopyReport", "Unfit", "copy"]

PASSES = 5
"""The highest number of passes before the last: under a steady writer there is always something that changed."""


def copy(
    source: UnitOfWorkFactory[Any],
    target: UnitOfWorkFactory[Any],
    *,
    reject: bool = False,
    finish: bool = True,
    lock: bool = True,
    progress: Watch = None,
) -> CopyReport:
    """Copy a database into another one, or continue an earlier call; see `Store.copy_to` for options and errors."""
    if _is_same(source, target):
        raise errors.ConfigurationError("source and target are the same database", hint="give two databases")
    with opened(source) as origin:
        return _Copy(origin, target, progress).run(reject=reject, finish=finish, lock=lock)


def _is_same(source: UnitOfWorkFactory[Any], target: UnitOfWorkFactory[Any]) -> bool:
    if source.path is not None and target.path is not None:
        return source.path.exists() and target.path.exists() and source.path.samefile(target.path)
    in_memory = source.engine.dialect.name == "sqlite" and source.path is None
    return source is target or (source.engine.url == target.engine.url and not in_memory)


class _Copy:
    def __init__(self, source: Source, target: UnitOfWorkFactory[Any], progress: Watch) -> None:
        self.started = time.monotonic()
        self.source = source
        self.progress = progress
        self.state = source.again(source.look)
        self.target = Target(target, source.name, self.state)
        self.tables = self._inventory()
        self.passes = self._passes()

    def _inventory(self) -> list[Copied]:
        extras = self.source.kind == self.target.kind == "sqlite"
        return inventory(
            self.source, prepared=self.state.prepared, unmapped=self.source.application.unmapped, extras=extras
        )

    def _passes(self) -> Passes:
        indexes = {table.name: _indexes(table) for table in self._known_tables()}
        return Passes(self.source, self.target.kind, self.tables, indexes, self.progress)

    def _known_tables(self) -> list[Table]:
        moves = self.source.statements.moves
        return [
            *normalized(moves),
            *(pair.legacy_table for pair in moves.of_tables(Side.LEGACY)),
            *self.source.application.unmapped,
        ]

    @property
    def shape(self) -> list[Any]:
        """The tables and the phase, which must stay the same until the copy is finished."""
        columns = [[table.name, *(field.name for field in table.fields)] for table in self.tables]
        return [self.state.prepared, self.state.phase.has_legacy, self.state.reversible, *columns]

    def run(self, *, reject: bool, finish: bool, lock: bool) -> CopyReport:
        begun = self.target.is_begun(self.shape)
        self.passes.run(None, "looking at ")
        self._require_fit(reject)
        if not begun:
            self.target.prepare(self.shape, definitions(self.source, self.state))
            self._make_room()
        self.passes = self._passes()
        mark = self._catch_up(reject)
        if not finish:
            return self._report(verified=0, locked=None, finished=False)
        with self.source.still(lock=lock) as lull:
            self._require_same_shape()
            self._last_pass(mark, reject)
            rest = remainder(
                self.source, self.state, self.tables, definitions(self.source, self.state), self.passes.unfit
            )
        verified = self.passes.verify(self.target)
        facts = {"from": self.source.name, "rows": {table.name: table.rows for table in self.passes.report()}}
        self.target.again(partial(finish_copy, self.target, self.source, rest, self.tables, facts))
        self.target.units.identity = self.target.again(self.target.units.inspect)
        return self._report(verified=verified, locked=lull.locked, finished=True)

    def _require_fit(self, reject: bool) -> None:
        found = self.passes.unfit
        if found and not reject:
            raise errors.CopyRefusedError(
                f"{count(len(found), 'row')} cannot be held by the target",
                hint="nothing more was copied; mend them, or leave them behind as rejects: --reject",
                rows=tuple(found),
            )

    def _make_room(self) -> None:
        unmapped = [table.name for table in self.source.application.unmapped]
        for table in self.tables:
            if table.name in unmapped:
                self.target.make_room(table)

    def _catch_up(self, reject: bool) -> Any:
        """Pass through the source until little is left for the last pass; returns its mark before the last of these."""
        mark = None
        for _ in range(PASSES):
            mark = self.source.mark()
            self._require_same_shape()
            self.passes.run(self.target)
            self._require_fit(reject)
            few = self.passes.changed <= self.source.settings.chunk_rows
            if not self.passes.postponed and (few or (mark is not None and mark == self.source.mark())):
                break
        return mark

    def _require_same_shape(self) -> None:
        before, self.state = self.shape, self.source.again(self.source.look)
        self.target.state = self.state
        tables, self.tables = self.tables, self._inventory()
        if self.shape != before:
            raise errors.CopyError(
                f"{self.source.name} was taken to another phase, or its tables were altered, while it was copied",
                hint="nothing is lost; copy again to an empty database",
            )
        self.tables = tables

    def _last_pass(self, mark: Any, reject: bool) -> None:
        if mark is not None and mark == self.source.mark() and not self.passes.postponed:
            return
        for _ in range(PASSES):
            self.passes.run(self.target)
            self._require_fit(reject)
            if not self.passes.postponed:
                return
        raise errors.CopyError("rows collide in the target that do not in the source", hint="look for its constraints")

    def _report(self, *, verified: int, locked: float | None, finished: bool) -> CopyReport:
        return CopyReport(
            source=self.source.name,
            target=self.target.units.name,
            phase=self.state.phase,
            finished=finished,
            tables=self.passes.report(),
            unfit=tuple(self.passes.unfit),
            passes=self.passes.done,
            verified=verified,
            locked=locked,
            seconds=time.monotonic() - self.started,
        )


def _indexes(table: Table) -> list[frozenset[str]]:
    """The columns of each index of a table."""
    together = [index.columns.keys() for index in table.indexes]
    together += [c.columns.keys() for c in table.constraints if isinstance(c, PrimaryKeyConstraint | UniqueConstraint)]
    return [frozenset(names) for names in together]
