"""The session carries: what it sends to one side is on both sides after each flush, or the flush fails.

An application with two tables, one of which refers to the other, works with its ORM on either side; what the tables of
both sides hold is judged by raw SQL.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import bindparam, create_engine, delete, insert, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from sqlalchemy.orm.exc import StaleDataError

from consensus_orm import Move, Moves, Parent, Phase, Store
from consensus_orm.databases.opening import parse_url
from consensus_orm.errors import MismatchError, UnmirroredWriteError, WrongPhaseError
from consensus_orm.external import Mirror, Stage
from consensus_orm.phase import Side
from consensus_orm.testing.plugin import QueryCounter
from consensus_orm.testing.sinks import MemorySink
from tests.repository.sessions import (
    MOVES,
    NEW,
    OLD,
    ORDERS,
    PERSONS,
    SETTINGS,
    WRITES,
    Base,
    Citizen,
    City,
    Order,
    Person,
    Purchase,
    World,
    add_old,
    world_in,
)
from tests.support.databases import Database


@pytest.fixture
def begun(kind: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Two persons with orders, at EXPAND."""
    with world_in(Phase.EXPAND, kind, tmp_path, tmp_path_factory) as world:
        yield world


@pytest.fixture(params=[Phase.DUAL_WRITE, Phase.CUTOVER], ids=lambda phase: phase.name)
def world(
    kind: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[World]:
    """The same where both sides are written."""
    with world_in(request.param, kind, tmp_path, tmp_path_factory) as world:
        yield world


@pytest.mark.long
@pytest.mark.parametrize("side", [0, 1], ids=["legacy", "normalized"])
@pytest.mark.parametrize("name", list(WRITES))
def test_what_is_written_to_one_side_is_on_both(world: World, name: str, side: int) -> None:
    """Entities, relationships with cascades, bulk statements, Core and text, with the classes of either side."""
    with world.store.unit_of_work() as uow:
        old, new, expected = WRITES[name]
        (old, new)[side](uow.session)

    assert world.same() == expected
    assert world.store.migration.verify().clean


def test_nothing_is_carried_if_the_unit_fails(world: World) -> None:
    """The other side is written in the same transaction."""
    before = world.same()

    with pytest.raises(ZeroDivisionError), world.store.unit_of_work() as uow:
        add_old(uow.session)
        uow.session.flush()
        raise ZeroDivisionError

    assert world.same() == before


def test_the_other_side_is_read_as_it_was_carried(world: World) -> None:
    """Entities of the other side that were loaded are read again, and once more after a savepoint's rollback."""
    with world.store.unit_of_work() as uow:
        citizen = uow.session.get_one(Citizen, 1)
        person = uow.session.get_one(Person, 1)
        assert citizen.full_name == "Ada"
        with uow.session.begin_nested() as savepoint:
            person.name = "Eve"
            uow.session.flush()
            assert citizen.full_name == "Eve"
            assert citizen.version == 2
            savepoint.rollback()
        assert (citizen.full_name, person.name) == ("Ada", "Ada")
        person.name = "Fay"
        uow.session.flush()
        assert citizen.full_name == "Fay"

    assert world.same()[0][0] == (1, "Fay", "Bern", 2)


def test_a_row_is_not_written_on_both_sides_in_one_flush(world: World) -> None:
    """Which of the two would count cannot be known, so the flush fails, and the unit with it."""
    before = world.same()

    with pytest.raises(MismatchError, match="both sides"), world.store.unit_of_work() as uow:
        person, citizen = uow.session.get_one(Person, 1), uow.session.get_one(Citizen, 1)
        person.name, citizen.full_name = "one", "other"

    assert world.same() == before


def test_a_stale_version_fails_as_it_does_without_a_move(world: World) -> None:
    """Optimistic locking goes on: a version that was raised since an entity was loaded is not overwritten."""
    with world.store.unit_of_work() as uow:
        early = uow.session.get_one(Person, 1)
        uow.session.expunge(early)
    with world.store.unit_of_work() as uow:
        uow.session.get_one(Citizen, 1).full_name = "meanwhile"

    early.name = "late"
    with pytest.raises(StaleDataError), world.store.unit_of_work() as uow:
        uow.session.add(early)

    assert world.same()[0][0] == (1, "meanwhile", "Bern", 2)


@pytest.mark.parametrize("side", [0, 1], ids=["legacy", "normalized"])
def test_what_another_program_wrote_to_the_other_side_is_not_lost(world: World, side: int) -> None:
    """It is carried before the session writes the row: each of the two has changed another column."""
    other = ("UPDATE citizens SET full_name = 'theirs' WHERE id = 2", "UPDATE persons SET name = 'theirs' WHERE id = 2")
    world.database.script(other[side])

    with world.store.unit_of_work() as uow:
        if side == 0:
            uow.session.get_one(Person, 2).city = "Lyss"
        else:
            uow.session.get_one(Citizen, 2).city = City(name="Lyss")

    assert world.same()[0][1] == (2, "theirs", "Lyss", 2)


def test_a_row_that_others_wrote_on_both_sides_is_decided_by_the_session(world: World) -> None:
    """What the session leaves there is on both sides; the other row is kept, and what was open of it is settled."""
    world.database.script(
        "UPDATE citizens SET full_name = 'theirs' WHERE id = 2; UPDATE persons SET name = 'others' WHERE id = 2"
    )
    assert [row.key for row in world.store.migration.reconcile().undecided] == [2]
    with world.store.unit_of_work() as uow:
        uow.session.get_one(Person, 2).city = "Lyss"
    assert world.same()[0][1] == (2, "others", "Lyss", 2)
    settled = world.database.rows_of("SELECT state, note FROM consensus_orm_mismatches")
    assert settled == [("repaired", "a session changed it")]
    images = world.database.rows_of("SELECT side, cause FROM consensus_orm_images WHERE pair = 'persons'")
    assert images == [("normalized", "a session changed it")]


def test_the_repository_sees_what_the_session_wrote(world: World) -> None:
    """Both are in one transaction."""
    with world.store.unit_of_work() as uow:
        person = Person(name="Cyd", city="Chur")
        uow.session.add(person)
        uow.session.flush()
        row: Any = uow.repository(PERSONS).get(person.id)
        assert (row.name, row.city) == ("Cyd", "Chur")
        uow.repository(PERSONS).update(person.id, {"city": "Davos"})
        uow.session.expire(person)
        assert person.city == "Davos"

    assert world.same()[0][-1] == (3, "Cyd", "Davos", 1)


def test_a_parent_without_a_row_is_refused(world: World) -> None:
    """The legacy side cannot hold it; with its first row in a later flush of the unit it is carried."""
    with pytest.raises(UnmirroredWriteError, match="cities"), world.store.unit_of_work() as uow:
        uow.session.add(City(name="Genf"))
    with world.store.unit_of_work() as uow:
        city = City(name="Genf")
        uow.session.add(city)
        uow.session.flush()
        uow.session.delete(uow.session.get_one(Purchase, 1))
        uow.session.flush()
        uow.session.add(Citizen(full_name="Gil", city_id=city.id))

    assert world.same()[0][-1] == (3, "Gil", "Genf", 1)


def test_ids_of_rows_that_are_not_carried_yet_are_not_given_again(begun: World) -> None:
    """Before the backfill the normalized side is empty; new rows there get ids that the legacy side never gave."""
    begun.store.migration.migrate(Phase.DUAL_WRITE, soak=False)

    with begun.store.unit_of_work() as uow:
        city = City(name="Chur")
        uow.session.add_all(Citizen(full_name=name, city=city) for name in ("Cyd", "Dan"))
    begun.store.migration.backfill()

    people = [(1, "Ada", "Bern", 1), (2, "Bob", "Bern", 1), (3, "Cyd", "Chur", 1), (4, "Dan", "Chur", 1)]
    assert begun.same()[0] == people


def test_what_was_not_carried_yet_is_carried_when_it_is_changed(begun: World) -> None:
    """A legacy entity that the backfill has not reached is changed, another is deleted: the backfill finds it done."""
    begun.store.migration.migrate(Phase.DUAL_WRITE, soak=False)

    with begun.store.unit_of_work() as uow:
        uow.session.get_one(Person, 1).name = "Ada L."
        uow.session.delete(uow.session.get_one(Person, 2))
    begun.store.migration.backfill()

    assert begun.same() == [[(1, "Ada L.", "Bern", 2)], [(1, 1, "tea"), (2, 1, "ink")]]


def test_the_session_flushes_by_itself_and_reads_again(world: World) -> None:
    """Autoflush, expire, refresh, merge and populate_existing do what they do without a move, on both sides."""
    with world.store.unit_of_work() as uow:
        session = uow.session
        person = session.get_one(Person, 1)
        person.city = "Chur"
        assert session.scalar(select(City.name).join(Citizen).where(Citizen.id == 1)) == "Chur"
        person.name = "forgotten"
        session.expire(person)
        assert person.name == "Ada"
        session.merge(Person(id=2, name="Bob B.", city="Bern", version=1))
        citizen = session.get_one(Citizen, 2)
        assert citizen.full_name == "Bob B."
        session.execute(update(Citizen).where(Citizen.id == 2).values(full_name="Rob"))
        assert citizen.full_name == "Rob"
        assert session.get_one(Person, 2, populate_existing=True).name == "Rob"
        with session.no_autoflush:
            person.name = "Ada L."
            assert session.scalar(select(Citizen.full_name).where(Citizen.id == 1)) == "Ada"
        session.flush()
        session.refresh(person)
        assert person.name == "Ada L."

    assert [name for _, name, *_ in world.same()[0]] == ["Ada L.", "Rob"]


@pytest.mark.parametrize("name", ["bulk_save_objects", "bulk_insert_mappings", "bulk_update_mappings"])
def test_what_sends_no_events_is_refused(world: World, name: str) -> None:
    """The error says what to use."""
    with world.store.unit_of_work() as uow, pytest.raises(UnmirroredWriteError, match="bulk_") as raised:
        getattr(uow.session, name)([Person(name="x", city="y")])

    assert raised.value.hint is not None
    assert "add_all" in raised.value.hint


def test_the_driver_s_own_connection_is_carried_at_the_end(world: World) -> None:
    """What no event of SQLAlchemy tells is found before the commit."""
    with world.store.unit_of_work() as uow:
        driver: Any = uow.session.connection().connection.driver_connection
        driver.execute("UPDATE persons SET city = 'Olten' WHERE id = 2")

    if world.database.kind == "sqlite":  # recorded as another program's write
        world.store.migration.reconcile(foreign="adopt")
    assert world.same()[0][1] == (2, "Bob", "Olten", 1)


PHASES = {
    Phase.EXPAND: (Person, Citizen),
    Phase.NORMALIZED: (Citizen, Person),
    Phase.CONTRACT: (Citizen, Person),
}


@pytest.mark.parametrize("phase", list(PHASES), ids=lambda phase: phase.name)
def test_a_side_that_is_not_written_is_not_read_either(begun: World, phase: Phase) -> None:
    """Its rows are stale: reads and writes raise WrongPhaseError, and name the side to use."""
    begun.store.migration.migrate(phase, soak=False)
    fresh, stale = PHASES[phase]
    if phase is Phase.CONTRACT:
        stale = None  # type: ignore[assignment]

    with begun.store.unit_of_work() as uow:
        assert uow.model(PERSONS) is fresh
        assert len(uow.session.scalars(select(fresh)).all()) == 2
        if stale is None:
            return
        for statement in (
            select(stale),
            select(stale.__table__.c.id),
            select(fresh).join(stale, stale.__table__.c.id == fresh.__table__.c.id),
        ):
            with pytest.raises(WrongPhaseError, match=stale.__tablename__) as raised:
                uow.session.execute(statement)
            assert "uow.model" in str(raised.value.hint)
        with pytest.raises(WrongPhaseError):
            uow.session.get(stale, 1)
        with pytest.raises(WrongPhaseError):
            uow.session.execute(update(stale).values(version=5))
        uow.session.rollback()
    columns = "id, name, city" if stale is Person else "id, full_name, city_id"
    with pytest.raises(WrongPhaseError), begun.store.unit_of_work() as uow:
        uow.session.execute(text(f"INSERT INTO {stale.__tablename__} ({columns}, version) VALUES (9, 'x', 1, 1)"))
    with pytest.raises(WrongPhaseError), begun.store.unit_of_work() as uow:
        uow.session.add(stale(id=9))


@pytest.mark.long
def test_an_application_goes_through_all_phases_with_plain_sessions(begun: World) -> None:
    """It uses the class of the phase, and no write is lost on the way there or back."""
    expected = {"Ada", "Bob"}
    migration = begun.store.migration
    for phase in [*Phase, *reversed(list(Phase)[:-1])]:
        while migration.phase < phase:
            migration.migrate(Phase(migration.phase + 1), soak=False)
            if migration.phase.compares:
                migration.backfill()
        while migration.phase > phase:
            migration.rollback(Phase(migration.phase - 1))
        name = f"{phase.name} {len(expected)}"
        with begun.store.unit_of_work() as uow:
            if uow.model(PERSONS) is Person:
                uow.session.add(Person(name=name, city=name, orders=[Order(what=name)]))
            else:
                uow.session.add(Citizen(full_name=name, city=City(name=name), purchases=[Purchase(item=name)]))
        expected.add(name)
        if phase.compares:
            assert migration.verify().clean

    assert {name for _, name, *_ in begun.database.rows_of(OLD[0])} == expected
    assert {what for *_, what in begun.database.rows_of(OLD[1])} == {"tea", "ink", "cup"} | (expected - {"Ada", "Bob"})


def test_how_many_statements_a_session_sends(begun: World, query_counter: QueryCounter) -> None:
    """A unit of work that adds rows of a simple move sends these statements at most, whether one row or 100."""
    sent: dict[Phase, int] = {}
    for phase in (Phase.EXPAND, Phase.DUAL_WRITE, Phase.CONTRACT):
        begun.store.migration.migrate(phase, soak=False)
        if phase.compares:
            begun.store.migration.backfill()
        for count in (1, 1, 100) if phase.compares else (1, 1):  # the first one reads the names of triggers, too
            with query_counter(begun.store) as queries, begun.store.unit_of_work() as uow:
                if uow.model(ORDERS) is Order:
                    uow.session.add_all(Order(person_id=1, what=str(number)) for number in range(count))
                else:
                    uow.session.add_all(Purchase(citizen_id=1, item=str(number)) for number in range(count))
        sent[phase] = len(queries)

    single = 7 if begun.database.kind == "sqlite" else 5
    assert sent == {Phase.EXPAND: single, Phase.DUAL_WRITE: 15, Phase.CONTRACT: single}


def test_a_failed_flush_leaves_later_statements_carried(world: World) -> None:
    """After an error of a flush and its rollback, a statement outside of a flush is carried as before."""
    with world.store.unit_of_work() as uow:
        uow.session.add(Order(person_id=1, what=None))
        with pytest.raises(IntegrityError):
            uow.session.flush()
        uow.session.rollback()
        uow.session.execute(update(Order).where(Order.id == 1).values(what="coffee"))
        assert uow.session.scalar(select(Purchase.item).where(Purchase.id == 1)) == "coffee"

    assert world.same()[1][0] == (1, 1, "coffee")


def test_the_legacy_class_is_not_imported_any_more(new_database: Database, tmp_path: Path) -> None:
    """At CONTRACT the module of a legacy class that is given by name may be gone; the session goes on."""
    settings = SETTINGS.model_copy(update={"backup_dir": tmp_path})
    engine = create_engine(parse_url(new_database.where))
    Base.metadata.create_all(engine)
    engine.dispose()
    with Store.open(new_database.where, moves=MOVES, settings=settings) as store:
        store.upgrade()
        store.migration.migrate(Phase.CONTRACT, soak=False)
    gone = Move(
        "persons=nowhere.at.all:Person",
        Citizen,
        name="persons",
        key={"id": Citizen.id},
        columns={Citizen.full_name: "name", Citizen.version: "version"},
        parts=[Parent(City, link=Citizen.city_id, by={City.name: "city"})],
    )
    with Store.open(new_database.where, moves=Moves(gone), settings=settings) as store, store.unit_of_work() as uow:
        citizen = Citizen(full_name="Cyd", city=City(name="Chur"))
        uow.session.add(citizen)
        uow.session.flush()
        citizen.full_name = "Sid"
        uow.session.flush()
        assert uow.model(gone) is Citizen

    assert new_database.rows_of(NEW[0])[0][1:] == ("Sid", "Chur", 2)


def more_old(session: Session) -> None:
    """Statements that tell their rows by conditions, parameters and keys, and some that tell none."""
    table: Any = Order.__table__
    session.execute(update(Order), [{"id": 3, "what": "by key"}])
    session.execute(update(Order).where(Order.id == bindparam("n")), {"n": 3, "what": "by a parameter"})
    session.connection().execute(insert(table).values(id=90, person_id=2, what="Core"))
    session.connection().execute(update(table).where(table.c.id == 90), {"what": "Core again"})
    session.execute(insert(Order).values([{"person_id": 2, "what": "a"}, {"person_id": 2, "what": "b"}]))
    session.execute(insert(Order), [{"id": number, "person_id": 1, "what": "with a key"} for number in (70, 700)])
    session.execute(insert(Order).from_select(["person_id", "what"], select(Person.id, Person.name)))
    session.execute(update(Order).where(Order.id == 70).values(id=80))
    renamed = session.get_one(Order, 700)
    renamed.id = 7000


def more_new(session: Session) -> None:
    table: Any = Purchase.__table__
    session.execute(update(Purchase), [{"id": 3, "item": "by key"}])
    session.execute(update(Purchase).where(Purchase.id == bindparam("n")), {"n": 3, "item": "by a parameter"})
    session.connection().execute(insert(table).values(id=90, citizen_id=2, item="Core"))
    session.connection().execute(update(table).where(table.c.id == 90), {"item": "Core again"})
    session.execute(insert(Purchase).values([{"citizen_id": 2, "item": "a"}, {"citizen_id": 2, "item": "b"}]))
    session.execute(insert(Purchase), [{"id": number, "citizen_id": 1, "item": "with a key"} for number in (70, 700)])
    session.execute(insert(Purchase).from_select(["citizen_id", "item"], select(Citizen.id, Citizen.full_name)))
    session.execute(update(Purchase).where(Purchase.id == 70).values(id=80))
    renamed = session.get_one(Purchase, 700)
    renamed.id = 7000
    session.scalars(select(City)).all()[0].name = "a parent"


def mirrored(begun: World, phase: Phase, sink: MemorySink) -> Mirror:
    """An external store that holds all rows, in a phase."""
    begun.store.migration.migrate(phase, soak=False)
    if phase.compares:
        begun.store.migration.backfill()
    mirror = Mirror(begun.store, sink)
    mirror.advance(Stage.IMPORT)
    mirror.import_entries()
    mirror.advance(Stage.MIRROR)
    mirror.relay.run(until_empty=True)
    return mirror


@pytest.mark.parametrize("phase", list(Phase), ids=lambda phase: phase.name)
def test_an_external_store_gets_what_a_session_writes_in_every_phase(begun: World, phase: Phase) -> None:
    """Flushes, bulk statements, Core and text leave their entries where one side is written, too."""
    sink = MemorySink()
    mirror = mirrored(begun, phase, sink)
    writes = [WRITES[name][:2] for name in ("add", "change", "bulk", "text")] + [
        (more_old, more_new),
        WRITES["exchange"][:2],
    ]
    sides = [of for of, is_open in enumerate((phase.writes_legacy, phase.writes_normalized)) if is_open]
    for number, write in enumerate(writes):
        with begun.store.unit_of_work() as uow:
            write[sides[number % len(sides)]](uow.session)
        mirror.relay.run(until_empty=True)
        persons, orders = (begun.database.rows_of(sql) for sql in (OLD if phase.truth is Side.LEGACY else NEW))
        wanted: dict[str, Any] = {f"persons:{id_}": (name, city, version) for id_, name, city, version in persons}
        wanted |= {f"orders:{id_}": (person, what) for id_, person, what in orders}
        held = {name: json.loads(content)["row"] for name, content in sink.items.items()}
        columns = {"persons": ("name", "city", "version"), "orders": ("person_id", "what")}
        assert {n: tuple(row[c] for c in columns[n.split(":")[0]]) for n, row in held.items()} == wanted, write
    assert mirror.verify().clean


@pytest.mark.sqlite
def test_a_statement_that_tells_its_rows_reads_no_others(begun: World, query_counter: QueryCounter) -> None:
    """However many rows there are, it takes the same statements; one that tells none reads them before and after."""
    mirrored(begun, Phase.EXPAND, MemorySink())
    add_many = insert(Order), [{"person_id": 1, "what": "more"}] * 2 * begun.store.settings.chunk_rows
    sent: list[list[int]] = []
    for turn in (1, 2, 3):
        statements: list[Any] = [
            update(Order).where(Order.person_id == 2).values(what=f"x {turn}"),
            delete(Order).where(Order.id == 10 + turn),
            insert(Order).values(person_id=1, what="new"),
            text("UPDATE orders SET what = :what WHERE id = 3").bindparams(what=f"text {turn}"),
        ]
        sent.append([])
        for statement in statements:
            with query_counter(begun.store) as queries, begun.store.unit_of_work() as uow:
                uow.session.execute(statement)
            sent[-1].append(len(queries))
        with begun.store.unit_of_work() as uow:
            uow.session.execute(*add_many)
    _, some, more = sent  # the first session reads what is read once
    assert some[:-1] == more[:-1]
    assert more[-1] == some[-1] + 4
