"""References of the gallery: what rows repeat becomes a parent, lists become rows, rows refer to their own table."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, ForeignKey, ForeignKeyConstraint, Integer, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from consensus_orm import Default, JsonItems, Many, Move, Moves, Parent, Split
from consensus_orm.models.base import BIG
from tests.declaration.gallery.case import Case


def shared_parent() -> Case:
    """Rows that repeat an address refer to one."""

    class Base(DeclarativeBase):
        pass

    class CustomerFlat(Base):
        __tablename__ = "customers_flat"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        name: Mapped[str] = mapped_column(Text)
        street: Mapped[str] = mapped_column(Text)
        city: Mapped[str] = mapped_column(Text)

    class Address(Base):
        __tablename__ = "addresses"
        __table_args__ = (UniqueConstraint("street", "city"),)
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        street: Mapped[str] = mapped_column(Text)
        city: Mapped[str] = mapped_column(Text)

    class Customer(Base):
        __tablename__ = "customers"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        address_id: Mapped[int] = mapped_column(ForeignKey("addresses.id"), index=True)
        name: Mapped[str] = mapped_column(Text)

    by = {Address.street: CustomerFlat.street, Address.city: CustomerFlat.city}
    move = Move(
        CustomerFlat,
        Customer,
        name="customers",
        key={CustomerFlat.id: Customer.id},
        columns={Customer.name: CustomerFlat.name},
        parts=[Parent(Address, link=Customer.address_id, by=by)],
    )
    return Case(
        Moves(move),
        Base.metadata,
        [
            {"name": "Ada", "street": "Way 1", "city": "Bern"},
            {"name": "Bob", "street": "Way 1", "city": "Bern"},
            {"name": "Cyd", "street": "Way 1", "city": "Thun"},
        ],
        {"name": "new {n}", "street": "Way {n}", "city": "Bern"},
        {
            "legacy": [
                "INSERT INTO customers_flat (name, street, city) VALUES ('foreign', 'Way 1', 'Bern')",
                "UPDATE customers_flat SET city = 'Chur' WHERE name = 'Ada'",
            ],
            "normalized": [
                "UPDATE customers SET name = 'Robert' WHERE name = 'Bob'",
                "DELETE FROM customers WHERE name = 'foreign'",
            ],
        },
    )


def shared_parent_with_nulls() -> Case:
    """An address may lack a part, and then equals others that lack it; a row without any has no address."""

    class Base(DeclarativeBase):
        pass

    class GuestFlat(Base):
        __tablename__ = "guests_flat"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        name: Mapped[str] = mapped_column(Text)
        street: Mapped[str | None] = mapped_column(Text)
        city: Mapped[str | None] = mapped_column(Text)

    class Address(Base):
        __tablename__ = "addresses"
        __table_args__ = (UniqueConstraint("street", "city"),)
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        street: Mapped[str | None] = mapped_column(Text)
        city: Mapped[str | None] = mapped_column(Text)

    class Guest(Base):
        __tablename__ = "guests"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        address_id: Mapped[int | None] = mapped_column(ForeignKey("addresses.id"), index=True)
        name: Mapped[str] = mapped_column(Text)

    by = {Address.street: GuestFlat.street, Address.city: GuestFlat.city}
    move = Move(
        GuestFlat,
        Guest,
        name="guests",
        key={GuestFlat.id: Guest.id},
        columns={Guest.name: GuestFlat.name},
        parts=[Parent(Address, link=Guest.address_id, by=by)],
    )
    return Case(
        Moves(move),
        Base.metadata,
        [
            {"name": "Ada", "street": "Way 1", "city": "Bern"}, {"name": "Bob", "street": None, "city": "Bern"},
            {"name": "Cyd", "street": None, "city": "Bern"}, {"name": "Dan", "street": None, "city": None},
            {"name": "Eve", "street": None, "city": None}, {"name": "Fay", "street": "", "city": None},
        ],
        {"name": "new {n}", "street": None, "city": "Bern"},
        {
            "legacy": [
                "INSERT INTO guests_flat (name, street, city) VALUES ('foreign', NULL, 'Bern')",
                "UPDATE guests_flat SET city = NULL WHERE name = 'Bob'",
                "UPDATE guests_flat SET city = 'Bern' WHERE name = 'Dan'",
                "INSERT INTO guests_flat (name, street, city) VALUES ('nowhere', NULL, NULL)",
            ],
            "normalized": [
                "UPDATE guests SET address_id = NULL WHERE name = 'Ada'",
                "UPDATE guests SET name = 'Robert' WHERE name = 'Bob'",
                "INSERT INTO guests (name, address_id) SELECT 'other', min(id) FROM addresses WHERE street IS NULL",
                "DELETE FROM guests WHERE name = 'foreign'",
            ],
        },
        judged={
            "normalized": {
                # As many addresses as there are different ones, and none that lacks both parts.
                "SELECT count(*) FROM addresses WHERE street IS NULL AND city IS NULL": 0,
                "SELECT count(*) FROM addresses WHERE street IS NULL AND city = 'Bern'": 1,
            },
        },
    )  # fmt: skip


def several_parents() -> Case:
    """Two addresses of an order become references to one table, its customer one to another."""

    class Base(DeclarativeBase):
        pass

    class OrderFlat(Base):
        __tablename__ = "orders_flat"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        customer: Mapped[str] = mapped_column(Text)
        street: Mapped[str] = mapped_column(Text)
        city: Mapped[str] = mapped_column(Text)
        ship_street: Mapped[str | None] = mapped_column(Text)
        ship_city: Mapped[str | None] = mapped_column(Text)

    class Address(Base):
        __tablename__ = "addresses"
        __table_args__ = (UniqueConstraint("street", "city"),)
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        street: Mapped[str | None] = mapped_column(Text)
        city: Mapped[str | None] = mapped_column(Text)

    class Customer(Base):
        __tablename__ = "customers"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        name: Mapped[str] = mapped_column(Text, unique=True)

    class Order(Base):
        __tablename__ = "orders"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        customer_id: Mapped[int] = mapped_column(ForeignKey("customers.id"), index=True)
        billed_to: Mapped[int] = mapped_column(ForeignKey("addresses.id"), index=True)
        sent_to: Mapped[int | None] = mapped_column(ForeignKey("addresses.id"), index=True)

    sent_to = {Address.street: OrderFlat.ship_street, Address.city: OrderFlat.ship_city}
    move = Move(
        OrderFlat,
        Order,
        name="orders",
        key={OrderFlat.id: Order.id},
        columns={},
        parts=[
            Parent(Customer, link=Order.customer_id, by={Customer.name: OrderFlat.customer}),
            Parent(Address, link=Order.billed_to, by={Address.street: OrderFlat.street, Address.city: OrderFlat.city}),
            Parent(Address, link=Order.sent_to, by=sent_to),
        ],
    )
    return Case(
        Moves(move),
        Base.metadata,
        [
            {"customer": "Ada", "street": "Way 1", "city": "Bern", "ship_street": "Way 1", "ship_city": "Bern"},
            {"customer": "Bob", "street": "Way 2", "city": "Thun", "ship_street": "Way 1", "ship_city": "Bern"},
            {"customer": "Ada", "street": "Way 2", "city": "Bern", "ship_street": None, "ship_city": None},
        ],
        {"customer": "Cyd", "street": "Way {n}", "city": "Bern", "ship_street": "Way 2", "ship_city": None},
        {
            "legacy": [
                "INSERT INTO orders_flat (customer, street, city) VALUES ('Dan', 'Way 9', 'Chur')",
                "UPDATE orders_flat SET ship_street = street, ship_city = city WHERE customer = 'Dan'",
                "UPDATE orders_flat SET ship_city = 'Thun', customer = 'Eve' WHERE customer = 'Bob'",
                "UPDATE orders_flat SET ship_street = 'Way 8' WHERE ship_street IS NULL",
            ],
            "normalized": [
                "UPDATE addresses SET city = 'Sion' WHERE city = 'Chur'",
                "UPDATE orders SET sent_to = billed_to WHERE sent_to IS NULL",
                "DELETE FROM orders WHERE customer_id = (SELECT id FROM customers WHERE name = 'Eve')",
                "UPDATE customers SET name = 'Danny' WHERE name = 'Dan'",
            ],
        },
        judged={
            "normalized": {
                # Each value once, and none without a row: whichever of the links leads to it.
                "SELECT count(*) FROM addresses WHERE street = 'Way 1' AND city = 'Bern'": 1,
                """SELECT count(*) FROM addresses WHERE id NOT IN (SELECT billed_to FROM orders UNION
                SELECT sent_to FROM orders WHERE sent_to IS NOT NULL)""": 0,
                "SELECT count(*) FROM customers WHERE id NOT IN (SELECT customer_id FROM orders)": 0,
            },
        },
    )


def list_to_children() -> Case:
    """A text like "a,b,c" becomes rows of a table, and a JSON array rows of another one."""

    class Base(DeclarativeBase):
        pass

    class Recipe(Base):
        __tablename__ = "recipes"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        name: Mapped[str] = mapped_column(Text)
        steps: Mapped[str | None] = mapped_column(Text)
        tools: Mapped[Any | None] = mapped_column(JSON(none_as_null=True))

    class Dish(Base):
        __tablename__ = "dishes"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        name: Mapped[str] = mapped_column(Text)

    class Step(Base):
        __tablename__ = "steps"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        dish_id: Mapped[int] = mapped_column(ForeignKey("dishes.id"), index=True)
        position: Mapped[int] = mapped_column(Integer)
        text: Mapped[str] = mapped_column(Text)

    class Tool(Base):
        __tablename__ = "tools"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        dish_id: Mapped[int] = mapped_column(ForeignKey("dishes.id", ondelete="CASCADE"), index=True)
        position: Mapped[int] = mapped_column(Integer)
        text: Mapped[str] = mapped_column(Text)

    move = Move(
        Recipe,
        Dish,
        name="recipes",
        key={Recipe.id: Dish.id},
        columns={Dish.name: Recipe.name},
        parts=[
            Many(Step, by=Step.dish_id, position=Step.position, item=Step.text, items=Split(Recipe.steps, ",")),
            Many(Tool, by=Tool.dish_id, position=Tool.position, item=Tool.text, items=JsonItems(Recipe.tools)),
        ],
    )
    return Case(
        Moves(move),
        Base.metadata,
        [
            {"name": "a", "steps": "cut,cook,eat", "tools": ["pot", "é'\\\""]},
            {"name": "b", "steps": None, "tools": None},
            {"name": "c", "steps": "", "tools": []}, {"name": "d", "steps": "x,,\\\",é'", "tools": None},
            {"name": "e", "steps": "one", "tools": ["no text", 5]},
        ],
        {"name": "new {n}", "steps": "a,b {n}", "tools": ["t"]},
        {
            "legacy": [
                "UPDATE recipes SET steps = 'cut,eat' WHERE name = 'a'",
                """UPDATE recipes SET tools = '["x",  "y"]' WHERE name = 'b'""",
                """INSERT INTO recipes (name, steps, tools) VALUES ('foreign', 'f,g', '["z"]')""",
                "UPDATE recipes SET steps = NULL WHERE name = 'c'",
            ],
            "normalized": [
                "UPDATE steps SET text = 'swallow' WHERE text = 'eat'",
                "UPDATE steps SET position = position + 7 WHERE text IN ('f', 'g')",
                "INSERT INTO tools (id, dish_id, position, text) SELECT 900, id, 5, 'w' FROM dishes WHERE name = 'b'",
                "DELETE FROM steps WHERE text = ''",
                "INSERT INTO dishes (id, name) VALUES (901, 'other')",
                "INSERT INTO steps (id, dish_id, position, text) VALUES (902, 901, 0, 'without a comma')",
            ],
        },
        rejected=1,
    )  # fmt: skip


def list_to_tags() -> Case:
    """A text like "a,b,c" becomes many-to-many: an association table, and a table of tags."""

    class Base(DeclarativeBase):
        pass

    class PostOld(Base):
        __tablename__ = "posts_old"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        title: Mapped[str] = mapped_column(Text)
        tags: Mapped[str | None] = mapped_column(Text)

    class Post(Base):
        __tablename__ = "posts"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        title: Mapped[str] = mapped_column(Text)

    class Tag(Base):
        __tablename__ = "tags"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        name: Mapped[str] = mapped_column(Text, unique=True)

    class PostTag(Base):
        __tablename__ = "post_tags"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        post_id: Mapped[int] = mapped_column(ForeignKey("posts.id"), index=True)
        position: Mapped[int] = mapped_column(Integer)
        tag_id: Mapped[int] = mapped_column(ForeignKey("tags.id"), index=True)

    move = Move(
        PostOld,
        Post,
        name="posts",
        key={PostOld.id: Post.id},
        columns={Post.title: PostOld.title},
        parts=[
            Many(
                PostTag,
                by=PostTag.post_id,
                position=PostTag.position,
                item=Tag.name,
                items=Split(PostOld.tags, ";"),
                parents=[Parent(Tag, link=PostTag.tag_id, by={Tag.name: PostOld.tags})],
            )
        ],
    )
    return Case(
        Moves(move),
        Base.metadata,
        [
            {"title": "a", "tags": "x;y"}, {"title": "b", "tags": "y;x;y"}, {"title": "c", "tags": None},
            {"title": "d", "tags": ""},
        ],
        {"title": "new {n}", "tags": "x;{n}"},
        {
            "legacy": [
                "UPDATE posts_old SET tags = 'y;z' WHERE title = 'a'",
                "INSERT INTO posts_old (title, tags) VALUES ('foreign', 'x')",
                "DELETE FROM posts_old WHERE title = 'd'",
            ],
            "normalized": [
                "UPDATE tags SET name = 'Y' WHERE name = 'y'",
                "DELETE FROM post_tags WHERE post_id = (SELECT id FROM posts WHERE title = 'foreign')",
                """INSERT INTO post_tags (id, post_id, position, tag_id)
                SELECT 900, posts.id, 3, tags.id FROM posts, tags WHERE title = 'c' AND name = 'z'""",
            ],
        },
    )  # fmt: skip


def self_reference() -> Case:
    """Rows refer to others of their table: to later ones, in a circle, and to themselves."""

    class Base(DeclarativeBase):
        pass

    class EmployeeOld(Base):
        __tablename__ = "employees_old"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        name: Mapped[str] = mapped_column(Text)
        manager_id: Mapped[int | None] = mapped_column(ForeignKey("employees_old.id"), index=True)

    class Employee(Base):
        __tablename__ = "employees"
        id: Mapped[int] = mapped_column(BIG, primary_key=True)
        full_name: Mapped[str] = mapped_column(Text)
        boss_id: Mapped[int | None] = mapped_column(ForeignKey("employees.id"), index=True)

    move = Move(
        EmployeeOld,
        Employee,
        name="employees",
        key={EmployeeOld.id: Employee.id},
        columns={Employee.full_name: EmployeeOld.name, Employee.boss_id: EmployeeOld.manager_id},
    )
    return Case(
        Moves(move),
        Base.metadata,
        [{"name": name} for name in ("Ada", "Bob", "Cyd", "Dan", "Eve", "Fay", "Gus")],
        {"name": "new {n}", "manager_id": 6},
        {
            "before": [
                "UPDATE employees_old SET manager_id = CASE id WHEN 6 THEN 7 WHEN 5 THEN 4 WHEN 4 THEN 5 END",
                "UPDATE employees_old SET manager_id = CASE id WHEN 1 THEN 1 WHEN 2 THEN 6 ELSE 2 END WHERE id < 4",
            ],
            "legacy": [
                "INSERT INTO employees_old (name, manager_id) VALUES ('foreign', 2)",
                "UPDATE employees_old SET manager_id = 6 WHERE name = 'Ada'",
                "UPDATE employees_old SET manager_id = NULL WHERE name = 'Eve'",
                "DELETE FROM employees_old WHERE name IN ('Cyd', 'Dan')",
            ],
            "normalized": [
                "INSERT INTO employees (full_name, boss_id) VALUES ('other', 5)",
                "UPDATE employees SET boss_id = 1 WHERE full_name = 'Gus'",
                "DELETE FROM employees WHERE full_name = 'foreign'",
            ],
        },
        judged={"normalized": {"SELECT count(*) FROM employees WHERE boss_id = 6 AND full_name IN ('Ada', 'Bob')": 2}},
    )


def composite_self_reference() -> Case:
    """Answers refer to comments of their page, by both columns of the key, and go with them."""

    class Base(DeclarativeBase):
        pass

    class CommentOld(Base):
        __tablename__ = "comments_old"
        __table_args__ = (
            ForeignKeyConstraint(["page", "answers"], ["comments_old.page", "comments_old.nr"], ondelete="CASCADE"),
        )
        page: Mapped[str] = mapped_column(Text, primary_key=True)
        nr: Mapped[int] = mapped_column(BIG, primary_key=True, autoincrement=False)
        answers: Mapped[int | None] = mapped_column(BIG)
        text: Mapped[str | None] = mapped_column(Text)

    class Comment(Base):
        __tablename__ = "comments"
        __table_args__ = (
            ForeignKeyConstraint(["page", "parent"], ["comments.page", "comments.number"], ondelete="CASCADE"),
        )
        number: Mapped[int] = mapped_column(BIG, primary_key=True, autoincrement=False)
        page: Mapped[str] = mapped_column(Text, primary_key=True)
        parent: Mapped[int | None] = mapped_column(BIG)
        text: Mapped[str] = mapped_column(Text)

    move = Move(
        CommentOld,
        Comment,
        name="comments",
        key={CommentOld.page: Comment.page, CommentOld.nr: Comment.number},
        columns={Comment.parent: CommentOld.answers, Comment.text: Default(CommentOld.text, "-")},
    )
    rows = [{"page": page, "nr": nr} for page in ("a", "b") for nr in range(1, 5)]
    return Case(
        Moves(move),
        Base.metadata,
        rows,
        {"page": "a", "nr": ..., "answers": 104, "text": "new"},
        {
            "before": [
                "UPDATE comments_old SET nr = nr + 100",
                "UPDATE comments_old SET answers = CASE nr WHEN 101 THEN 104 WHEN 104 THEN 103 WHEN 102 THEN 101 END",
            ],
            "legacy": [
                "INSERT INTO comments_old VALUES ('b', 1, 102, 'foreign')",
                "UPDATE comments_old SET answers = 104 WHERE page = 'b' AND nr = 102",
            ],
            "normalized": [
                "INSERT INTO comments (page, number, parent, text) VALUES ('b', 2, 1, 'other')",
                "DELETE FROM comments WHERE page = 'a' AND number = 102",
                "UPDATE comments SET parent = NULL WHERE parent = 103",
            ],
        },
        judged={"normalized": {"SELECT count(*) FROM comments WHERE page = 'b' AND parent = 104": 2}},
    )
