"""The one tree of errors: what happened to what, and what to do next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, ClassVar

__all__ = [
    "BackupError",
    "CircuitOpenError",
    "ConfigurationError",
    "ConsensusError",
    "CopyError",
    "CopyRefusedError",
    "CorruptDatabaseError",
    "DatabaseBusyError",
    "DatabaseFullError",
    "DowngradeRefusedError",
    "GateClosedError",
    "InvalidValueError",
    "MigrationError",
    "MismatchError",
    "NotADatabaseError",
    "PhaseChangedError",
    "PoolExhaustedError",
    "ReadOnlyDatabaseError",
    "ReadOnlyUnitOfWorkError",
    "RetryCancelledError",
    "SchemaError",
    "SchemaOutdatedError",
    "SchemaTooNewError",
    "StorageError",
    "UnitOfWorkClosedError",
    "UnknownAgentError",
    "UnknownSchemaError",
    "UnmirroredWriteError",
    "WrongPhaseError",
]


class ConsensusError(Exception):
    """Something went wrong in consensus_orm.

    Every error of this package is one of these. The text says what happened to what; `hint` says what to do
    next. Facts (table, field, phase, path ...) are attributes. Neither ever holds row contents or passwords.

    Args:
        message: What happened; the first line of the class docstring where left out.
        hint: What to do next; the class attribute `hint` where left out.
        **facts: Kept as attributes of the error, and as a mapping in `facts`.
    """

    hint: str = ""
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str | None = None, *, hint: str | None = None, **facts: Any) -> None:
        if hint is not None:
            self.hint = hint
        self.facts: Mapping[str, Any] = facts
        for name, value in facts.items():
            setattr(self, name, value)
        text = message or (type(self).__doc__ or "").partition("\n")[0].rstrip(".")
        super().__init__(f"{text}: {self.hint}" if self.hint else text)


class ConfigurationError(ConsensusError):
    """A setting or URL cannot be used."""

    exit_code = 2


class InvalidValueError(ConsensusError, ValueError):
    """A value cannot be accepted.

    Raised before anything is written. `field` names the argument.
    """

    exit_code = 2
    field: str = ""


class StorageError(ConsensusError):
    """The database could not do what was asked."""


class NotADatabaseError(StorageError):
    """This is not a SQLite database."""

    hint = "give the path of a SQLite file, or of a file that does not exist yet"


class ReadOnlyDatabaseError(StorageError):
    """The database cannot be written."""

    hint = "check the permissions of the file and of its folder; in WAL mode even reading writes beside it"


class DatabaseBusyError(StorageError):
    """Somebody else holds the lock.

    `retry_after`, where given, is how long to wait before the next try.
    """

    hint = "try again (store.run retries by itself), or raise CONSENSUS_ORM_BUSY_TIMEOUT"
    retry_after: timedelta | None = None


class DatabaseFullError(StorageError):
    """There is no room left to write."""

    hint = "nothing of this unit of work was kept; free space, then repeat it"


class CorruptDatabaseError(StorageError):
    """The database file is damaged."""

    hint = "stop writing, keep the file, and restore the newest verified backup"


class PoolExhaustedError(StorageError):
    """No connection became free in time."""

    hint = "end units of work sooner, do not nest them, or raise CONSENSUS_ORM_POOL_SIZE"


class DatabaseUnavailableError(StorageError):
    """The server cannot be reached, or went away."""

    hint = "nothing of this unit of work was kept; try again (store.run retries by itself), and look at the server"


class CommitUncertainError(StorageError):
    """The connection was lost while a unit of work was being committed, and the server could not be asked."""

    hint = "it was kept whole or not at all; look for what it wrote before you repeat it"


class CircuitOpenError(StorageError):
    """Too many recent calls failed, so this one was not tried.

    `retry_after` is how long until the breaker lets a call through again.
    """

    hint = "the breaker tries again by itself after its pause"
    retry_after: timedelta | None = None


class RetryCancelledError(ConsensusError):
    """The work was cancelled before it succeeded.

    The error of its last try, if there was one, is the cause.
    """

    hint = "nothing of this unit of work was kept"


class BackupError(StorageError):
    """The backup could not be made or did not verify."""

    hint = "nothing was replaced; check the space and permissions at the target"


class CopyError(StorageError):
    """The copy was not made."""

    hint = "the source is untouched"


class CopyRefusedError(CopyError):
    """There are rows that the target cannot hold.

    `rows` lists each of them: table, key, column and reason.
    """

    rows: Sequence[Any] = ()


class SchemaError(ConsensusError):
    """The schema of the database does not fit."""


class UnknownSchemaError(SchemaError):
    """A table with one of our names has other columns than any known version."""

    hint = "nothing was changed; rename that table, or point consensus_orm at another file"


class SchemaOutdatedError(SchemaError):
    """The schema is older than this program."""

    hint = "run: consensus-orm upgrade"


class SchemaTooNewError(SchemaError):
    """The schema was made by a newer release than this program."""

    hint = "nothing was changed; install that release of consensus_orm or a later one"


class DowngradeRefusedError(SchemaError):
    """This downgrade would lose rows."""

    hint = "roll back first: consensus-orm rollback expand"


class MigrationError(ConsensusError):
    """The step of the migration was not taken."""


class GateClosedError(MigrationError):
    """The next phase is not open yet.

    `reasons` lists each thing that is missing, with the command that would help.
    """

    reasons: Sequence[str] = ()


class WrongPhaseError(MigrationError):
    """This cannot be done in the phase the database is in."""


class PhaseChangedError(MigrationError):
    """Somebody else changed the phase meanwhile."""

    hint = "nothing was changed by this call; look at the status and decide again"


class MismatchError(ConsensusError):
    """What the database stored is not what was meant, so the unit of work was rolled back."""

    hint = "see `consensus-orm mismatches`; CONSENSUS_ORM_ON_MISMATCH=record keeps such writes"


class UnmirroredWriteError(ConsensusError):
    """This write would reach one side of the migration only."""

    hint = "use the repositories of the unit of work (uow.artifacts, uow.syntheses ...)"


class UnitOfWorkClosedError(ConsensusError):
    """This unit of work is over."""

    hint = "open a new one with store.unit_of_work()"


class ReadOnlyUnitOfWorkError(ConsensusError):
    """This unit of work is read-only."""

    hint = "open one that writes: store.unit_of_work()"


class UnknownAgentError(ConsensusError, LookupError):
    """No execution with this agent_id was ever recorded."""

    hint = "record the spawn first: uow.executions.record_spawn(agent_id=..., ...)"
