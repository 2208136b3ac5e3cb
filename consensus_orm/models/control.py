"""The control tables: the state of the migration and its ledgers, in the same database and transactions as the data.

Times are milliseconds since 1970 UTC. `pair` is the name of a declared pair, `key` the primary key of a row,
kept without a type so that it joins with the row itself.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Boolean, CheckConstraint, Index, Text, false, text
from sqlalchemy.orm import Mapped, mapped_column

from consensus_orm.models.base import BIG, Base, Key

__all__ = [
    "REPLACEABLE",
    "UNDECIDED",
    "Acceptance",
    "BackfillCheckpoint",
    "BackfillRange",
    "Certificate",
    "Change",
    "ControlRow",
    "GuardRecord",
    "KeeperState",
    "MigrationState",
    "Mismatch",
    "PhaseChange",
    "ReadCount",
    "Reject",
    "RowImage",
    "Sample",
    "SavedSchema",
]


class MigrationState(Base):
    """The phase: one row, read by every unit of work inside its own transaction."""

    __tablename__ = "consensus_orm_state"
    __table_args__ = (
        CheckConstraint("id = 1", name="one_row"),
        CheckConstraint("phase BETWEEN 1 AND 5", name="known_phase"),
    )

    id: Mapped[int] = mapped_column(BIG, primary_key=True, autoincrement=False)
    phase: Mapped[int] = mapped_column(BIG)
    epoch: Mapped[int] = mapped_column(BIG, server_default=text("0"))
    """Grows with every change of phase, so that a step planned in an older phase is detected."""
    since: Mapped[int] = mapped_column(BIG)
    mapping: Mapped[str | None] = mapped_column(Text)
    """Fingerprint of the mapping that the installed triggers were made from."""
    step: Mapped[str | None] = mapped_column(Text)
    """A long step under way ('rebuild', 'empty'), resumed or undone by the next call; NULL otherwise."""
    carrying: Mapped[bool] = mapped_column(Boolean, server_default=false())
    """1 only inside a transaction that carries rows past the triggers; never committed as 1."""
    soak: Mapped[int | None] = mapped_column(BIG)
    """How long this phase lasts at least, in ms, as demanded when it began; settings can only demand more."""
    certificate_max_age: Mapped[int | None] = mapped_column(BIG)
    """How old a certificate may be and still open the gate, in ms, as demanded when the phase began."""
    schema_version: Mapped[int | None] = mapped_column(BIG)
    """SQLite's counter of schema changes when the guards were last found in place; it changes with any DDL."""
    user_version: Mapped[int | None] = mapped_column(BIG)
    """SQLite's `user_version` before an upgrade protected the file; NULL where it was left alone."""
    moves: Mapped[str | None] = mapped_column(Text)
    """The legacy tables of the moves, one a line; moves of none of them are refused."""


class GuardRecord(Base):
    """A guard of a phase, as it was installed or found: a trigger, a table, or a view where a legacy table was."""

    __tablename__ = "consensus_orm_guards"

    kind: Mapped[str] = mapped_column(Text, primary_key=True)
    """trigger, table or view."""
    name: Mapped[str] = mapped_column(Text, primary_key=True)
    table_name: Mapped[str] = mapped_column(Text)
    definition: Mapped[str] = mapped_column(Text)
    """What it must still be: the text of a trigger or a view, what identifies a table."""
    made: Mapped[str] = mapped_column(Text)
    """What distinguishes a trigger from another one of the same text made in its place; '' for everything else."""


class PhaseChange(Base):
    """The audit: who did what to the migration, when and why."""

    __tablename__ = "consensus_orm_history"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(BIG, primary_key=True)
    action: Mapped[str] = mapped_column(Text)
    from_phase: Mapped[int | None] = mapped_column(BIG)
    to_phase: Mapped[int | None] = mapped_column(BIG)
    at: Mapped[int] = mapped_column(BIG)
    by: Mapped[str] = mapped_column(Text)
    reason: Mapped[str | None] = mapped_column(Text)
    forced: Mapped[bool] = mapped_column(Boolean, server_default=false())
    detail: Mapped[str | None] = mapped_column(Text)
    """JSON: counts, paths and fingerprints; never contents of rows."""


class Mismatch(Base):
    """A difference between the sides, from the day it was found to the day it was settled."""

    __tablename__ = "consensus_orm_mismatches"
    __table_args__ = (
        Index("idx_consensus_orm_mismatches_open", "state", "pair", "column_name", "key"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(BIG, primary_key=True)
    pair: Mapped[str] = mapped_column(Text)
    key: Mapped[Any | None] = mapped_column(Key())
    column_name: Mapped[str | None] = mapped_column(Text)
    kind: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(Text)
    found_by: Mapped[str] = mapped_column(Text)
    found_at: Mapped[int] = mapped_column(BIG)
    seen: Mapped[int] = mapped_column(BIG, server_default=text("1"))
    """How often it was found; above the cap, how many rows one entry stands for."""
    settled_at: Mapped[int | None] = mapped_column(BIG)
    note: Mapped[str | None] = mapped_column(Text)


class Reject(Base):
    """A row that cannot be carried as it is: kept whole, and keeps the gate to the next phase shut while it is open."""

    __tablename__ = "consensus_orm_rejects"
    __table_args__ = (
        Index("idx_consensus_orm_rejects_pair", "pair", "key"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(BIG, primary_key=True)
    pair: Mapped[str] = mapped_column(Text)
    key: Mapped[Any | None] = mapped_column(Key())
    table_name: Mapped[str] = mapped_column(Text)
    reason: Mapped[str] = mapped_column(Text)
    image: Mapped[str] = mapped_column(Text)
    """JSON: column -> [typeof, hex of the bytes], so that the row can be rebuilt exactly."""
    state: Mapped[str] = mapped_column(Text)
    found_at: Mapped[int] = mapped_column(BIG)
    settled_at: Mapped[int | None] = mapped_column(BIG)
    note: Mapped[str | None] = mapped_column(Text)


class RowImage(Base):
    """A row of a user that was overwritten or deleted by a repair or an adoption: kept whole, can be put back."""

    __tablename__ = "consensus_orm_images"
    __table_args__ = (
        Index("idx_consensus_orm_images_pair", "pair", "key"),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(BIG, primary_key=True)
    pair: Mapped[str] = mapped_column(Text)
    key: Mapped[Any | None] = mapped_column(Key())
    side: Mapped[str] = mapped_column(Text)
    table_name: Mapped[str] = mapped_column(Text)
    image: Mapped[str] = mapped_column(Text)
    """JSON: column -> [typeof, hex of the bytes], as in a reject."""
    cause: Mapped[str] = mapped_column(Text)
    at: Mapped[int] = mapped_column(BIG)
    by: Mapped[str] = mapped_column(Text)
    restored_at: Mapped[int | None] = mapped_column(BIG)


class BackfillCheckpoint(Base):
    """How far the backfill of a pair has come; committed with the chunk it speaks of."""

    __tablename__ = "consensus_orm_backfill"

    pair: Mapped[str] = mapped_column(Text, primary_key=True)
    last_key: Mapped[Any | None] = mapped_column(Key())
    rows: Mapped[int] = mapped_column(BIG, server_default=text("0"))
    finished: Mapped[bool] = mapped_column(Boolean, server_default=false())
    started_at: Mapped[int] = mapped_column(BIG)
    updated_at: Mapped[int] = mapped_column(BIG)


class BackfillRange(Base):
    """A range of keys that workers of a backfill share; its checkpoint moves behind the first ranges that are done."""

    __tablename__ = "consensus_orm_ranges"

    pair: Mapped[str] = mapped_column(Text, primary_key=True)
    number: Mapped[int] = mapped_column(BIG, primary_key=True, autoincrement=False)
    """Grows with the keys."""
    first_key: Mapped[Any | None] = mapped_column(Key())
    last_key: Mapped[Any | None] = mapped_column(Key())
    rows: Mapped[int] = mapped_column(BIG)
    begins_at: Mapped[int] = mapped_column(BIG)
    """When a throttle lets it begin, in ms, by the clock of the server."""
    state: Mapped[str] = mapped_column(Text)
    """open, carried, or done: carried and compared."""


class Certificate(Base):
    """What one verify saw; gates open on it while nothing has happened that it did not see."""

    __tablename__ = "consensus_orm_certificates"
    __table_args__ = ({"sqlite_autoincrement": True},)

    id: Mapped[int] = mapped_column(BIG, primary_key=True)
    at: Mapped[int] = mapped_column(BIG)
    build: Mapped[str] = mapped_column(Text)
    mapping: Mapped[str] = mapped_column(Text)
    epoch: Mapped[int] = mapped_column(BIG)
    legacy_rows: Mapped[int] = mapped_column(BIG)
    """Rows that can be named by their key, counted without ranges of keys."""
    normalized_rows: Mapped[int] = mapped_column(BIG)
    compared: Mapped[int] = mapped_column(BIG)
    differences: Mapped[int] = mapped_column(BIG)
    rejects: Mapped[int] = mapped_column(BIG)
    changes: Mapped[int] = mapped_column(BIG)
    """The counter of writes around the repositories, before the comparison and after it."""
    missed: Mapped[int | None] = mapped_column(BIG)
    """Rows that were not compared and are no rejects; NULL where they were not counted."""
    last_mismatch: Mapped[int | None] = mapped_column(BIG)
    """The newest mismatch when the rows were read; a later one voids the certificate."""
    last_reject: Mapped[int | None] = mapped_column(BIG)
    """The newest reject when the rows were read, or one of rows that this verify itself rejected."""


class ControlRow(Base):
    """What an operator tells a migration that runs, in one row; without it, nothing was said."""

    __tablename__ = "consensus_orm_control"
    __table_args__ = (CheckConstraint("id = 1", name="one_row"),)

    id: Mapped[int] = mapped_column(BIG, primary_key=True, autoincrement=False)
    paused_at: Mapped[int | None] = mapped_column(BIG)
    """Since when long steps wait between two chunks; NULL while they go on."""
    throttle: Mapped[int | None] = mapped_column(BIG)
    """How many rows a second a long step works through at most."""
    held_at: Mapped[int | None] = mapped_column(BIG)
    """Since when no phase may change; NULL while phases may."""
    by: Mapped[str | None] = mapped_column(Text)
    reason: Mapped[str | None] = mapped_column(Text)


class KeeperState(Base):
    """The keeper: which process holds its lease, and when it last did each of its duties, in one row."""

    __tablename__ = "consensus_orm_keeper"
    __table_args__ = (CheckConstraint("id = 1", name="one_row"),)

    id: Mapped[int] = mapped_column(BIG, primary_key=True, autoincrement=False)
    holder: Mapped[str | None] = mapped_column(Text)
    lease_until: Mapped[int | None] = mapped_column(BIG)
    verified_at: Mapped[int | None] = mapped_column(BIG)
    backed_up_at: Mapped[int | None] = mapped_column(BIG)
    vacuumed_at: Mapped[int | None] = mapped_column(BIG)


UNDECIDED = text("undecided")
"""The predicate of the partial index, to the letter: SQLite does not use the index for `undecided = 1`."""


class Change(Base):
    """A row whose two sides may differ because only one was written.

    Triggers add them: in EXPAND to CUTOVER for writes that went around the repositories, in NORMALIZED for every
    write, for the way back. No id is used twice, so that the highest one counts these writes.
    """

    __tablename__ = "consensus_orm_changes"
    __table_args__ = (
        Index("idx_consensus_orm_changes_key", "pair", "key"),
        Index(
            "idx_consensus_orm_changes_undecided",
            "pair",
            "key",
            sqlite_where=UNDECIDED,
            postgresql_where=UNDECIDED,
        ),
        {"sqlite_autoincrement": True},
    )

    id: Mapped[int] = mapped_column(BIG, primary_key=True)
    pair: Mapped[str] = mapped_column(Text)
    key: Mapped[Any | None] = mapped_column(Key())
    side: Mapped[str] = mapped_column(Text)
    op: Mapped[str] = mapped_column(Text)
    """insert, update, delete, or move: an update that gave a row this key."""
    undecided: Mapped[bool] = mapped_column(Boolean, server_default=false())
    """Whether it was looked at and waits for a choice: taken over, or repaired."""


class SavedSchema(Base):
    """The legacy tables, indexes and triggers as they were before the drop, in the order they were made.

    `sql` is a definition, never run unchecked (`saved_schema`); where `type` is image, a row as in a reject.
    """

    __tablename__ = "consensus_orm_saved_schema"

    position: Mapped[int] = mapped_column(BIG, primary_key=True, autoincrement=False)
    type: Mapped[str] = mapped_column(Text)
    name: Mapped[str] = mapped_column(Text)
    table_name: Mapped[str] = mapped_column(Text)
    sql: Mapped[str] = mapped_column(Text)
    sequence: Mapped[int | None] = mapped_column(BIG)
    """sqlite_sequence of the table; NULL where it had none."""


class Acceptance(Base):
    """A dependency on a legacy table that an operator has accepted, so that it keeps no gate shut."""

    __tablename__ = "consensus_orm_acceptances"

    kind: Mapped[str] = mapped_column(Text, primary_key=True)
    """view, publication, reads, ..."""
    name: Mapped[str] = mapped_column(Text, primary_key=True)
    table_name: Mapped[str] = mapped_column(Text, primary_key=True)
    seen: Mapped[int] = mapped_column(BIG, server_default=text("0"))
    """How many reads were accepted, where it is of reads; later ones are not."""
    reason: Mapped[str] = mapped_column(Text)
    at: Mapped[int] = mapped_column(BIG)
    by: Mapped[str] = mapped_column(Text)


class ReadCount(Base):
    """How often a frozen legacy table was read, by the counters of the server."""

    __tablename__ = "consensus_orm_reads"

    table_name: Mapped[str] = mapped_column(Text, primary_key=True)
    counted: Mapped[int] = mapped_column(BIG)
    """The counter of the server up to which reads were looked at."""
    own: Mapped[int] = mapped_column(BIG, server_default=text("0"))
    """Reads of this package that the counter will include."""
    others: Mapped[int] = mapped_column(BIG, server_default=text("0"))
    """Reads of other programs up to that counter."""
    at: Mapped[int] = mapped_column(BIG)
    """When that was, ms, by the clock of the server."""
    last: Mapped[int | None] = mapped_column(BIG)
    """When another program read it last, ms; NULL where the server does not tell."""


class Sample(Base):
    """How much was done in one minute, and how long it took: writes of an application, or chunks of a backfill.

    Kept for a day (`ledgers.samples`).
    """

    __tablename__ = "consensus_orm_samples"

    minute: Mapped[int] = mapped_column(BIG, primary_key=True, autoincrement=False)
    """When the minute began, ms."""
    kind: Mapped[str] = mapped_column(Text, primary_key=True)
    """write or backfill."""
    name: Mapped[str] = mapped_column(Text, primary_key=True)
    """Of writes the phase, of a backfill the pair."""
    application: Mapped[str] = mapped_column(Text, primary_key=True)
    """What the application calls itself, with its version."""
    process: Mapped[str] = mapped_column(Text, primary_key=True)
    """User, host and process id."""
    build: Mapped[str] = mapped_column(Text)
    """The version of this package."""
    amount: Mapped[int] = mapped_column(BIG)
    """Units of work, or rows."""
    took: Mapped[int] = mapped_column(BIG)
    """How long all of them took together, in microseconds; 0 where that was not measured."""
    longest: Mapped[int] = mapped_column(BIG)
    """How long the longest took, in microseconds."""


REPLACEABLE = (
    *(GuardRecord, RowImage, Certificate, BackfillCheckpoint, BackfillRange),
    *(Acceptance, ReadCount, ControlRow, Sample, KeeperState),
)
"""Those that an upgrade makes again, empty, after another program dropped them: no other row refers to theirs."""
