"""Odd values found in the field, by name: times, contents and run ids.

Factories take these names: `ConsensusArtifactFactory.create(time_shape="iso", content_shape="nul")`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["BIG_ID", "CONTENTS", "HUGE", "RUN_IDS", "SECOND", "TIMES", "is_text"]

SECOND = "2025-11-04 02:23:58"
"""The default time of rows, so that a batch of them is a round."""

HUGE = 5_000_000
"""Bytes of the content called huge."""

BIG_ID = 2**31 + 5
"""An id that does not fit four bytes."""

TIMES: Mapping[str, Any] = {
    "second": SECOND,
    "later": "2025-11-04 02:31:07",
    "milliseconds": "2025-11-04 02:23:58.123",
    "microseconds": "2025-11-04 02:23:58.123456",
    "nearly_next_second": "2025-11-04 02:23:58.9999",
    "before_1970": "1969-12-31 23:59:59.999",
    "null": None,
    "empty": "",
    "words": "not a date",
    "now": "now",
    "iso": "2025-11-04T02:23:58Z",
    "offset": "2025-11-04 04:23:58+02:00",
    "date_only": "2025-11-04",
    "february_30": "2025-02-30 00:00:00",
    "hour_24": "2025-11-04 24:00:00",
    "year_0": "0000-01-01 00:00:00",
    "nul": "2025-11-04 02:23:58\0",
    "integer_seconds": 1762743600,
    "integer_ms": 1762743600000,
    "real": 1762743600.25,
    "blob": b"2025-11-04 02:23:58",
}
"""Values of created_at: valid times first, then invalid ones."""

CONTENTS: Mapping[str, Any] = {
    "json": '{"ok": true, "dash": "–"}',
    "template": '{"agent": "${AGENT}", "n": ${N}}',
    "log": "[2025-11-04T02:23:58] tokens used: 7\nthinking\n",
    "empty": "",
    "emoji": '{"a": "\U0001f600 – ‑ é e\u0301"}',
    "nul": "before\0after",
    "lone_surrogate": '{"a": "\ud800"}',
    "invalid_utf8": "\udcff\udcfe",
    "blob": b"\x00\xffblob",
    "blob_of_text": b'{"ok": true}',
    "integer": 7,
    "real": 0.1,
    "leading_zeros": "007",
    "huge": '{"x": "' + "é" * ((HUGE - 9) // 2) + '"}',
}
"""Contents; text that is not UTF-8 is stored as its bytes."""

RUN_IDS: Mapping[str, str | None] = {
    "null": None,
    "empty": "",
    "named": "run_SPEC-KIT-900_1762744939_2c1010ad",
    "other": "run_SPEC-KIT-900_1762744939_ffffffff",
}
"""Run ids; NULL and '' are different."""


def is_text(value: Any) -> bool:
    """Whether a value is NULL, or a text that a PostgreSQL server can hold."""
    if not isinstance(value, str):
        return value is None
    return "\0" not in value and not any("\ud800" <= character <= "\udfff" for character in value)
