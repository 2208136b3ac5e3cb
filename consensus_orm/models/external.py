"""The control tables of external stores: their stages, the outbox, findings, imports and certificates.

Times are milliseconds since 1970 UTC; `pair` and `key` name a row as in `models.control`. None of them holds contents
of rows of this database: a finding keeps what the external store held before it is overwritten.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Boolean, CheckConstraint, Index, Text, false, text
from sqlalchemy.orm import Mapped, mapped_column

from consensus_orm.models.base import BIG, Base, Key

__all__ = ["MIRROR", "OutboxEntry", "SinkCertificate", "SinkFinding", "SinkImport", "SinkState"]


MIRROR = 2
"""The stage in which units of work write the outbox (`external.stage`)."""


class SinkState(Base):
    """An external store: its stage, and which relay sends to it."""

    __tablename__ = "consensus_orm_sinks"
    __table_args__ = (CheckConstraint("stage BETWEEN 0 AND 3", name="known_stage"),)

    name: Mapped[str] = mapped_column(Text, primary_key=True)
    stage: Mapped[int] = mapped_column(BIG)
    epoch: Mapped[int] = mapped_column(BIG)
    """Grows with every change of the stage, which voids its certificates."""
    since: Mapped[int] = mapped_column(BIG)
    soak: Mapped[int | None] = mapped_column(BIG)
    """How long this stage lasts at least, in ms, as demanded when it began; settings can only demand more."""
    imported_at: Mapped[int | None] = mapped_column(BIG)
    """When an import last came to the end of the listing."""
    exported_at: Mapped[int | None] = mapped_column(BIG)
    """When the rows that were there before MIRROR were all put into the outbox; NULL while that is to be done."""
    paused: Mapped[bool] = mapped_column(Boolean, server_default=false())
    holder: Mapped[str | None] = mapped_column(Text)
    """The relay that holds the lease."""
    lease_until: Mapped[int | None] = mapped_column(BIG)
    alarmed_at: Mapped[int | None] = mapped_column(BIG)


WAITING = text("settled_at IS NULL")


class OutboxEntry(Base):
    """A row whose change is to be sent, written in the transaction of the row; without contents."""

    __tablename__ = "consensus_orm_outbox"
    __table_args__ = (
        Index(
            "idx_consensus_orm_outbox_waiting",
            "sink",
            "pair",
            "key",
            sqlite_where=WAITING,
            postgresql_where=WAITING,
        ),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(BIG, primary_key=True)
    sink: Mapped[str] = mapped_column(Text)
    pair: Mapped[str] = mapped_column(Text)
    key: Mapped[Any | None] = mapped_column(Key())
    op: Mapped[str] = mapped_column(Text)
    """put or delete, as of the commit; export for a row that was there before."""
    digest: Mapped[str | None] = mapped_column(Text)
    """SHA-256 of the canonical JSON of the row at the commit; NULL for a row that was deleted or is exported."""
    at: Mapped[int] = mapped_column(BIG)
    tries: Mapped[int] = mapped_column(BIG, server_default=text("0"))
    retry_at: Mapped[int | None] = mapped_column(BIG)
    settled_at: Mapped[int | None] = mapped_column(BIG)
    outcome: Mapped[str | None] = mapped_column(Text)
    """sent or rejected; NULL while it waits."""


class SinkFinding(Base):
    """A reject or a mismatch of an external store, from the day it was found to the day it was settled."""

    __tablename__ = "consensus_orm_sink_findings"
    __table_args__ = (
        Index("idx_consensus_orm_sink_findings_open", "sink", "state", "item"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(BIG, primary_key=True)
    sink: Mapped[str] = mapped_column(Text)
    kind: Mapped[str] = mapped_column(Text)
    """unsent, unreadable, missing, different, surplus, duplicate, changed or not_imported."""
    pair: Mapped[str | None] = mapped_column(Text)
    key: Mapped[Any | None] = mapped_column(Key())
    item: Mapped[str] = mapped_column(Text)
    """The name of the entry in the external store."""
    reason: Mapped[str] = mapped_column(Text)
    content: Mapped[str | None] = mapped_column(Text)
    """JSON of what the external store held, so that it can be put back; NULL where it held nothing."""
    state: Mapped[str] = mapped_column(Text)
    """open, settled or accepted."""
    found_at: Mapped[int] = mapped_column(BIG)
    settled_at: Mapped[int | None] = mapped_column(BIG)
    note: Mapped[str | None] = mapped_column(Text)


class SinkImport(Base):
    """Where a row came from: an entry that only the external store held."""

    __tablename__ = "consensus_orm_sink_imports"

    sink: Mapped[str] = mapped_column(Text, primary_key=True)
    item: Mapped[str] = mapped_column(Text, primary_key=True)
    pair: Mapped[str] = mapped_column(Text)
    key: Mapped[Any | None] = mapped_column(Key())
    digest: Mapped[str] = mapped_column(Text)
    at: Mapped[int] = mapped_column(BIG)


class SinkCertificate(Base):
    """What one comparison with an external store saw."""

    __tablename__ = "consensus_orm_sink_certificates"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(BIG, primary_key=True)
    sink: Mapped[str] = mapped_column(Text)
    at: Mapped[int] = mapped_column(BIG)
    build: Mapped[str] = mapped_column(Text)
    mapping: Mapped[str] = mapped_column(Text)
    epoch: Mapped[int] = mapped_column(BIG)
    sequence: Mapped[int] = mapped_column(BIG)
    """The newest entry of the outbox when the comparison began."""
    provable: Mapped[bool] = mapped_column(Boolean)
    rows: Mapped[int] = mapped_column(BIG)
    items: Mapped[int] = mapped_column(BIG)
    in_flight: Mapped[int] = mapped_column(BIG)
    """Rows that were written while they were compared; each is read back when it is sent."""
    differences: Mapped[int] = mapped_column(BIG)
    last_finding: Mapped[int] = mapped_column(BIG)
