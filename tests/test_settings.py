"""Settings: from arguments or the environment, frozen, each wrong value one clear error without the value."""

from __future__ import annotations

import json
import logging
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from consensus_orm import ConsensusStore, OnMismatch, Settings
from consensus_orm.cli import main
from consensus_orm.errors import ConfigurationError, UnknownSettingWarning
from consensus_orm.testing import artifact_values


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in os.environ:
        if name.startswith("CONSENSUS_ORM_"):
            monkeypatch.delenv(name)


def test_defaults_are_those_of_the_design() -> None:
    """What DESIGN.md promises holds without any setting."""
    settings = Settings()

    assert (settings.pool_size, settings.on_mismatch, settings.shadow_reads) == (10, OnMismatch.RECORD, 0)
    soaks = (settings.soak_dual_write, settings.soak_cutover, settings.soak_normalized)
    assert soaks == (timedelta(days=7), timedelta(days=7), timedelta(days=14))
    retries = (settings.retry_attempts, settings.retry_initial, settings.retry_max)
    assert retries == (6, timedelta(milliseconds=100), timedelta(milliseconds=1600))


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("POOL_SIZE", "20", 20),
        ("BUSY_TIMEOUT", "0.25", timedelta(milliseconds=250)),
        ("SOAK_DUAL_WRITE", "604800", timedelta(days=7)),
        ("SOAK_CUTOVER", "P2D", timedelta(days=2)),
        ("SOAK_NORMALIZED", "PT0S", timedelta(0)),
        ("ON_MISMATCH", "raise", OnMismatch.RAISE),
        ("SHADOW_READS", "0.5", 0.5),
        ("RETRY_JITTER", "0", 0.0),
        ("SYNCHRONOUS", "FULL", "FULL"),
        ("READ_URL", "postgresql://replica/db", "postgresql://replica/db"),
    ],
)
def test_each_is_read_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, value: object
) -> None:
    """CONSENSUS_ORM_NAME sets it, durations in seconds or ISO 8601; an argument wins over the environment."""
    monkeypatch.setenv(f"CONSENSUS_ORM_{name}", text)

    assert getattr(Settings(), name.lower()) == value
    assert Settings(pool_size=3).pool_size == 3


WRONG = [
    ("POOL_SIZE", "0"),
    ("POOL_SIZE", "many"),
    ("BUSY_TIMEOUT", "-1"),
    ("BUSY_TIMEOUT", "soon"),
    ("BUSY_TIMEOUT", "nan"),
    ("SOAK_CUTOVER", "1e300"),
    ("ON_MISMATCH", "ignore"),
    ("SHADOW_READS", "2"),
    ("SYNCHRONOUS", "OFF; DROP TABLE x"),
    ("TEMP_STORE", "memory; --"),
]


@pytest.mark.parametrize(("name", "text"), WRONG)
def test_a_wrong_value_is_one_clear_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, text: str
) -> None:
    """Opening with a wrong setting names it without repeating the value, and creates nothing."""
    monkeypatch.setenv(f"CONSENSUS_ORM_{name}", text)
    with pytest.raises(ConfigurationError, match=name.lower()) as raised:
        ConsensusStore.open(tmp_path / "new.db")

    assert "DROP" not in str(raised.value)
    assert raised.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


HOSTILE: list[dict[str, Any]] = [
    {"pool_size": 0},
    {"keep_lease": 0},
    {"pool_size": "secret"},
    {"pool_sise": 3},
    {"clock": "secret"},
    {"url": object()},
    {"backup_dir": object()},
    {"busy_timeout": float("nan")},
    {"busy_timeout": timedelta.max},
    {"pool_timeout": "1e9"},
    {"soak_cutover": timedelta.max},
    {"cache_size": 2**80},
    {"wal_autocheckpoint": 2**40},
    {"mmap_size": 2**63},
    {"breaker_window": 2**80},
    {"on_mismatch": None},
    {"isolation": "secret"},
]


@pytest.mark.parametrize("wrong", HOSTILE, ids=lambda wrong: next(iter(wrong)))
def test_a_wrong_argument_is_the_same_error(wrong: dict[str, Any]) -> None:
    """A setting given in code that cannot be used is named by the error of this package, which repeats no value."""
    given: list[Callable[[], Settings]] = [
        lambda: Settings(**wrong),
        lambda: Settings.model_validate(wrong),
        lambda: Settings().model_copy(update=wrong),
    ]
    for make in given:
        with pytest.raises(ConfigurationError, match=next(iter(wrong))) as raised:
            make()
        told = "".join(traceback.format_exception(raised.value)).partition("Error: ")[2]
        assert "secret" not in told


@pytest.mark.parametrize("extremes", ["least", "most"])
def test_the_extremes_of_each_setting_work(extremes: str, tmp_path: Path) -> None:
    """A number or duration at the end of its range is one that a store works with."""
    chosen: dict[str, Any] = {}
    for name, field in Settings.model_fields.items():
        for limit in field.metadata:
            if value := getattr(limit, {"least": "ge", "most": "le"}[extremes], None):
                chosen[name] = value
    assert len(chosen) > 5
    with ConsensusStore.open(tmp_path / "new.db", settings=Settings(**chosen)) as store:
        store.run(lambda uow: uow.artifacts.add(**artifact_values()))
        assert store.maintenance.stats().pool.size == store.settings.pool_size


def test_an_unknown_variable_is_told_with_the_nearest_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A misspelled variable is a warning to the caller who opens a store, without its value; the store works."""
    monkeypatch.setenv("CONSENSUS_ORM_POOL_SISE", "secret")
    monkeypatch.setenv("CONSENSUS_ORM_TEST_POSTGRES", "of the tests")
    with pytest.warns(UnknownSettingWarning, match="POOL_SISE is no .* nearest .* CONSENSUS_ORM_POOL_SIZE") as told:
        ConsensusStore.open(tmp_path / "new.db").close()
    assert [(warning.filename, "secret" in str(warning.message)) for warning in told] == [(__file__, False)]


def test_an_unknown_variable_is_one_line_of_a_command(tmp_path: Path) -> None:
    """A command tells it on stderr, once, and goes on; with --json stdout holds the document alone."""
    path = str(tmp_path / "new.db")
    done = CliRunner().invoke(
        main, ["--url", path, "upgrade", "--create", "--json"], env={"CONSENSUS_ORM_SOAK": "secret"}
    )
    assert done.exit_code == 0
    assert json.loads(done.stdout)["phase"] == "CONTRACT"
    (line,) = done.stderr.splitlines()
    assert line.startswith("consensus-orm: warning: CONSENSUS_ORM_SOAK is no setting and has no effect")
    assert "secret" not in line


def test_settings_are_frozen_and_tell_no_secrets() -> None:
    """Settings never change under a store, and their repr has no URL."""
    settings = Settings(url="postgresql://user:secret@host/db", read_url="postgresql://user:secret@replica/db")
    with pytest.raises(ValidationError, match="frozen"):
        settings.pool_size = 3  # type: ignore[misc]
    assert "secret" not in repr(settings)
    assert "clock" not in settings.model_dump()


def test_the_url_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A store opens at CONSENSUS_ORM_URL, else at the tool's own file in the home folder; opening creates neither."""
    monkeypatch.setenv("HOME", str(tmp_path))
    with ConsensusStore.open() as store:
        assert store.path == tmp_path / ".code" / "consensus_artifacts.db"
    monkeypatch.setenv("CONSENSUS_ORM_URL", f"sqlite:///{tmp_path}/named.db")
    with ConsensusStore.open() as store:
        assert store.path == tmp_path / "named.db"
    with ConsensusStore.open(tmp_path / "argument.db") as store:
        assert store.path == tmp_path / "argument.db"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["", "mysql://user:secret@host/db", "sqlite://host:port:x", "://secret"])
def test_a_wrong_url_tells_no_password(url: str) -> None:
    """A URL that cannot be used is one clear error without its password."""
    with pytest.raises(ConfigurationError) as raised:
        ConsensusStore.open(url)

    assert "secret" not in str(raised.value)


@pytest.mark.sqlite
def test_echo_shows_statements_but_no_contents(
    consensus_store: ConsensusStore, caplog: pytest.LogCaptureFixture
) -> None:
    """With echo, SQLAlchemy logs what goes through it, without the parameters."""
    from sqlalchemy import text

    with (
        caplog.at_level(logging.INFO, "sqlalchemy"),
        ConsensusStore.open(consensus_store.path, echo=True) as store,
        store.unit_of_work() as uow,
    ):
        uow.artifacts.add(**artifact_values(content_json="secret"))
        found: Any = uow.session.execute(text("SELECT :x"), {"x": "secret"}).scalar()
        assert found == "secret"
    logging.getLogger("sqlalchemy.engine.Engine").handlers.clear()

    assert "SELECT ?" in caplog.text
    assert "secret" not in caplog.text
