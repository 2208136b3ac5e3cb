"""Rows that refer to others of their table: what becomes of them where these cannot be carried, or go."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import ForeignKey, Text, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from consensus_orm import Default, EnumMap, Move, Moves, Part, Phase, Store
from consensus_orm.databases.opening import parse_url
from consensus_orm.errors import ConfigurationError, GateClosedError, StorageError
from consensus_orm.models.base import BIG
from consensus_orm.phase import Side
from consensus_orm.settings import Settings
from tests.support.databases import Database

SETTINGS = Settings(soak_dual_write=0, soak_cutover=0, soak_normalized=0, chunk_rows=2, chunk_pause=0)


class Base(DeclarativeBase):
    pass


class NodeOld(Base):
    """Its rows may refer to rows that are not there, and have kinds that the normalized side does not know."""

    __tablename__ = "nodes_old"
    id: Mapped[int] = mapped_column(BIG, primary_key=True)
    kind: Mapped[int | None] = mapped_column(BIG)
    up: Mapped[int | None] = mapped_column(BIG, index=True)


class Node(Base):
    __tablename__ = "nodes"
    id: Mapped[int] = mapped_column(BIG, primary_key=True)
    kind: Mapped[str | None] = mapped_column(Text)
    up_id: Mapped[int | None] = mapped_column(ForeignKey("nodes.id"), index=True)
    note: Mapped[str | None] = mapped_column(Text)


class TwigOld(Base):
    __tablename__ = "twigs_old"
    id: Mapped[int] = mapped_column(BIG, primary_key=True)
    name: Mapped[str | None] = mapped_column(Text)
    up_id: Mapped[int | None] = mapped_column(ForeignKey("twigs_old.id", ondelete="CASCADE"), index=True)
    kind: Mapped[int | None] = mapped_column(BIG)
    up: Mapped[TwigOld | None] = relationship(remote_side="TwigOld.id", post_update=True)


class Twig(Base):
    __tablename__ = "twigs"
    id: Mapped[int] = mapped_column(BIG, primary_key=True)
    name: Mapped[str | None] = mapped_column(Text)
    up_id: Mapped[int | None] = mapped_column(ForeignKey("twigs.id", ondelete="CASCADE"), index=True)
    kind: Mapped[str | None] = mapped_column(Text)
    up: Mapped[Twig | None] = relationship(remote_side="Twig.id", post_update=True)


NODES = Move(
    NodeOld,
    Node,
    name="nodes",
    key={NodeOld.id: Node.id},
    columns={Node.kind: EnumMap(NodeOld.kind, {0: "a", 1: "b"}), Node.up_id: NodeOld.up},
)
TWIGS = Move(
    TwigOld,
    Twig,
    name="twigs",
    key={TwigOld.id: Twig.id},
    columns={Twig.name: TwigOld.name, Twig.up_id: TwigOld.up_id, Twig.kind: EnumMap(TwigOld.kind, {0: "a"})},
)
MOVES = Moves(NODES, TWIGS)
KINDS = "INSERT INTO nodes_old (id, kind, up) VALUES "
ROWS = f"{KINDS} (1, 0, 7), (2, 9, 1), (3, 0, 2), (4, 1, 3), (5, 0, 99), (6, 0, 6), (7, 1, 1)"
TREE = (
    "INSERT INTO twigs_old (id, name, up_id) VALUES (1, 'a', NULL), (2, 'b', 5), (3, 'c', 2), (4, 'd', 3), (5, 'e', 1)"
)


@pytest.fixture
def store(new_database: Database, tmp_path: Path) -> Iterator[Store]:
    engine = create_engine(parse_url(new_database.where))
    Base.metadata.create_all(engine)
    engine.dispose()
    settings = SETTINGS.model_copy(update={"backup_dir": tmp_path})
    with Store.open(new_database.where, moves=MOVES, settings=settings) as opened:
        opened.upgrade()
        yield opened


def nodes(database: Database) -> list[tuple[Any, ...]]:
    return database.rows_of("SELECT id, up_id FROM nodes ORDER BY id")


def agree(database: Database) -> None:
    old, new = (
        database.rows_of(f"SELECT id, name, up_id FROM {table} ORDER BY id") for table in ("twigs_old", "twigs")
    )
    assert old == new


def rejects(store: Store) -> dict[Any, str]:
    return {each.key: each.reason for each in store.migration.rejects()}


def test_what_refers_to_a_reject_is_one_and_heals_with_it(store: Store, new_database: Database) -> None:
    """Each names the row that it refers to; nothing is carried without its reference, and nothing twice."""
    new_database.script(ROWS)
    store.migration.advance()
    store.migration.backfill()
    exact = "it does not come out equal in type and bytes on the normalized side"
    lacks = "it refers to row {}, which is not on the normalized side"
    assert rejects(store) == {2: exact, 3: lacks.format(2), 4: lacks.format(3), 5: lacks.format(99)}
    assert nodes(new_database) == [(1, 7), (6, 6), (7, 1)]
    with pytest.raises(GateClosedError):
        store.migration.advance()
    new_database.script("UPDATE nodes_old SET kind = 0 WHERE id = 2")
    store.migration.reconcile()
    whole = [(1, 7), (2, 1), (3, 2), (4, 3), (6, 6), (7, 1)]
    assert nodes(new_database) == whole
    outcome = {each.key: store.migration.resolve_reject(each.id) for each in store.migration.rejects()}
    assert outcome == {2: True, 3: True, 4: True, 5: False}
    new_database.script(f"{KINDS} (99, 0, 4)")
    store.migration.reconcile()
    assert nodes(new_database) == sorted([*whole, (5, 99), (99, 4)])
    assert store.migration.verify().differences == ()


def test_rejects_that_refer_to_each_other_are_resolved_in_any_order(store: Store, new_database: Database) -> None:
    """A row comes before the row that it refers to, both are named at once, and one call carries both."""
    new_database.script(f"{KINDS} (1, 0, 2), (2, 9, NULL), (3, 9, NULL)")
    store.migration.advance()
    store.migration.backfill()
    new_database.script("UPDATE nodes_old SET kind = 0 WHERE id = 2")
    numbers = {each.key: each.id for each in store.migration.rejects()}
    tried = store.migration.resolve_rejects([numbers[1], numbers[2], numbers[3]])
    assert tried == {numbers[1]: True, numbers[2]: True, numbers[3]: False}
    assert nodes(new_database) == [(1, 2), (2, None)]


def test_what_refers_to_a_row_that_goes_becomes_a_reject(store: Store, new_database: Database) -> None:
    """The row goes where the truth has lost it, and a row that only refers to it is not changed without a word."""
    new_database.script(f"{KINDS} (1, 0, NULL), (2, 0, 1), (3, 0, 2), (4, 0, NULL)")
    store.migration.migrate(Phase.DUAL_WRITE, soak=False)
    store.migration.backfill()
    new_database.script("DELETE FROM nodes_old WHERE id = 1")
    store.migration.reconcile()
    assert sorted(rejects(store)) == [2, 3]
    assert nodes(new_database) == [(4, None)]
    new_database.script(f"{KINDS} (1, 1, 4)")
    store.migration.reconcile()
    assert nodes(new_database) == [(1, 4), (2, 1), (3, 2), (4, None)]


@pytest.mark.long
def test_a_shadow_that_lost_a_row_is_adopted_or_repaired(store: Store, new_database: Database) -> None:
    """What another program deleted there comes back with all references; what the truth cannot lose is a reject."""
    new_database.script(f"{KINDS} (1, 0, NULL), (2, 0, 1), (3, 0, 2)")
    store.migration.migrate(Phase.DUAL_WRITE, soak=False)
    store.migration.backfill()
    before = nodes(new_database)
    gone = ["UPDATE nodes SET up_id = NULL WHERE id = 2", "DELETE FROM nodes WHERE id = 1"]
    for statement in gone:
        new_database.script(statement)
    store.migration.reconcile(foreign="repair")
    assert nodes(new_database) == before
    for statement in gone:
        new_database.script(statement)
    store.migration.reconcile(foreign="adopt")
    assert nodes(new_database) == [(2, None), (3, 2)]
    assert new_database.rows_of("SELECT id, up FROM nodes_old ORDER BY id") == [(2, None), (3, 2)]
    assert store.migration.verify().clean


@pytest.mark.long
def test_the_truth_does_not_lose_a_row_that_others_refer_to(store: Store, new_database: Database) -> None:
    """Another program deleted it on the other side, where no foreign key is: adopted, it is a reject, and stays."""
    store.migration.migrate(Phase.CUTOVER, soak=False)
    new_database.script("INSERT INTO nodes (id, up_id) VALUES (1, NULL), (2, 1)")
    store.migration.reconcile()
    new_database.script("DELETE FROM nodes_old WHERE id = 1")
    store.migration.reconcile(foreign="adopt")
    assert nodes(new_database) == [(1, None), (2, 1)]
    assert [*rejects(store)] == [1]


@pytest.mark.parametrize("phase", [Phase.DUAL_WRITE, Phase.CUTOVER], ids=lambda phase: phase.name)
def test_units_of_work_write_references_in_any_order(store: Store, new_database: Database, phase: Phase) -> None:
    """By repository and session, before the backfill has come to a row, in circles, and with ON DELETE CASCADE."""
    new_database.script(TREE)
    store.migration.migrate(Phase.DUAL_WRITE, soak=False)
    if phase is Phase.CUTOVER:
        store.migration.migrate(phase, soak=False)
    with store.unit_of_work() as uow:
        twigs = uow.repository(TWIGS)
        new = twigs.add({"name": "new", "up_id": 4})
        assert twigs.update(1, {"up_id": new})
    assert new_database.rows_of("SELECT up_id FROM twigs WHERE id IN (1, 4) ORDER BY id") == [(new,), (3,)]
    store.migration.backfill()
    agree(new_database)
    models: tuple[Any, ...] = (TwigOld, Twig)
    for model in models:
        with store.unit_of_work() as uow:
            first, second = model(name="first"), model(name="second")
            first.up, second.up = second, first
            uow.session.add_all([first, second])
            uow.session.flush()
            circle = (first.id, second.id)
            below = model(name="below", up=second)
            uow.session.add(below)
            uow.session.get_one(model, 2).up = below
        agree(new_database)
        with store.unit_of_work() as uow:
            uow.session.get_one(model, 2).up_id = None
            uow.session.get_one(model, circle[0]).up_id = None
            uow.session.delete(uow.session.get_one(model, circle[1]))
        agree(new_database)
        assert new_database.scalar("SELECT count(*) FROM twigs WHERE name IN ('second', 'below')") == 0
    with store.unit_of_work() as uow:
        assert uow.repository(TWIGS).update(1, {"up_id": None})
        assert uow.repository(TWIGS).delete({"name": "c"}) == 3
    agree(new_database)
    assert store.migration.mismatches(everything=True) == []
    assert store.migration.verify().clean


def test_a_row_that_others_refer_to_is_not_deleted(store: Store, new_database: Database) -> None:
    """The foreign key of either side refuses it, and neither side loses the row."""
    store.migration.migrate(Phase.CUTOVER, soak=False)
    with store.unit_of_work() as uow:
        uow.repository(NODES).add_many([{"id": 1, "kind": 0}, {"id": 2, "kind": 0, "up": 1}])
    with pytest.raises(StorageError), store.unit_of_work() as uow:
        uow.repository(NODES).delete({"id": 1})
    assert nodes(new_database) == [(1, None), (2, 1)]
    assert new_database.scalar("SELECT count(*) FROM nodes_old") == 2
    with store.unit_of_work() as uow:
        assert uow.repository(NODES).delete({"kind": 0}) == 2


@pytest.mark.long
def test_an_image_is_put_back_under_the_rows_that_refer_to_it(store: Store, new_database: Database) -> None:
    """They stay, with their references and what only the normalized side has."""
    new_database.script(TREE)
    store.migration.migrate(Phase.DUAL_WRITE, soak=False)
    store.migration.backfill()
    new_database.script("UPDATE twigs SET name = 'changed' WHERE id = 2")
    store.migration.reconcile(foreign="repair")
    (image,) = store.migration.images()
    store.migration.restore_image(image.id)
    assert new_database.rows_of("SELECT id, name, up_id FROM twigs_old WHERE id IN (2, 3)") == [
        (2, "changed", 5),
        (3, "c", 2),
    ]
    agree(new_database)


@pytest.mark.long
def test_rejects_that_refer_to_each_other_come_back_from_contract(store: Store, new_database: Database) -> None:
    """And the other rows, whatever their order."""
    new_database.script(ROWS.replace("(3, 0, 2)", "(8, 0, 2)"))
    new_database.script(f"{TREE}, (6, 'f', 8), (8, 'h', NULL)")
    new_database.script("UPDATE twigs_old SET kind = 9 WHERE id = 8")
    before = new_database.rows("nodes_old"), new_database.rows("twigs_old")
    store.migration.advance()
    store.migration.backfill()
    for reject in store.migration.rejects():
        store.migration.accept_reject(reject.id, reason="known")
    store.migration.migrate(Phase.CONTRACT, soak=False)
    store.migration.rollback(Phase.EXPAND)
    assert (new_database.rows("nodes_old"), new_database.rows("twigs_old")) == before


@pytest.mark.long
@pytest.mark.parametrize("side", ["legacy", "normalized"])
def test_a_lost_side_is_made_again_with_its_references(store: Store, new_database: Database, side: str) -> None:
    """From the rows of the other one, in chunks, whatever refers to what."""
    new_database.script(TREE)
    store.migration.migrate(Phase.CUTOVER, soak=False)
    cascade = "" if new_database.kind == "sqlite" else " CASCADE"
    new_database.script(f"DROP TABLE {'twigs_old' if side == 'legacy' else 'twigs'}{cascade}")
    store.migration.reconcile(rebuild=Side(side))
    agree(new_database)


def test_a_reference_that_the_class_does_not_declare_shuts_the_gate(store: Store, new_database: Database) -> None:
    """It is named from the first day, with what it does when a row goes."""
    new_database.script("DROP TABLE nodes_old")
    columns = "id BIGINT PRIMARY KEY, kind BIGINT, up BIGINT REFERENCES nodes_old (id) ON DELETE SET NULL"
    new_database.script(f"CREATE TABLE nodes_old ({columns.replace('BIGINT PRIMARY', 'INTEGER PRIMARY')})")
    said = "up of nodes_old refers to nodes_old itself ON DELETE SET NULL, which its class does not declare"
    assert any(said in reason for reason in store.migration.status().gate)
    with pytest.raises(GateClosedError, match=said):
        store.migration.advance()


def declared(
    *,
    legacy: dict[str, Any],
    own: dict[str, Any],
    other: dict[str, Any],
    rule: Any,
    only: bool,
    part: bool,
    **more: Any,
) -> Moves:
    """Moves of two tables that refer to themselves."""
    action = dict(own)
    to = action.pop("to", "news.id")

    class Own(DeclarativeBase):
        pass

    class Old(Own):
        __tablename__ = "olds"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        up: Mapped[int | None] = mapped_column(ForeignKey("olds.id", **legacy))
        by: Mapped[int | None] = mapped_column(BIG)

    class New(Own):
        __tablename__ = "news"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        code: Mapped[int | None] = mapped_column(BIG, unique=True)
        kind: Mapped[str | None] = mapped_column(Text)
        up: Mapped[int | None] = mapped_column(ForeignKey(to, **action), **other)

    class Beside(Own):
        __tablename__ = "beside"
        id: Mapped[int] = mapped_column(ForeignKey("news.id"), primary_key=True)
        by: Mapped[int | None] = mapped_column(ForeignKey("news.id") if part else BIG)

    parts = [Part(Beside, by=Beside.id, columns={Beside.by: Old.by})]
    constants = {New.kind: "a"} if only else {}
    columns = {New.up: rule(Old.up)}
    return Moves(
        Move(Old, New, name="rows", key={Old.id: New.id}, columns=columns, parts=parts, only=constants), **more
    )


REFUSED: dict[str, dict[str, Any]] = {
    "up of news refers to news itself, by other columns than the key of the move: id": {"own": {"to": "news.code"}},
    "up of olds refers to olds itself, and up is not carried as it is": {"rule": lambda up: Default(up, 0)},
    "up of news refers to news itself, and cannot be NULL": {"other": {"nullable": False}},
    "up of news refers to news itself, and its rows are selected by a constant": {"only": True},
    "up of olds refers to olds itself, ON DELETE RESTRICT": {"legacy": {"ondelete": "RESTRICT"}},
    "up of olds refers to is deleted or gets another key with another effect": {"own": {"ondelete": "CASCADE"}},
    "beside.by of a part refers to other rows of news": {"part": True},
}


def test_what_cannot_be_carried_is_refused_by_name() -> None:
    """When the moves are made, with what to do."""
    plain: dict[str, Any] = {"legacy": {}, "own": {}, "other": {}, "rule": lambda up: up, "only": False, "part": False}
    for message, change in REFUSED.items():
        with pytest.raises(ConfigurationError, match=message) as refused:
            declared(**{**plain, **change})
        assert refused.value.column
        assert "CONTRACT" in str(refused.value) or "both sides" in str(refused.value)
    on_delete: dict[str, Any] = {"ondelete": "RESTRICT"}
    declared(**{**plain, "own": on_delete, "legacy": on_delete}, dialects=["postgresql"])


class ShelfOld(Base):
    __tablename__ = "shelves_old"
    id: Mapped[int] = mapped_column(BIG, primary_key=True)


class BookOld(Base):
    """All kinds of books in one table."""

    __tablename__ = "books_old"
    id: Mapped[int] = mapped_column(BIG, primary_key=True)
    shelf_id: Mapped[int] = mapped_column(ForeignKey("shelves_old.id"), index=True)
    kind: Mapped[str] = mapped_column(Text)
    pages: Mapped[int | None] = mapped_column(BIG)
    plates: Mapped[int | None] = mapped_column(BIG)


class Shelf(Base):
    __tablename__ = "shelves"
    id: Mapped[int] = mapped_column(BIG, primary_key=True)


class Book(Base):
    """A class that inherits in three levels, each with a table that refers to the one above it."""

    __tablename__ = "books"
    id: Mapped[int] = mapped_column(BIG, primary_key=True)
    shelf_id: Mapped[int] = mapped_column(ForeignKey("shelves.id"), index=True)
    kind: Mapped[str] = mapped_column(Text)
    __mapper_args__ = {"polymorphic_on": kind, "polymorphic_identity": "book"}  # noqa: RUF012


class Bound(Book):
    __tablename__ = "bound"
    id: Mapped[int] = mapped_column(ForeignKey("books.id"), primary_key=True)
    pages: Mapped[int | None] = mapped_column(BIG)
    __mapper_args__ = {"polymorphic_identity": "bound"}  # noqa: RUF012


class Atlas(Bound):
    __tablename__ = "atlases"
    id: Mapped[int] = mapped_column(ForeignKey("bound.id"), primary_key=True)
    plates: Mapped[int | None] = mapped_column(BIG)
    __mapper_args__ = {"polymorphic_identity": "atlas"}  # noqa: RUF012


BOUND = Part(Bound, by=Bound.id, columns={Bound.pages: BookOld.pages}, when=BookOld.kind != "book")
ATLASES = Part(Atlas, by=Atlas.id, columns={Atlas.plates: BookOld.plates}, when=BookOld.kind == "atlas")
BOOKS = Move(
    BookOld,
    Book,
    name="books",
    key={BookOld.id: Book.id},
    columns={Book.shelf_id: BookOld.shelf_id, Book.kind: BookOld.kind},
    parts=[BOUND, ATLASES],
)
SHELVES = Move(ShelfOld, Shelf, name="shelves", key={ShelfOld.id: Shelf.id}, columns={})


@pytest.mark.long
def test_a_class_in_three_levels_whose_rows_refer_to_another_table(new_database: Database, tmp_path: Path) -> None:
    """Its parts refer to each other, its first row to the last of the other table: there and back, by each writer."""
    engine = create_engine(parse_url(new_database.where))
    Base.metadata.create_all(engine)
    engine.dispose()
    new_database.script(
        "INSERT INTO shelves_old (id) VALUES (1), (2), (3); INSERT INTO books_old VALUES"
        " (1, 3, 'atlas', 10, 5), (2, 1, 'bound', 20, NULL), (3, 2, 'book', NULL, NULL), (4, 2, 'atlas', 40, 6)"
    )
    settings = SETTINGS.model_copy(update={"backup_dir": tmp_path})
    with Store.open(new_database.where, moves=Moves(SHELVES, BOOKS), settings=settings) as store:
        store.upgrade()
        store.migration.migrate(Phase.DUAL_WRITE, soak=False)
        with store.unit_of_work() as uow:
            uow.repository("books").update(4, {"kind": "book", "pages": None, "plates": None})
        store.migration.migrate(Phase.CUTOVER, soak=False)
        with store.unit_of_work() as uow:
            uow.session.add(Atlas(id=5, shelf_id=1, pages=50, plates=7))
            uow.session.get_one(BookOld, 3).kind = "atlas"
        with store.unit_of_work() as uow:
            uow.session.delete(uow.session.get_one(BookOld, 3))
            uow.session.get_one(Atlas, 5).plates = 8
        store.migration.migrate(Phase.CONTRACT, soak=False)
        with store.unit_of_work() as uow:
            uow.session.add(Atlas(id=6, shelf_id=3, pages=60, plates=9))
        store.migration.rollback(Phase.NORMALIZED)
        store.migration.rollback(Phase.CUTOVER)
        assert store.migration.verify().clean

    assert new_database.rows_of("SELECT * FROM books_old ORDER BY id") == [
        (1, 3, "atlas", 10, 5),
        (2, 1, "bound", 20, None),
        (4, 2, "book", None, None),
        (5, 1, "atlas", 50, 8),
        (6, 3, "atlas", 60, 9),
    ]


@pytest.mark.long
def test_a_chain_of_ten_thousand_rows_goes_ahead(store: Store, new_database: Database) -> None:
    """However many rows stand above a row, they are carried before it, by one write of a session."""
    store.migration.migrate(Phase.DUAL_WRITE, soak=False)
    count = 10_000
    rows = ", ".join(f"({number}, {number + 1 if number < count else 'NULL'})" for number in range(count, 0, -1))
    new_database.unnoticed(f"INSERT INTO twigs_old (id, up_id) VALUES {rows}")
    with store.unit_of_work() as uow:
        uow.session.get_one(TwigOld, 1).name = "the lowest"
    assert new_database.scalar("SELECT count(*) FROM twigs") == count
    agree(new_database)
