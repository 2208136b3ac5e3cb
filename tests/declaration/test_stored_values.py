"""Values of every type as a database stores them: what is stored differently is found, and put back as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Double,
    Integer,
    Interval,
    LargeBinary,
    Numeric,
    String,
    Text,
    Uuid,
    create_engine,
)
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import DeclarativeBase, mapped_column
from sqlalchemy.types import TypeDecorator, UserDefinedType

from consensus_orm import Default, Move, Moves, Phase, Store
from consensus_orm.databases.opening import parse_url
from consensus_orm.errors import GateClosedError
from consensus_orm.models.base import BIG
from tests.support.databases import Database
from tests.support.keyed import SETTINGS, opened, stored


class Amount(TypeDecorator[Any]):
    impl = Numeric
    cache_ok = True


class Label(TypeDecorator[Any]):
    impl = String(8)
    cache_ok = True


class Box(UserDefinedType[Any]):
    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "BOX"


ON_SERVERS: dict[str, tuple[Any, str, str]] = {
    "decimal": (Numeric(), "1.1", "1.10"),
    "long_decimal": (Numeric(), "1", "12345678901234567890.1234567890"),
    "not_a_number": (Numeric(), "1", "NaN"),
    "amount": (Amount(), "1.1", "1.100"),
    "zero": (Double(), "0", "-0"),
    "range": (postgresql.NUMRANGE(), "[1.0,2.0)", "[1.00,2.0)"),
    "days": (Interval(), "1 day", "24:00:00"),
    "hours": (postgresql.INTERVAL(), "24:00:00", "1 day"),
    "box": (Box(), "(1,2),(0,0)", "(2,1),(0,0)"),
    "json": (JSON(), '{"a":1}', '{"a":1, "a":1}'),
    "bytes": (LargeBinary(), "\\x00", "\\x5c7800ff"),
    "label": (Label(), "a", "it's \\x"),
    "at": (DateTime(timezone=True), "2025-11-04 02:23:58+00", "infinity"),
}
"""For each type a value, and one that is stored differently; many of these pairs are equal by `=`."""

ON_FILES: dict[str, tuple[Any, str, str]] = {
    "label": (Label(), "'a'", "CAST(x'ff61' AS TEXT)"),
    "blob_label": (Label(), "'a'", "x'ff61'"),
    "varchar": (String(8), "'a'", "x'6100'"),
    "uuid": (Uuid(), "'00000000000000000000000000000001'", "CAST(x'ff' AS TEXT)"),
    "at": (DateTime(), "'2025-11-04 02:23:58.000000'", "CAST(x'ff' AS TEXT)"),
    "number": (Integer(), "1", "CAST(x'ff' AS TEXT)"),
    "bytes": (LargeBinary(), "x'00'", "CAST(x'ff' AS TEXT)"),
}


def declared(types: dict[str, tuple[Any, str, str]], kind: str) -> tuple[Any, Moves]:
    """Two tables with a column of each type."""

    class Base(DeclarativeBase):
        pass

    def model(table: str) -> Any:
        columns = {name: mapped_column(type_) for name, (type_, _, _) in types.items()}
        return type(
            table.title(), (Base,), {"__tablename__": table, "id": mapped_column(BIG, primary_key=True), **columns}
        )

    flat, whole = model("things_flat"), model("things")
    columns = {getattr(whole, name): getattr(flat, name) for name in types}
    return Base.metadata, Moves(
        Move(flat, whole, name="things", key={flat.id: whole.id}, columns=columns), dialects=[kind]
    )


def test_what_is_stored_differently_is_found_and_put_back(new_database: Database) -> None:
    """Verify names each column, though the values may be equal; an image puts each value back in type and bytes."""
    on_servers = new_database.kind == "postgresql"
    types = ON_SERVERS if on_servers else ON_FILES
    metadata, moves = declared(types, new_database.kind)
    engine = create_engine(parse_url(new_database.where))
    metadata.create_all(engine)
    engine.dispose()

    def literals(number: int) -> dict[str, str]:
        said = {name: case[number] for name, case in types.items()}
        return {name: "'" + value.replace("'", "''") + "'" for name, value in said.items()} if on_servers else said

    def rows(table: str) -> list[tuple[Any, ...]]:
        if not on_servers:
            return stored(new_database, table, ", ".join(["id", *types]))
        return new_database.rows_of(f"SELECT {', '.join(f'CAST({name} AS TEXT)' for name in types)} FROM {table}")

    names, first, odd = ", ".join(types), literals(1), literals(2)
    new_database.script(f"INSERT INTO things_flat (id, {names}) VALUES (1, {', '.join(first.values())})")
    with opened(new_database, moves) as store:
        store.upgrade()
        store.migration.advance()
        store.migration.backfill()
        assert store.migration.verify().clean
        before = rows("things_flat")
        new_database.unnoticed(f"UPDATE things SET {', '.join(f'{name} = {value}' for name, value in odd.items())}")
        damaged = rows("things")
        (difference,) = store.migration.verify().differences
        assert set(difference.columns) == set(types)
        store.migration.reconcile()
        assert rows("things") == rows("things_flat") == before
        (image,) = store.migration.images()
        assert store.migration.restore_image(image.id).not_put_back == ()
        assert rows("things") == rows("things_flat") == damaged
        assert store.migration.verify().clean


# Rows that a side refuses ------------------------------------------------------------------------------------

SERIAL = {"sqlite": "INTEGER PRIMARY KEY", "postgresql": "BIGSERIAL PRIMARY KEY"}
CONSTRAINTS = (
    "note TEXT CHECK (note <> 'checked'), owner INTEGER REFERENCES owners(id), name VARCHAR(4) NOT NULL"
    " CHECK (length(name) < 5)"
)
ROWS = "(1, 'a', 1, 'n'), (2, 'checked', 1, 'n'), (3, 'a', 7, 'n'), (4, 'a', 1, NULL), (5, 'a', 1, 'long name')"


def refusing(kind: str) -> Moves:
    class Base(DeclarativeBase):
        pass

    def model(table: str) -> Any:
        columns = {"note": mapped_column(Text), "owner": mapped_column(Integer), "name": mapped_column(Text)}
        return type(
            table.title(), (Base,), {"__tablename__": table, "id": mapped_column(BIG, primary_key=True), **columns}
        )

    flat, whole = model("things_flat"), model("things")
    columns = {getattr(whole, each): getattr(flat, each) for each in ("note", "owner", "name")}
    return Moves(Move(flat, whole, name="things", key={flat.id: whole.id}, columns=columns), dialects=[kind])


def make(database: Database, side: str) -> None:
    """Both tables; one of them has constraints."""
    serial, plain = SERIAL[database.kind], "note TEXT, owner INTEGER, name TEXT"
    database.script("CREATE TABLE owners (id INTEGER PRIMARY KEY); INSERT INTO owners VALUES (1)")
    for table in ("things_flat", "things"):
        columns = CONSTRAINTS if table == side else plain
        database.script(f"CREATE TABLE {table} (id {serial}, {columns})")


def keys(store: Store) -> list[Any]:
    return sorted(reject.key for reject in store.migration.rejects())


def test_a_row_that_the_normalized_side_refuses_is_a_reject(new_database: Database) -> None:
    """By a constraint or a type: the others of its chunk are carried, and so is what other programs write later."""
    make(new_database, "things")
    new_database.script(f"INSERT INTO things_flat VALUES {ROWS}")
    with opened(new_database, refusing(new_database.kind), chunk_rows=100) as store:
        store.upgrade()
        store.migration.advance()
        assert store.migration.backfill().rejects == 4
        assert keys(store) == [2, 3, 4, 5]
        new_database.script("INSERT INTO things_flat VALUES (6, 'a', 1, 'n'), (7, 'a', 9, 'n')")
        new_database.script("UPDATE things_flat SET note = 'checked', owner = 9 WHERE id = 1")
        assert store.migration.reconcile(foreign="adopt").rejects == 2
        assert keys(store) == [1, 2, 3, 4, 5, 7]
        assert new_database.rows_of("SELECT id, note FROM things") == [(6, "a")]
        assert [(image.key, image.side) for image in store.migration.images()] == [(1, "normalized")]
        assert len(new_database.rows_of("SELECT id FROM things_flat")) == 7
        assert store.migration.verify().differences == ()


def test_a_row_that_the_legacy_side_refuses_is_a_reject_on_the_way_back(new_database: Database) -> None:
    """It shuts the way by its number, and no other row stays behind."""
    make(new_database, "things_flat")
    new_database.script("INSERT INTO things_flat VALUES (1, 'a', 1, 'n'), (3, 'a', 1, 'n')")
    with opened(new_database, refusing(new_database.kind)) as store:
        store.upgrade()
        store.migration.migrate(Phase.CONTRACT, soak=False)
        with store.unit_of_work() as uow:
            refused = uow.repository("things").add({"note": "checked", "owner": 1, "name": "n"})
            uow.repository("things").add({"note": "b", "owner": 1, "name": "n"})
            last = uow.repository("things").add({"note": "b", "owner": 1, "name": None})
        with pytest.raises(GateClosedError, match="2 rows of things could not be carried back"):
            store.migration.rollback()
        assert keys(store) == [refused, last]
        store.migration.accept_rejects(table="things", reason="not needed")
        assert store.migration.rollback() is Phase.NORMALIZED
        assert [key for (key,) in new_database.rows_of("SELECT id FROM things_flat ORDER BY id")] == [1, 3, refused + 1]


def test_a_move_may_have_a_name_in_capitals(new_database: Database, tmp_path: Path) -> None:
    """The table of its originals is found again at each flip, also where a database compares names in lower case."""
    make(new_database, "things")

    class Base(DeclarativeBase):
        pass

    class Flat(Base):
        __tablename__ = "things_flat"
        id = mapped_column(BIG, primary_key=True)
        note = mapped_column(Text)
        owner = mapped_column(BigInteger)
        name = mapped_column(Text)

    class Whole(Base):
        __tablename__ = "things"
        id = mapped_column(BIG, primary_key=True)
        note = mapped_column(Text)
        owner = mapped_column(BigInteger)
        name = mapped_column(Text, nullable=False)

    columns: dict[Any, Any] = {Whole.note: Flat.note, Whole.owner: Flat.owner, Whole.name: Default(Flat.name, "none")}
    moves = Moves(Move(Flat, Whole, name="It's Kept", key={Flat.id: Whole.id}, columns=columns))
    new_database.script("INSERT INTO things_flat VALUES (1, 'a', 1, NULL)")
    settings = SETTINGS.model_copy(update={"backup_dir": tmp_path})
    with Store.open(new_database.where, moves=moves, settings=settings) as store:
        store.upgrade()
        store.migration.migrate(Phase.NORMALIZED, soak=False)
        assert new_database.rows_of("SELECT name FROM things") == [("none",)]
        store.migration.rollback(Phase.EXPAND)
    assert new_database.rows_of("SELECT name FROM things_flat") == [(None,)]
