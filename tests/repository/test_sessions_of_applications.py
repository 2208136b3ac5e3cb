"""Sessions as applications use them: from threads and tasks, with inheritance, hybrids and column properties."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Text, create_engine, select
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, column_property, mapped_column
from sqlalchemy.orm.exc import StaleDataError

from consensus_orm import Convert, Move, Moves, Phase, Store
from consensus_orm.databases.opening import parse_url
from consensus_orm.errors import MismatchError
from consensus_orm.models.base import BIG
from consensus_orm.settings import Isolation, OnMismatch, Settings
from tests.support.databases import Database


class Base(DeclarativeBase):
    pass


class Job(Base):
    """The legacy class, with a hybrid and a column property, and one class for each kind."""

    __tablename__ = "jobs"

    id: Mapped[int] = mapped_column(BIG, primary_key=True)
    kind: Mapped[str] = mapped_column(Text)
    hours: Mapped[int] = mapped_column(BIG)
    version: Mapped[int] = mapped_column(BIG)
    minutes = column_property(hours * 60)

    __mapper_args__ = {"polymorphic_on": kind, "polymorphic_identity": "job", "version_id_col": version}  # noqa: RUF012

    @hybrid_property
    def is_long(self) -> bool:
        return self.hours > 8


class Repair(Job):
    __mapper_args__ = {"polymorphic_identity": "repair"}  # noqa: RUF012


class Task(Base):
    """The normalized class."""

    __tablename__ = "tasks"

    id: Mapped[int] = mapped_column(BIG, primary_key=True)
    kind: Mapped[str] = mapped_column(Text)
    minutes: Mapped[int] = mapped_column(BIG)
    version: Mapped[int] = mapped_column(BIG)

    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012


MOVE = Move(
    Job,
    Task,
    name="jobs",
    key={Job.id: Task.id},
    columns={
        Task.kind: Job.kind,
        Task.minutes: Convert(Job.hours, up=Job.hours * 60, down=Task.minutes // 60),
        Task.version: Job.version,
    },
)
SETTINGS = Settings(soak_dual_write=0, soak_cutover=0, soak_normalized=0)
BOTH = "SELECT j.id, j.kind, j.hours, t.kind, t.minutes FROM jobs AS j FULL JOIN tasks AS t ON t.id = j.id ORDER BY 1"


def opened(database: Database, tmp_path: Path, phase: Phase, **settings: Any) -> Store:
    engine = create_engine(parse_url(database.where))
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add_all([Job(hours=1), Repair(hours=2)])
    engine.dispose()
    store = Store.open(
        database.where, moves=Moves(MOVE), settings=SETTINGS.model_copy(update={"backup_dir": tmp_path, **settings})
    )
    store.upgrade()
    store.migration.migrate(phase, soak=False)
    store.migration.backfill()
    return store


@pytest.mark.parametrize("phase", [Phase.DUAL_WRITE, Phase.CUTOVER], ids=lambda phase: phase.name)
def test_subclasses_hybrids_and_column_properties(new_database: Database, tmp_path: Path, phase: Phase) -> None:
    """What the mapper makes of one table is carried as the rows that it is."""
    with opened(new_database, tmp_path, phase) as store, store.unit_of_work() as uow:
        uow.session.add(Repair(hours=10))
        repair = uow.session.scalars(select(Repair).where(Repair.is_long)).one()
        assert repair.minutes == 600
        assert uow.session.get_one(Task, repair.id).minutes == 600
        for each in uow.session.scalars(select(Job).where(Job.minutes < 100)):
            uow.session.delete(each)

    assert new_database.rows_of(BOTH) == [
        (2, "repair", 2, "repair", 120),
        (3, "repair", 10, "repair", 600),
    ]


@pytest.mark.parametrize("isolation", [Isolation.READ_COMMITTED, Isolation.SERIALIZABLE], ids=lambda each: each.name)
@pytest.mark.parametrize("phase", [Phase.DUAL_WRITE, Phase.CUTOVER], ids=lambda phase: phase.name)
def test_two_sessions_that_write_the_two_classes_of_one_row(
    new_database: Database, tmp_path: Path, phase: Phase, isolation: Isolation
) -> None:
    """Old and new code change the same row at the same time: no change is lost, and no deadlock is met."""
    times = 15

    with opened(new_database, tmp_path, phase, isolation=isolation) as store:

        def work_longer(model: type[Job] | type[Task]) -> None:
            def once() -> None:
                def change(uow: Any) -> None:
                    if model is Job:
                        uow.session.get_one(Job, 1).hours += 1
                    else:
                        uow.session.get_one(Task, 1).minutes += 60

                store.run(change)

            for _ in range(times):
                while True:
                    try:
                        once()
                        break
                    except StaleDataError:
                        continue  # the version says that the other one was first

        with ThreadPoolExecutor(2) as threads:
            list(threads.map(work_longer, [Job, Task]))

    assert new_database.rows_of(BOTH)[0] == (1, "job", 1 + 2 * times, "job", 60 * (1 + 2 * times))
    if new_database.kind == "postgresql":
        sql = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        assert new_database.rows_of(sql) == [(0,)]


@pytest.mark.parametrize(
    "phase", [Phase.DUAL_WRITE, pytest.param(Phase.CUTOVER, marks=pytest.mark.long)], ids=lambda phase: phase.name
)
def test_a_shadow_that_refuses_rows_takes_no_write_with_it(
    new_database: Database, tmp_path: Path, phase: Phase
) -> None:
    """Rule 6 in a session: of one flush the truth has all, the shadow what its constraints take; the rest heals."""
    truth, shadow, on, attribute, hour = ("jobs", "hours"), ("tasks", "minutes / 60"), "tasks (minutes)", "hours", 1
    if phase is Phase.CUTOVER:
        truth, shadow, on, attribute, hour = shadow, truth, "jobs (hours)", "minutes", 60
    tables = [f"SELECT id, {hours} FROM {name} ORDER BY id" for name, hours in (truth, shadow)]

    def write(store: Store) -> None:
        with store.unit_of_work() as uow:
            model: Any = uow.model(MOVE)
            new = [model(**{"id": key, "kind": "job", attribute: of * hour}) for key, of in ((3, 1), (4, 5), (5, 7))]
            uow.session.add_all(new)  # the shadow refuses the first one
            uow.session.delete(uow.session.get_one(model, 2))  # and this
            uow.session.flush()
            setattr(new[1], attribute, 7 * hour)  # and this

    with opened(new_database, tmp_path, phase) as store:
        new_database.script(
            f"CREATE UNIQUE INDEX refuses ON {on}; CREATE TABLE refers (id BIGINT REFERENCES {shadow[0]} (id));"
            " INSERT INTO refers VALUES (2)"
        )
        strict = store.settings.model_copy(update={"on_mismatch": OnMismatch.RAISE})
        with Store.open(new_database.where, moves=Moves(MOVE), settings=strict) as other, pytest.raises(MismatchError):
            write(other)
        assert [new_database.rows_of(sql) for sql in tables] == [[(1, 1), (2, 2)]] * 2

        write(store)

        assert [new_database.rows_of(sql) for sql in tables] == [
            [(1, 1), (3, 1), (4, 7), (5, 7)],
            [(1, 1), (2, 2), (4, 5), (5, 7)],
        ]
        found = {(found.key, found.kind) for found in store.migration.mismatches()}
        assert found == {(2, "not_deleted"), (3, "shadow_failed"), (4, "shadow_failed")}
        new_database.script("DROP INDEX refuses; DROP TABLE refers")
        store.migration.reconcile()
        assert store.migration.mismatches() == []
        assert new_database.rows_of(tables[0]) == new_database.rows_of(tables[1]) == [(1, 1), (3, 1), (4, 7), (5, 7)]
