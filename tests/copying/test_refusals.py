"""Copies that are refused, and leave both sides as they were."""

from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from consensus_orm import ConsensusStore, Phase, errors
from consensus_orm.consensus.application import APPLICATION
from consensus_orm.schema import revisions
from consensus_orm.testing.phases import take_to
from tests.copying.judges import (
    LEGACY,
    SETTINGS,
    SIDES,
    SMALL,
    Sources,
    _copied,
    _Once,
    fitting_history,
    moved,
    state_of,
)
from tests.field import builders
from tests.support import oracle, oracle_of_servers, servers

pytestmark = pytest.mark.long


def test_a_target_that_is_not_empty(sources: Sources, url: str, tmp_path: Path) -> None:
    """A target with rows or tables of ours is refused, and stays as it is."""
    source = sources(fitting_history, Phase.DUAL_WRITE)
    moved(source, url)
    before = oracle_of_servers.image(url, *SIDES)
    with pytest.raises(errors.CopyError, match="holds tables of ours already"):
        moved(source, url)
    assert oracle_of_servers.image(url, *SIDES) == before
    builders.build_legacy(tmp_path / "other.db", columns=8)
    sha = oracle.sha256(tmp_path / "other.db")
    with pytest.raises(errors.CopyError, match="holds tables of ours already"):
        moved(source, tmp_path / "other.db")
    assert oracle.sha256(tmp_path / "other.db") == sha


def test_an_unfinished_copy_of_another_source(sources: Sources, url: str, tmp_path: Path) -> None:
    """An unfinished copy goes on with its own source only, and with that in the same shape."""
    source = _copied(sources(fitting_history, Phase.NORMALIZED), tmp_path / "source.db")
    moved(source, url, finish=False)
    with pytest.raises(errors.CopyError, match="of another database"):
        moved(sources(fitting_history, Phase.NORMALIZED), url)
    with ConsensusStore.open(source, settings=SETTINGS) as store:
        take_to(store, Phase.CONTRACT)
    with pytest.raises(errors.CopyError, match="in another phase"):
        moved(source, url)


def test_a_phase_that_changes_meanwhile(sources: Sources, url: str, tmp_path: Path) -> None:
    """A step that takes tables away while a copy goes on is noticed at its end; one that does not comes along."""
    source = _copied(sources(fitting_history, Phase.NORMALIZED), tmp_path / "source.db")
    with ConsensusStore.open(source, settings=SETTINGS) as store:
        with servers.database() as other:
            step = _Once("consensus_artifacts", 9, lambda: take_to(store, Phase.CUTOVER))
            assert moved(source, other, SMALL, progress=step).phase is Phase.CUTOVER
            assert state_of(other) == state_of(source)
        step = _Once("agent_executions", 0, lambda: take_to(store, Phase.CONTRACT))
        with pytest.raises(errors.CopyError, match="another phase"):
            moved(source, url, SMALL, progress=step)
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT count(*) FROM consensus_orm_state").fetchall() == [(0,)]


def test_the_same_database_twice(sources: Sources, tmp_path: Path) -> None:
    """A database is not copied into itself, whatever it is called."""
    source = _copied(sources(fitting_history, Phase.EXPAND), tmp_path / "source.db")
    (tmp_path / "link.db").symlink_to(source)
    for target in (source, tmp_path / "link.db"):
        with pytest.raises(errors.ConfigurationError, match="the same database"):
            moved(source, target)


def test_sources_that_cannot_be_copied(sources: Sources, url: str, tmp_path: Path) -> None:
    """A file to be adopted first, one in the middle of a step, and a column without a place are refused by name."""
    builders.final_build(tmp_path / "final.db")
    with pytest.raises(errors.CopyError, match="not been prepared"):
        moved(tmp_path / "final.db", url)
    older = tmp_path / "older.db"
    builders.first_version(older)
    with ConsensusStore.open(older, settings=SETTINGS) as store:
        store.upgrade()
        revisions.downgrade(store.engine, "0002", APPLICATION)
    with pytest.raises(errors.CopyError, match="not been prepared"):
        moved(older, url)
    halfway = _copied(sources(fitting_history, Phase.CONTRACT), tmp_path / "halfway.db")
    with builders.writing(halfway) as connection:
        connection.execute("UPDATE consensus_orm_state SET step = 'rebuild'")
    with pytest.raises(errors.CopyError, match="middle of a step"):
        moved(halfway, url)
    builders.extra_column(tmp_path / "extra.db")
    with pytest.raises(errors.CopyError, match="'tokens' that is not declared"):
        moved(tmp_path / "extra.db", url)
    assert oracle_of_servers.tables(url) == []
    moved(tmp_path / "extra.db", tmp_path / "copy.db")
    assert oracle.rows(tmp_path / "copy.db", LEGACY[0]) == oracle.rows(tmp_path / "extra.db", LEGACY[0])


def test_verify_looks_at_the_target(sources: Sources, url: str, tmp_path: Path) -> None:
    """A value that the target stored otherwise is found before the target is opened."""
    source = sources(fitting_history, Phase.EXPAND)
    moved(source, url, finish=False)
    with psycopg.connect(url) as connection:
        connection.execute(
            "CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " NEW.content_json := NEW.content_json || ' '; RETURN NEW; END $$;"
            " CREATE TRIGGER spoil BEFORE INSERT ON consensus_artifacts FOR EACH ROW EXECUTE FUNCTION spoil();"
            " DELETE FROM consensus_artifacts WHERE id = 100000"
        )
    with pytest.raises(errors.CopyError, match="consensus_artifacts differs"):
        moved(source, url)
    with psycopg.connect(url) as connection:
        assert connection.execute("SELECT count(*) FROM consensus_orm_state").fetchall() == [(0,)]
