"""The README is kept: what it shows runs as it stands there."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
USE_IT, DECLARATION, OWN_TABLES, TESTING, OBSERVING = EXAMPLES


def run(code: str, folder: Path) -> str:
    script = folder / "example.py"
    script.write_text(code, encoding="utf-8")
    done = subprocess.run([sys.executable, script], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_runs_and_says_what_it_stored(tmp_path: Path) -> None:
    """The first example of the README runs in an empty folder and reads back what it wrote."""
    assert run(USE_IT, tmp_path) == "run_1 ['gemini'] # Plan\n"
    with sqlite3.connect(tmp_path / "artifacts.db") as raw:
        stored = raw.execute("SELECT typeof(content), hex(content) FROM agent_outputs").fetchall()
    raw.close()
    assert stored == [("text", b'{"ok": true}'.hex().upper())]


def test_own_tables_need_nothing_but_the_declaration(tmp_path: Path) -> None:
    """The declaration of the README takes a file with such tables to CUTOVER and writes both sides."""
    raw = sqlite3.connect(tmp_path / "customers.db")
    raw.executescript("""
        CREATE TABLE customers_flat
            (id INTEGER PRIMARY KEY, name TEXT NOT NULL, street TEXT NOT NULL, city TEXT NOT NULL);
        CREATE TABLE addresses
            (id INTEGER PRIMARY KEY, street TEXT NOT NULL, city TEXT NOT NULL, UNIQUE (street, city));
        CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT NOT NULL, mirrored BOOLEAN NOT NULL DEFAULT 0,
            address_id INTEGER NOT NULL REFERENCES addresses(id) ON DELETE CASCADE);
        INSERT INTO customers_flat VALUES (1, 'Bob', '2 Side St', 'Springfield');
        INSERT INTO customers_flat VALUES (2, 'Eve', '2 Side St', 'Springfield');
    """)
    run(DECLARATION + OWN_TABLES, tmp_path)
    assert raw.execute("SELECT name, street FROM customers_flat ORDER BY id").fetchall() == [
        ("Bob", "2 Side St"),
        ("Eve", "2 Side St"),
        ("Ada", "1 Main St"),
    ]
    assert raw.execute("SELECT count(*) FROM addresses").fetchall() == [(2,)]
    raw.close()


def test_an_application_is_tested_in_five_phases(tmp_path: Path) -> None:
    """The test of the README runs with nothing but the installed plugin, once in each phase."""
    (tmp_path / "test_application.py").write_text(TESTING, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", "."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "5 passed" in done.stdout, done.stdout


def test_listeners_are_switched_on_by_one_call_each(tmp_path: Path) -> None:
    """The listeners of the README can be switched on together, and each hears of a unit of work."""
    for library in ("prometheus_client", "opentelemetry", "structlog"):
        pytest.importorskip(library)
    work = "with store.unit_of_work() as uow: uow.artifacts.count()"
    scrape = "import prometheus_client; print(prometheus_client.generate_latest().decode())"
    told = run("\n".join([OBSERVING, work, scrape]), tmp_path)
    assert 'consensus_orm_unit_of_work_duration_seconds_count{consensus_orm_outcome="committed"' in told
    assert "unit of work in contract: committed after" in told  # printed
    assert re.search(r"\[debug +] *consensus_orm\.unit_of_work", re.sub(r"\x1b\[\d*m", "", told))  # of structlog


@pytest.mark.parametrize("name", sorted(set(re.findall(r"`(tests/[\w/]+(?:\.py)?)/?`", README))))
def test_every_test_that_the_readme_names_exists(name: str) -> None:
    """A promise of the README points at tests that are there."""
    assert (Path(__file__).parent.parent / name).exists()
