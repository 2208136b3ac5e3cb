"""The backup of a server: every type of column goes through, back to the byte, and nothing damaged is restored."""

from __future__ import annotations

import contextlib
import json
import stat
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from sqlalchemy import (
    ARRAY,
    BigInteger,
    Boolean,
    Date,
    DateTime,
    Integer,
    Interval,
    LargeBinary,
    Numeric,
    Text,
    Time,
    Uuid,
    make_url,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import CIDR, DOUBLE_PRECISION, INET, INT4RANGE, JSONB, MACADDR
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.schema import CreateTable

import consensus_orm
import consensus_orm.consensus.restoration
from consensus_orm import Phase, Side, Store
from consensus_orm.databases.base import SavedRow
from consensus_orm.declaration.attributes import table_of
from consensus_orm.declaration.move import Move
from consensus_orm.declaration.moves import Moves
from consensus_orm.errors import BackupError, RestoreError
from consensus_orm.ledgers.rejects import as_image
from consensus_orm.settings import Settings
from tests.support import servers

pytestmark = pytest.mark.postgresql

DDL = """
CREATE TABLE things_flat (id BIGSERIAL PRIMARY KEY, price NUMERIC(30, 4), loose NUMERIC, at TIMESTAMPTZ,
  local TIMESTAMP, day DATE, clock TIME, took INTERVAL, code UUID, tags TEXT[], grid INTEGER[], facts JSONB, host INET,
  net CIDR, mac MACADDR, span INT4RANGE, ratio DOUBLE PRECISION, raw BYTEA, done BOOLEAN, what TEXT);
INSERT INTO things_flat (price, loose, at, local, day, clock, took, code, tags, grid, facts, host, net, mac, span,
  ratio, raw, done, what) VALUES
 (12345678901234567890.1200, 1.10, '2025-11-04 02:23:58.123456+05:30', '2025-11-04 02:23:58.1', '0044-03-15 BC',
  '23:59:59.999999', '1 mon 24:00:00', '00000000-0000-0000-0000-00000000004d', '{"a,b",NULL,"\\\\"}', '{{1,2},{3,4}}',
  '{"b": [1, null, "\\u00e9"], "a": 1.0}', '10.0.0.1/8', '10.0.0.0/8', '08:00:2b:01:02:03', '[1,5)', 0.1, '\\x00ff0a',
  TRUE, E'tab\\there\\nand\\\\'),
 (NULL, 'NaN', 'infinity', '-infinity', 'infinity', '24:00:00', '-1 day +00:00:01', NULL, '{}', NULL, 'null', '::1',
  NULL, NULL, 'empty', '-0', '', FALSE, ''),
 (0, 1.100, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 'Infinity', NULL, NULL, 'x'),
 (1, 1, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, 1, NULL, NULL, 'deleted'),
 (2, 2, now(), now(), now(), '12:00', '1 day', '00000000-0000-0000-0000-00000000004e', '{b}', '{}', '{}', '::2', NULL,
  NULL, NULL, 'NaN', '\\xff', TRUE, NULL);
DELETE FROM things_flat WHERE what = 'deleted';
"""


class Base(DeclarativeBase):
    pass


class _Thing:
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    price: Mapped[Decimal | None] = mapped_column(Numeric(30, 4))
    loose: Mapped[Decimal | None] = mapped_column(Numeric)
    at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))
    local: Mapped[datetime | None] = mapped_column(DateTime)
    day: Mapped[date | None] = mapped_column(Date)
    clock: Mapped[time | None] = mapped_column(Time)
    took: Mapped[timedelta | None] = mapped_column(Interval)
    code: Mapped[UUID | None] = mapped_column(Uuid)
    tags: Mapped[Any | None] = mapped_column(ARRAY(Text))
    grid: Mapped[Any | None] = mapped_column(ARRAY(Integer))
    facts: Mapped[Any | None] = mapped_column(JSONB)
    host: Mapped[Any | None] = mapped_column(INET)
    net: Mapped[Any | None] = mapped_column(CIDR)
    mac: Mapped[Any | None] = mapped_column(MACADDR)
    span: Mapped[Any | None] = mapped_column(INT4RANGE)
    ratio: Mapped[float | None] = mapped_column(DOUBLE_PRECISION)
    raw: Mapped[bytes | None] = mapped_column(LargeBinary)
    done: Mapped[bool | None] = mapped_column(Boolean)
    what: Mapped[str | None] = mapped_column(Text)


class ThingFlat(_Thing, Base):
    __tablename__ = "things_flat"


class Thing(_Thing, Base):
    __tablename__ = "things"


COLUMNS = {getattr(Thing, column.key): getattr(ThingFlat, column.key) for column in table_of(ThingFlat).columns}
MOVES = Moves(
    Move(
        ThingFlat,
        Thing,
        name="things",
        key={ThingFlat.id: Thing.id},
        columns={mine: theirs for mine, theirs in COLUMNS.items() if mine is not Thing.id},
    )
)


@contextlib.contextmanager
def opened(url: str, folder: Path) -> Iterator[Store]:
    settings = Settings(soak_dual_write=0, soak_cutover=0, soak_normalized=0, backup_dir=folder)
    with Store.open(url, moves=MOVES, settings=settings) as store:
        yield store


def restored(backup: Path, url: str) -> consensus_orm.consensus.restoration.RestoreReport:
    return consensus_orm.restore(backup, url, moves=MOVES)


@pytest.fixture
def url() -> Iterator[str]:
    dialect: Any = postgresql.dialect
    with servers.database() as url:
        run(url, DDL)
        run(url, str(CreateTable(table_of(Thing)).compile(dialect=dialect())))
        yield url


def run(url: str, sql: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(sql.encode())
        return cursor.fetchall() if cursor.description else []


def stored(url: str, table: str) -> list[tuple[Any, ...]]:
    """Each row as the server prints it, which shows types and digits."""
    return run(url, f"SELECT CAST(t AS TEXT) FROM {table} AS t ORDER BY id")


def contracted(store: Store) -> Path:
    """Take a database to CONTRACT; gives the backup that was made on the way."""
    store.migration.migrate(Phase.CONTRACT, soak=False)
    (entry,) = (entry for entry in store.migration.history() if entry.to_phase is Phase.CONTRACT)
    return Path(entry.detail["backup"])


def test_any_type_goes_to_contract_and_back(url: str, tmp_path: Path) -> None:
    """No type of a column shuts the way, and each value comes back with its digits, and its bits."""
    before = stored(url, "things_flat")
    with opened(url, tmp_path) as store:
        backup = contracted(store)
        assert stored(url, "things") == before
        store.migration.rollback(Phase.EXPAND)
    assert stored(url, "things_flat") == before
    assert stat.S_IMODE(backup.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in backup.iterdir()} == {0o600}


def test_any_type_is_rehearsed(url: str, tmp_path: Path) -> None:
    """A rehearsal proves the way of any type before the database itself was ever written."""
    before = stored(url, "things_flat")
    with opened(url, tmp_path) as store:
        report = store.migration.rehearse()
    assert report.passed, report
    assert report.backup_bytes > 0
    assert {proof.rows for proof in report.proofs} == {len(before)}
    assert run(url, "SELECT relname FROM pg_class WHERE relname LIKE 'consensus_orm%'") == []


def test_an_image_of_any_type_is_put_back(url: str, tmp_path: Path) -> None:
    """A row that stands on the legacy side alone is saved by value before CONTRACT, whatever its types."""
    before, pair = stored(url, "things_flat"), MOVES["things"]
    with opened(url, tmp_path) as store:
        store.migration.upgrade()
        with store.unit_of_work() as uow:
            names, sql = uow.statements[pair].image(Side.LEGACY)
            rows = [as_image(names, uow._execute(sql, {"_key": key}).fetchone()) for key in (1, 2, 3, 5)]
        run(url, "DELETE FROM things_flat")
        with store.unit_of_work() as uow:
            for row in rows:
                cells = {name: (kind, digits) for name, (kind, digits) in row.items()}
                values = uow.catalog.legacy.values("things_flat", cells)
                uow.catalog.legacy.put_back(uow, SavedRow("things_flat", cells, values))
    assert stored(url, "things_flat") == before


def test_a_backup_is_restored_whole(url: str, tmp_path: Path) -> None:
    """An empty database gets tables, rows, phase, audit and the highest ids, and the migration goes on there."""
    with opened(url, tmp_path) as store:
        before = stored(url, "things_flat")
        backup = contracted(store)
        history = len(store.migration.history())
    with servers.database() as other:
        report = restored(backup, other)
        assert stored(other, "things_flat") == before
        assert stored(other, "things") == before
        assert report.rows["things_flat"] == len(before)
        with opened(other, tmp_path) as store:
            assert store.migration.phase is Phase.NORMALIZED
            assert [entry.action for entry in store.migration.history()][-1] == "restore"
            assert len(store.migration.history()) == history  # the flip to CONTRACT came after the backup
            with store.unit_of_work() as uow:
                assert uow.repository("things").add({"what": "new"}) == 6
            with pytest.raises(psycopg.Error, match="are frozen"):
                run(other, "INSERT INTO things_flat (what) VALUES ('late')")
            store.migration.rollback(Phase.EXPAND)
        assert len(stored(other, "things_flat")) == len(before) + 1


def test_a_backup_at_contract_keeps_the_way_back(url: str, tmp_path: Path) -> None:
    """What is put away at CONTRACT is restored too."""
    before = stored(url, "things_flat")
    with opened(url, tmp_path) as store, servers.database() as other:
        contracted(store)
        store.maintenance.backup(tmp_path / "kept")
        restored(tmp_path / "kept", other)
        with opened(other, tmp_path) as store:
            assert store.migration.phase is Phase.CONTRACT
            assert store.migration.status().guards == []
            store.migration.rollback(Phase.EXPAND)
        assert stored(other, "things_flat") == before


def test_a_damaged_backup_is_refused(url: str, tmp_path: Path) -> None:
    """A row, a byte or a file that is missing, and a path that leads out of the folder, are found before any write."""
    with opened(url, tmp_path) as store:
        store.maintenance.backup(tmp_path / "kept")
    manifest = json.loads((tmp_path / "kept" / "manifest.json").read_text())
    (table,) = (table for table in manifest["tables"] if table["name"] == "things_flat")
    file = tmp_path / "kept" / table["file"]
    whole = file.read_bytes()
    with servers.database() as other:
        for damaged in (whole[:-1], whole.replace(b"12345678901234567890", b"12345678901234567891"), b""):
            file.write_bytes(damaged)
            with pytest.raises(RestoreError, match="things_flat, is not what the server sent"):
                restored(tmp_path / "kept", other)
        file.unlink()
        with pytest.raises(RestoreError, match="No such file"):
            restored(tmp_path / "kept", other)
        file.write_bytes(whole)
        for text, why in (("{}", "cannot be used"), (json.dumps(manifest | {"format": 2}), "later format")):
            (tmp_path / "kept" / "manifest.json").write_text(text)
            with pytest.raises(RestoreError, match=why):
                restored(tmp_path / "kept", other)
        table["file"] = "../secret"
        (tmp_path / "kept" / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(RestoreError, match="not a file of its folder"):
            restored(tmp_path / "kept", other)
        assert run(other, "SELECT relname FROM pg_class WHERE relname ~ 'thing|consensus'") == []


def test_a_manifest_reaches_no_other_table(url: str, tmp_path: Path) -> None:
    """A backup handed over adds no row to a table of another application, and comes in the phase of its rows only."""
    kept, rows = tmp_path / "kept" / "manifest.json", b"2\tmallory\n"
    with opened(url, tmp_path) as store:
        store.maintenance.backup(kept.parent)
    whole = json.loads(kept.read_text())
    (kept.parent / "99.copy").write_bytes(rows)
    theirs: dict[str, Any] = {"name": "users", "columns": ["id", "what"], "sequence": None, "file": "99.copy"}
    theirs |= {"rows": 1, "bytes": len(rows), "sha256": sha256(rows).hexdigest()}
    with servers.database() as other:
        run(other, "CREATE TABLE users (id BIGINT, what TEXT); INSERT INTO users VALUES (1, 'admin')")
        for change, why in (
            ({"tables": [*whole["tables"], theirs]}, "'users', a table that is in no move"),
            ({"phase": 99}, "cannot be used"),
            ({"phase": 2}, "says two phases"),
        ):
            kept.write_text(json.dumps(whole | change))
            with pytest.raises(RestoreError, match=why):
                restored(kept.parent, other)
        assert run(other, "SELECT id, what FROM users") == [(1, "admin")]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("ALTER TABLE things_flat DROP COLUMN what", "no column 'what' of things_flat"),
        ("ALTER TABLE things_flat ALTER price TYPE NUMERIC(30, 2)", "does not hold the rows of the backup"),
        ("INSERT INTO things_flat (what) VALUES ('mine')", "holds rows in things_flat already"),
    ],
)
def test_what_the_tables_cannot_hold_is_not_restored(url: str, tmp_path: Path, change: str, why: str) -> None:
    """Tables that are there are used as they are; where they would change a value, nothing is kept."""
    with opened(url, tmp_path) as store:
        store.maintenance.backup(tmp_path / "kept")
    with servers.database() as other:
        run(other, DDL.partition("INSERT")[0])
        run(other, change)
        before = stored(other, "things_flat")
        with pytest.raises(RestoreError, match=why):
            restored(tmp_path / "kept", other)
        assert stored(other, "things_flat") == before


def test_a_trigger_that_rewrites_rows_is_found(url: str, tmp_path: Path) -> None:
    """A trigger of a table that was made before the restore does not change a row unnoticed."""
    with opened(url, tmp_path) as store:
        store.maintenance.backup(tmp_path / "kept")
    with servers.database() as other:
        run(other, DDL.partition("INSERT")[0])
        run(
            other,
            "CREATE FUNCTION stamp() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.what = now(); RETURN NEW; END';"
            "CREATE TRIGGER stamp BEFORE INSERT ON things_flat FOR EACH ROW EXECUTE FUNCTION stamp()",
        )
        with pytest.raises(RestoreError, match="things_flat does not hold the rows"):
            restored(tmp_path / "kept", other)
        run(other, "ALTER TABLE things_flat DISABLE TRIGGER stamp")
        restored(tmp_path / "kept", other)
        assert stored(other, "things_flat") == stored(url, "things_flat")


def test_a_backup_and_a_database_of_another_kind(url: str, tmp_path: Path) -> None:
    """A folder is not restored into a file, nor a file into a server; each refusal says what does it."""
    with opened(url, tmp_path) as store:
        store.maintenance.backup(tmp_path / "kept")
    with pytest.raises(RestoreError, match="is a folder") as refused:
        consensus_orm.restore(tmp_path / "kept", tmp_path / "file.db", moves=MOVES, create=True)
    assert "postgresql://" in refused.value.hint
    (tmp_path / "file.db").touch()
    with pytest.raises(RestoreError, match="is a file") as refused:
        restored(tmp_path / "file.db", url)
    assert "copy BACKUP URL" in refused.value.hint


def test_a_target_that_cannot_be_used(url: str, tmp_path: Path) -> None:
    """Nothing but a backup of a server is replaced, and a failure leaves neither a part nor a folder behind."""
    with opened(url, tmp_path) as store:
        first = store.maintenance.backup(tmp_path / "kept")
        assert first.rows == {"things": 0, "things_flat": 4}
        with pytest.raises(BackupError, match="exists already"):
            store.maintenance.backup(tmp_path / "kept")
        run(url, "DELETE FROM things_flat WHERE id = 1")
        assert store.maintenance.backup(tmp_path / "kept", overwrite=True).rows["things_flat"] == 3
        (tmp_path / "other").mkdir()
        with pytest.raises(BackupError, match="is not a backup of a server"):
            store.maintenance.backup(tmp_path / "other", overwrite=True)
        with pytest.raises(BackupError, match="does not exist"):
            store.maintenance.backup(tmp_path / "nowhere" / "kept")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "other"]


def test_a_table_that_the_role_may_not_read(url: str, tmp_path: Path) -> None:
    """The backup refuses by the name of the table, instead of leaving it out."""
    database = make_url(url).database
    run(url, f"CREATE ROLE reader_{database} LOGIN")
    try:
        run(url, f"GRANT SELECT ON things TO reader_{database}")
        role = make_url(url).set(username=f"reader_{database}").render_as_string()
        with opened(role, tmp_path) as store, pytest.raises(BackupError, match="may not read each row of things_flat"):
            store.maintenance.backup(tmp_path / "kept")
        run(url, f"GRANT SELECT ON things_flat TO reader_{database}")
        run(url, "ALTER TABLE things_flat ENABLE ROW LEVEL SECURITY")
        with opened(role, tmp_path) as store, pytest.raises(BackupError, match="may not read each row of things_flat"):
            store.maintenance.backup(tmp_path / "kept")
    finally:
        run(url, f"DROP OWNED BY reader_{database}; DROP ROLE reader_{database}")
    assert list(tmp_path.iterdir()) == []


def test_a_partitioned_table(url: str, tmp_path: Path) -> None:
    """The rows of all its partitions are backed up, and restored into one table."""
    run(
        url,
        "DROP TABLE things; CREATE TABLE things (LIKE things_flat, PRIMARY KEY (id)) PARTITION BY RANGE (id);"
        "CREATE TABLE low PARTITION OF things FOR VALUES FROM (1) TO (3);"
        "CREATE TABLE high PARTITION OF things DEFAULT;"
        "INSERT INTO things SELECT * FROM things_flat WHERE what IS NOT NULL",
    )
    with opened(url, tmp_path) as store, servers.database() as other:
        store.maintenance.backup(tmp_path / "kept")
        restored(tmp_path / "kept", other)
        assert stored(other, "things") == stored(url, "things") != []
