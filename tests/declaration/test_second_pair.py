"""Rule 2: the engine knows no table by name. An unrelated move goes all the way with nothing but a declaration.

Customers with their address in the row become customers and addresses, and their orders lose a column name.
The tables are those of `tests.support.shop`, made by their own DDL; the package gets `Moves`.
"""

from __future__ import annotations

import ast
import io
import sqlite3
import subprocess
import sys
import tokenize
from pathlib import Path
from typing import Any

import pytest

import consensus_orm
from consensus_orm import Phase, Store
from consensus_orm.declaration.moves import Moves
from consensus_orm.errors import GateClosedError, SchemaError
from consensus_orm.schema import inspection, revisions
from consensus_orm.telemetry import Event, StatementEvent, listen
from tests.field import builders
from tests.support import oracle
from tests.support.dependencies import accept_dependencies
from tests.support.shop import (
    LEGACY_DDL,
    LEGACY_TABLES,
    MOVES,
    NEW,
    NORMALIZED_DDL,
    PLAIN,
    SETTINGS,
    agree,
    build,
    forward,
    image,
    judged,
    opened,
    read,
)

pytestmark = pytest.mark.sqlite


@pytest.fixture
def path(tmp_path: Path) -> Path:
    build(path := tmp_path / "shop.sqlite")
    return path


# The walk -------------------------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("moves", [MOVES, PLAIN], ids=["derived", "plain"])
def test_an_unrelated_pair_goes_through_all_phases_and_back(path: Path, moves: Moves) -> None:
    """Reads stay the same in all five phases and on the way back, and the legacy tables end as they began.

    Rows in type and bytes, DDL, index, trigger, view and sequence.
    """
    before = image(path)
    with opened(path, moves) as store:
        migration = store.migration
        assert migration.phase is Phase.EXPAND
        reads = read(store)
        seen = [Phase.EXPAND]
        while (now := migration.phase).next:
            if now.compares:
                assert migration.backfill().rejects == 0
            if now.writes_normalized:
                report = migration.verify()
                assert (report.clean, report.compared, report.rejects) == (True, 15, 0)
            if now.freezes_legacy:
                accept_dependencies(store)
            seen.append(migration.advance())
            assert read(store) == reads
        assert seen == list(Phase)
        assert not set(LEGACY_TABLES) & set(oracle.tables(path))
        for phase in reversed(list(Phase)[:-1]):
            assert migration.rollback() is phase
            assert read(store) == reads
        assert migration.mismatches(everything=True) == []
    assert image(path) == before


@pytest.mark.long
def test_writes_of_every_phase_are_there_at_the_end(path: Path) -> None:
    """Rows added, and one deleted, in each phase forth and back.

    Reads show them at once, both sides agree wherever there are two, and the legacy tables hold exactly them
    at the end.
    """
    with opened(path) as store:
        migration = store.migration

        def write(label: str) -> None:
            before = read(store)["customers"]
            with store.unit_of_work() as uow:
                customers = uow.repository("customers")
                kept = customers.add({**NEW, "name": f"kept {label}"})
                gone = customers.add({**NEW, "name": f"gone {label}", "city": None})
                assert customers.delete({"name": f"gone {label}"}) == 1
                uow.repository("orders").add({"what": label, "amount": 0.1})
            assert gone == kept + 1 > max(row[0] for row in before)
            added = (kept, f"kept {label}", "now", 5, "Way 9", "Bern", "3000")
            assert sorted(read(store)["customers"]) == sorted([*before, added])
            assert added in read(store)["customers"]
            if migration.phase.compares and label != "forth DUAL_WRITE":
                agree(path)

        for phase in list(Phase):
            write(f"forth {phase.name}")
            if phase.next:
                forward(store, phase.next)
        for phase in reversed(list(Phase)[:-1]):
            migration.rollback()
            write(f"back {phase.name}")
        reads = read(store)
        assert migration.mismatches(everything=True) == []
    names = [row[1] for row in judged(path)["legacy"]["customers"]]
    labels = [f"kept forth {p.name}" for p in Phase] + [f"kept back {p.name}" for p in reversed(list(Phase)[:-1])]
    assert [cell[1] for cell in names][-9:] == [label.encode().hex().upper() for label in labels]
    assert len(reads["customers"]) == len(names) == 10 + 9
    assert len({row[0] for row in reads["customers"]}) == 19


@pytest.mark.parametrize("phase", [Phase.DUAL_WRITE, Phase.CUTOVER], ids=lambda p: p.name)
def test_writes_of_programs_that_know_one_side_are_adopted(path: Path, phase: Phase) -> None:
    """A plain program inserts, updates and deletes on either side.

    Noticed without a verify, the gate shut; what it changed where nobody reads waits for a choice, and once that is
    made both sides hold what it wrote, whichever side is the truth.
    """
    with opened(path) as store:
        migration = store.migration
        forward(store, phase)
        migration.backfill()
        assert migration.verify().clean
        with builders.writing(path) as connection:
            connection.executescript(
                "INSERT INTO customers_flat (name, city) VALUES ('foreign', 'Trigger');"
                "UPDATE customers_flat SET city = 'Bonn' WHERE name = 'Ada';"
                "DELETE FROM customers_flat WHERE name = 'Gil';"
                "INSERT INTO Orders_Old VALUES (20, 'old', 2);"
            )
        noticed = migration.status().foreign_writes
        assert noticed == 4
        with builders.writing(path) as connection:
            connection.executescript(
                "INSERT INTO orders (order_no, item, amount) VALUES (30, 'new', 3);"
                "UPDATE orders SET amount = 4 WHERE order_no = 1;"
                "DELETE FROM orders WHERE order_no = 2;"
                "UPDATE addresses SET city = 'Basel' WHERE city = 'berlin';"
            )
        assert migration.status().foreign_writes == 8
        with pytest.raises(GateClosedError, match="around the repositories"):
            migration.advance()
        changed = [("customers", 1), ("customers", 8)], [("customers", 5), ("orders", 1), ("orders", 2)]
        waits = changed[0 if phase is Phase.CUTOVER else 1]
        first = migration.reconcile()
        assert [(row.pair, row.key) for row in first.undecided] == waits
        assert first.adopted == 8 - len(waits)
        assert migration.reconcile(foreign="adopt").adopted == len(waits)
        agree(path)
        assert migration.verify().clean
        legacy = judged(path)["legacy"]
        cities = {row[1][1]: row[3][1] for row in legacy["customers"]}
        assert cities[b"foreign".hex().upper()] == b"Trigger".hex().upper()
        assert (cities[b"Ada".hex().upper()], cities[b"Eve".hex().upper()]) == (
            b"Bonn".hex().upper(),
            b"Basel".hex().upper(),
        )
        assert b"Gil".hex().upper() not in cities
        assert [row[0][1] for row in legacy["orders"]] == [str(n).encode().hex() for n in (1, 7, 9, 11, 20, 30)]
        migration.advance()
        assert [e.id for e in migration.rejects()] == []


def test_the_frozen_side_refuses_and_the_repositories_go_on(path: Path) -> None:
    """In NORMALIZED a plain program is refused by the database with a text that names us.

    Writes through the repositories are carried back by the rollback.
    """
    with opened(path) as store:
        forward(store, Phase.NORMALIZED)
        before = judged(path)["legacy"]
        for statement in (
            "INSERT INTO customers_flat (name) VALUES ('late')",
            "UPDATE Orders_Old SET amount = 0",
            "DELETE FROM customers_flat WHERE 1",
        ):
            with pytest.raises(sqlite3.IntegrityError, match=r"frozen.*consensus_orm"), builders.writing(path) as plain:
                plain.execute(statement)
        assert judged(path)["legacy"] == before
        with store.unit_of_work() as uow:
            uow.repository("customers").add(NEW)
            assert uow.repository("customers").delete({"name": "Ada"}) == 1
        assert judged(path)["legacy"] == before
        store.migration.rollback()
        agree(path)
        assert store.migration.verify().clean


def test_what_only_the_normalized_side_keeps_survives_the_way_back(path: Path) -> None:
    """The nickname has no legacy column; it stands on the normalized side through rollback and advance."""
    with opened(path) as store:
        forward(store, Phase.CUTOVER)
        with store.unit_of_work() as uow:
            key = uow.repository("customers").add(NEW)
        store.migration.rollback("dual_write")
        forward(store, Phase.CUTOVER)
        with store.unit_of_work(read_only=True) as uow:
            row = uow.repository("customers").get(key)
        assert row is not None
        assert row[-1] == "Z"


def test_the_derived_column_follows_the_newest_row(path: Path) -> None:
    """A derived column is what the newest row of the parent says, after adds and deletes alike."""
    with opened(path) as store:
        forward(store, Phase.CUTOVER)

        def name() -> Any:
            with oracle.reading(path) as connection:
                return connection.execute("SELECT newest_name_hex FROM addresses WHERE city = 'Bern'").fetchone()

        with store.unit_of_work() as uow:
            uow.repository("customers").add(NEW)
            uow.repository("customers").add({**NEW, "name": "Yan"})
        assert name() == (b"Yan".hex().upper(),)
        with store.unit_of_work() as uow:
            uow.repository("customers").delete({"name": "Yan"})
        assert name() == (b"Zoe".hex().upper(),)
        with store.unit_of_work() as uow:
            uow.repository("customers").delete({"name": "Zoe"})
        assert name() is None


def test_a_table_that_refers_to_a_legacy_one_shuts_the_last_gate(path: Path) -> None:
    """Emptying the legacy table would delete, by its cascade, rows of another program.

    The gate is shut, even by force, until the reference is gone; no row of that program is touched.
    """
    with builders.writing(path) as connection:
        connection.executescript(
            "CREATE TABLE visits (customer INTEGER REFERENCES Customers_Flat(customer_no) ON DELETE CASCADE);"
            " INSERT INTO visits VALUES (1), (2);"
        )
    before = oracle.image(path, "visits")
    with opened(path) as store:
        forward(store, Phase.NORMALIZED)
        assert store.migration.verify().clean
        with pytest.raises(GateClosedError, match="foreign key visits depends on customers_flat"):
            store.migration.advance(reason="really", force=True)
        assert oracle.image(path, "visits") == before
        with builders.writing(path) as connection:
            connection.execute("DROP TABLE visits")
        accept_dependencies(store)
        store.migration.advance()


def test_a_broken_view_of_another_program_is_in_nobodys_way(path: Path) -> None:
    """A view that reads what is not there stays as it is through all phases and back."""
    with builders.writing(path) as connection:
        connection.execute("CREATE VIEW broken AS SELECT x FROM nowhere")
    before = oracle.definitions(path, "broken")
    with opened(path) as store:
        forward(store)
        store.migration.rollback("expand")
    assert oracle.definitions(path, "broken") == before


# Where a file of another moves begins -------------------------------------------------------------------


def test_upgrade_makes_the_control_tables_and_nothing_else(path: Path) -> None:
    """The tables of another move are its own business: no consensus table appears, and its tables stay."""
    before = {name: oracle.image(path, name) for name in oracle.tables(path)}
    with opened(path) as store:
        assert store.migration.upgrade() == list(inspection.REVISIONS)
        assert store.migration.upgrade() == []
    added = set(oracle.tables(path)) - set(before)
    assert all(name.startswith("consensus_orm_") for name in added)
    assert {name: oracle.image(path, name) for name in before} == before


def test_without_legacy_tables_a_file_begins_at_the_end(tmp_path: Path) -> None:
    """Where the declared legacy tables are not there, there is nothing to move: CONTRACT, and rows can be written."""
    path = tmp_path / "new.sqlite"
    with builders.writing(path) as connection:
        connection.executescript(NORMALIZED_DDL)
    with opened(path) as store:
        assert store.migration.phase is Phase.CONTRACT
        with store.unit_of_work() as uow:
            uow.repository("customers").add(NEW)
        assert store.migration.phase is Phase.CONTRACT
        assert len(read(store)["customers"]) == 1


def test_the_gate_wants_the_normalized_tables(tmp_path: Path) -> None:
    """Without them the gate to DUAL_WRITE is shut and says which is missing; nothing changes."""
    path = tmp_path / "half.sqlite"
    with builders.writing(path) as connection:
        connection.executescript(LEGACY_DDL + NORMALIZED_DDL + "DROP TABLE orders;")
    with opened(path) as store:
        with pytest.raises(GateClosedError, match="orders does not exist"):
            store.migration.advance(reason="try", force=True)
        assert store.migration.phase is Phase.EXPAND


def test_a_file_holds_one_move(path: Path, tmp_path: Path) -> None:
    """One file has one phase, so another moves on a file of the consensus tables is refused, untouched."""
    theirs = tmp_path / "consensus.sqlite"
    builders.build_legacy(theirs)
    before = oracle.sha256(theirs)
    with pytest.raises(SchemaError, match="one move"):
        consensus_orm.ConsensusStore.open(theirs, settings=SETTINGS, moves=MOVES)
    assert oracle.sha256(theirs) == before


@pytest.mark.parametrize("phase", Phase)
def test_a_database_keeps_to_its_move(phase: Phase, path: Path) -> None:
    """From the first upgrade on a file says which tables it moves: moves of others are refused, untouched."""
    with opened(path) as store:
        store.upgrade()
        forward(store, phase)
    before = oracle.sha256(path)
    from consensus_orm.consensus.declaration import CONSENSUS  # another test sees that nothing else loads it

    with pytest.raises(SchemaError, match=r"customers_flat.*one move"):
        Store.open(path, settings=SETTINGS, moves=CONSENSUS)
    assert oracle.sha256(path) == before
    with Store.open(path, settings=SETTINGS, moves=MOVES) as again:
        assert again.migration.phase is phase


def test_moves_that_change_are_taken_over(path: Path) -> None:
    """Where some of the tables stay, a file takes over what is added to its moves or taken from them."""
    orders = Moves(MOVES["orders"])
    for moves, names in ((orders, "orders_old"), (MOVES, "customers_flat\norders_old"), (orders, "orders_old")):
        with opened(path, moves) as store:
            store.upgrade()
        with oracle.reading(path) as connection:
            assert connection.execute("SELECT moves FROM consensus_orm_state").fetchall() == [(names,)]
    with pytest.raises(SchemaError, match=r"orders_old.*one move"), opened(path, Moves(MOVES["customers"])):
        pass


@pytest.mark.parametrize("phase", [Phase.EXPAND, Phase.DUAL_WRITE, Phase.CONTRACT])
def test_a_database_of_an_earlier_release_keeps_to_its_move(phase: Phase, path: Path) -> None:
    """It did not say so at EXPAND: the tables that it began with do, and the upgrade by another program is undone."""
    with opened(path) as store:
        store.upgrade()
        forward(store, phase)
        with builders.writing(path) as connection:
            connection.execute("DROP VIEW berliners")  # broken at CONTRACT; SQLite drops no column beside it
        revisions.downgrade(store.engine, "0009", store.application)
    before = oracle.everything(path)
    with pytest.raises(SchemaError, match=r"customers_flat.*one move"):
        consensus_orm.ConsensusStore.open(path, settings=SETTINGS).upgrade()
    assert oracle.everything(path) == before
    with opened(path) as again:
        assert "0011" in again.upgrade()
        assert again.migration.phase is phase


WITHOUT_CONSENSUS = """
import sys
from datetime import timedelta
from pathlib import Path
from consensus_orm import Phase, Settings, Store
from tests.support.shop import MOVES

now = timedelta(0)
settings = Settings(soak_dual_write=now, soak_cutover=now, soak_normalized=now)
path = Path(sys.argv[1])
with Store.open(path, settings=settings, moves=MOVES) as store:
    store.migration.upgrade()
    store.migration.accept_dependencies(["berliners"], reason="a test")
    store.migration.migrate(Phase.CONTRACT, soak=False)
    with store.unit_of_work() as uow:
        uow.repository("customers").add({"name": "Zoe", "city": "Bern"})
    assert store.migration.rehearse().passed
    store.migration.rollback(Phase.EXPAND)
    store.maintenance.stats(), store.maintenance.vacuum()
    with Store.open(path.with_name("copy.db"), settings=settings, moves=MOVES) as target:
        store.copy_to(target)
print(sorted(name for name in sys.modules if name.startswith("consensus_orm.consensus")))
"""


@pytest.mark.long
def test_nothing_of_the_consensus_data_is_loaded(path: Path) -> None:
    """All phases, a rehearsal, the way back and a copy of other tables import no module of the consensus data."""
    words = [sys.executable, "-c", WITHOUT_CONSENSUS, str(path)]
    done = subprocess.run(words, cwd=PACKAGE.parent, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


# The sources ----------------------------------------------------------------------------------------------

PACKAGE = Path(consensus_orm.__file__).parent
ENGINE = [
    module
    for folder in (
        ".",
        "copying",
        "databases",
        "databases/postgresql",
        "databases/sqlite",
        "ledgers",
        "migration",
        "models",
        "rehearsal",
        "repository",
        "retrying",
        "schema",
        "statements",
        "unit_of_work",
        "declaration",
    )
    for module in sorted((PACKAGE / folder).glob("*.py"))
    if module.name != "expressions.py" and module != PACKAGE / "__init__.py"  # which exports them
]
NAMES = {
    *("consensus_artifacts", "consensus_synthesis", "consensus_runs", "agent_outputs", "consensus_syntheses"),
    *("agent_executions", "ConsensusArtifact", "ConsensusSynthesis", "ConsensusRun", "AgentOutput", "AgentExecution"),
    *("content_json", "run_key", "synthesis_json", "spec_id", "agent_name", "output_timestamp"),
}


def words(source: str) -> set[str]:
    """Identifiers, and the words in strings, of a module; comments and docstrings only explain."""
    documented = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef)]
    docstrings = {
        (n.body[0].lineno, n.body[0].end_lineno) for n in documented if n.body and ast.get_docstring(n) is not None
    }
    found: set[str] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.NAME, tokenize.STRING) and (token.start[0], token.end[0]) not in docstrings:
            found |= {"".join(c if c.isalnum() or c == "_" else " " for c in token.string)}
    return {word for text in found for word in text.split()}


def test_no_module_of_the_engine_names_a_consensus_table() -> None:
    """Rule 2 as the sources say it: neither tables nor models nor columns of the consensus data."""
    found = {str(module.relative_to(PACKAGE)): words(module.read_text()) & NAMES for module in ENGINE}
    assert {name: named for name, named in found.items() if named} == {}
    assert len(found) > 100


def test_the_scan_of_the_sources_would_see_a_name() -> None:
    """The test above can fail: the modules that may name the tables are seen to do so."""
    assert {"AgentOutput", "consensus_artifacts"} <= words((PACKAGE / "consensus" / "declaration.py").read_text())


def test_units_of_other_tables_are_observed_as_what_they_are(path: Path) -> None:
    """Whoever listens to a store of other tables hears of its units, which get no repository of the consensus data."""
    heard: list[Event] = []
    with opened(path) as store:
        listen(store, heard.append)
        with store.unit_of_work() as uow:
            assert not hasattr(uow, "artifacts")
            assert uow.repository("customers").count({}) > 0
    assert any(isinstance(event, StatementEvent) for event in heard)
