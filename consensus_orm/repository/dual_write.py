"""The dual write: writes the sides that the phase names, compares them, and reads the truth.

It knows moves, not tables, and values as the database stores them. The repositories stand on it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from sqlalchemy import String

from consensus_orm import errors
from consensus_orm import validation as check
from consensus_orm.databases.lock import Lock
from consensus_orm.declaration.keys import is_usable, require_usable
from consensus_orm.declaration.parts import Parent
from consensus_orm.declaration.row_keys import encoded
from consensus_orm.declaration.stored_types import as_stored
from consensus_orm.events import MismatchEvent
from consensus_orm.ledgers import changes, images, mismatches
from consensus_orm.ledgers.binding import among, keys_of
from consensus_orm.phase import Side
from consensus_orm.repository.carrying import ParentKey, go_ahead, parents_of, settle
from consensus_orm.repository.routed_reads import RoutedReads, Values, is_of_the_whole
from consensus_orm.settings import Isolation, OnMismatch
from consensus_orm.statements.parents import ParentStatements
from consensus_orm.statements.rendering import parameter, parent_parameter

__all__ = ["DualWrite", "Values"]

log = logging.getLogger("consensus_orm")

TOGETHER = 100
"""Rows that go to a server in one message, at most: over a way of 20 ms, 500 compared rows take 0.7 s, and one by
one they took 21 s (measured)."""

MESSAGE = 1_000_000
"""Characters and bytes of values after which a message ends: the driver keeps it in memory until the server has it."""


class DualWrite(RoutedReads):
    """The rows of one move within one unit of work.

    Args:
        uow: The unit of work.
        pair: The move.
    """

    # Writing --------------------------------------------------------------------------------------------

    def add(self, values: Values) -> Any:
        """Write one row to the sides of the phase, and compare them where there are two.

        Args:
            values: The row under its legacy column names; what is left out is NULL.

        Returns:
            Its key, the same on both sides.

        Raises:
            InvalidValueError: It is no moves, has a column that nobody declared, or a value that cannot be held.
            MismatchError: The sides differ and `ON_MISMATCH` is raise.
            StorageError: The source of truth could not be written.
        """
        return self._write_rows([self._checked(values)])[0]

    def _checked(self, values: Values) -> Values:
        """What a statement on a row binds, which can be written."""
        check.row(values, self.pair.fields)
        parameters = self._parameters(values)
        require_usable(self.pair, parameters["_key"])
        self.uow._connected.check(parameters)
        return parameters

    def _write_rows(self, rows: list[Values]) -> list[Any]:
        """Write some rows, with one trip to a server where it takes all of them; their keys."""
        self.uow._refuse_to_read_only()
        if (keys := self._insert_together(rows)) is not None:
            return keys
        keys = []
        for parameters in rows:
            keys.append(key := self._insert_alone(parameters))
            self.uow._note_written(self.pair, (key,), parameters.get("_read"))
        return keys

    def _insert_alone(self, parameters: Values) -> Any:
        if not self.uow.phase.writes_normalized:
            return self._insert_legacy(parameters)
        if self.uow.phase.writes_legacy:
            return self._insert_both(parameters)
        if parameters["_key"] is None and not self._draws_its_keys:
            parameters["_key"] = self.uow.catalog.key_to_give(self.uow, self.pair)
        return self._insert_normalized(parameters)

    def _parameters(self, values: Values) -> Values:
        """What a statement on a row binds: its key as one value, and its fields."""
        fields = {bound: values.get(name) for name, bound in self.sql.parameters.items()}
        return {"_key": self.pair.key_from(values)} | fields

    def check(self, values: Values) -> None:
        """Refuse values that the database cannot hold.

        Raises:
            InvalidValueError: There is one.
        """
        self.uow._connected.check(values)

    def add_many(self, rows: Iterable[Values]) -> list[Any]:
        """Write several rows, in order.

        Args:
            rows: What `add` takes, several times.

        Returns:
            Their keys, in the same order.

        Raises:
            InvalidValueError: As `add` does; or they are not several.
        """
        checked = [self._checked(row) for row in check.several("rows", rows)]
        return [key for group in _groups(checked) for key in self._write_rows(group)]

    def _insert_both(self, parameters: Values) -> Any:
        self._go_ahead(parameters)
        if parameters["_key"] is None:
            parameters["_key"] = self._next_key()
        key = parameters["_key"]
        # The normalized side first, in every phase: the legacy row then finds its equal, and the trigger that
        # looks for writers who know one side only stays silent.
        normalized = self._write(Side.NORMALIZED, key, partial(self._insert_unnoticed, Side.NORMALIZED, parameters))
        legacy = self._write(Side.LEGACY, key, partial(self._insert_unnoticed, Side.LEGACY, parameters))
        if not (normalized and legacy):
            self.uow.catalog.forget_row(self.uow, self.pair, key)  # a write of ours, which the truth alone has taken
        elif self.uow._execute(self.sql.compare, parameters).fetchone()[0] != 1:
            self._differs(key)
        else:
            parameters["_read"] = self._as_meant(parameters)
        return key

    def _as_meant(self, parameters: Values) -> tuple[Any, ...] | None:
        """The row that a read gives where it stands as meant; None if it may give another, or if no hook wants it."""
        row: list[Any] = []
        if not self.uow._tells_written or self.pair.given_back_names:  # a rule may give back what is only equal
            return None
        for name, kinds in self.sql.read_as_bound:
            value = parameters[name]
            if value is not None and (type(value) not in kinds or _has_surrogates(value)):
                return None
            row.append(value)
        return tuple(row)

    def _go_ahead(self, parameters: Values) -> None:
        """Let the shadow have the rows that a row refers to, where the backfill has not come to them."""
        shadow = self.uow.phase.truth.other
        for of in self.pair.references(shadow):
            fields = {name: parameters[bound] for name, bound in self.sql.parameters.items()}
            fields |= self.pair.key_values(parameters["_key"]) if parameters["_key"] is not None else {}
            named = encoded([fields.get(name) for name in of.columns[Side.LEGACY]])
            if is_usable(self.pair, named) and named != parameters["_key"]:
                self._write(shadow, parameters["_key"], partial(go_ahead, self.uow, self.pair, [named], shadow))

    @property
    def _draws_its_keys(self) -> bool:
        """Whether the normalized table gives keys by itself that no other move gives, too."""
        return self.pair.own_id is None and len(self.uow.statements.moves.sharing(self.pair, Side.LEGACY)) == 1

    def _next_key(self) -> Any:
        """The next id, above whatever either side has given; above the truth's where the other side is gone."""
        try:
            with self.uow._connected.attempt():
                key = self.uow._execute(self.sql.next_key).fetchone()[0]
        except errors.StorageError as error:
            if is_of_the_whole(error) or not self.uow._connected.in_transaction:
                raise
            key = self.uow.catalog.next_key_of(self.uow, self.pair, self.uow.phase.truth)
        if not is_usable(self.pair, key):  # above the largest integer SQLite goes on with a float
            raise errors.KeysUsedUpError(f"{self.pair.legacy_name} has given its last id", table=self.pair.legacy_name)
        return key

    def _insert_together(self, rows: list[Values]) -> list[Any] | None:
        """Write rows and compare them, with one trip to the server; None where that failed and left nothing behind."""
        write = self._in_one_statement(rows)
        if write is None:
            return None
        compares, wanted = self.uow.phase.compares, self.uow._tells_written
        if compares:
            self._go_ahead(rows[0])
        meant = [self._as_meant(row) if compares else None for row in rows]
        steps: list[tuple[str, Values]] = []
        for row, as_meant in zip(rows, meant, strict=True):
            steps.append((write, row))
            if compares:
                steps.append((self.sql.compare_written, row))
            if compares and wanted and as_meant is None:
                steps.append((self.sql.just_written(self.uow.phase.truth), {}))
        answers = self.uow._together(*steps)
        if answers is None:
            return None
        if None in answers:  # a trigger ignores a row, and others of the message may have been taken after it
            error = self._not_taken()
            self.uow._doom(error)
            raise error
        told = iter(answers)
        keys = []
        for row, as_meant in zip(rows, meant, strict=True):
            keys.append(key := self._written(row, as_meant, told))
            self.uow._note_written(self.pair, (key,), row.get("_read"))
        return keys

    def _in_one_statement(self, rows: list[Values]) -> str | None:
        """The statement that writes a row to the sides of the phase; None where it takes several, or knows the key."""
        phase = self.uow.phase
        if any(row["_key"] is not None for row in rows):
            return None
        if not phase.writes_legacy:
            return self.sql.write_normalized if self._draws_its_keys else None
        if phase.writes_normalized:
            refers = len(rows) > 1 and self.pair.references(phase.truth.other)  # a row may refer to one of the others
            return None if refers else self.sql.write_both
        saves_trips = len(rows) > 1 and self.sql.write_both is not None
        return self.sql.insert_legacy(keyed=False) if saves_trips else None

    def _written(self, parameters: Values, meant: tuple[Any, ...] | None, told: Iterator[Any]) -> Any:
        """What the server told of a row: record where its sides differ; returns its key."""
        parameters["_key"], *parents = next(told)
        key = parameters["_key"]
        agreeing = next(told)[0] if self.uow.phase.compares else 1
        if self.uow.phase.compares and self.uow._tells_written and meant is None:
            read = next(told)
            parameters["_read"] = read if read and self.pair.key_of_row(read) == key else None
        if parents and any(of.depends_on(self.pair.name) for of in self.pair.parents):
            refresh = partial(self._refresh, {(of.table.name, parents[0]) for of in self.pair.parents})
            if not self._write(Side.NORMALIZED, key, refresh):  # somebody took away what it follows from
                return key
        # A trigger may have drawn an id meanwhile: then it was another row that was compared.
        if agreeing != 1 and self.uow._execute(self.sql.compare, parameters).fetchone()[0] != 1:
            self._differs(key)
        elif meant is not None:
            parameters["_read"] = (key, *meant[1:])
        return key

    def _write(self, side: Side, key: Any, write: Callable[[], object]) -> bool:
        """Write one of two sides; the failure of the one that is not the truth takes no write with it (rule 6)."""
        try:
            if side is self.uow.phase.truth:
                write()
            else:
                with self.uow._connected.attempt():
                    write()
        except errors.StorageError as error:
            if not self.uow.phase.compares:
                raise
            whole = is_of_the_whole(error) or not self.uow._connected.in_transaction
            if side is self.uow.phase.truth or whole:
                self.uow._doom(error)  # the other side may have taken its half
                raise
            self._mismatch(key, [(None, mismatches.SHADOW_FAILED)], error)
            return False
        return True

    def _insert_legacy(self, parameters: Values) -> Any:
        return self._insert(self.sql.insert_legacy(keyed=parameters["_key"] is not None), parameters)

    def _insert(self, sql: str, parameters: Values) -> Any:
        try:
            row = self.uow._execute(sql, parameters).fetchone()
        except errors.DatabaseFullError as error:
            if (table := self.uow.catalog.used_up(self.uow)) is None:
                raise
            raise errors.KeysUsedUpError(f"{table} has given its last id", table=table) from error
        if row is None:
            raise self._not_taken()
        return row[0]

    def _not_taken(self) -> errors.StorageError:
        return errors.StorageError(
            f"a row of {self.pair.name} was not taken", hint="a trigger of another program ignores it"
        )

    def _insert_normalized(self, parameters: Values) -> Any:
        insert = self.sql.insert_normalized(keyed=parameters["_key"] is not None)
        parents = self._find_parents(parameters)
        try:
            key = self._insert(insert, parameters)
        except errors.StorageError:
            if self.uow._connected.in_transaction:  # a parent lives only as long as it has a row
                self._execute_on_parents(lambda of: of.prune, parents)
            raise
        self._refresh(parents)
        self._write_beside(key, parameters)
        self._require_given_back(key, parameters)
        return key

    def _require_given_back(self, key: Any, parameters: Values) -> None:
        """Refuse a row of which the truth would keep less than was given; elsewhere the comparison shows it."""
        if self.sql.given_back is None or self.uow.phase.truth is not Side.NORMALIZED:
            return
        agree = self.uow._execute(self.sql.given_back, {**parameters, "_key": key}).fetchone()
        lost = [name for name, whole in zip(self.pair.given_back_names, agree, strict=True) if not whole]
        if lost:
            error = errors.InvalidValueError(
                f"the normalized side has no word for this value of {lost[0]}",
                hint="give a value that the rule of the move can give back",
                field=lost[0],
            )
            self.uow._doom(error)
            raise error

    def _insert_unnoticed(self, side: Side, parameters: Values) -> None:
        with self.uow.catalog.unnoticed(self.uow, self.pair, side):
            if side is Side.NORMALIZED:
                self._insert_normalized(parameters)
            else:
                self._insert_legacy(parameters)

    def _write_beside(self, key: Any, parameters: Values) -> None:
        """Write what stands beside a normalized row: its kept original, and its parts."""
        for statement in (*self.sql.keep_original, *self.sql.write_parts):
            self.uow._execute(statement, {**parameters, "_key": key})

    def _find_parents(self, parameters: Values) -> set[ParentKey]:
        """Find or make the parents of a row, and bind their keys."""
        found: set[ParentKey] = set()
        for parent in self.pair.parents:
            parameters[parent_parameter(parent)] = key = self._find_parent(parent, parameters)
            found |= set() if key is None else {(parent.table.name, key)}
        return found

    def _find_parent(self, parent: Parent, parameters: Values) -> Any:
        has_parent = self.sql.has_parent(parent)
        if has_parent is not None and not self.uow._execute(has_parent, parameters).fetchone()[0]:
            return None
        for statement in self.sql.make_parents_alone(parent):
            self.uow._execute(statement, parameters)
        found = self.uow._execute(self.sql.find_parent(parent), parameters).fetchone()
        if found is None:
            return self._insert(self.sql.insert_parent(parent), parameters)
        key, earlier = found
        if earlier:
            self.uow._execute(self.sql.make_earlier(parent), {**parameters, parent_parameter(parent): key})
        return key

    def update(self, key: Any, changed: Values, storable: Callable[[str, Any], Any] = lambda _, value: value) -> bool:
        """Let a row that is there hold other values, on the sides of the phase, and compare them.

        Args:
            key: Its key.
            changed: What changes, under legacy column names.
            storable: Makes of a value that was read from a column what is written to it again.

        Returns:
            Whether the source of truth has a row of that key.

        Raises:
            InvalidValueError: As `add` does.
            MismatchError: The sides differ and `ON_MISMATCH` is raise.
            StorageError: The source of truth could not be written.
        """
        check.row(changed, self.pair.fields)
        self.uow._refuse_to_read_only()
        require_usable(self.pair, key)
        self.uow._connected.check({**changed, "_key": key})
        self._lock(key)
        present = self._present(key)
        if present is None:
            return False
        self.uow._note_written(self.pair, (key,))
        values = {name: storable(name, value) for name, value in present.items()} | changed
        return self._storing(values)._change(key, values)

    def _change(self, key: Any, values: Values) -> bool:
        phase = self.uow.phase
        parameters = self._parameters(values)
        if not phase.writes_normalized:
            return self._update_legacy(parameters)
        if not phase.writes_legacy:
            return self._update_normalized(parameters)
        self.keep_foreign({key}, "a unit of work changed it")
        self._go_ahead(parameters)
        mark = self.uow.catalog.last_change(self.uow)
        found: dict[Side, bool] = {}
        for side, update in ((Side.NORMALIZED, self._update_normalized), (Side.LEGACY, self._update_legacy)):
            self._write(side, key, partial(self._note_found, found, side, update, parameters))
        self.uow.catalog.forget_changes(self.uow, after=mark)  # the triggers saw one side at a time
        is_carried = phase.truth is Side.NORMALIZED or found.get(Side.NORMALIZED, True)
        is_on_both = len(found) == len(Side) and any(found.values()) and is_carried
        if is_on_both and self.uow._execute(self.sql.compare, parameters).fetchone()[0] != 1:
            self._differs(key)
        return found[phase.truth]

    def _lock(self, key: Any) -> None:
        """Keep others from changing a row before it is read: what they write meanwhile would be overwritten."""
        if self.uow.catalog.others_write_meanwhile:
            values = self.pair.key_values(key)
            locked = self.sql.keys(self.uow.phase.truth, tuple(values))
            self.uow._rows(locked, {parameter(name): value for name, value in values.items()})

    def _present(self, key: Any) -> Values | None:
        """The row as the truth has it, with what the normalized side alone keeps."""
        found = self.get(key)
        if found is None:
            return None
        row = dict(zip(self.pair.fields, found, strict=True))
        phase = self.uow.phase
        if self.pair.kept and phase.writes_normalized and phase.truth is Side.LEGACY:
            for shadow in self.uow._rows(self.sql.get(Side.NORMALIZED), {"_key": key}):
                row |= {of.key: value for of, value in zip(self.pair.kept, shadow[-len(self.pair.kept) :], strict=True)}
        return row

    @staticmethod
    def _note_found(found: dict[Side, bool], side: Side, update: Callable[[Values], bool], parameters: Values) -> None:
        found[side] = update(parameters)

    def _update_legacy(self, parameters: Values) -> bool:
        return self.uow._execute(self.sql.update_legacy, parameters).rowcount == 1

    def _update_normalized(self, parameters: Values) -> bool:
        """Change the normalized row; one that the backfill has not come to is left to it."""
        key, parents = parameters["_key"], set[ParentKey]()
        if self.pair.parents:
            if not self.uow._rows(self.sql.present(Side.NORMALIZED), among([key])):
                return False
            parents = parents_of(self.uow, self.pair, [key]) | self._find_parents(parameters)
        is_there = self.uow._execute(self.sql.update_normalized, parameters).rowcount == 1
        if is_there:
            self._write_beside(key, parameters)
            self._require_given_back(key, parameters)
        settle(self.uow, self._parents, parents)
        return is_there

    def delete(self, filters: Values) -> int:
        """Delete rows from both sides.

        Args:
            filters: Legacy column names and the values that the rows to delete have.

        Returns:
            How many rows the source of truth lost.

        Raises:
            InvalidValueError: A value that the database cannot hold: it would take it for that of other rows.
        """
        self.uow._connected.check(filters)
        self.uow._refuse_to_read_only()
        phase = self.uow.phase
        sides = self._written_sides()
        parameters = {parameter(name): value for name, value in filters.items()}
        if len(sides) == 2:
            self.uow._connected.hold(Lock.CARRY)  # a row being carried meanwhile would come back
        found: dict[Side, set[Any]] = {}
        for side in list(sides):
            if not self._write(side, None, partial(self._find, found, side, filters, parameters)):
                sides.remove(side)  # its table is gone; what it held must not come back with it
        if len(sides) == 2:
            self._leave_to_truth(found)
            self._meet_carriers(found)
        self._delete_keys(set().union(*found.values()), sides)
        return len(found[phase.truth])

    def _written_sides(self) -> list[Side]:
        """The sides of the phase, the truth last: what is committed between two looks is on both, and counted."""
        sides = [side for side, written in _sides(self.uow.phase) if written]
        return sorted(sides, key=lambda side: side is self.uow.phase.truth)

    def _delete_keys(self, wanted: set[Any], sides: list[Side]) -> None:
        """Delete rows from some sides, the truth being the last, and keep account of what stays behind."""
        phase = self.uow.phase
        self.uow._note_written(self.pair, wanted)
        if phase.compares:
            self.keep_foreign(wanted, "a unit of work deleted it")
        keys = json.dumps(list(wanted))
        mark = self.uow.catalog.last_change(self.uow)
        if Side.NORMALIZED in sides:
            self._write(Side.NORMALIZED, None, lambda: self._delete_normalized(keys))
        if Side.LEGACY in sides:
            self._write(Side.LEGACY, None, partial(self._delete_rows, Side.LEGACY, keys))
        if not phase.compares:
            return
        if len(sides) == 1:
            for key in wanted:
                self._mismatch(key, [(None, mismatches.NOT_DELETED)])
        self.uow.catalog.forget_changes(self.uow, after=mark)  # the triggers saw one side at a time
        for side in sides:
            for (key,) in self.uow._rows(self.sql.present(side), {"_keys": keys}):
                self._mismatch(key, [(None, mismatches.NOT_DELETED)])

    def replace(self, values: Values, why: str) -> None:
        """Write a row in the place of the one that has its key, if there is one, which is kept as an image.

        Args:
            values: The row under its legacy column names, as the database is to store it: bytes stay bytes.
            why: The cause that the image is kept with; no contents.

        Raises:
            MismatchError: The sides differ and `ON_MISMATCH` is raise.
            StorageError: The source of truth could not be written.
        """
        self.uow._refuse_to_read_only()
        keys = {self.pair.key_from(values)}
        if self.uow.phase.compares:
            changes.forget(self.uow, changes.of_rows(self.uow, self.pair, keys).values())
            mismatches.settle(self.uow, self.pair, keys, "repaired", why)
        self._keep_both(keys, why)
        key = self.pair.key_from(values)
        if self.pair.references(self.uow.phase.truth) and self.uow._rows(
            self.sql.present(self.uow.phase.truth), among(keys)
        ):  # other rows may refer to the one that is there
            self._storing(values)._change(key, values)
            return
        self._delete_keys(keys, self._written_sides())
        self._storing(values).add(values)

    def _storing(self, values: Values) -> DualWrite:
        """The rows of this move, where a value of a row stays a text, or none, whatever the type of its column is.

        A text that is not valid UTF-8 is bound as bytes, and cast to text where it is stored.
        """
        types = {name: self.pair.type_of(name) for name in self.pair.columns}
        types |= {of.key: of.type for of in self.pair.kept}
        odd: dict[str, bool] = {}
        for name, type_ in types.items():
            value = values.get(name)
            if isinstance(as_stored(type_, self.sql.rendering.name), String):
                odd |= {} if isinstance(value, str | None) else {name: False}
            elif _has_surrogates(value):
                odd[name] = True
        exact = DualWrite(self.uow, self.pair)
        exact.sql = self.sql.storing(odd)
        return exact

    def _keep_both(self, keys: set[Any], why: str) -> None:
        """Keep rows as the truth has them, and as the other side has them where it differs."""
        phase = self.uow.phase
        images.keep(self.uow, self.pair, keys, phase.truth, why)
        if phase.compares:
            differing = {key for key in keys if mismatches.differences(self.uow, self.pair, key)}
            images.keep(self.uow, self.pair, differing, phase.truth.other, why)

    def _leave_to_truth(self, found: dict[Side, set[Any]]) -> None:
        """Leave rows alone that only look as asked for on the side that is not the truth: another program wrote it."""
        truth = self.uow.phase.truth
        if extra := found[truth.other] - found[truth]:
            there = self.uow._rows(self.sql.present(truth), {"_keys": json.dumps(list(extra))})
            found[truth.other] -= {key for (key,) in there}

    def keep_foreign(self, keys: set[Any], why: str) -> None:
        """Keep what another program wrote to rows that a unit of work decides on; with it nothing is left to decide."""
        written = changes.of_rows(self.uow, self.pair, keys)
        shadow = self.uow.phase.truth.other
        if foreign := [key for key, each in written.items() if each.ops[shadow]]:
            images.keep(self.uow, self.pair, foreign, shadow, why)
        if changes.forget(self.uow, written.values()):
            mismatches.settle(self.uow, self.pair, written, "repaired", why)

    def _meet_carriers(self, found: dict[Side, set[Any]]) -> None:
        """Let rows that were carried since this unit of work began be noticed where it cannot see them.

        At SERIALIZABLE it sees one moment, and that may lie before the one in which it was alone among carriers.
        A row that seems to stand on one side is put on the other: where it stands there already, that fails with an
        error that may be tried again.

        Raises:
            DatabaseBusyError: A row was carried meanwhile.
        """
        sees_one_moment = self.uow.settings.isolation is Isolation.SERIALIZABLE
        if not sees_one_moment or not self.uow.catalog.others_write_meanwhile:
            return
        for side, statements in (
            (Side.NORMALIZED, self.sql.overwrite_normalized),
            (Side.LEGACY, (self.sql.overwrite_legacy,)),
        ):
            if not (missing := found[side.other] - found[side]):
                continue
            try:
                with self.uow._connected.attempt():
                    for statement in statements:
                        self.uow._execute(statement, {"_keys": json.dumps(list(missing))})
            except errors.StorageError as error:
                if is_of_the_whole(error) or not self.uow._connected.in_transaction:
                    raise

    def _find(self, found: dict[Side, set[Any]], side: Side, filters: Values, parameters: Values) -> None:
        empty = frozenset(name for name, value in filters.items() if value is None)
        found[side] = {key for (key,) in self.uow._rows(self.sql.keys(side, tuple(filters), empty), parameters)}
        if found[side] and (cascaded := self.sql.cascaded(side)) is not None:
            found[side] |= set(keys_of(self.uow, cascaded, among(found[side])))

    def _delete_normalized(self, keys: str) -> None:
        parents = parents_of(self.uow, self.pair, json.loads(keys))
        self._delete_rows(Side.NORMALIZED, keys)
        settle(self.uow, self._parents, parents)

    def _delete_rows(self, side: Side, keys: str) -> None:
        for statement in self.sql.delete(side):
            self.uow._execute(statement, {"_keys": keys})

    @property
    def _parents(self) -> tuple[ParentStatements, ...]:
        return self.uow.statements.of_parents(self.pair)

    def _refresh(self, parents: set[ParentKey]) -> None:
        """Derive again what follows from the newest row of some parents."""
        self._execute_on_parents(lambda of: of.refresh if of.parent.depends_on(self.pair.name) else "", parents)

    def _execute_on_parents(self, sql: Callable[[ParentStatements], str], parents: set[ParentKey]) -> None:
        for of in self._parents if parents else ():
            keys = [key for table, key in parents if table == of.parent.table.name]
            if keys and (statement := sql(of)):
                self.uow._execute(statement, among(keys))

    # Mismatches -----------------------------------------------------------------------------------------

    def _differs(self, key: Any) -> None:
        """Tell what differs in a row just written. The transaction holds the lock, so it is confirmed."""
        # What a trigger of somebody else did to the row is no write of another program: the truth decides.
        self.uow.catalog.forget_row(self.uow, self.pair, key)
        self._mismatch(key, mismatches.differences(self.uow, self.pair, key) or [(None, "not_as_meant")])

    def _mismatch(self, key: Any, found: list[tuple[str | None, str]], cause: BaseException | None = None) -> None:
        if self.uow.settings.on_mismatch is OnMismatch.RAISE:
            for column, kind in found:
                self.uow._tell(MismatchEvent(self.pair.name, key, column, kind, "write", recorded=False))
            error = errors.MismatchError(
                f"{self.pair.name} {key}: " + ", ".join(f"{c or 'row'} {kind}" for c, kind in found),
                pair=self.pair.name,
                key=key,
                columns=[column for column, _ in found],
            )
            self.uow._doom(error)
            raise error from cause
        for column, kind in found:
            mismatches.record(self.uow, self.pair, key, column, kind, found_by="write")


def _groups(rows: Iterable[Values]) -> Iterator[list[Values]]:
    """The rows, in order, in groups that each make one message."""
    group, size = list[Values](), 0
    for row in rows:
        length = sum(len(value) for value in row.values() if isinstance(value, str | bytes))
        if group and (len(group) == TOGETHER or size + length > MESSAGE):
            yield group
            group, size = [], 0
        group.append(row)
        size += length
    if group:
        yield group


def _has_surrogates(value: Any) -> bool:
    """Whether a value is a text that UTF-8 cannot encode, so that it is bound as bytes."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return True
    return False


def _sides(phase: Any) -> list[tuple[Side, bool]]:
    return [(Side.LEGACY, phase.writes_legacy), (Side.NORMALIZED, phase.writes_normalized)]
