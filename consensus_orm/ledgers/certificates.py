"""The ledger of certificates: what each verify saw; a gate opens on the newest one, unless something happened since."""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy import bindparam, insert, select

from consensus_orm.databases.base import Transaction
from consensus_orm.declaration.attributes import table_of
from consensus_orm.models.control import Certificate

__all__ = ["Seen", "add", "every", "newest", "newest_of"]


class Seen(NamedTuple):
    """What one verify saw: the columns of `models.control.Certificate`."""

    id: int
    at: int
    build: str
    mapping: str
    epoch: int
    legacy_rows: int
    normalized_rows: int
    compared: int
    differences: int
    rejects: int
    changes: int
    missed: int | None
    last_mismatch: int | None
    last_reject: int | None


_EVERY = select(*(table_of(Certificate).c[name] for name in Seen._fields)).order_by(Certificate.id)
_NEWEST = _EVERY.order_by(None).order_by(Certificate.id.desc()).limit(1)
_NEWEST_OF = _NEWEST.where(Certificate.epoch == bindparam("epoch"))
_ADD = insert(Certificate).values({name: bindparam(name) for name in Seen._fields[1:]}).returning(Certificate.id)


def every(uow: Transaction) -> list[Seen]:
    """All certificates, oldest first."""
    return [Seen(*row) for row in uow._rows(_EVERY)]


def newest(uow: Transaction) -> Seen | None:
    """The newest certificate; None where there never was a verify."""
    rows = uow._rows(_NEWEST)
    return Seen(*rows[0]) if rows else None


def newest_of(uow: Transaction, epoch: int) -> Seen | None:
    """The newest certificate of an epoch; None where there was no verify in it."""
    rows = uow._rows(_NEWEST_OF, {"epoch": epoch})
    return Seen(*rows[0]) if rows else None


def add(uow: Transaction, **facts: int | str) -> int:
    """Add what a verify saw; returns the number of the certificate."""
    return int(uow._execute(_ADD, facts).fetchone()[0])
