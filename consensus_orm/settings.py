"""Settings: one frozen object, read from arguments or from `CONSENSUS_ORM_*` in the environment."""

from __future__ import annotations

import difflib
import inspect
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from consensus_orm.errors import ConfigurationError, UnknownSettingWarning

__all__ = ["OnMismatch", "Settings", "from_environment", "unknown_variables", "utc_now"]

PREFIX = "CONSENSUS_ORM_"
"""Prefix of the environment variables that are settings."""

_NOT_SETTINGS = ("CONSENSUS_ORM_TEST_", "CONSENSUS_ORM_BENCH_")
"""Variables of our own tests and benchmarks."""


def utc_now() -> datetime:
    """The time, aware and in UTC; the clock of the package unless `Settings.clock` is another."""
    return datetime.now(UTC)


class OnMismatch(StrEnum):
    """What happens to a write whose two sides differ."""

    RECORD = "record"
    RAISE = "raise"


class Isolation(StrEnum):
    """PostgreSQL's isolation of concurrent units of work that write."""

    READ_COMMITTED = "read_committed"
    SERIALIZABLE = "serializable"

    @property
    def sql(self) -> str:
        """The level as BEGIN names it."""
        return self.name.replace("_", " ")


class Reconciling(StrEnum):
    """What a keeper does about differences that a verify found."""

    NONE = "none"
    SETTLE = "settle"
    ADOPT = "adopt"
    REPAIR = "repair"


def _seconds(value: object) -> object:
    """Parse a plain number of seconds as text ("604800"), which pydantic refuses."""
    if isinstance(value, str):
        try:
            return timedelta(seconds=float(value))
        except (ValueError, OverflowError):
            return value
    return value


Duration = Annotated[timedelta, BeforeValidator(_seconds), Field(ge=timedelta(0), le=timedelta(days=36500))]
Wait = Annotated[timedelta, BeforeValidator(_seconds), Field(ge=timedelta(0), le=timedelta(days=24))]
"""At most what PostgreSQL counts in milliseconds: 2^31."""

INT = 2**31 - 1
"""The largest number that SQLite takes in a pragma."""

Share = Annotated[float, Field(ge=0, le=1)]


class Settings(BaseSettings):
    """The settings of a store, with their defaults.

    Durations are in seconds (`"604800"`) or ISO 8601 (`"P7D"`). Each setting is read from the environment with the
    prefix `CONSENSUS_ORM_`, for example `CONSENSUS_ORM_POOL_SIZE=20`.

    Raises:
        ConfigurationError: A value cannot be used. It is not repeated, since it may be secret.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid", hide_input_in_errors=True)

    url: str | None = Field(default=None, repr=False)
    """The database that is opened if a call names none: any SQLAlchemy URL, or a path.

    The file of the tool in `~/.code` where neither names one.
    """

    read_url: str | None = Field(default=None, repr=False)
    """A PostgreSQL replica of `url`, for read-only units of work."""

    password_command: str | None = Field(default=None, repr=False)
    """A command that prints the password for a server in its first line; run at each connect, without a shell, with
    PGHOST, PGPORT, PGUSER and PGDATABASE in its environment."""
    password: Callable[[], str] | None = Field(default=None, exclude=True, repr=False)
    """Called at each connect for the password for a server; before `password_command`."""

    pool_size: int = Field(default=10, ge=1, le=1000)
    """Connections kept for one database; no more are opened."""
    pool_timeout: Wait = timedelta(seconds=30)
    """How long a unit of work waits for a free connection."""

    busy_timeout: Wait = timedelta(seconds=5)
    """How long one statement waits for the lock of another process."""
    synchronous: str = Field(default="NORMAL", pattern="^(OFF|NORMAL|FULL|EXTRA)$")
    """PRAGMA synchronous: OFF, NORMAL, FULL or EXTRA."""
    cache_size: int = Field(default=-16384, ge=-INT, le=INT)
    """PRAGMA cache_size; negative numbers are KiB."""
    mmap_size: int = Field(default=256 * 1024 * 1024, ge=0, lt=2**63)
    """PRAGMA mmap_size in bytes."""
    temp_store: str = Field(default="MEMORY", pattern="^(DEFAULT|FILE|MEMORY)$")
    """PRAGMA temp_store: DEFAULT, FILE or MEMORY."""
    wal_autocheckpoint: int = Field(default=1000, ge=0, le=INT)
    """PRAGMA wal_autocheckpoint in pages."""
    trusted_schema: bool = False
    """PRAGMA trusted_schema: whether triggers, views and constraints of a file may call functions of the program.

    A file with virtual tables is always trusted, since triggers that keep a full-text index would fail otherwise.
    """

    max_row_bytes: int = Field(default=10**9, ge=2**20, le=10**9)
    """The most bytes of texts and blobs that a repository is given for one row. SQLite reads and writes no row of more
    than twice as many, which is what an image of one takes. A step may need 13 times the row in memory."""

    protect: bool = True
    """Whether an upgrade sets the user_version of a file of consensus data to 3, which the founding builds refuse."""

    isolation: Isolation = Isolation.READ_COMMITTED
    """PostgreSQL's isolation of units of work that write: read_committed or serializable; read-only ones always see one
    snapshot."""

    on_mismatch: OnMismatch = OnMismatch.RECORD
    """Whether a differing write is kept and listed (record), or rolled back (raise)."""
    shadow_reads: Share = 0.0
    """Share of reads in phases 2 and 3 that are made on both sides and compared."""
    mismatch_cap: int = Field(default=1000, ge=1)
    """Open mismatches recorded for each table and column; further ones are only counted."""

    alarm_mismatches: int = Field(default=100, ge=1)
    """Confirmed mismatches within `alarm_window` that sound the alarm."""
    alarm_window: Duration = timedelta(minutes=1)
    """The period in which mismatches are counted for the alarm."""
    alarm_falls_back: bool = False
    """Whether an alarm in phase CUTOVER rolls back to DUAL_WRITE automatically."""

    soak_dual_write: Duration = timedelta(days=7)
    """How long DUAL_WRITE lasts before CUTOVER opens; stored when the phase begins, like the other soaks."""
    soak_cutover: Duration = timedelta(days=7)
    """How long CUTOVER lasts before NORMALIZED opens."""
    soak_normalized: Duration = timedelta(days=14)
    """How long NORMALIZED lasts before CONTRACT opens."""
    certificate_max_age: Duration = timedelta(days=1)
    """The age up to which a clean verify opens a gate; stored when the phase begins."""
    backup_dir: Path | None = None
    """The folder of the migration's own backups; beside the database if not given."""

    chunk_rows: int = Field(default=1000, ge=1, le=100_000)
    """The most rows carried in one transaction; on a server 20 times as many while no other process writes."""
    chunk_pause: Wait = timedelta(milliseconds=2)
    """The shortest pause between two chunks; a quarter of it while no other process writes. While others write to a
    file, the pause lasts as long as the lock was held."""

    max_lag: Duration | None = None
    """How far a streaming replica of a server may be behind while a step carries rows: the step waits between chunks
    while one is further behind. Not looked at where not given; needs the rights of pg_read_all_stats."""

    retry_attempts: int = Field(default=6, ge=1)
    """Tries of a unit of work, the first included."""
    retry_initial: Wait = timedelta(milliseconds=100)
    """The first backoff; each further one is twice as long."""
    retry_max: Wait = timedelta(milliseconds=1600)
    """The longest backoff."""
    retry_jitter: Share = 0.25
    """Random share of a backoff, by which the wait is shorter."""
    retry_budget: Wait = timedelta(seconds=30)
    """Time for all tries and waits together; the last wait is cut to the rest."""
    read_retry_attempts: int | None = Field(default=None, ge=1)
    """Tries of a read-only unit of work; as `retry_attempts` where not given."""
    read_retry_budget: Wait | None = None
    """Time for all tries of a read-only unit of work; as `retry_budget` where not given."""

    breaker: bool = False
    """Whether `store.run` fails at once while most recent calls failed; for stores that many threads use."""
    breaker_window: int = Field(default=100, ge=1, le=1_000_000)
    """The number of recent calls that the circuit breaker considers."""
    breaker_threshold: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of failed calls at which the circuit breaker opens."""
    breaker_minimum_calls: int = Field(default=10, ge=1)
    """The number of calls before the circuit breaker may open."""
    breaker_pause: Wait = timedelta(seconds=30)
    """How long the circuit breaker stays open before it lets one call through as a probe."""

    sink: str | None = Field(default=None, repr=False)
    """The external store of `consensus-orm relay` and `external`: `file:FOLDER`, `graph:COMMAND`, `tagged:COMMAND`, or
    `module:NAME` of a sink."""
    sink_timeout: Wait = timedelta(seconds=10)
    """How long one call of an external store may take."""
    relay_lease: Wait = timedelta(seconds=60)
    """How long a relay that was killed keeps others out; at least six times `sink_timeout`."""
    relay_attempts: int = Field(default=5, ge=1)
    """Tries of one entry of the outbox before it becomes a reject."""
    relay_alarm_entries: int = Field(default=10_000, ge=1)
    """Entries waiting in the outbox that sound the alarm."""
    relay_alarm_age: Duration = timedelta(minutes=15)
    """The age of the oldest waiting entry that sounds the alarm; also the shortest time between two alarms."""
    relay_lag_limit: Duration = timedelta(minutes=1)
    """The highest p99 of the time from commit to read-back with which DETACHED opens."""
    soak_mirror: Duration = timedelta(days=7)
    """How long MIRROR lasts before DETACHED opens."""

    keep_verify: Duration = timedelta(hours=12)
    """How often `consensus-orm keep` verifies; 0 never. Less than `certificate_max_age`, gates find a fresh verify."""
    keep_reconcile: Reconciling = Reconciling.NONE
    """What the keeper does about differences: none; settle, what needs no choice; adopt or repair the others, too."""
    keep_backup: Duration = timedelta(days=1)
    """How often the keeper makes a verified backup in `backup_dir`; 0 never."""
    keep_backups: int = Field(default=7, ge=1)
    """Backups of the keeper that are kept; older ones of the same database in this folder are removed."""
    keep_vacuum: Duration = timedelta(days=7)
    """How often the keeper vacuums; 0 never."""
    keep_health: Duration = timedelta(minutes=1)
    """How often the keeper checks the health of the database, and whether it is paused."""
    keep_lease: Annotated[Wait, Field(ge=timedelta(seconds=1))] = timedelta(minutes=2)
    """How long a keeper that was killed keeps others out; a second or more, or two of them would act at once."""

    clock: Callable[[], datetime] = Field(default=utc_now, exclude=True, repr=False)
    """Gives the time; for tests."""

    @model_validator(mode="wrap")
    @classmethod
    def _explain(cls, values: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return handler(values)
        except ValidationError as error:
            # Its own text would repeat the values.
            wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
            raise ConfigurationError(f"settings cannot be used: {wrong}") from None

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Copy the settings with other values, which are validated.

        Args:
            update: The other values.
            deep: As in pydantic.

        Raises:
            ConfigurationError: A value cannot be used.
        """
        copy = super().model_copy(deep=deep)
        return type(self)(**{**dict(copy), **update}) if update else copy


# What pydantic makes of its own and of our 50 arguments, defaults included, is a line of 6,500 characters in `help`.
Settings.__signature__ = inspect.Signature([inspect.Parameter("settings", inspect.Parameter.VAR_KEYWORD)])


def from_environment() -> Settings:
    """The settings of the environment alone.

    Raises:
        ConfigurationError: A value cannot be used.

    Warns:
        UnknownSettingWarning: A variable has the prefix and is not a setting.
    """
    for sentence in unknown_variables(os.environ):
        warnings.warn(sentence, UnknownSettingWarning, stacklevel=3)
    return Settings()


def unknown_variables(environment: Mapping[str, str]) -> Iterator[str]:
    """A sentence for each variable that has the prefix and is not a setting, with the nearest name and no value."""
    known = [f"{PREFIX}{name.upper()}" for name in Settings.model_fields]
    for name in sorted(environment):
        if name.upper().startswith(PREFIX) and name.upper() not in known and not name.startswith(_NOT_SETTINGS):
            nearest = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0)[0]
            yield f"{name} is no setting and has no effect; the nearest name is {nearest}"
