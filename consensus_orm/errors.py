"""The errors of the package, in one tree: each names what failed, its facts as attributes, and what to do next."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from enum import IntEnum
from pathlib import Path
from typing import Any, ClassVar

__all__ = [
    "BackupError",
    "CircuitOpenError",
    "CommitUncertainError",
    "ConfigurationError",
    "ConsensusError",
    "CopyError",
    "CopyRefusedError",
    "CorruptDatabaseError",
    "DatabaseBusyError",
    "DatabaseFullError",
    "DatabaseUnavailableError",
    "DowngradeRefusedError",
    "GateClosedError",
    "GuardsBrokenError",
    "InvalidValueError",
    "KeeperLeaseError",
    "KeysUsedUpError",
    "MigrationError",
    "MismatchError",
    "NotADatabaseError",
    "OutOfMemoryError",
    "OutputError",
    "PartialAnswersError",
    "PhaseChangedError",
    "PoolExhaustedError",
    "ReadOnlyDatabaseError",
    "ReadOnlyUnitOfWorkError",
    "RestoreError",
    "RetryCancelledError",
    "RewriteNotConfirmedError",
    "RowsHiddenError",
    "SchemaError",
    "SchemaOutdatedError",
    "SchemaTooNewError",
    "SessionRolledBackError",
    "SinkContractError",
    "SinkError",
    "SinkLeaseError",
    "SinkUnavailableError",
    "StorageError",
    "StoreClosedError",
    "TableMissingError",
    "UnexpectedError",
    "UnitOfWorkClosedError",
    "UnknownAgentError",
    "UnknownSchemaError",
    "UnknownSettingWarning",
    "UnmirroredWriteError",
    "UnsafeDefinitionError",
    "WrongPhaseError",
]


class ConsensusError(Exception):
    """An operation of consensus_orm failed.

    Every error of this package derives from this class. `message` says what happened to what, `hint` what to do next,
    and the text is both. Facts (table, field, phase, path ...) are attributes. None of them holds row contents or
    passwords. An error can be pickled where its facts can.

    `code` names the kind of error and never changes: `consensus-orm explain CODE` tells what it means.

    Args:
        message: What happened; the first line of the class docstring where left out.
        hint: What to do next; the class attribute `hint` where left out.
        **facts: Kept as attributes of the error, and as a mapping in `facts`.
    """

    message: str
    hint: str = ""
    code: ClassVar[str] = "CONSENSUS"
    exit_code: ClassVar[int] = 1

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        words = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", cls.__name__.removesuffix("Error"))
        cls.code = words.upper()

    def __init__(self, message: str | None = None, *, hint: str | None = None, **facts: Any) -> None:
        if hint is not None:
            self.hint = hint
        self.facts: Mapping[str, Any] = facts
        for name, value in facts.items():
            setattr(self, name, value)
        self.message = message or (type(self).__doc__ or type(self).__name__).partition("\n")[0].rstrip(".")
        super().__init__(f"{self.message}: {self.hint}" if self.hint else self.message)

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (type(self), self.args), self.__dict__


def _rebuilt(kind: type[ConsensusError], args: tuple[Any, ...]) -> ConsensusError:
    """Make a copied or unpickled error, whatever arguments its class takes."""
    return kind.__new__(kind, *args)


class ConfigurationError(ConsensusError):
    """A setting or URL cannot be used."""

    hint = "correct the setting or the URL that is named; consensus-orm docs settings lists all of them"
    exit_code = 2
    package: str | None = None
    table: str | None = None
    column: str | None = None


class InvalidValueError(ConsensusError, ValueError):
    """A value cannot be accepted.

    Raised before anything is written. `field` names the argument.
    """

    hint = "nothing was written; correct this argument"
    exit_code = 2
    field: str = ""


class StorageError(ConsensusError):
    """The database could not do what was asked.

    Where the database gave a code, `sqlite_errorcode` or `sqlstate` holds it; otherwise the error lacks them.
    """

    hint = "nothing of what failed was kept; look at the database, then try again"
    path: Path | None = None
    sqlite_errorcode: int
    sqlstate: str


class NotADatabaseError(StorageError):
    """This is not a SQLite database."""

    hint = "give the path of a SQLite file, or of a file that does not exist yet"


class ReadOnlyDatabaseError(StorageError):
    """The database cannot be written.

    On a server, `privilege`, `schema` and `table` name what the role lacks, where the server says so.
    """

    hint = "check the permissions of the file and of its folder; in WAL mode even reading writes beside it"
    privilege: str | None = None
    schema: str | None = None
    table: str | None = None


class DatabaseBusyError(StorageError):
    """Another process or thread holds the lock.

    It did not become free within `BUSY_TIMEOUT`; a long transaction is the usual cause.
    `retry_after`, where given, is how long to wait before the next try. `blockers` are the sessions of a server for
    which a change of the phase waited in vain: `pid`, `application`, `role` and `since` of each.
    """

    hint = "try again (store.run retries by itself), or raise CONSENSUS_ORM_BUSY_TIMEOUT"
    blockers: Sequence[Any] = ()
    retry_after: timedelta | None = None


class DatabaseFullError(StorageError):
    """There is no room left to write."""

    hint = "nothing of this unit of work was kept; free space, then repeat it"


class KeysUsedUpError(StorageError):
    """The table has given its last id.

    `table` is its name. An id is at most 9223372036854775807 (2**63 - 1), and none is given twice.
    """

    hint = "nothing of this unit of work was kept; give that row a lower id, and lower the sequence"
    table: str = ""


class CorruptDatabaseError(StorageError):
    """The database file is damaged."""

    hint = (
        "stop writing, and restore the newest verified backup, which keeps the damaged file aside:"
        " consensus-orm restore BACKUP"
    )


class OutOfMemoryError(StorageError):
    """There is not enough memory to read or write a row."""

    hint = "the failed operation was rolled back; give the process more memory, or look for rows of this size"


class TableMissingError(StorageError):
    """A table was dropped or renamed by another program.

    `status` names the command that makes it again from the other side.
    """

    hint = "nothing of this unit of work was kept; run: consensus-orm status"
    table: str = ""


class RowsHiddenError(StorageError):
    """The row security of a table hides rows from the role of this connection."""

    hint = "nothing was changed; use a role with BYPASSRLS, or the owner of the table without FORCE ROW LEVEL SECURITY"
    table: str = ""


class PoolExhaustedError(StorageError):
    """No connection became free in time."""

    hint = "end units of work sooner, do not nest them, or raise CONSENSUS_ORM_POOL_SIZE"
    pool_size: int | None = None


class DatabaseUnavailableError(StorageError):
    """The server cannot be reached, or went away.

    `reason` is why, in one word, where what libpq says is known: password, database, role, host, ssl, access,
    connections, starting, standby, parameter, timeout or listening.
    """

    hint = "nothing of this unit of work was kept; try again (store.run retries by itself), and look at the server"
    reason: str | None = None


class CommitUncertainError(StorageError):
    """The connection was lost while a unit of work was being committed, and the server could not be asked."""

    hint = "it was kept whole or not at all; look for what it wrote before you repeat it"


class CircuitOpenError(StorageError):
    """Too many recent calls failed, so the circuit breaker refused this one.

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
    """The backup could not be created, or its verification failed."""

    hint = "nothing was replaced; check the space and permissions at the target"


class RestoreError(StorageError):
    """The backup was not restored.

    It does not verify, or the database cannot be replaced.
    """

    hint = "the database is what it was; check the space and the permissions of its folder"


class CopyError(StorageError):
    """The copy was not made.

    The target is not empty, the source is in the middle of a step, or a row came out different.
    """

    hint = "the source is untouched"
    table: str | None = None
    column: str | None = None


class CopyRefusedError(CopyError):
    """Some rows cannot be stored in the target.

    `rows` lists each of them: table, key, column and reason. None was copied.
    """

    hint = "correct the rows that are listed, or leave them behind as rejects: --reject"
    rows: Sequence[Any] = ()


class SchemaError(ConsensusError):
    """The schema of the database does not fit."""

    hint = "nothing was changed; see: consensus-orm status"
    table: str | None = None
    column: str | None = None


class UnknownSchemaError(SchemaError):
    """A table has a name of this package, and columns of no known version."""

    hint = "nothing was changed; rename that table, or point consensus_orm at another file"
    missing: Sequence[str] = ()


class SchemaOutdatedError(SchemaError):
    """The schema is older than this program."""

    hint = "run: consensus-orm upgrade"


class SchemaTooNewError(SchemaError):
    """The schema was made by a newer release than this program."""

    hint = "nothing was changed; install that release of consensus_orm or a later one"
    version: str | None = None


class UnsafeDefinitionError(SchemaError):
    """The saved schema holds an entry that is not a definition of a table, index or trigger, nor a row.

    Another program wrote it, so it was not executed.
    """

    hint = "nothing was changed; another program wrote into the database: restore a backup that you trust"


class RewriteNotConfirmedError(SchemaError):
    """This upgrade would recreate tables of another program, and was not confirmed.

    `rewrite`, where the file was looked at, says which tables, and where the backup goes.
    """

    hint = "nothing was changed; run: consensus-orm upgrade --yes, which makes a verified backup first"
    rewrite: Any = None


class DowngradeRefusedError(SchemaError):
    """This downgrade would lose rows."""

    hint = "roll back first: consensus-orm rollback expand"


class MigrationError(ConsensusError):
    """A step of the migration failed or was refused."""

    hint = "see: consensus-orm status, which names the next command"
    phase: IntEnum | None = None
    table: str | None = None
    column: str | None = None
    trigger: str | None = None


class GateClosedError(MigrationError):
    """The next phase is not open yet.

    `reasons` lists each thing that is missing, with the command that would help.
    """

    hint = "see: consensus-orm status, which names what is missing and the command that helps"
    reasons: Sequence[str] = ()
    to: IntEnum | None = None


class WrongPhaseError(MigrationError):
    """This cannot be done in the phase the database is in.

    A step does not begin in this phase, or a session used a class whose side is not written in it: `uow.model(MOVE)` is
    the class to use.
    """

    hint = "see: consensus-orm status, which names the phase and the next command"


class PhaseChangedError(MigrationError):
    """Another process changed the phase meanwhile."""

    hint = "nothing was changed by this call; look at the status and decide again"
    expected: IntEnum | None = None


class GuardsBrokenError(MigrationError):
    """A trigger or table that protects the phase was dropped or changed by another program.

    `reasons` names each trigger and table, with the command that would help.
    """

    hint = "run: consensus-orm status"
    reasons: Sequence[str] = ()


class KeeperLeaseError(MigrationError):
    """Another keeper acts for this database."""

    hint = "one keeper acts at a time; without --once, the others stand by to take over"
    holder: str | None = None


class MismatchError(ConsensusError):
    """The stored row differs from the given one, so the unit of work was rolled back.

    A trigger of another program may have changed the row.
    """

    hint = "see `consensus-orm mismatches`; CONSENSUS_ORM_ON_MISMATCH=record keeps such writes"
    pair: str | None = None
    key: Any = None
    columns: Sequence[str] = ()


class UnmirroredWriteError(ConsensusError):
    """This write would change only one side of the migration.

    A statement through `uow.session` sends no events, changes a table, or adds a parent without a row.
    """

    hint = "use the repositories of the unit of work (uow.artifacts, uow.syntheses ...)"
    table: str | None = None


class SinkError(ConsensusError):
    """The external store refused a call, or did not keep what it was given.

    `sink` is the name of the external store, `item` that of the entry, `tool` the tool that was called.
    `consensus-orm external findings` lists what it did not keep; `external repair` sends it again.
    """

    hint = "nothing was lost, the outbox keeps the entry; see: consensus-orm relay status"
    sink: str | None = None
    item: str | None = None
    tool: str | None = None


class SinkUnavailableError(SinkError):
    """The external store cannot be reached, or went away.

    The relay tries again by itself.
    """

    hint = "nothing was lost, the outbox keeps the entries; check the command of the server, then run the relay again"


class SinkContractError(SinkError):
    """The external store does not do what its declaration says.

    `tool` and `argument` are what the server lacks, where it lacks one.
    """

    hint = "nothing was lost; correct the declaration of the external store, then run the relay again"
    exit_code = 2
    argument: str | None = None


class SinkLeaseError(SinkError):
    """Another relay sends to this external store."""

    hint = "one relay works at a time; stop the other one, or wait until its lease ends"


class SessionRolledBackError(ConsensusError):
    """The session of this unit of work was rolled back by an error that was caught, and then used again."""

    hint = "nothing of this unit of work was kept; call uow.session.rollback() where the error is caught"


class StoreClosedError(ConsensusError):
    """This store is closed."""

    hint = "open another with ConsensusStore.open()"


class UnitOfWorkClosedError(ConsensusError):
    """This unit of work is over."""

    hint = "open a new one with store.unit_of_work()"


class ReadOnlyUnitOfWorkError(ConsensusError):
    """This unit of work is read-only."""

    hint = "open one that writes: store.unit_of_work()"


class PartialAnswersError(ConsensusError):
    """Some of the agents answered and some did not.

    An application raises it where a round can go on with the answers there are: it is DEGRADED, and never retried.

    Args:
        answered: How many answered; at least one.
        asked: How many were asked; more than answered.
        missing: The names of those that did not answer.

    Raises:
        InvalidValueError: The numbers are not those of a partial success.
    """

    hint = "go on with the answers there are, or ask the missing agents again"

    def __init__(self, *, answered: int, asked: int, missing: Sequence[str] = ()) -> None:
        if not 0 < answered < asked:
            raise InvalidValueError(f"{answered} of {asked} answers are no partial success", field="answered")
        self.answered = answered
        self.asked = asked
        self.missing = tuple(missing)
        super().__init__(f"{answered} of {asked} agents answered")


class UnknownAgentError(ConsensusError, LookupError):
    """No execution with this agent_id was recorded."""

    hint = "record the spawn first: uow.executions.record_spawn(agent_id=..., ...)"
    agent_id: str | None = None


class OutputError(ConsensusError):
    """The output of a command could not be written."""

    hint = "what the command did stands; see: consensus-orm status"


class UnexpectedError(ConsensusError):
    """A command failed with an exception that this package does not expect."""

    hint = "nothing of the step under way was kept; please report it; see: consensus-orm status"


class UnknownSettingWarning(UserWarning):
    """The environment has a variable CONSENSUS_ORM_... that is not a setting."""
