"""Tables in schemas of their own: legacy in one, ours in another, whatever schemas the other programs look in."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import BigInteger, ForeignKey, Text, UniqueConstraint, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from consensus_orm import Move, Moves, Parent, Phase, Store
from consensus_orm.databases.opening import parse_url
from consensus_orm.errors import ConfigurationError, GuardsBrokenError, UnknownSchemaError
from consensus_orm.settings import Settings
from tests.support import servers

pytestmark = [pytest.mark.postgresql, pytest.mark.long]

OLD, NEW = "Old Data", "New"

TABLE = """
CREATE TABLE "Old Data"."Things Flat" (id BIGSERIAL PRIMARY KEY, what TEXT, "Box" TEXT);
CREATE INDEX "By Box" ON "Old Data"."Things Flat" ("Box");
"""
DDL = f"""
CREATE SCHEMA "Old Data"; CREATE SCHEMA "New"; {TABLE}
INSERT INTO "Old Data"."Things Flat" (what, "Box") VALUES ('a', 'b'), (NULL, 'q'), ('c', 'b');
"""
WRITE = """INSERT INTO "Things Flat" (what, "Box") VALUES ('theirs', 'b')"""


class Base(DeclarativeBase):
    pass


class Flat(Base):
    __tablename__ = "Things Flat"
    __table_args__ = {"schema": OLD}  # noqa: RUF012

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    what: Mapped[str | None] = mapped_column(Text)
    Box: Mapped[str | None] = mapped_column(Text)


class Box(Base):
    __tablename__ = "Boxes"
    __table_args__ = (UniqueConstraint("what"), {"schema": NEW})

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    what: Mapped[str | None] = mapped_column(Text)


class Thing(Base):
    __tablename__ = "Things"
    __table_args__ = {"schema": NEW}  # noqa: RUF012

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    box: Mapped[int] = mapped_column(ForeignKey("New.Boxes.id"))
    what: Mapped[str | None] = mapped_column(Text)


def moves(legacy: type[DeclarativeBase] = Flat, normalized: Any = Thing, parent: Any = Box) -> Moves:
    old: Any = legacy
    return Moves(
        Move(
            old,
            normalized,
            name="things",
            key={old.id: normalized.id},
            columns={normalized.what: old.what},
            parts=[Parent(parent, link=normalized.box, by={parent.what: old.Box})],
        )
    )


@contextlib.contextmanager
def opened(url: str, folder: Path, declared: Moves | None = None) -> Iterator[Store]:
    settings = Settings(soak_dual_write=0, soak_cutover=0, soak_normalized=0, backup_dir=folder, chunk_pause=0)
    with Store.open(url, moves=declared or moves(), settings=settings) as store:
        yield store


@pytest.fixture
def url() -> Iterator[str]:
    with servers.database() as url:
        run(url, DDL)
        create_all(url, Base)
        yield url


def create_all(url: str, base: type[DeclarativeBase]) -> None:
    engine = create_engine(parse_url(url))
    base.metadata.create_all(engine)
    engine.dispose()


def run(url: str, sql: str, path: str | None = None) -> list[tuple[Any, ...]]:
    """Run a statement as another program does, that looks in a schema of its own."""
    with psycopg.connect(url, autocommit=True) as connection:
        if path is not None:
            connection.execute("SELECT set_config('search_path', %s, false)", (path,))
        cursor = connection.execute(sql.encode())
        return cursor.fetchall() if cursor.description else []


def stored(url: str) -> list[tuple[Any, ...]]:
    return run(url, 'SELECT id, what, "Box" FROM "Old Data"."Things Flat" ORDER BY id')


def places(url: str) -> set[tuple[str, str, str]]:
    """Tables and views of the move: schema, name and kind."""
    sql = "SELECT CAST(relnamespace AS regnamespace)::text, relname, relkind::text FROM pg_class"
    return set(run(url, f"{sql} WHERE relkind IN ('r', 'v') AND relname ~ 'Things|Boxes'"))


def added(store: Store) -> int:
    with store.unit_of_work() as uow:
        return int(uow.repository("things").add({"what": "ours", "Box": "z"}))


def test_schemas_that_a_move_names(url: str, tmp_path: Path) -> None:
    """Without a search_path of either, each row written in any phase by whomever is there at the end, in its place.

    Names need quotes, and the other program looks in its own schema alone.
    """
    before, tables = stored(url), places(url)
    with opened(url, tmp_path) as store:
        assert store.migration.rehearse().passed
        for phase in list(Phase)[1:]:
            store.migration.migrate(phase, soak=False)
            assert store.migration.status().guards == []
            added(store)
            if phase.writes_legacy:
                run(url, WRITE, '"Old Data"')
                store.migration.reconcile(foreign="adopt")
        assert ('"Old Data"', "Things Flat", "v") in places(url)
        with pytest.raises(psycopg.errors.UndefinedColumn, match="Things Flat"):
            run(url, WRITE, '"Old Data"')
        while store.migration.phase.previous is not None:
            store.migration.rollback()
            assert store.migration.status().guards == []
        run(url, WRITE, '"Old Data"')  # no frozen trigger stays
        added(store)
    assert places(url) == tables
    assert len(stored(url)) == len(before) + 4 + 2 + 1 + 1
    assert stored(url)[: len(before)] == before


def test_a_backup_keeps_the_schemas(url: str, tmp_path: Path) -> None:
    """A restored database has each table in the schema of its model."""
    with opened(url, tmp_path) as store, servers.database() as other:
        store.migration.migrate(Phase.NORMALIZED, soak=False)
        store.maintenance.backup(tmp_path / "kept")
        from consensus_orm import restore

        restore(tmp_path / "kept", other, moves=moves())
        assert places(other) == places(url)
        assert stored(other) == stored(url)


class Plain(DeclarativeBase):
    pass


class PlainFlat(Plain):
    __tablename__ = "Things Flat"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    what: Mapped[str | None] = mapped_column(Text)
    Box: Mapped[str | None] = mapped_column(Text)


class PlainBox(Plain):
    __tablename__ = "Boxes"
    __table_args__ = (UniqueConstraint("what"),)

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    what: Mapped[str | None] = mapped_column(Text)


class PlainThing(Plain):
    __tablename__ = "Things"

    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    box: Mapped[int] = mapped_column(ForeignKey("Boxes.id"))
    what: Mapped[str | None] = mapped_column(Text)


@pytest.mark.parametrize("path", ['public, "Old Data"', '"Old Data", public'])
def test_schemas_that_the_search_path_names(tmp_path: Path, path: str) -> None:
    """The view of CONTRACT stands where the table was, the triggers go with a rollback, and the way back ends there."""
    declared = moves(PlainFlat, PlainThing, PlainBox)
    with servers.database() as url:
        run(url, DDL)
        with psycopg.connect(url, autocommit=True) as connection:
            name = connection.info.dbname
            connection.execute(f'ALTER DATABASE "{name}" SET search_path = {path}'.encode())
        create_all(url, Plain)
        before = stored(url)
        with opened(url, tmp_path, declared) as store:
            store.migration.migrate(Phase.CONTRACT, soak=False)
            assert ('"Old Data"', "Things Flat", "v") in places(url)
            store.migration.rollback(Phase.EXPAND)
            run(url, WRITE, '"Old Data"')
            added(store)
        assert stored(url)[: len(before)] == before
        assert len(stored(url)) == len(before) + 2


def test_an_operator_who_does_not_look_in_the_schema(tmp_path: Path) -> None:
    """A table that is where it was is not called dropped, and no second one is made beside it."""
    declared = moves(PlainFlat, PlainThing, PlainBox)
    with servers.database() as url:
        run(url, DDL)
        with psycopg.connect(url, autocommit=True) as connection:
            name = connection.info.dbname
            connection.execute(f'ALTER DATABASE "{name}" SET search_path = public, "Old Data"'.encode())
        create_all(url, Plain)
        with opened(url, tmp_path, declared) as store:
            store.migration.migrate(Phase.NORMALIZED, soak=False)
        tables = places(url)
        with opened(f"{url}&options=-csearch_path%3Dpublic", tmp_path, declared) as store:
            (flaw, *_) = store.migration.status().guards
            assert flaw.startswith('table Things Flat is in schema "Old Data", which this connection does not look in')
            with pytest.raises(GuardsBrokenError, match="does not look in"):
                store.migration.rollback()
            with pytest.raises(GuardsBrokenError, match="does not look in"):
                store.migration.reconcile(rebuild="legacy")
        assert places(url) == tables
        with opened(url, tmp_path, declared) as store:
            assert store.migration.status().guards == []


def test_a_table_of_the_same_name_that_is_found_first(url: str, tmp_path: Path) -> None:
    """A table of another schema is never taken for the one that the model names."""
    run(url, 'CREATE TABLE public."Things Flat" (id BIGSERIAL PRIMARY KEY, what TEXT, "Box" TEXT)')
    with opened(url, tmp_path) as store, pytest.raises(UnknownSchemaError, match="is found in schema public"):
        store.migration.upgrade()
    mapped = "SELECT count(*) FROM pg_trigger WHERE tgname LIKE 'consensus%' AND tgname <> 'consensus_orm_allowed'"
    assert run(url, mapped) == [(0,)]


def test_what_schemas_cannot_tell_apart_is_refused(tmp_path: Path) -> None:
    """Both sides need names of their own, and a file has no schemas."""

    class Same(DeclarativeBase):
        pass

    class Before(Same):
        __tablename__ = "things"
        __table_args__ = {"schema": "old"}  # noqa: RUF012
        id: Mapped[int] = mapped_column(BigInteger, primary_key=True)

    class After(Same):
        __tablename__ = "things"
        __table_args__ = {"schema": "new"}  # noqa: RUF012
        id: Mapped[int] = mapped_column(BigInteger, primary_key=True)

    with pytest.raises(ConfigurationError, match="a table things, which schemas do not tell apart"):
        Moves(Move(Before, After, name="things", key={Before.id: After.id}, columns={}))
    with pytest.raises(ConfigurationError, match="a SQLite file has none"):
        Store.open(tmp_path / "file.db", moves=moves())
