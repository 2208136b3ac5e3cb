"""The command generate: a draft that is code where names and types say what becomes of a column, else a comment."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.operations import Operations
from click.testing import CliRunner, Result
from sqlalchemy import Connection, inspect

from consensus_orm import Move, Phase, Store
from consensus_orm.cli import main
from consensus_orm.errors import ConfigurationError
from tests.conftest import Open
from tests.support.databases import Database

HEADER = """
from __future__ import annotations

import datetime
import enum

from sqlalchemy import JSON, BigInteger, ForeignKey, Integer, String, Text, UniqueConstraint
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


BIG = BigInteger().with_variant(Integer(), "sqlite")


class Base(DeclarativeBase):
    pass

"""

PLAIN = """
class Kunde(Base):
    __tablename__ = "kunden"
    nr: Mapped[int] = mapped_column(BIG, primary_key=True)
    userName: Mapped[str] = mapped_column("user_name", Text)
    ort: Mapped[str | None] = mapped_column(Text)


class Level(enum.Enum):
    low = "l"
    high = "h"


class Customer(Base):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(BIG, primary_key=True)
    user_name: Mapped[str] = mapped_column(Text, index=True)
    ort: Mapped[str | None] = mapped_column(String(80))
    level: Mapped[Level] = mapped_column(server_default="low")
    extra: Mapped[dict | None] = mapped_column(JSON().with_variant(JSONB(), "postgresql"))
"""

RICH = """
class Account(Base):
    __tablename__ = "accounts"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    price: Mapped[float]
    born: Mapped[str | None]
    state: Mapped[int]
    note: Mapped[str | None]
    street: Mapped[str]
    address_city: Mapped[str]
    junk: Mapped[str | None]


class State(enum.Enum):
    active = 3
    closed = 7


class Address(Base):
    __tablename__ = "addresses"
    __table_args__ = (UniqueConstraint("street", "city"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    street: Mapped[str]
    city: Mapped[str]


class Member(Base):
    __tablename__ = "members"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    price: Mapped[int]
    born: Mapped[datetime.date | None]
    state: Mapped[State]
    note: Mapped[str]
    tier: Mapped[str]
    address_id: Mapped[int] = mapped_column(ForeignKey("addresses.id"))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with an application's modules, which are forgotten at the end."""
    (tmp_path / "drafted_plain.py").write_text(HEADER + PLAIN)
    (tmp_path / "drafted_rich.py").write_text(HEADER + RICH)
    known = {*sys.modules}
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in {*sys.modules} - known:
        if name.startswith("drafted_"):
            del sys.modules[name]


def call(*words: str) -> Result:
    return CliRunner().invoke(main, ["generate", *words])


def imported(name: str) -> ModuleType:
    importlib.invalidate_caches()
    return importlib.import_module(name)


def tables(connection: Connection) -> set[str]:
    return {*inspect(connection).get_table_names()}


def revised(revision: ModuleType, way: str, connection: Connection) -> None:
    with Operations.context(MigrationContext.configure(connection)):
        getattr(revision, way)()


PLAIN_CALL = ("drafted_plain:Kunde", "drafted_plain:Customer", "--revises", "abc", "--moves", "drafted_moves.py")


def test_what_names_and_types_say_is_a_move_that_goes_all_the_way(
    folder: Path, new_database: Database, open_engine: Open
) -> None:
    """Another name of the key, another style of a name: nothing is open, and rows go through all phases and back.

    The revision makes what the models declare, index and enum too; and it can be taken back and made again.
    """
    done = call(*PLAIN_CALL, "--revision", "drafted_revision.py")
    assert (done.exit_code, done.stdout) == (0, ""), done.output
    assert "0 decisions left open" in done.stderr
    assert "# open" not in (folder / "drafted_moves.py").read_text() + (folder / "drafted_revision.py").read_text()
    models, moves, revision = (imported(f"drafted_{name}") for name in ("plain", "moves", "revision"))
    assert revision.down_revision == "abc"
    (move,) = moves.MOVES
    assert isinstance(move, Move)
    assert (move.legacy_keys, [key.name for key in move.keys]) == (("nr",), ["id"])
    assert {*move.carried} == {"user_name", "ort"}

    engine = open_engine(new_database.where)
    with engine.begin() as connection:
        models.Kunde.__table__.create(connection)
        connection.exec_driver_sql("INSERT INTO kunden (user_name, ort) VALUES ('ada', 'Bern'), ('bob', NULL)")
        for way in ("upgrade", "downgrade", "upgrade"):
            revised(revision, way, connection)
            assert tables(connection) - {"kunden"} == ({"customers"} if way == "upgrade" else set())
        assert not compare_metadata(MigrationContext.configure(connection), models.Base.metadata)
    before = new_database.rows_of("SELECT * FROM kunden ORDER BY nr")
    with Store.open(new_database.where, moves=moves.MOVES) as store:
        store.migration.migrate(Phase.CONTRACT, soak=False)
        assert new_database.rows_of("SELECT id, user_name, ort FROM customers ORDER BY id") == before
        store.migration.rollback(Phase.EXPAND)
    assert new_database.rows_of("SELECT * FROM kunden ORDER BY nr") == before


RICH_CALL = ("drafted_rich:Account", "drafted_rich:Member")
DECISIONS = {
    "Account.price is": "Member.price: Convert(Account.price, up=cast(Account.price, Integer()), down=cast(",
    "Account.born is": "Member.born: Convert(Account.born, up=cast(Account.born, Date()), down=cast(",
    "Account.state is": "Member.state: EnumMap(Account.state, {3: 'active', 7: 'closed'}),",
    "Account.note may be NULL": "Member.note: Default(Account.note, ''),",
    "nothing fills Member.tier": "Member.tier: Computed(literal('')),",
    "Member.address_id refers to addresses": "Parent(Address, link=Member.address_id, by={Address.street: "
    "Account.street, Address.city: Account.address_city}),",
    "nothing says where Account.junk goes": "Account.junk: 'why',",
}


def test_each_decision_that_is_left_open_is_one_comment(folder: Path) -> None:
    """With what it may become below it. The draft is refused until they are taken, and made when all are."""
    done = call(*RICH_CALL, "--moves", "drafted_moves.py", "--revision", "drafted_revision.py", "--revises", "abc")
    assert f"{len(DECISIONS)} decisions left open" in done.stderr
    text = (folder / "drafted_moves.py").read_text()
    lines = [line.strip() for line in text.splitlines()]
    asked = [at for at, line in enumerate(lines) if line.startswith("# open: ")]
    assert len(asked) == len(DECISIONS)
    for question, answer in DECISIONS.items():
        (at,) = (at for at in asked if lines[at].startswith(f"# open: {question}"))
        assert lines[at + 1].startswith(f"# {answer}")
    with pytest.raises(ConfigurationError, match="accounts"):
        imported("drafted_moves")
    (folder / "drafted_answers.py").write_text(re.sub(r"^( *)# (?!open: )", r"\1", text, flags=re.MULTILINE))
    (move,) = imported("drafted_answers").MOVES
    assert {*move.carried} == {"name", "street", "address_city"}
    assert {*move.restored} == {"price", "born", "state", "note"}


def test_a_key_of_several_columns_is_drafted_by_names_and_types(folder: Path) -> None:
    """In whatever order the new table has them; a column that only fits by its type is a decision left open."""
    (folder / "drafted_lines.py").write_text(
        HEADER + "class LineOld(Base):\n    __tablename__ = 'lines_old'\n"
        "    order_nr: Mapped[int] = mapped_column(BIG, primary_key=True)\n"
        "    place: Mapped[str] = mapped_column(Text, primary_key=True)\n    amount: Mapped[int | None]\n\n\n"
        "class Line(Base):\n    __tablename__ = 'lines'\n    __table_args__ = (UniqueConstraint('amount'),)\n"
        "    place: Mapped[str] = mapped_column(Text, primary_key=True)\n"
        "    order_id: Mapped[int] = mapped_column(BIG, primary_key=True)\n    amount: Mapped[int | None]\n"
    )
    done = call("drafted_lines:LineOld", "drafted_lines:Line", "--moves", "drafted_moves.py", "--revises", "abc")
    assert "1 decision left open" in done.stderr
    text = (folder / "drafted_moves.py").read_text()
    assert "# open: does Line.order_id hold LineOld.order_nr?" in text
    (move,) = imported("drafted_moves").MOVES
    assert (move.legacy_keys, [key.name for key in move.keys]) == (("order_nr", "place"), ["order_id", "place"])
    refused = call("drafted_lines:LineOld", "drafted_plain:Customer")
    assert "no 2 columns of customers are unique together" in refused.stderr


def test_both_are_printed_and_can_be_run(folder: Path) -> None:
    """Without files; the revision makes the parent first, and waits for the one that it follows."""
    done = call(*RICH_CALL)
    compile(done.stdout, "both", "exec")
    assert f"{len(DECISIONS) + 1} decisions left open" in done.stderr
    assert "# open: the revision of yours that it follows" in done.stdout
    assert re.findall(r"create_table\('(\w+)'", done.stdout) == ["addresses", "members"]


def test_a_program_gets_one_document(folder: Path) -> None:
    """Both texts, and how many decisions are open."""
    told = json.loads(call(*RICH_CALL, "--json", "--revises", "abc").stdout)
    assert told["open"] == len(DECISIONS) == told["moves"].count("# open: ")
    assert "down_revision = 'abc'" in told["revision"]


def test_classes_of_one_name_are_told_apart(folder: Path) -> None:
    """The new one is imported under another name, and a table that the legacy class refers to is not made."""
    (folder / "drafted_base.py").write_text(
        HEADER
        + "class Kind(Base):\n    __tablename__ = 'kinds'\n    id: Mapped[int] = mapped_column(primary_key=True)\n"
    )
    for module, table in (("drafted_old", "users"), ("drafted_new", "people")):
        (folder / f"{module}.py").write_text(
            "from sqlalchemy import ForeignKey\nfrom sqlalchemy.orm import Mapped, mapped_column\n"
            f"from drafted_base import Base\n\n\nclass User(Base):\n    __tablename__ = '{table}'\n"
            "    id: Mapped[int] = mapped_column(primary_key=True)\n"
            "    kind_id: Mapped[int] = mapped_column(ForeignKey('kinds.id'))\n"
        )
    done = call("drafted_old:User", "drafted_new:User", "--moves", "drafted_moves.py")
    assert done.exit_code == 0, done.stderr
    assert re.findall(r"create_table\('(\w+)'", done.stdout) == ["people"]
    (move,) = imported("drafted_moves").MOVES
    assert (move.legacy_model.__module__, move.normalized.__module__) == ("drafted_old", "drafted_new")


@pytest.mark.parametrize("name", ["drafted_rich:Nobody", "drafted_rich", "no_module:Account", "drafted_rich:State"])
def test_a_name_that_is_no_mapped_class_is_refused(name: str, folder: Path) -> None:
    """With the form that is wanted."""
    done = call("drafted_rich:Account", name)
    assert done.exit_code == 2
    assert "package.module:Class" in done.stderr


def test_a_file_that_exists_is_left_alone(folder: Path) -> None:
    """A draft that was worked on is not written over."""
    (folder / "drafted_moves.py").write_text("MINE = 1\n")
    done = call(*PLAIN_CALL)
    assert (done.exit_code, (folder / "drafted_moves.py").read_text()) == (1, "MINE = 1\n")
    assert "drafted_moves.py could not be written" in done.stderr
