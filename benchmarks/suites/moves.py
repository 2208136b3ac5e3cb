"""A move of a user's own tables: one entity through the session or the repository, and a hundred in a flush."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Text, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from benchmarks.data import engine_on
from benchmarks.harness import Bench, Group, Target, Work
from consensus_orm import Move, Moves, Phase, Store
from consensus_orm.models.base import BIG

COUNT = 200
FLUSH = 100


class _Base(DeclarativeBase):
    pass


class Account(_Base):
    """The legacy class."""

    __tablename__ = "accounts"

    id: Mapped[int] = mapped_column(BIG, primary_key=True)
    user: Mapped[str] = mapped_column(Text)
    mail: Mapped[str | None] = mapped_column(Text)
    age: Mapped[int | None] = mapped_column(BIG)


class Member(_Base):
    """The normalized class."""

    __tablename__ = "members"

    id: Mapped[int] = mapped_column(BIG, primary_key=True)
    username: Mapped[str] = mapped_column(Text)
    email: Mapped[str | None] = mapped_column(Text)
    age: Mapped[int | None] = mapped_column(BIG)


MOVES = Moves(
    Move(
        Account,
        Member,
        name="accounts",
        key={Account.id: Member.id},
        columns={Member.username: Account.user, Member.email: Account.mail, Member.age: Account.age},
    )
)

ONE = Group(
    "one entity of a simple move, its own transaction",
    unit="write",
    count=COUNT,
    baseline="plain_orm",
    targets=(
        Target("repository write, compared, to a plain ORM write", "repository_dual_write", 1.0, than="plain_orm"),
        Target("session carry of one entity to a plain ORM write", "session_dual_write", 2.0, than="plain_orm"),
        Target("the same through the normalized class", "session_cutover", 2.0, than="plain_orm"),
        Target("session write at EXPAND to a plain ORM write", "session_expand", 1.15, than="plain_orm"),
        Target("session write at CONTRACT to a plain ORM write", "session_contract", 1.15, than="plain_orm"),
    ),
)
MANY = Group(
    f"{FLUSH} entities of a simple move in a flush",
    unit="entity",
    count=COUNT * 10,
    baseline="plain_orm_flush",
    targets=(
        Target("session carry of an entity of many", "session_flush_dual_write", 1.5, than="plain_orm_flush"),
        Target("the same through the normalized class", "session_flush_cutover", 1.5, than="plain_orm_flush"),
    ),
)
GROUPS = (ONE, MANY)


def _made(path: Path) -> Path:
    engine = create_engine(f"sqlite:///{path}")
    _Base.metadata.create_all(engine)
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA journal_mode = WAL")
    engine.dispose()
    return path


@contextmanager
def _store(path: Path, phase: Phase) -> Iterator[Store]:
    with Store.open(_made(path), moves=MOVES) as store:
        store.upgrade()
        store.migration.migrate(phase, soak=False)
        yield store


def _old(number: int) -> Account:
    return Account(user=f"user {number}", mail=f"{number}@example.org", age=number % 90)


def _new(number: int) -> Member:
    return Member(username=f"user {number}", email=f"{number}@example.org", age=number % 90)


def _plain(bench: Bench, name: str, size: int, count: int) -> Iterator[Work]:
    engine = engine_on(_made(bench.file(name)))

    def work(round_: int) -> None:
        for start in range(0, bench.times(count), size):
            with Session(engine) as session, session.begin():
                session.add_all(_old(round_ + start + number) for number in range(size))

    yield work
    engine.dispose()


def _carried(bench: Bench, name: str, phase: Phase, size: int, count: int) -> Iterator[Work]:
    make: Callable[[int], Account | Member] = _old if phase < Phase.CUTOVER else _new
    with _store(bench.file(name), phase) as store:

        def work(round_: int) -> None:
            for start in range(0, bench.times(count), size):
                with store.unit_of_work() as uow:
                    uow.session.add_all(make(round_ + start + number) for number in range(size))

        yield work


@ONE.case()
def plain_orm(bench: Bench) -> Iterator[Work]:
    """SQLAlchemy ORM, the legacy row"""
    yield from _plain(bench, "plain", 1, COUNT)


@ONE.case(Phase.DUAL_WRITE, Phase.CUTOVER)
def repository(bench: Bench, phase: Phase) -> Iterator[Work]:
    """the repository, {}"""
    with _store(bench.file("repository"), phase) as store:

        def work(round_: int) -> None:
            for number in range(bench.times(COUNT)):
                with store.unit_of_work() as uow:
                    row = {"user": f"user {round_ + number}", "mail": f"{number}@example.org", "age": number % 90}
                    uow.repository("accounts").add(row)

        yield work


@ONE.case(Phase.EXPAND, Phase.DUAL_WRITE, Phase.CUTOVER, Phase.NORMALIZED, Phase.CONTRACT)
def session(bench: Bench, phase: Phase) -> Iterator[Work]:
    """the session, {}"""
    yield from _carried(bench, "session", phase, 1, COUNT)


@MANY.case()
def plain_orm_flush(bench: Bench) -> Iterator[Work]:
    """SQLAlchemy ORM, the legacy rows"""
    yield from _plain(bench, "plain", FLUSH, COUNT * 10)


@MANY.case(Phase.EXPAND, Phase.DUAL_WRITE, Phase.CUTOVER)
def session_flush(bench: Bench, phase: Phase) -> Iterator[Work]:
    """the session, {}"""
    yield from _carried(bench, "session", phase, FLUSH, COUNT * 10)
