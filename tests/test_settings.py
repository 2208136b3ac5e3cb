"""Settings: from arguments or the environment, frozen, each wrong value one clear error without the value."""

from __future__ import annotations

import logging
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from consensus_orm import ConsensusStore, OnMismatch, Settings
from consensus_orm.errors import ConfigurationError
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


def test_an_unknown_setting_is_refused() -> None:
    """A misspelled argument is an error, not a setting without effect."""
    with pytest.raises(ValidationError, match="pool_sise"):
        Settings(pool_sise=3)  # type: ignore[call-arg]


def test_a_wrong_argument_is_not_repeated() -> None:
    """The error of a wrong argument says which it is and not what it was: it may be a password out of place."""
    with pytest.raises(ValidationError, match="pool_size") as raised:
        Settings(pool_size="secret")

    assert "secret" not in str(raised.value)


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
