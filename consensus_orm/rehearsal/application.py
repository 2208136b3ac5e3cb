"""What an application tells a rehearsal: how rows are written meanwhile, and how a rewriting upgrade is judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from consensus_orm.migration.rehearsal_report import Proof
from consensus_orm.phase import Phase
from consensus_orm.rehearsal.raw_sql import Look

__all__ = ["Rehearsed"]


@dataclass(frozen=True)
class Rehearsed:
    """How rows are written during a rehearsal, and how an upgrade that recreated tables is judged.

    Attributes:
        columns: The pairs that are written, and the legacy column of each that holds the text of a writer.
        add: Adds the rows of one unit of work through the public API: called with the unit, the name of the writer,
            the number of the unit and a text; returns the key of each row by its pair.
        prove: Compares a file before an upgrade that recreated its tables with the file after it.
    """

    columns: Mapping[str, str]
    add: Callable[[Any, str, int, str], dict[str, int]]
    prove: Callable[[Look, Look, Phase], Iterator[Proof]]
