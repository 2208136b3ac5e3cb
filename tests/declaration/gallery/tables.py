"""Tables of the gallery: two become one, one becomes two, a class gets a subclass."""

from __future__ import annotations

from sqlalchemy import Boolean, Float, ForeignKey, String, Text, UniqueConstraint, cast, func
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from consensus_orm import Convert, Move, Moves, Part
from consensus_orm.models.base import BIG
from tests.declaration.gallery.case import Case


def one_of_two() -> Case:
    """Two tables become one, which has ids of its own and remembers theirs."""

    class Base(DeclarativeBase):
        pass

    class Supplier(Base):
        __tablename__ = "suppliers"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        name: Mapped[str] = mapped_column(Text)
        vat: Mapped[str | None] = mapped_column(Text)

    class Buyer(Base):
        __tablename__ = "buyers"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        name: Mapped[str] = mapped_column(Text)
        mail: Mapped[str | None] = mapped_column(Text)

    class Party(Base):
        __tablename__ = "parties"
        __table_args__ = (UniqueConstraint("kind", "former_id"),)
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        kind: Mapped[str] = mapped_column(String(10))
        former_id: Mapped[int] = mapped_column(BIG)
        name: Mapped[str] = mapped_column(Text)
        vat: Mapped[str | None] = mapped_column(Text)
        mail: Mapped[str | None] = mapped_column(Text)

    suppliers = Move(
        Supplier,
        Party,
        key={Supplier.id: Party.former_id},
        columns={Party.name: Supplier.name, Party.vat: Supplier.vat},
        only={Party.kind: "supplier"},
    )
    buyers = Move(
        Buyer,
        Party,
        key={Buyer.id: Party.former_id},
        columns={Party.name: Buyer.name, Party.mail: Buyer.mail},
        only={Party.kind: "buyer"},
    )
    return Case(
        Moves(suppliers, buyers),
        Base.metadata,
        {
            "suppliers": [{"name": "Ada", "vat": "CH1"}, {"name": "Bob", "vat": None}, {"name": "Cyd", "vat": ""}],
            "buyers": [{"name": "Ada", "mail": "a@b"}, {"name": "Eve", "mail": None}],
        },
        {"suppliers": {"name": "new {n}", "vat": "CH{n}"}, "buyers": {"name": "new {n}", "mail": None}},
        {
            "legacy": [
                "INSERT INTO suppliers (name, vat) VALUES ('foreign', 'X')",
                "INSERT INTO buyers (name, mail) VALUES ('foreign', 'Y')",
                "UPDATE buyers SET mail = 'other' WHERE name = 'Ada'",
                "DELETE FROM suppliers WHERE name = 'Bob'",
            ],
            "normalized": [
                "INSERT INTO parties (kind, former_id, name, mail) VALUES ('buyer', 900, 'other', 'Z')",
                "UPDATE parties SET vat = 'again' WHERE kind = 'supplier' AND name = 'Ada'",
                "DELETE FROM parties WHERE kind = 'buyer' AND name = 'Eve'",
            ],
        },
    )


def two_of_one() -> Case:
    """One table becomes two, by a column that says what a row is."""

    class Base(DeclarativeBase):
        pass

    class Person(Base):
        __tablename__ = "people"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        kind: Mapped[str] = mapped_column(Text)
        name: Mapped[str] = mapped_column(Text)

    class Teacher(Base):
        __tablename__ = "teachers"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        name: Mapped[str] = mapped_column(Text)

    class Pupil(Base):
        __tablename__ = "pupils"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        called: Mapped[str] = mapped_column(Text)

    teachers = Move(
        Person, Teacher, name="teachers", key={Person.id: Teacher.id}, columns={Teacher.name: Person.name},
        only={Person.kind: "teacher"},
    )  # fmt: skip
    pupils = Move(
        Person, Pupil, name="pupils", key={Person.id: Pupil.id}, columns={Pupil.called: Person.name},
        only={Person.kind: "pupil"},
    )  # fmt: skip
    return Case(
        Moves(teachers, pupils),
        Base.metadata,
        {
            "people": [
                {"kind": "teacher", "name": "Ada"}, {"kind": "pupil", "name": "Bob"}, {"kind": "pupil", "name": ""},
                {"kind": "teacher", "name": "Cyd"}, {"kind": "Pupil", "name": "of no move"},
            ]
        },
        {"teachers": {"name": "new {n}"}, "pupils": {"name": "young {n}"}},
        {
            "legacy": [
                "INSERT INTO people (kind, name) VALUES ('pupil', 'foreign')",
                "UPDATE people SET kind = 'teacher' WHERE name = 'Bob'",
                "UPDATE people SET name = 'Ada again' WHERE name = 'Ada'",
                "DELETE FROM people WHERE name = 'Cyd'",
                "INSERT INTO people (kind, name) VALUES ('janitor', 'of no move')",
            ],
            "normalized": [
                "INSERT INTO teachers (id, name) VALUES (900, 'other')",
                "UPDATE pupils SET called = 'named' WHERE called = ''",
                "DELETE FROM pupils WHERE called = 'foreign'",
            ],
        },
        rejected={"teachers": 2},
    )  # fmt: skip


def archive() -> Case:
    """A flag of deleted rows becomes a table of them."""

    class Base(DeclarativeBase):
        pass

    class NoteOld(Base):
        __tablename__ = "notes_old"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        deleted: Mapped[bool] = mapped_column(Boolean, default=False)
        text: Mapped[str | None] = mapped_column(Text)

    class Note(Base):
        __tablename__ = "notes"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        text: Mapped[str | None] = mapped_column(Text)

    class DeletedNote(Base):
        __tablename__ = "deleted_notes"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        text: Mapped[str | None] = mapped_column(Text)

    live = Move(
        NoteOld, Note, name="notes", key={NoteOld.id: Note.id}, columns={Note.text: NoteOld.text},
        only={NoteOld.deleted: False},
    )  # fmt: skip
    gone = Move(
        NoteOld, DeletedNote, name="deleted", key={NoteOld.id: DeletedNote.id},
        columns={DeletedNote.text: NoteOld.text}, only={NoteOld.deleted: True},
    )  # fmt: skip
    return Case(
        Moves(live, gone),
        Base.metadata,
        {
            "notes_old": [
                {"deleted": False, "text": "a"},
                {"deleted": True, "text": None},
                {"deleted": False, "text": ""},
            ]
        },
        {"notes": {"text": "new {n}"}, "deleted": {"text": "old {n}"}},
        {
            "legacy": [
                "UPDATE notes_old SET deleted = TRUE WHERE text = 'a'",
                "INSERT INTO notes_old (deleted, text) VALUES (FALSE, 'foreign')",
            ],
            "normalized": [
                "INSERT INTO deleted_notes SELECT * FROM notes WHERE text = 'foreign'",
                "DELETE FROM notes WHERE text = 'foreign'",
                "UPDATE deleted_notes SET text = 'gone' WHERE text IS NULL",
            ],
        },
    )  # fmt: skip


def vertical_split() -> Case:
    """A wide table is divided: what few rows have stands in a table of its own."""

    class Base(DeclarativeBase):
        pass

    class Product(Base):
        __tablename__ = "products"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        name: Mapped[str] = mapped_column(Text)
        manual: Mapped[str | None] = mapped_column(Text)
        pages: Mapped[int | None] = mapped_column(BIG)
        weight: Mapped[float | None] = mapped_column(Float)

    class Article(Base):
        __tablename__ = "articles"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        name: Mapped[str] = mapped_column(Text)

    class Manual(Base):
        __tablename__ = "manuals"
        article_id: Mapped[int] = mapped_column(ForeignKey("articles.id"), primary_key=True)
        text: Mapped[str | None] = mapped_column(Text)
        sheets: Mapped[int | None] = mapped_column(BIG)

    class Parcel(Base):
        __tablename__ = "parcels"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        article_id: Mapped[int] = mapped_column(ForeignKey("articles.id", ondelete="CASCADE"), unique=True)
        grams: Mapped[int | None] = mapped_column(BIG)

    grams = cast(func.round(Product.weight * 1000), BIG)
    move = Move(
        Product,
        Article,
        key={Product.id: Article.id},
        columns={Article.name: Product.name},
        parts=[
            Part(
                Manual,
                by=Manual.article_id,
                columns={
                    Manual.text: Product.manual,
                    Manual.sheets: Convert(Product.pages, up=Product.pages * 2, down=Manual.sheets / 2),
                },
            ),
            Part(
                Parcel,
                by=Parcel.article_id,
                columns={
                    Parcel.grams: Convert(Product.weight, up=grams, down=cast(Parcel.grams, Float) / 1000.0, keep=True)
                },
            ),
        ],
    )
    return Case(
        Moves(move),
        Base.metadata,
        [
            {"name": "a", "manual": "read", "pages": 2, "weight": 1.5}, {"name": "b", "pages": None, "weight": None},
            {"name": "c", "manual": "", "weight": 0.00001}, {"name": "d", "pages": 3},
        ],
        {"name": "new {n}", "manual": "read {n}", "weight": 2.25},
        {
            "legacy": [
                "UPDATE products SET manual = NULL, pages = NULL WHERE name = 'a'",
                "UPDATE products SET manual = 'now' WHERE name = 'b'",
                "INSERT INTO products (name, pages, weight) VALUES ('foreign', 5, 0.0004)",
                "DELETE FROM products WHERE name = 'd'",
            ],
            "normalized": [
                "UPDATE manuals SET text = 'again' WHERE text = 'now'",
                "DELETE FROM manuals WHERE text = ''",
                "INSERT INTO manuals (article_id, text) SELECT id, 'first' FROM articles WHERE name = 'a'",
                "INSERT INTO articles (id, name) VALUES (900, 'other')",
                "INSERT INTO parcels (article_id, grams) VALUES (900, 20)",
                "UPDATE parcels SET grams = 7 WHERE article_id = (SELECT id FROM articles WHERE name = 'foreign')",
            ],
        },
    )  # fmt: skip


def joined_subclass() -> Case:
    """A flat table of all kinds of people becomes a class, and a subclass with a table of its own."""

    class Base(DeclarativeBase):
        pass

    class PersonFlat(Base):
        __tablename__ = "people_flat"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        kind: Mapped[str] = mapped_column(String(10))
        name: Mapped[str] = mapped_column(Text)
        salary: Mapped[int | None] = mapped_column(BIG)

    class Person(Base):
        __tablename__ = "persons"
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "person"}  # noqa: RUF012 - declarative
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        kind: Mapped[str] = mapped_column(String(10))
        name: Mapped[str] = mapped_column(Text)

    class Employee(Person):
        __tablename__ = "employees"
        __mapper_args__ = {"polymorphic_identity": "employee"}  # noqa: RUF012 - declarative
        id: Mapped[int] = mapped_column(ForeignKey("persons.id"), primary_key=True)
        salary: Mapped[int | None] = mapped_column(BIG)

    move = Move(
        PersonFlat,
        Person,
        name="people",
        key={PersonFlat.id: Person.id},
        columns={Person.kind: PersonFlat.kind, Person.name: PersonFlat.name},
        parts=[
            Part(
                Employee,
                by=Employee.id,
                columns={Employee.salary: PersonFlat.salary},
                when=PersonFlat.kind == "employee",
            )
        ],
    )
    return Case(
        Moves(move),
        Base.metadata,
        [
            {"kind": "person", "name": "Ada", "salary": None}, {"kind": "employee", "name": "Bob", "salary": 5},
            {"kind": "employee", "name": "Cyd", "salary": None}, {"kind": "person", "name": "odd", "salary": 7},
        ],
        {"kind": "employee", "name": "new {n}", "salary": 3},
        {
            "legacy": [
                "UPDATE people_flat SET kind = 'employee', salary = 9 WHERE name = 'Ada'",
                "UPDATE people_flat SET kind = 'person', salary = NULL WHERE name = 'Bob'",
                "INSERT INTO people_flat (kind, name, salary) VALUES ('employee', 'foreign', 1)",
            ],
            "normalized": [
                "UPDATE employees SET salary = 10 WHERE salary = 9",
                "INSERT INTO persons (id, kind, name) VALUES (900, 'employee', 'other')",
                "INSERT INTO employees (id, salary) VALUES (900, NULL)",
                "DELETE FROM employees WHERE id = (SELECT id FROM persons WHERE name = 'foreign')",
                "DELETE FROM persons WHERE name = 'foreign'",
            ],
        },
        rejected=1,
    )  # fmt: skip


def composite_keys_into_one() -> Case:
    """Two tables whose keys have two columns become one, which tells them apart by a constant."""

    class Base(DeclarativeBase):
        pass

    class Sale(Base):
        __tablename__ = "sales"
        shop: Mapped[int] = mapped_column(BIG, primary_key=True, autoincrement=False)
        number: Mapped[str] = mapped_column(Text, primary_key=True)
        amount: Mapped[int | None] = mapped_column(BIG)

    class Refund(Base):
        __tablename__ = "refunds"
        shop: Mapped[int] = mapped_column(BIG, primary_key=True, autoincrement=False)
        number: Mapped[str] = mapped_column(Text, primary_key=True)
        amount: Mapped[int | None] = mapped_column(BIG)

    class Booking(Base):
        __tablename__ = "bookings"
        __table_args__ = (UniqueConstraint("kind", "shop_id", "number"),)
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        kind: Mapped[str] = mapped_column(String(10))
        shop_id: Mapped[int] = mapped_column(BIG)
        number: Mapped[str] = mapped_column(Text)
        amount: Mapped[int | None] = mapped_column(BIG)

    sales, refunds = (
        Move(
            model,
            Booking,
            key={model.shop: Booking.shop_id, model.number: Booking.number},
            columns={Booking.amount: model.amount},
            only={Booking.kind: model.__tablename__},
        )
        for model in (Sale, Refund)
    )
    return Case(
        Moves(sales, refunds),
        Base.metadata,
        {
            "sales": [{"shop": 1, "number": "a", "amount": 1}, {"shop": 1, "number": "b"}, {"shop": 2, "number": "a"}],
            "refunds": [{"shop": 1, "number": "a", "amount": 2}, {"shop": 10, "number": "", "amount": 3}],
        },
        {
            "sales": {"shop": 9, "number": "new {n}", "amount": 4},
            "refunds": {"shop": 9, "number": "new {n}", "amount": 5},
        },
        {
            "legacy": [
                "UPDATE sales SET amount = 7 WHERE number = 'b'",
                "UPDATE refunds SET number = 'moved' WHERE shop = 10",
                "INSERT INTO refunds VALUES (3, 'foreign', NULL)",
                "DELETE FROM sales WHERE shop = 2",
            ],
            "normalized": [
                "INSERT INTO bookings (kind, shop_id, number, amount) VALUES ('sales', 3, 'foreign', 8)",
                "UPDATE bookings SET amount = 9 WHERE kind = 'refunds' AND number = 'a'",
                "DELETE FROM bookings WHERE kind = 'refunds' AND number = 'moved'",
            ],
        },
    )


def single_table_child() -> Case:
    """A column that only one kind of row has belongs to a subclass in the same table."""

    class Base(DeclarativeBase):
        pass

    class StaffFlat(Base):
        __tablename__ = "staff_flat"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        role: Mapped[str] = mapped_column(Text)
        name: Mapped[str] = mapped_column(Text)
        budget: Mapped[int | None] = mapped_column(BIG)

    class Employee(Base):
        __tablename__ = "staff"
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "employee"}  # noqa: RUF012 - SQLAlchemy's
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        kind: Mapped[str] = mapped_column(Text)
        name: Mapped[str] = mapped_column(Text)

    class Manager(Employee):
        __mapper_args__ = {"polymorphic_identity": "manager"}  # noqa: RUF012
        budget: Mapped[int | None] = mapped_column(BIG)

    move = Move(
        StaffFlat,
        Employee,
        name="staff",
        key={StaffFlat.id: Employee.id},
        columns={Employee.kind: StaffFlat.role, Employee.name: StaffFlat.name, Manager.budget: StaffFlat.budget},
    )
    return Case(
        Moves(move),
        Base.metadata,
        [{"role": "manager", "name": "Ada", "budget": 9}, {"role": "employee", "name": "Bob"}],
        {"role": "manager", "name": "new {n}", "budget": ...},
        {
            "legacy": ["UPDATE staff_flat SET role = 'manager', budget = 1 WHERE name = 'Bob'"],
            "normalized": [
                "INSERT INTO staff (kind, name) VALUES ('employee', 'other')",
                "DELETE FROM staff WHERE id = 1",
            ],
        },
    )
