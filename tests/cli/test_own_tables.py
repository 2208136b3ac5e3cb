"""The commands for tables of one's own: the moves are named in the call, or by the project."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.field import builders
from tests.support import oracle
from tests.support.commands import SCRIPT

pytestmark = [pytest.mark.sqlite, pytest.mark.long]

SHOP = """
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from consensus_orm import Move, Moves


class Base(DeclarativeBase):
    pass


class Kunde(Base):
    __tablename__ = "kunden"
    nr: Mapped[int] = mapped_column(primary_key=True)
    ort: Mapped[str | None]


class Customer(Base):
    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    city: Mapped[str | None]


MOVES = Moves(Move(Kunde, Customer, key={Kunde.nr: Customer.id}, columns={Customer.city: Kunde.ort}))
OTHER = Moves(Move(Kunde, Customer, name="other", key={Kunde.nr: Customer.id}, columns={Customer.city: Kunde.ort}))
NOTHING = 1
"""
MAPPING = ("--mapping", "shop_moves:MOVES")


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    (tmp_path / "shop_moves.py").write_text(SHOP)
    with builders.writing(tmp_path / "shop.db") as connection:
        connection.executescript(
            "CREATE TABLE kunden (nr INTEGER PRIMARY KEY, ort TEXT);"
            "CREATE TABLE customers (id INTEGER PRIMARY KEY, city TEXT);"
            "INSERT INTO kunden (ort) VALUES ('Bern'), (NULL), ('');"
        )
    return tmp_path


def call(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [str(SCRIPT), "--url", "shop.db", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)


def test_all_the_way_there_and_back(shop: Path) -> None:
    """Each command speaks of the moves that are named, and names them in the command to come."""
    before = oracle.rows(shop / "shop.db", "kunden")
    for words in (["upgrade"], ["migrate", "--no-soak"], ["status"], ["rollback", "expand"]):
        done = call(shop, *MAPPING, *words)
        assert done.returncode == 0, done.stderr
    assert oracle.rows(shop / "shop.db", "kunden") == before
    assert "--mapping shop_moves:MOVES advance" in call(shop, *MAPPING, "status").stdout


def test_the_project_names_the_moves(shop: Path) -> None:
    """What `[tool.consensus_orm]` says is said in every call, so it need not be typed."""
    (shop / "pyproject.toml").write_text('[tool.consensus_orm]\nmapping = "shop_moves:MOVES"\n')
    assert call(shop, "upgrade").returncode == 0
    told = call(shop, "status").stdout
    assert "customers" in told or "kunden" in told
    assert "consensus-orm --url shop.db advance" in told


@pytest.mark.parametrize("upgraded", [False, True], ids=["never", "upgraded"])
@pytest.mark.parametrize("words", [["upgrade"], ["migrate"], ["status"], ["reconcile", "--rebuild", "normalized"]])
def test_without_their_name_nothing_is_done(words: list[str], upgraded: bool, shop: Path) -> None:
    """No consensus table is made in a database of other tables, which would keep its own moves out."""
    if upgraded:
        assert call(shop, *MAPPING, "upgrade").returncode == 0
    before = (shop / "shop.db").read_bytes()
    done = call(shop, *words)
    assert done.returncode == 1, done.stdout
    assert "--mapping" in done.stderr
    assert (shop / "shop.db").read_bytes() == before
    assert call(shop, *MAPPING, "migrate", "--no-soak").returncode == 0


def test_the_consensus_tables_are_made_beside_others_where_that_is_asked_for(shop: Path) -> None:
    """An application that embeds the consensus data in its database says so once."""
    assert call(shop, "upgrade", "--create").returncode == 0
    assert "consensus_runs" in oracle.tables(shop / "shop.db")
    assert call(shop, "status").returncode == 0


@pytest.mark.parametrize("name", ["shop_moves:NOTHING", "shop_moves:MISSING", "no_module:MOVES", "shop_moves", ""])
def test_a_name_that_names_no_moves_is_refused(shop: Path, name: str) -> None:
    """With the form that is wanted, and nothing is written."""
    before = (shop / "shop.db").read_bytes()
    done = call(shop, "--mapping", name, "upgrade")
    assert done.returncode == 2
    assert "--mapping package.module:MOVES" in done.stderr
    assert "Traceback" not in done.stderr
    assert (shop / "shop.db").read_bytes() == before
