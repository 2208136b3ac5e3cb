"""Repositories of moves: what they write is on every side of the phase, and comes back in the types of the model."""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from pydantic import BaseModel, ConfigDict
from sqlalchemy import JSON, Enum, MetaData, Numeric, Text, Uuid, create_engine, func, insert, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from consensus_orm import EnumMap, Move, Moves, Phase, Side, Store
from consensus_orm.databases.opening import parse_url
from consensus_orm.errors import ConfigurationError, InvalidValueError
from consensus_orm.models.base import BIG
from consensus_orm.settings import Settings
from tests.support.databases import Database

SETTINGS = Settings(soak_dual_write=0, soak_cutover=0, soak_normalized=0, chunk_rows=2, chunk_pause=0)


class Size(enum.Enum):
    SMALL = "s"
    LARGE = "l"


@dataclass(frozen=True)
class ProductRecord:
    no: int
    title: str
    price: Decimal | None


class ProductModel(BaseModel):
    model_config = ConfigDict(frozen=True)

    no: int
    title: str
    state: int | None


@dataclass(frozen=True)
class Shop:
    """Models made anew, so that each test declares its own."""

    metadata: MetaData
    legacy: Any
    normalized: Any

    def moves(self, **more: Any) -> Moves:
        old, new = self.legacy, self.normalized
        columns = {
            new.title: old.title,
            new.price: old.price,
            new.size: old.size,
            new.code: old.code,
            new.facts: old.facts,
            new.day: old.day,
            new.at: old.at,
            new.word: EnumMap(old.state, {0: "new", 1: "sold"}),
            new.rank: old.rank,
        }
        return Moves(Move(old, new, name="products", key={old.no: new.id}, columns=columns, **more))


@pytest.fixture
def shop() -> Shop:
    class Base(DeclarativeBase):
        pass

    class ProductOld(Base):
        __tablename__ = "products_old"
        no: Mapped[int] = mapped_column("nr", BIG, primary_key=True)
        title: Mapped[str] = mapped_column(Text)
        price: Mapped[Decimal | None] = mapped_column(Numeric(10, 2))
        size: Mapped[Size | None] = mapped_column(Enum(Size, native_enum=False))
        code: Mapped[UUID | None] = mapped_column(Uuid)
        facts: Mapped[Any | None] = mapped_column(JSON)
        day: Mapped[date | None]
        at: Mapped[datetime | None] = mapped_column(server_default=func.current_timestamp())
        state: Mapped[int | None] = mapped_column(BIG, server_default="0")
        rank: Mapped[int | None] = mapped_column(BIG, default=lambda: 7)

    class Product(Base):
        __tablename__ = "products"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        title: Mapped[str] = mapped_column(Text)
        price: Mapped[Decimal | None] = mapped_column(Numeric(10, 2))
        size: Mapped[Size | None] = mapped_column(Enum(Size, native_enum=False))
        code: Mapped[UUID | None] = mapped_column(Uuid)
        facts: Mapped[Any | None] = mapped_column(JSON)
        day: Mapped[date | None]
        at: Mapped[datetime | None]
        word: Mapped[str | None] = mapped_column(Text)
        rank: Mapped[int | None] = mapped_column(BIG)
        note: Mapped[str] = mapped_column(Text, server_default=text("'none'"))

    return Shop(Base.metadata, ProductOld, Product)


def opened(database: Database, shop: Shop, folder: Path, **more: Any) -> Store:
    engine = create_engine(parse_url(database.where))
    shop.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(insert(shop.legacy), LEGACY_ROWS)
    settings = SETTINGS.model_copy(update={"backup_dir": folder})
    engine.dispose()
    store = Store(engine, shop.moves(**more), settings)
    store.upgrade()
    return store


@pytest.fixture
def store(new_database: Database, shop: Shop, tmp_path: Path) -> Iterator[Store]:
    with opened(new_database, shop, tmp_path) as store:
        yield store


LEGACY_ROWS: list[dict[str, Any]] = [{"title": "first", "price": Decimal("1.10")}, {"title": "second", "price": None}]

FULL = {
    "title": "lamp",
    "price": Decimal("12.34"),
    "size": Size.LARGE,
    "code": UUID(int=77),
    "facts": {"watts": [5, None, "é"]},
    "day": date(2025, 11, 4),
    "at": datetime(2025, 11, 4, 2, 23, 58),
    "state": 1,
    "rank": 3,
}


def on_each_side(database: Database, phase: Phase, key: Any) -> list[Any]:
    """The row by raw SQL on each side that the phase writes, in the columns that both have in one form."""
    found = []
    if phase.writes_legacy:
        found += database.rows_of("SELECT title, price, size, state, rank FROM products_old WHERE nr = ?", key)
    if phase.writes_normalized:
        word = "CASE word WHEN 'new' THEN 0 WHEN 'sold' THEN 1 END"
        found += database.rows_of(f"SELECT title, price, size, {word}, rank FROM products WHERE id = ?", key)
    return found


def to_phase(store: Store, phase: Phase) -> None:
    store.migration.migrate(phase, soak=False)


@pytest.mark.long
def test_what_is_written_in_any_phase_is_on_each_side(new_database: Database, store: Store) -> None:
    """Rows are added, changed, put and deleted in all five phases, and read back in the types of the model."""
    for phase in Phase:
        to_phase(store, phase)
        with store.unit_of_work() as uow:
            products = uow.repository("products")
            key = products.add(FULL)
            added: Any = products.get(key)
            assert added._asdict().items() >= FULL.items()
            assert products.update(key, {"title": "light", "price": None, "state": 0})
            put = products.put({"no": key, "rank": 9})
            assert (put, products.exists(key), products.exists(10**6)) == (key, True, False)
            gone = products.add({"title": "gone"})
            assert products.delete(key=gone) == 1
            assert not products.update(gone, {"title": "back"})
        sides = on_each_side(new_database, phase, key)
        assert len(sides) == phase.writes_legacy + phase.writes_normalized
        assert {tuple(row) for row in sides} == {("light", None, "LARGE", 0, 9)}
        assert on_each_side(new_database, phase, gone) == []
        if phase.compares:
            store.migration.backfill()
        if phase.writes_normalized:
            assert store.migration.verify().clean
    assert not store.migration.mismatches(everything=True)


def test_what_repositories_write_is_no_foreign_write(new_database: Database, store: Store) -> None:
    """While both sides are written it is not recorded as one, so a certificate holds whatever they write."""
    for phase in (Phase.DUAL_WRITE, Phase.CUTOVER):
        to_phase(store, phase)
        store.migration.backfill()
        assert store.migration.verify().clean
        with store.unit_of_work() as uow:
            products = uow.repository("products")
            key, gone = products.add_many([FULL, FULL])
            products.update(key, {"title": "changed"})
            products.delete(key=gone)
        assert new_database.scalar("SELECT count(*) FROM consensus_orm_changes") == 0
        store.migration.advance(soak=False)  # on the certificate from before


@pytest.mark.long
def test_what_is_left_out_takes_its_default(new_database: Database, store: Store) -> None:
    """Of the model or of the database, in every phase and on both sides."""
    for phase in Phase:
        to_phase(store, phase)
        with store.unit_of_work() as uow:
            key = uow.repository("products").add({"title": "plain"})
            row: Any = uow.repository("products").get(key)
        assert (row.state, row.rank, row.price) == (0, 7, None)
        assert isinstance(row.at, datetime)
        assert row.note == ("none" if phase.truth is Side.NORMALIZED else None)


def test_a_row_that_is_changed_to_nothing_that_it_can_be_is_refused(store: Store) -> None:
    """Where the truth has no word for a value the whole unit of work fails, and the row stays as it was."""
    to_phase(store, Phase.CUTOVER)
    with store.unit_of_work() as uow:
        key = uow.repository("products").add(FULL)
    with pytest.raises(InvalidValueError, match="no word for this value of state"), store.unit_of_work() as uow:
        uow.repository("products").update(key, {"state": 5})
    with store.unit_of_work() as uow:
        row: Any = uow.repository("products").get(key)
    assert row.state == 1


def test_pages_follow_each_other(new_database: Database, store: Store) -> None:
    """`after` the last row of a page begins the next one, in both orders, on either side; NULL can be asked for."""
    with store.unit_of_work() as uow:
        keys = uow.repository("products").add_many({"title": str(n), "size": None} for n in range(7))
    for phase in list(Phase)[::2]:
        to_phase(store, phase)
        with store.unit_of_work(read_only=True) as uow:
            products = uow.repository("products")
            whole = [row.no for row in products.rows({"size": None})]
            assert whole[:7] == keys[::-1]
            for oldest_first in (False, True):
                pages, after = [], None
                while page := products.rows({"size": None}, limit=2, oldest_first=oldest_first, after=after):
                    pages += [row.no for row in page]
                    after = pages[-1]
                assert pages == (whole[::-1] if oldest_first else whole)
            page, count = products.list_and_count({"size": None}, limit=2)
            assert ([row.no for row in page], count) == (whole[:2], len(whole))
            assert [row.no for row in products.iterate({"size": None}, oldest_first=True)] == whole[::-1]
            assert [row.no for row in products.iterate({"price": None})] == whole[:-1]
            assert [row.no for row in products.get_many([keys[3], 10**6, keys[0]])] == [keys[3], keys[0]]
            assert products.count({"price": None}) == len(whole) - 1
            assert products.distinct("price") in ([None, Decimal("1.10")], [Decimal("1.10"), None])


@pytest.mark.parametrize("record", [ProductRecord, ProductModel])
def test_records_are_of_the_class_of_the_move(new_database: Database, shop: Shop, tmp_path: Path, record: Any) -> None:
    """They are given and come back; a dataclass or a pydantic model may leave fields out."""
    with opened(new_database, shop, tmp_path, record=record) as store:
        given = record(0, "given", None) if record is ProductRecord else record(no=0, title="given", state=1)
        with store.unit_of_work() as uow:
            products = uow.repository("products")
            assert products.put(given) == 0
            assert products.get(0) == given
            assert {type(row) for row in products.rows()} == {record}


def test_a_record_with_a_field_that_no_row_has_is_refused(shop: Shop) -> None:
    """When the first repository is taken, by name."""

    @dataclass(frozen=True)
    class Wrong:
        no: int
        colour: str

    with (
        Store.open(":memory:", moves=shop.moves(record=Wrong)) as store,
        pytest.raises(ConfigurationError, match="its record has a field 'colour'"),
        store.unit_of_work(read_only=True) as uow,
    ):
        uow.repository("products")


def test_names_and_values_of_others_are_refused(store: Store) -> None:
    """An unknown name, a value of another type and a changed key are errors that name the field."""
    with store.unit_of_work() as uow:
        key = uow.repository("products").add(FULL)
    for wrong in ({"nr": 1}, {"colour": "red"}, {"price": "cheap"}, {"code": 5}, {"at": "no time"}):
        with pytest.raises(InvalidValueError) as refused, store.unit_of_work() as uow:
            uow.repository("products").add({"title": "t", **wrong})
        assert refused.value.facts.get("field", *wrong) in wrong  # a server does not say which value it was
    with store.unit_of_work() as uow:
        products = uow.repository("products")
        with pytest.raises(InvalidValueError, match="key of the row") as changed:
            products.update(key, {"no": key + 1})
        assert changed.value.facts["field"] == "no"
        with pytest.raises(InvalidValueError, match="which rows"):
            products.delete({})
        assert products.count() == 3


@pytest.mark.long
def test_changes_of_two_units_to_one_row_are_both_kept(store: Store) -> None:
    """A unit that changes a field waits for one that changes another field of the row, and keeps what it wrote."""
    for phase in (Phase.EXPAND, Phase.DUAL_WRITE, Phase.CUTOVER, Phase.NORMALIZED):
        to_phase(store, phase)
        with store.unit_of_work() as uow:
            key = uow.repository("products").add(FULL)

        def rename(key: Any = key) -> None:
            store.run(lambda uow: uow.repository("products").update(key, {"title": "second"}))

        other = threading.Thread(target=rename)
        with store.unit_of_work() as uow:
            uow.repository("products").update(key, {"rank": 77})
            other.start()
            time.sleep(0.3)  # so that it has come to the row, and waits
        other.join(30)
        with store.unit_of_work(read_only=True) as uow:
            row: Any = uow.repository("products").get(key)
        assert (phase, row.title, row.rank) == (phase, "second", 77)
