"""Codes of errors: stable, shown with each error, and explained by a command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from consensus_orm import errors
from consensus_orm.cli import main
from consensus_orm.errors import ConsensusError
from tests.cli.test_streams import call, document

CODES = (
    "BACKUP CIRCUIT_OPEN COMMIT_UNCERTAIN CONFIGURATION CONSENSUS COPY COPY_REFUSED CORRUPT_DATABASE DATABASE_BUSY"
    " DATABASE_FULL DATABASE_UNAVAILABLE DOWNGRADE_REFUSED GATE_CLOSED GUARDS_BROKEN INVALID_VALUE KEEPER_LEASE"
    " KEYS_USED_UP MIGRATION MISMATCH NOT_A_DATABASE OUTPUT OUT_OF_MEMORY PARTIAL_ANSWERS PHASE_CHANGED"
    " POOL_EXHAUSTED READ_ONLY_DATABASE READ_ONLY_UNIT_OF_WORK RESTORE RETRY_CANCELLED REWRITE_NOT_CONFIRMED"
    " ROWS_HIDDEN SCHEMA SCHEMA_OUTDATED SCHEMA_TOO_NEW SESSION_ROLLED_BACK SINK SINK_CONTRACT SINK_LEASE"
    " SINK_UNAVAILABLE STORAGE STORE_CLOSED TABLE_MISSING UNEXPECTED UNIT_OF_WORK_CLOSED"
    " UNKNOWN_AGENT UNKNOWN_SCHEMA UNMIRRORED_WRITE UNSAFE_DEFINITION WRONG_PHASE"
)
KINDS = [kind for name in errors.__all__ if issubclass(kind := getattr(errors, name), ConsensusError)]


def explained(*words: str) -> str:
    done = CliRunner().invoke(main, ["explain", *words], catch_exceptions=False)
    assert done.exit_code == 0
    return done.output


def test_codes_never_change() -> None:
    """Programs and people look errors up by these codes: none is renamed, none goes, none is there twice."""
    assert sorted(kind.code for kind in KINDS) == CODES.split()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_each_error_is_explained(kind: type[ConsensusError]) -> None:
    """By its code in any spelling, and by the name of its class: what it means, and what to do."""
    text = explained(kind.code)
    assert text == explained(kind.code.lower().replace("_", "-")) == explained(kind.__name__)
    assert text.startswith(f"{kind.code}: ")
    assert kind.hint in text
    assert kind.__name__ in text


def test_all_codes_are_listed() -> None:
    """Without a code there is a line for each; as JSON, the class, its parents and the exit code, too."""
    assert [line.split()[0] for line in explained().splitlines()] == CODES.split()
    facts = {each["code"]: each for each in json.loads(explained("--json"))}
    assert facts["INVALID_VALUE"] | {"meaning": "", "hint": ""} == {
        "code": "INVALID_VALUE",
        "class": "InvalidValueError",
        "is_a": ["CONSENSUS"],
        "meaning": "",
        "hint": "",
        "exit_code": 2,
    }


def test_an_error_comes_with_its_code(tmp_path: Path) -> None:
    """A command prints the code behind the error, and JSON has it; a code that is none is told with the nearest."""
    done = call("--url", tmp_path / "nowhere.db", "advance", "sideways", "--json")
    assert done.stderr.rstrip().endswith("(INVALID_VALUE)")
    assert document(done)["error"]["explain"] == "INVALID_VALUE"
    wrong = call("explain", "GATE_CLOSD")
    assert wrong.returncode == 2
    assert "GATE_CLOSED" in wrong.stderr
