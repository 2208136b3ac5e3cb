"""Keys of the gallery: texts, UUIDs, several columns."""

from __future__ import annotations

from uuid import UUID, uuid4

from sqlalchemy import Float, ForeignKey, Integer, Text, Uuid, cast, func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from consensus_orm import Computed, Convert, Default, Many, Move, Moves, Part, Split
from consensus_orm.models.base import BIG
from tests.declaration.gallery.case import ONE, PLACES, THREE, TWO, Case


def text_key() -> Case:
    """A key of text, and a column that is given up."""

    class Base(DeclarativeBase):
        pass

    class Word(Base):
        __tablename__ = "words"
        word: Mapped[str] = mapped_column(Text, primary_key=True)
        weight: Mapped[float | None] = mapped_column(Float)
        old: Mapped[str | None] = mapped_column(Text)

    class Term(Base):
        __tablename__ = "terms"
        term: Mapped[str] = mapped_column(Text, primary_key=True)
        weight: Mapped[float | None] = mapped_column(Float)

    move = Move(
        Word,
        Term,
        key={Word.word: Term.term},
        columns={Term.weight: Word.weight},
        without={Word.old: "nobody reads it"},
    )
    return Case(
        Moves(move),
        Base.metadata,
        [{"word": "a", "weight": 0.1}, {"word": "Z", "weight": None}, {"word": "é", "weight": -1.5}],
        {"word": "new {n}", "weight": 2.5},
        {
            "legacy": ["UPDATE words SET weight = 3 WHERE word = 'Z'"],
            "normalized": ["INSERT INTO terms VALUES ('other', 1)"],
        },
    )


def composite_key() -> Case:
    """Lines of an order, told apart by the order and a place in it; the place is a text, and comes first there."""

    class Base(DeclarativeBase):
        pass

    class LineOld(Base):
        __tablename__ = "lines_old"
        order_nr: Mapped[int] = mapped_column(BIG, primary_key=True, autoincrement=False)
        place: Mapped[str] = mapped_column(Text, primary_key=True)
        amount: Mapped[int | None] = mapped_column(BIG)
        unit: Mapped[str | None] = mapped_column(Text)

    class Line(Base):
        __tablename__ = "lines"
        line: Mapped[str] = mapped_column(Text, primary_key=True)
        order_id: Mapped[int] = mapped_column(BIG, primary_key=True, autoincrement=False)
        quantity: Mapped[int | None] = mapped_column(BIG)
        unit: Mapped[str] = mapped_column(Text)
        note: Mapped[str | None] = mapped_column(Text)

    move = Move(
        LineOld,
        Line,
        name="lines",
        key={LineOld.order_nr: Line.order_id, LineOld.place: Line.line},
        columns={Line.quantity: LineOld.amount, Line.unit: Default(LineOld.unit, "piece")},
    )
    return Case(
        Moves(move),
        Base.metadata,
        [
            {"order_nr": number, "place": place, "amount": number, "unit": None if number == 9 else "kg"}
            for number in (-1, 9, 10, 2**63 - 1)
            for place in PLACES
        ],
        {"order_nr": 10, "place": "new {n}", "amount": 1, "unit": None},
        {
            "legacy": [
                "INSERT INTO lines_old VALUES (5, '\"', 5, NULL)",
                "UPDATE lines_old SET amount = 77 WHERE order_nr = 9 AND place = '10'",
                "UPDATE lines_old SET place = 'moved' WHERE order_nr = 9 AND place = 'B'",
                "DELETE FROM lines_old WHERE order_nr = 10 AND place = '[1]'",
            ],
            "normalized": [
                "INSERT INTO lines (order_id, line, quantity, unit) VALUES (5, '', 5, 'box')",
                "UPDATE lines SET quantity = 78, unit = 'kg' WHERE order_id = 9 AND line = '10'",
                "UPDATE lines SET order_id = 11 WHERE order_id = 10 AND line = 'é'",
                "DELETE FROM lines WHERE order_id = 9 AND line = 'moved'",
            ],
        },
    )


def association() -> Case:
    """A table of nothing but its key."""

    class Base(DeclarativeBase):
        pass

    class PlaylistTrack(Base):
        __tablename__ = "PlaylistTrack"
        playlist_id: Mapped[int] = mapped_column("PlaylistId", Integer, primary_key=True)
        track_id: Mapped[int] = mapped_column("TrackId", Integer, primary_key=True)

    class Entry(Base):
        __tablename__ = "playlist_entries"
        playlist_id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
        track_id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)

    move = Move(
        PlaylistTrack,
        Entry,
        key={PlaylistTrack.playlist_id: Entry.playlist_id, PlaylistTrack.track_id: Entry.track_id},
        columns={},
    )
    return Case(
        Moves(move),
        Base.metadata,
        [{"PlaylistId": 1, "TrackId": 10}, {"PlaylistId": 1, "TrackId": 9}, {"PlaylistId": 2, "TrackId": 9}],
        {"playlist_id": 3, "track_id": ...},
        {
            "legacy": [
                'INSERT INTO "PlaylistTrack" VALUES (4, 1)',
                'UPDATE "PlaylistTrack" SET "TrackId" = 8 WHERE "PlaylistId" = 2',
                'DELETE FROM "PlaylistTrack" WHERE "TrackId" = 10',
            ],
            "normalized": [
                "INSERT INTO playlist_entries VALUES (4, 2)",
                "UPDATE playlist_entries SET playlist_id = 5 WHERE playlist_id = 2",
                "DELETE FROM playlist_entries WHERE track_id = 1",
            ],
        },
    )


def uuid_key() -> Case:
    """A key that the application makes."""

    class Base(DeclarativeBase):
        pass

    class TokenOld(Base):
        __tablename__ = "tokens_old"
        uid: Mapped[UUID] = mapped_column(Uuid, primary_key=True, default=uuid4)
        holder: Mapped[str | None] = mapped_column(Text)
        price: Mapped[float | None] = mapped_column(Float)

    class Token(Base):
        __tablename__ = "tokens"
        id: Mapped[UUID] = mapped_column(Uuid, primary_key=True, default=uuid4)
        owner: Mapped[str | None] = mapped_column(Text)
        cents: Mapped[int | None] = mapped_column(BIG)

    cents = cast(func.round(TokenOld.price * 100), BIG)
    move = Move(
        TokenOld,
        Token,
        name="tokens",
        key={TokenOld.uid: Token.id},
        columns={
            Token.owner: TokenOld.holder,
            Token.cents: Convert(TokenOld.price, up=cents, down=cast(Token.cents, Float) / 100.0, keep=True),
        },
    )
    return Case(
        Moves(move),
        Base.metadata,
        [{"uid": each, "holder": str(n), "price": 0.007 * n} for n, each in enumerate((ONE, TWO, THREE, UUID(int=0)))],
        {"holder": "new {n}", "price": 1.5},
        {
            "legacy": ["UPDATE tokens_old SET price = 0.333 WHERE holder = '1'"],
            "normalized": [
                "UPDATE tokens SET cents = 5 WHERE owner = '2'",
                "DELETE FROM tokens WHERE owner = '3'",
                "INSERT INTO tokens (id, owner, cents) VALUES ('0123456789abcdef0123456789abcdef', 'other', 7)",
            ],
        },
    )


def uuid_key_with_parts() -> Case:
    """A key that the application makes, to which a part and a table of items refer."""

    class Base(DeclarativeBase):
        pass

    class DeviceOld(Base):
        __tablename__ = "devices_old"
        uid: Mapped[UUID] = mapped_column(Uuid, primary_key=True, default=uuid4)
        name: Mapped[str] = mapped_column(Text)
        room: Mapped[str | None] = mapped_column(Text)
        labels: Mapped[str | None] = mapped_column(Text)

    class Device(Base):
        __tablename__ = "devices"
        id: Mapped[UUID] = mapped_column(Uuid, primary_key=True, default=uuid4)
        name: Mapped[str] = mapped_column(Text)

    class Location(Base):
        __tablename__ = "locations"
        device_id: Mapped[UUID] = mapped_column(ForeignKey("devices.id"), primary_key=True)
        room: Mapped[str | None] = mapped_column(Text)
        letters: Mapped[int | None] = mapped_column(BIG)

    class Label(Base):
        __tablename__ = "labels"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        device_id: Mapped[UUID] = mapped_column(ForeignKey("devices.id"), index=True)
        position: Mapped[int] = mapped_column(Integer)
        text: Mapped[str] = mapped_column(Text)

    move = Move(
        DeviceOld,
        Device,
        name="devices",
        key={DeviceOld.uid: Device.id},
        columns={Device.name: DeviceOld.name},
        parts=[
            Part(
                Location,
                by=Location.device_id,
                columns={Location.room: DeviceOld.room, Location.letters: Computed(func.length(DeviceOld.room))},
            ),
            Many(Label, by=Label.device_id, position=Label.position, item=Label.text, items=Split(DeviceOld.labels)),
        ],
    )
    return Case(
        Moves(move),
        Base.metadata,
        [
            {"uid": ONE, "name": "a", "room": "hall", "labels": "x,y"}, {"uid": TWO, "name": "b", "room": None},
            {"uid": THREE, "name": "c", "room": "", "labels": "z"},
        ],
        {"name": "new {n}", "room": "r", "labels": "n,{n}"},
        {
            "legacy": [
                "UPDATE devices_old SET room = NULL, labels = 'y,z' WHERE name = 'a'",
                "UPDATE devices_old SET room = 'attic' WHERE name = 'b'",
                "DELETE FROM devices_old WHERE name = 'c'",
            ],
            "normalized": [
                "UPDATE locations SET room = 'cellar' WHERE room = 'attic'",
                "INSERT INTO locations (device_id, room) SELECT id, 'first' FROM devices WHERE name = 'a'",
                "UPDATE labels SET text = 'w' WHERE text = 'z'",
                "INSERT INTO devices (id, name) VALUES ('0123456789abcdef0123456789abcdef', 'other')",
                """INSERT INTO labels (id, device_id, position, text)
                VALUES (900, '0123456789abcdef0123456789abcdef', 0, 'alone')""",
            ],
        },
    )  # fmt: skip
