"""The key of a row as one value: the same text wherever it is made, and the columns themselves where it is compared."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from sqlalchemy import Text, Uuid, create_engine, insert
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from consensus_orm import Move, Moves, Phase, Store
from consensus_orm.databases.opening import parse_url
from consensus_orm.declaration.row_keys import encoded
from consensus_orm.errors import InvalidValueError, MismatchError
from consensus_orm.external import Mirror, Stage
from consensus_orm.models.base import BIG
from consensus_orm.settings import Settings
from consensus_orm.testing.sinks import MemorySink
from tests.support.databases import Database, at

SETTINGS = Settings(soak_dual_write=0, soak_cutover=0, soak_normalized=0, chunk_rows=3, chunk_pause=0)

ODD = ['"', "\\", "é", "\U0001f600", "", "a,b", "[1]", "null", "12", "\x7f", "'", *map(chr, range(1, 32))]
ONE, TWO = UUID(int=1), UUID(int=0xABCDEF << 64)


class Base(DeclarativeBase):
    pass


class SeatOld(Base):
    __tablename__ = "seats_old"
    uid: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    hall: Mapped[int] = mapped_column(BIG, primary_key=True)
    name: Mapped[str] = mapped_column(Text, primary_key=True)
    taken: Mapped[str | None] = mapped_column(Text)


class Seat(Base):
    __tablename__ = "seats"
    name: Mapped[str] = mapped_column(Text, primary_key=True)
    hall_id: Mapped[int] = mapped_column(BIG, primary_key=True, autoincrement=False)
    event_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    by: Mapped[str | None] = mapped_column(Text)


class TicketOld(Base):
    __tablename__ = "tickets_old"
    uid: Mapped[UUID] = mapped_column(Uuid, primary_key=True, default=uuid4)
    said: Mapped[str | None] = mapped_column(Text)


class Ticket(Base):
    __tablename__ = "tickets"
    id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    said: Mapped[str | None] = mapped_column(Text)


SEATS = Move(
    SeatOld,
    Seat,
    name="seats",
    key={SeatOld.uid: Seat.event_id, SeatOld.hall: Seat.hall_id, SeatOld.name: Seat.name},
    columns={Seat.by: SeatOld.taken},
)
TICKETS = Move(TicketOld, Ticket, name="tickets", key={TicketOld.uid: Ticket.id}, columns={Ticket.said: TicketOld.said})
MOVES = Moves(SEATS, TICKETS)
HALLS = (-5, 9, 10)
KEYS = [*itertools.product((ONE, TWO), HALLS, ("b", "B", "é", '"'))]


@pytest.fixture
def store(new_database: Database, tmp_path: Path) -> Iterator[Store]:
    engine = create_engine(parse_url(new_database.where))
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        seats = [{"uid": uid, "hall": hall, "name": name, "taken": name} for uid, hall, name in KEYS]
        connection.execute(insert(SeatOld), seats)
        connection.execute(insert(TicketOld), [{"uid": ONE, "said": "one"}, {"uid": TWO, "said": "two"}])
    engine.dispose()
    settings = SETTINGS.model_copy(update={"backup_dir": tmp_path})
    with Store.open(new_database.where, moves=MOVES, settings=settings) as opened:
        opened.upgrade()
        yield opened


def in_phase(store: Store, phase: Phase) -> None:
    while store.migration.phase < phase:
        if store.migration.phase.compares:
            store.migration.backfill()
            assert store.migration.verify().clean
        store.migration.advance()


PHASES = [Phase.EXPAND, Phase.DUAL_WRITE, Phase.NORMALIZED]


@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.name)
def test_rows_are_known_by_all_parts_of_their_key(store: Store, phase: Phase) -> None:
    """In each phase and method of a repository; a key is a tuple in the order of the declaration."""
    in_phase(store, phase)
    key = (ONE, 10, "new")
    with store.unit_of_work() as uow:
        seats = uow.repository(SEATS)
        assert seats.add({"name": "new", "uid": ONE, "hall": 10, "taken": "x"}) == key
        assert seats.get(key) == (*key, "x")
        assert seats.get((TWO, 10, "new")) is None
        assert seats.exists({"hall": 10, "uid": ONE, "name": "new"})
        assert seats.update(key, {"taken": "y"})
        assert seats.put({"uid": ONE, "hall": 10, "name": "new", "taken": "z"}) == key
        assert [row[:3] for row in seats.get_many([(TWO, 9, "B"), key, (ONE, 9, "none")])] == [(TWO, 9, "B"), key]
        assert seats.get(key) == (*key, "z")
        assert seats.count({"hall": 10}) == 9
        assert seats.delete(key=key) == 1
        assert not seats.exists(key)
    with store.unit_of_work(read_only=True) as uow:
        assert uow.repository(SEATS).count() == len(KEYS)


@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.name)
def test_pages_follow_the_order_of_all_parts(store: Store, phase: Phase) -> None:
    """Each row comes once, and numbers in the order of numbers."""
    in_phase(store, phase)
    with store.unit_of_work(read_only=True) as uow:
        seats = uow.repository(SEATS)
        found, after = [], None
        while page := seats.rows(limit=5, oldest_first=True, after=after):
            found += page
            after = tuple(page[-1][:3])
    assert sorted(row[:3] for row in found) == sorted(KEYS)
    assert [row[:2] for row in found] == sorted(key[:2] for key in KEYS)


def test_a_uuid_is_given_and_told_as_one(store: Store) -> None:
    """Left out, it is what the model makes."""
    in_phase(store, Phase.DUAL_WRITE)
    with store.unit_of_work() as uow:
        tickets = uow.repository(TICKETS)
        made = tickets.add({"said": "made"})
        given = tickets.add({"uid": UUID(int=7), "said": "given"})
        assert (type(made), given) == (UUID, UUID(int=7))
        assert [row.uid for row in tickets.get_many([given, made, UUID(int=8)])] == [given, made]
        assert tickets.delete(key=made) == 1
        assert tickets.update(given, {"said": "again"})
    store.migration.backfill()
    assert store.migration.verify().clean


def test_a_key_that_is_none_is_refused(store: Store) -> None:
    """With the name of the part; a part that is left out is none that the database would give."""
    with store.unit_of_work() as uow:
        seats = uow.repository(SEATS)
        for key in ("text", (ONE, 1), (ONE, "1", "a"), (ONE, 1, "a\0")):
            with pytest.raises(InvalidValueError):
                seats.get(key)
        with pytest.raises(InvalidValueError) as refused:
            seats.add({"uid": ONE, "hall": 1})
        assert refused.value.field == "uid"
        with pytest.raises(InvalidValueError, match="stays"):
            seats.update(KEYS[0], {"hall": 77})


@pytest.mark.parametrize("phase", [Phase.DUAL_WRITE, Phase.CUTOVER], ids=lambda phase: phase.name)
def test_a_session_carries_rows_of_any_key(store: Store, new_database: Database, phase: Phase) -> None:
    """What it adds, changes and deletes with the classes of either side is on the other one after the flush."""
    in_phase(store, phase)
    store.migration.backfill()
    with store.unit_of_work() as uow:
        session = uow.session
        seat, token = Seat(event_id=ONE, hall_id=1, name="new", by="x"), TicketOld(uid=UUID(int=5), said="new")
        session.add_all([seat, token])
        session.flush()
        old = session.get_one(SeatOld, (ONE, 1, "new"))
        assert old.taken == "x"
        old.taken = "y"
        session.get_one(Ticket, UUID(int=5)).said = "again"
        session.flush()
        assert seat.by == "y"
        assert token.said == "again"
        session.delete(session.get_one(Seat, {"event_id": TWO, "hall_id": 9, "name": "B"}))
        session.delete(session.get_one(TicketOld, TWO))
    wanted = "SELECT taken FROM seats_old WHERE hall = 1"
    assert new_database.rows_of(wanted) == [("y",)]
    assert new_database.scalar("SELECT count(*) FROM seats_old WHERE name = 'B'") == 5
    assert sorted(new_database.rows_of("SELECT said FROM tickets")) == [("again",), ("one",)]
    assert store.migration.verify().clean


def test_an_external_store_mirrors_rows_of_any_key(store: Store) -> None:
    """Each entry is named by the key of its row, what a unit of work writes is sent, and all rows are compared."""
    sink = MemorySink()
    mirror = Mirror(store, sink)
    mirror.advance(Stage.IMPORT)
    mirror.import_entries()
    mirror.advance(Stage.MIRROR)
    mirror.export()
    with store.unit_of_work() as uow:
        uow.repository(SEATS).update((TWO, 9, '"'), {"taken": "sent"})
        uow.repository(TICKETS).delete(key=ONE)
        uow.repository(TICKETS).add({"uid": UUID(int=7), "said": "new"})
    mirror.relay.run(until_empty=True)
    names = {f"tickets:{json.dumps(key.hex)}" for key in (TWO, UUID(int=7))}
    names |= {f"seats:{json.dumps(encoded(key))}" for key in KEYS}
    assert sink.items.keys() == names
    changed = json.dumps(encoded((TWO, 9, '"')))
    assert '"taken":"sent"' in sink.items[f"seats:{changed}"]
    assert mirror.verify().clean
    others = [f"tickets:{json.dumps(text)}" for text in ("zzz", "", str(TWO), TWO.hex.upper(), 1)]
    behind: tuple[list[object], ...] = ([], [True, "a"], ["1", "a"], [1, ["a"]], [1, "\0"])
    parts = (["zz", 1, "a"], [None] * 3, *([ONE.hex, *each] for each in behind))
    others += [f"seats:{json.dumps(json.dumps(each, separators=(',', ':')))}" for each in parts]
    others.append(f"seats:{json.dumps(json.dumps([ONE.hex, 1, 'a']))}")  # with blanks
    sink.items |= dict.fromkeys(others, "{}")
    assert sorted((each.item, each.kind) for each in mirror.verify().differences) == [
        (name, "not_imported") for name in sorted(others)
    ]
    assert mirror.import_entries(own=True).rejects == len(others)


@pytest.mark.long
def test_every_maker_of_a_key_makes_the_same_text(store: Store, new_database: Database) -> None:
    """A trigger of a foreign write, a statement and Python: a row is found in the ledgers whoever put it there."""
    in_phase(store, Phase.DUAL_WRITE)
    store.migration.backfill()
    uid = f"'{ONE}'" if new_database.kind == "postgresql" else f"'{ONE.hex}'"
    for number, name in enumerate(ODD):
        sql = f"INSERT INTO seats_old VALUES ({uid}, 100, ?, 'x')"
        new_database.rows_of(sql, name)
        wanted = encoded([ONE, 100, name])
        changes = f"SELECT {new_database.key} FROM consensus_orm_changes"
        assert new_database.rows_of(changes) == [(wanted,)], number
        store.migration.reconcile(foreign="adopt")
        assert new_database.rows_of(changes) == []
    assert store.migration.verify().clean
    found = {name for (name,) in new_database.rows_of("SELECT name FROM seats WHERE hall_id = 100")}
    assert found == set(ODD)


def test_a_difference_is_found_told_and_repaired(store: Store, new_database: Database) -> None:
    """Verify names the row by its key; what a repair overwrites is kept under it, and can be put back."""
    in_phase(store, Phase.CUTOVER)
    new_database.unnoticed("UPDATE seats_old SET taken = 'other' WHERE hall = 9 AND name = 'B'")
    report = store.migration.verify()
    keys = {encoded([uid, 9, "B"]) for uid in (ONE, TWO)}
    assert {difference.key for difference in report.differences} == keys
    assert {mismatch.key for mismatch in store.migration.mismatches()} == keys

    store.migration.reconcile()

    assert store.migration.verify().clean
    images = store.migration.images()
    assert {image.key for image in images} == keys
    store.migration.restore_image(images[0].id, reason="a test")
    assert new_database.scalar("SELECT count(*) FROM seats WHERE by = 'other'") == 1
    assert new_database.scalar("SELECT count(*) FROM seats_old WHERE taken = 'other'") == 1
    assert store.migration.verify().clean


@pytest.mark.sqlite
@pytest.mark.parametrize(("hall", "name"), [("9", "x'00'"), ("x'00'", "'n'"), ("1.5", "'n'"), ("'text'", "'n'")])
def test_a_row_with_an_odd_part_is_a_reject(store: Store, new_database: Database, hall: str, name: str) -> None:
    """SQLite stores anything in a part of a key; the write of the program that does is not failed."""
    in_phase(store, Phase.DUAL_WRITE)
    store.migration.backfill()
    new_database.script(f"INSERT INTO seats_old VALUES ('{ONE.hex}', {hall}, {name}, 'n')")
    store.migration.reconcile(foreign="adopt")
    (rejected,) = store.migration.rejects()
    assert rejected.key is None
    assert rejected.reason.startswith("its key is stored as ")
    assert store.migration.verify().missed == ()
    assert new_database.scalar("SELECT count(*) FROM seats") == len(KEYS)


def test_a_mismatch_names_the_key(store: Store, new_database: Database) -> None:
    """In the error, too, as the ledgers have it."""
    in_phase(store, Phase.DUAL_WRITE)
    body = "UPDATE seats SET by = 'no'"
    new_database.fault("AFTER INSERT", "seats", body)
    strict = store.settings.model_copy(update={"on_mismatch": "raise"})
    with (
        Store.open(new_database.where, moves=MOVES, settings=strict) as raising,
        pytest.raises(MismatchError) as raised,
        raising.unit_of_work() as uow,
    ):
        uow.repository(SEATS).add({"uid": ONE, "hall": 77, "name": "n", "taken": "yes"})
    assert raised.value.key == encoded([ONE, 77, "n"])


def test_a_lost_side_is_made_again(store: Store, new_database: Database) -> None:
    """By all rows of the other side; no row gets another key, which a database cannot give."""
    in_phase(store, Phase.CUTOVER)
    before = new_database.rows("seats")
    new_database.script("DROP TABLE seats_old")

    report = store.migration.reconcile(rebuild="legacy")

    assert report.rebuilt is not None
    assert (report.rebuilt.carried, report.rebuilt.renumbered) == (len(KEYS), 0)
    assert len(new_database.rows("seats_old")) == len(KEYS)
    assert new_database.rows("seats") == before
    assert store.migration.verify().clean


@pytest.mark.long
def test_a_row_of_a_table_that_was_made_again_keeps_its_key(store: Store, new_database: Database) -> None:
    """One whose key the other side has is a reject, since there is no next one to give it; another one is carried."""
    in_phase(store, Phase.CUTOVER)
    new_database.script("DROP TABLE seats_old")
    engine = create_engine(parse_url(new_database.where))
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        for uid, hall, name in (KEYS[0], (ONE, 7, "new")):
            connection.execute(insert(SeatOld), {"uid": uid, "hall": hall, "name": name, "taken": "theirs"})
    engine.dispose()

    report = store.migration.reconcile(rebuild="legacy")

    assert report.rebuilt is not None
    assert report.rebuilt.renumbered == 0
    assert [(r.key, r.table) for r in store.migration.rejects()] == [(encoded(KEYS[0]), "seats_old")]
    for table, column in (("seats_old", "taken"), ("seats", "by")):
        counted = f"SELECT count(*), count(CASE WHEN {column} = 'theirs' THEN 1 END) FROM {table}"
        assert new_database.rows_of(counted) == [(len(KEYS) + 1, 1)], table


@pytest.mark.long
def test_a_rehearsal_proves_that_every_row_comes_back(store: Store) -> None:
    """The copy is moved to CONTRACT and back; its rows are compared in the order of their keys."""
    report = store.migration.rehearse()
    assert report.passed, report


@pytest.mark.long
@pytest.mark.sqlite
def test_a_copy_to_a_server_and_back_has_the_same_rows(store: Store, new_database: Database, tmp_path: Path) -> None:
    """Ledgers included, in which keys of both kinds of database are the same."""
    from tests.support import servers

    in_phase(store, Phase.DUAL_WRITE)
    store.migration.backfill()
    new_database.script(f"INSERT INTO seats_old VALUES ('{TWO.hex}', 100, 'foreign', 'x')")
    with servers.database() as url, Store.open(url, moves=MOVES, settings=store.settings) as there:
        store.copy_to(there)
        there.migration.reconcile(foreign="adopt")
        assert there.migration.verify().clean
        with there.unit_of_work(read_only=True) as uow:
            assert uow.repository(SEATS).get((TWO, 100, "foreign")) == (TWO, 100, "foreign", "x")
            assert uow.repository(SEATS).count() == len(KEYS) + 1
        with Store.open(tmp_path / "back.db", moves=MOVES, settings=store.settings) as back:
            there.copy_to(back)
            assert back.migration.verify().clean
            assert sorted(at(tmp_path / "back.db").rows("seats")) != []
