"""The comparison with an external store: the full listings of both sides, and the certificate of what was seen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from sqlalchemy import bindparam, insert, select

from consensus_orm import errors
from consensus_orm._version import __version__
from consensus_orm.databases.base import Transaction
from consensus_orm.declaration.attributes import table_of
from consensus_orm.external import findings, importing, outbox, rows, state
from consensus_orm.external.canonical import digest, name_of, row_named
from consensus_orm.external.findings import ascii_name
from consensus_orm.external.sink import Sink
from consensus_orm.ledgers.binding import milliseconds
from consensus_orm.models.external import SinkCertificate
from consensus_orm.store import Store
from consensus_orm.unit_of_work.unit import UnitOfWork

__all__ = ["Certificate", "ComparisonReport", "Difference", "compare", "newest_certificate"]


@dataclass(frozen=True, slots=True)
class Difference:
    """A difference from an external store; of `kind` as in `SinkFinding.kind`."""

    kind: str
    item: str
    pair: str | None
    key: Any


@dataclass(frozen=True)
class ComparisonReport:
    """What a comparison saw.

    Attributes:
        rows: Rows of the database.
        items: Entries that the external store listed.
        imported: Entries among them from which a row came in, or that were accepted as no rows, unchanged since.
        in_flight: Rows that were written or sent meanwhile; each is read back when it is sent.
        differences: What differs.
        provable: Whether the external store can be relied on to list everything under exact names.
        lacking: What it lacks for that.
    """

    rows: int
    items: int
    imported: int
    in_flight: int
    differences: tuple[Difference, ...]
    provable: bool
    lacking: tuple[str, ...]

    @property
    def clean(self) -> bool:
        """Whether the comparison proves that both sides are equal."""
        return self.provable and not self.differences


class Certificate(NamedTuple):
    """The columns of `models.external.SinkCertificate`."""

    id: int
    sink: str
    at: int
    build: str
    mapping: str
    epoch: int
    sequence: int
    provable: bool
    rows: int
    items: int
    in_flight: int
    differences: int
    last_finding: int


_COLUMNS = [table_of(SinkCertificate).c[name] for name in Certificate._fields]
_NEWEST = (
    select(*_COLUMNS).where(SinkCertificate.sink == bindparam("of_sink")).order_by(SinkCertificate.id.desc()).limit(1)
)
_ADD = insert(SinkCertificate).inline().values({name: bindparam(name) for name in Certificate._fields[1:]})


def newest_certificate(uow: Transaction, sink: str) -> Certificate | None:
    """What the newest comparison with an external store saw; None where there was none."""
    found = uow._rows(_NEWEST, {"of_sink": sink})
    return Certificate(*found[0]) if found else None


class _Begun(NamedTuple):
    """What the database said before the first entry was listed."""

    sequence: int
    touched: set[tuple[str, Any]]
    state: state.State
    imported: dict[str, str]
    accepted: set[tuple[str, str]]


def compare(store: Store[Any], sink: Sink) -> ComparisonReport:
    """Compare all rows with all entries, keep what differs as findings, and write a certificate.

    Args:
        store: The store whose rows are compared.
        sink: The external store.
    """
    begun = store._units.look(partial(_begin, sink=sink.name))
    listed: dict[str, str] = {}
    found: list[Difference] = []
    items = 0
    for item in importing.every_item(sink):
        items += 1
        if item.name in listed:
            found.append(_difference(store, "duplicate", item.name))
        listed[item.name] = digest(item.content)
    count = 0
    for name, pair, key, content in _rows(store):
        count += 1
        there = listed.pop(name, None)
        if there is None:
            found.append(Difference("missing", name, pair, key))
        elif there != digest(content):
            found.append(Difference("different", name, pair, key))
    known = 0
    for name, hashed in listed.items():
        if (ascii_name(name), hashed) in begun.accepted:
            known += 1
        elif (came_in := begun.imported.get(ascii_name(name))) is None:
            found.append(_difference(store, "surplus" if _row(store, name) else "not_imported", name))
        elif came_in != hashed:
            found.append(_difference(store, "changed", name))
        else:
            known += 1
    # What the store holds is kept before a repair overwrites it; no call is made in the unit of work that keeps it.
    doubtful = [each.item for each in found[: store.settings.mismatch_cap] if each.kind != "missing"]
    contents = {name: _held(sink, name) for name in doubtful}
    conclude = partial(_conclude, sink=sink, begun=begun, found=found, contents=contents, counts=(count, items, known))
    return store.run(conclude)


def _held(sink: Sink, name: str) -> str | None:
    """What the external store holds under a name; None, too, for one that it cannot be asked for."""
    try:
        return sink.get(name)
    except errors.InvalidValueError:
        return None


def _begin(uow: UnitOfWork, sink: str) -> _Begun:
    sequence = outbox.newest(uow, sink)
    touched = outbox.touched(uow, sink, sequence)
    return _Begun(sequence, touched, state.get(uow, sink), importing.imported(uow, sink), findings.accepted(uow, sink))


def _rows(store: Store[Any]) -> Iterator[tuple[str, str, Any, str]]:
    """Name of the entry, pair, key and text of all rows."""
    for pair in store._units.statements.moves:
        after, size = None, store.settings.chunk_rows
        while page := store._units.look(partial(rows.page, pair=pair, after=after, size=size)):
            for key, content in page:
                yield name_of(pair, key), pair.name, key, content
            after = page[-1].key


def _row(store: Store[Any], name: str) -> tuple[Any, Any] | None:
    return row_named({pair.name: pair for pair in store._units.statements.moves}, name)


def _difference(store: Store[Any], kind: str, name: str) -> Difference:
    named = _row(store, name)
    return Difference(kind, name, None if named is None else named[0].name, None if named is None else named[1])


def _conclude(
    uow: UnitOfWork,
    sink: Sink,
    begun: _Begun,
    found: list[Difference],
    contents: dict[str, str | None],
    counts: tuple[int, int, int],
) -> ComparisonReport:
    """Keep the differences that no write of the meantime explains, and write the certificate."""
    touched = begun.touched | outbox.touched(uow, sink.name, begun.sequence) if begun.state.at.records else set()
    now_imported = importing.imported(uow, sink.name)
    came_in = {name for name in now_imported if name not in begun.imported}
    real = [each for each in found if (each.pair, each.key) not in touched and ascii_name(each.item) not in came_in]
    last = findings.newest(uow, sink.name)
    for each in real[: uow.settings.mismatch_cap]:
        kept = contents.get(each.item)
        reason = REASONS[each.kind]
        findings.add(uow, sink.name, each.kind, each.item, reason, pair=each.pair, key=each.key, content=kept)
    rows_, items, known = counts
    capabilities = sink.capabilities
    facts: dict[str, Any] = {
        "sink": sink.name,
        "at": milliseconds(uow),
        "build": __version__,
        "mapping": uow.statements.fingerprint,
        "epoch": begun.state.epoch,
        "sequence": begun.sequence,
        "provable": capabilities.provable,
        "rows": rows_,
        "items": items,
        "in_flight": len(touched),
        "differences": len(real),
        "last_finding": last,
    }
    uow._execute(_ADD, facts)
    return ComparisonReport(
        rows_, items, known, len(found) - len(real), tuple(real), capabilities.provable, capabilities.lacking
    )


REASONS = {
    "missing": "the row has no entry",
    "different": "the entry is not the row",
    "surplus": "the entry has no row",
    "duplicate": "the entry was listed twice",
    "changed": "the entry has changed since it came in",
    "not_imported": "the entry is no row of this database, and did not come in",
}
