from __future__ import annotations

from datetime import UTC, datetime

import pytest

from consensus_orm.records import time_of_ms


@pytest.mark.parametrize(
    ("milliseconds", "time"),
    [
        (0, None),
        (1762222238123, datetime(2025, 11, 4, 2, 10, 38, 123000, tzinfo=UTC)),
        (-1, datetime(1969, 12, 31, 23, 59, 59, 999000, tzinfo=UTC)),
        (-62167219200000, None),
        (10**18, None),
    ],
)
def test_milliseconds_become_a_time_or_none(milliseconds: int, time: datetime | None) -> None:
    """A row of the year 0, which SQLite takes for a date, must not keep its run from being read."""
    assert time_of_ms(milliseconds) == time
