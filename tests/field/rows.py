"""The rows of LEGACY.md: those that are common, and those that break simple implementations.

SQL and the plain driver, nothing of the package. What Python cannot bind (invalid UTF-8 as text) is an SQL
expression.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

SECOND = "2025-11-04 02:23:58"
ROUND: Mapping[str, Any] = {
    "spec_id": "SPEC-ODD",
    "stage": "spec-plan",
    "agent_name": "gemini",
    "created_at": SECOND,
}
BIG = 5_000_000


@dataclass(frozen=True)
class Sql:
    """A value that only SQL can make."""

    expression: str


def bytes_as_text(data: bytes) -> Sql:
    """Text in SQLite that is not UTF-8."""
    return Sql(f"CAST(x'{data.hex()}' AS TEXT)")


TIMES: Mapping[str, Any] = {
    "null": None,
    "empty": "",
    "words": "not a date",
    "now": "now",
    "seconds": 1762743600,
    "milliseconds": 1762743600000,
    "numeric_text": "1762743600",
    "real": 1762743600.25,
    "blob": b"2025-11-04 02:23:58",
    "iso": "2025-11-04T02:23:58Z",
    "microseconds": "2025-11-04 02:23:58.123456",
    "nanoseconds": "2025-11-04 02:23:58.123456789",
    "nearly_next": "2025-11-04 02:23:58.9999",
    "offset": "2025-11-04 04:23:58+02:00",
    "date": "2025-11-04",
    "february_30": "2025-02-30 00:00:00",
    "hour_24": "2025-11-04 24:00:00",
    "year_0": "0000-01-01 00:00:00",
    "before_1970": "1969-12-31 23:59:59.999",
    "last": "9999-12-31 23:59:59.999",
    "trailing_dot": "2025-11-04 02:23:58.",
    "trailing_blank": "2025-11-04 02:23:58 ",
    "trailing_nul": Sql("CAST(x'323032352d31312d30342030323a32333a353800' AS TEXT)"),
    "arabic_digits": "٢٠٢٥-11-04 02:23:58",
}
"""created_at as it is found, and as it might be."""

CONTENTS: Mapping[str, Any] = {
    "template": '{"agent": "${AGENT}", "n": ${N}}',
    "empty": "",
    "log": "[2025-11-04T02:23:58] tokens used: 7\nthinking\n",
    "comment": "// comment\n{}",
    "emoji": '{"a": "\U0001f600 – ‑ é é"}',
    "nul": "before\0after",
    "only_nul": "\0",
    "surrogate": bytes_as_text(b'{"a": "\xed\xa0\x80"}'),
    "invalid_utf8": bytes_as_text(b"\xff\xfe\x00\x80"),
    "truncated_utf8": bytes_as_text("é".encode()[:1]),
    "blob": b"\x00\xffblob",
    "blob_of_text": b'{"ok": true}',
    "empty_blob": b"",
    "integer": 7,
    "leading_zero": "007",
    "real": 0.1,
    "crlf": "a\r\nb\rc",
    "bom": "\ufeff{}",
    "quotes": """'";--%s%(x)s:y?""",
    "deep": "[" * 20_000,
    "control": "".join(map(chr, range(1, 32))) + "\x7f",
}
"""content_json as it is found, and as it might be."""

ODD_ARTIFACTS: Mapping[str, Mapping[str, Any]] = {
    # one round of one agent speaking several times, and rows equal in everything but the id
    **{f"speaks_{n}": {**ROUND, "content_json": f'{{"n": {n}}}'} for n in range(4)},
    **{f"twin_{n}": {**ROUND, "content_json": "twin"} for n in range(3)},
    # the same second and stage under other run ids
    "run_null": {**ROUND, "run_id": None, "content_json": "run NULL"},
    "run_empty": {**ROUND, "run_id": "", "content_json": "run ''"},
    "run_a": {**ROUND, "run_id": "run_SPEC-ODD_1762222238_aaaaaaaa", "content_json": "run a"},
    "run_b": {**ROUND, "run_id": "run_SPEC-ODD_1762222238_bbbbbbbb", "content_json": "run b"},
    "run_like_a_key": {
        **ROUND,
        "run_id": f"at:{SECOND}",
        "content_json": "a run id that looks like a second",
    },
    "run_blob": {**ROUND, "run_id": b"run", "content_json": "run as BLOB"},
    "run_number_text": {**ROUND, "run_id": "007", "content_json": "run 007"},
    "run_number_text_short": {**ROUND, "run_id": "7", "content_json": "run 7"},
    "run_nul": {**ROUND, "run_id": "run\0a", "content_json": "NUL in the run id"},
    "run_nul_other": {**ROUND, "run_id": "run\0b", "content_json": "another NUL"},
    "run_invalid": {**ROUND, "run_id": bytes_as_text(b"run\xff"), "content_json": "invalid UTF-8"},
    "run_spread": {
        **ROUND,
        "run_id": "run_SPEC-ODD_1762222238_aaaaaaaa",
        "created_at": "2025-11-04 02:24:59",
        "content_json": "the run id of another second",
    },
    "run_other_stage": {
        **ROUND,
        "run_id": "run_SPEC-ODD_1762222238_aaaaaaaa",
        "stage": "speckit.specify",
        "content_json": "the run id of another stage",
    },
    # identifiers that differ by a hair
    "case": {**ROUND, "spec_id": "spec-odd", "content_json": "another case"},
    "blank": {**ROUND, "stage": "spec-plan ", "content_json": "a blank more"},
    "empty_names": {**ROUND, "spec_id": "", "stage": "", "agent_name": "", "content_json": "no names"},
    "blob_names": {
        **ROUND,
        "spec_id": b"SPEC-ODD",
        "stage": b"spec-plan",
        "agent_name": b"g",
        "content_json": "x",
    },
    "nul_names": {
        **ROUND,
        "spec_id": "SPEC\0ODD",
        "stage": "spec\0plan",
        "agent_name": "g\0",
        "content_json": "x",
    },
    "invalid_names": {**ROUND, "agent_name": bytes_as_text(b"\xff"), "content_json": "x"},
    "no_agent": {**ROUND, "agent_name": "consensus-verdict", "content_json": "{}"},
    # responses
    "response": {**ROUND, "content_json": "{}", "response_text": "raw \U0001f600"},
    "response_empty": {**ROUND, "content_json": "{}", "response_text": ""},
    "response_blob": {**ROUND, "content_json": "{}", "response_text": b"\x00\xff"},
    "response_invalid": {**ROUND, "content_json": "{}", "response_text": bytes_as_text(b"\xff\xfe")},
    "big": {**ROUND, "content_json": '{"x": "' + "é" * (BIG // 2) + '"}'},
    **{f"time_{name}": {**ROUND, "created_at": at, "content_json": f"time {name}"} for name, at in TIMES.items()},
    **{f"content_{name}": {**ROUND, "content_json": content} for name, content in CONTENTS.items()},
    # ids last: they set the sequence
    "id_gap": {**ROUND, "id": 100_000, "content_json": "after a gap"},
    "id_zero": {**ROUND, "id": 0, "content_json": "id 0"},
    "id_negative": {**ROUND, "id": -5, "content_json": "id -5"},
    "id_above_2_31": {**ROUND, "id": 2**31 + 5, "content_json": "above 2^31"},
    "id_above_2_53": {**ROUND, "id": 2**53 + 1, "content_json": "above 2^53"},
}
"""Artifacts: name -> columns."""

SYNTHESIS: Mapping[str, Any] = {
    "spec_id": "SPEC-ODD",
    "stage": "spec-plan",
    "output_markdown": "# Synthesis",
    "status": "ok",
    "created_at": SECOND,
}

ODD_SYNTHESES: Mapping[str, Mapping[str, Any]] = {
    "first": {**SYNTHESIS, "artifacts_count": 3, "agreements": '["a"]', "conflicts": "[]"},
    "second_of_the_run": {**SYNTHESIS, "output_markdown": "# Again", "output_path": "/tmp/ \U0001f600.md"},
    "twin_of_the_second": {**SYNTHESIS, "output_markdown": "# Again", "output_path": "/tmp/ \U0001f600.md"},
    "without_artifacts": {**SYNTHESIS, "spec_id": "SPEC-ALONE"},
    "run_a": {**SYNTHESIS, "run_id": "run_SPEC-ODD_1762222238_aaaaaaaa"},
    "run_empty": {**SYNTHESIS, "run_id": ""},
    "status_degraded": {**SYNTHESIS, "spec_id": "SPEC-D1", "status": "degraded"},
    "status_failed": {**SYNTHESIS, "spec_id": "SPEC-D2", "status": "Partially FAILED"},
    "status_blob": {**SYNTHESIS, "spec_id": "SPEC-D3", "status": b"failed"},
    "status_nul": {**SYNTHESIS, "spec_id": "SPEC-D4", "status": "ok\0failed"},
    **{
        f"degraded_{number}": {**SYNTHESIS, "spec_id": f"SPEC-G{number}", "degraded": value}
        for number, value in enumerate((None, 0, 1, 2, -1, 0.5, "", "true", "yes", b"\x01"))
    },
    **{
        f"time_{name}": {**SYNTHESIS, "spec_id": "SPEC-T", "created_at": at, "output_markdown": name}
        for name, at in TIMES.items()
    },
    "markdown_nul": {**SYNTHESIS, "output_markdown": "a\0b"},
    "markdown_blob": {**SYNTHESIS, "output_markdown": b"\x00\xff"},
    "markdown_invalid": {**SYNTHESIS, "output_markdown": bytes_as_text(b"\xff")},
    "agreements_invalid": {**SYNTHESIS, "agreements": bytes_as_text(b"\xed\xa0\x80"), "conflicts": b"\x01"},
    "count_words": {**SYNTHESIS, "artifacts_count": "many"},
    "count_real": {**SYNTHESIS, "artifacts_count": 2.5},
    "count_big": {**SYNTHESIS, "artifacts_count": 2**62},
    "long": {**SYNTHESIS, "output_markdown": "‑–\U0001f600 line\n" * 120_000},
    "id_above_2_31": {**SYNTHESIS, "id": 2**31 + 9},
}
"""Syntheses: name -> columns."""


def insert(connection: sqlite3.Connection, table: str, columns: Mapping[str, Any]) -> int:
    """Insert one row as it stands.

    Returns:
        Its id.
    """
    values = [value.expression if isinstance(value, Sql) else f":{name}" for name, value in columns.items()]
    parameters = {name: value for name, value in columns.items() if not isinstance(value, Sql)}
    cursor = connection.execute(f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({', '.join(values)})", parameters)
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def insert_odd_rows(connection: sqlite3.Connection, *, big: bool = True) -> dict[str, int]:
    """Insert every row that breaks simple implementations.

    Args:
        connection: Of a file with the legacy tables.
        big: Whether the 5 MB and 1.6 MB ones are among them.

    Returns:
        `artifact_<name>` and `synthesis_<name>` -> id.
    """
    ids: dict[str, int] = {}
    for kind, table, rows in (
        ("artifact", "consensus_artifacts", ODD_ARTIFACTS),
        ("synthesis", "consensus_synthesis", ODD_SYNTHESES),
    ):
        for name, columns in rows.items():
            if big or name not in ("big", "long"):
                ids[f"{kind}_{name}"] = insert(connection, table, columns)
    return ids


def plain_rows() -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The rows that are in most files, each with its table: rounds of a second, mostly without run id."""
    for second, stage, agents in (
        ("2025-11-04 02:23:58", "spec-plan", ("gemini", "claude", "code", "gemini")),
        ("2025-11-04 02:31:07", "spec-tasks", ("gemini", "claude", "code")),
        ("2025-11-10 01:52:21", "before-specify", ("gpt_pro", "consensus-verdict")),
    ):
        for number, agent in enumerate(agents):
            yield (
                "consensus_artifacts",
                {
                    "spec_id": "SPEC-KIT-900",
                    "stage": stage,
                    "agent_name": agent,
                    "content_json": f'{{"agent": "{agent}", "n": {number}, "dash": "–"}}',
                    "response_text": "raw" if number else None,
                    "run_id": "run_SPEC-KIT-900_1762744939_2c1010ad" if stage == "before-specify" else None,
                    "created_at": second,
                },
            )
        yield "consensus_synthesis", {**SYNTHESIS, "stage": stage, "created_at": second}


def insert_plain_rows(connection: sqlite3.Connection) -> None:
    """Insert the plain rows; ids have gaps."""
    for table, columns in plain_rows():
        insert(connection, table, columns)
    connection.execute("DELETE FROM consensus_artifacts WHERE id = 3")
    # The last one is gone: only the sequence remembers its id.
    insert(connection, "consensus_artifacts", {**ROUND, "content_json": "soon gone"})
    connection.execute("DELETE FROM consensus_artifacts WHERE content_json = 'soon gone'")
