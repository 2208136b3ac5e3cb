"""What the statements of the ledgers bind, and the keys that they return."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

from sqlalchemy import BindParameter, ClauseElement, bindparam, column

from consensus_orm import errors
from consensus_orm.databases.base import Transaction
from consensus_orm.models.base import Key as KeyType

__all__ = ["KEY", "Key", "among", "as_written", "bound", "keys_of", "milliseconds", "stored"]

Key: TypeAlias = int | str | None
"""The primary key of a row of a pair; None where a row cannot be named by it."""

KEY = column("key", KeyType())
"""The key of a row in a control table."""


def stored(uow: Transaction, key: Key) -> Key:
    """The key of a row as a parameter of a statement on a control table."""
    if uow.statements.rendering.name == "sqlite" or not isinstance(key, str):
        return key
    return json.dumps(key, ensure_ascii=False)


@contextlib.contextmanager
def as_written(table: str) -> Iterator[None]:
    """Tell what a ledger holds that this package never writes there: any program may write to its tables.

    Args:
        table: The table; its contents are not told.

    Raises:
        CorruptDatabaseError: What was read has another form.
    """
    try:
        yield
    except errors.ConsensusError:
        raise
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise errors.CorruptDatabaseError(
            f"a row of {table} is not what this package wrote",
            hint="nothing was changed; correct or delete that row, or restore a backup: consensus-orm restore BACKUP",
            table=table,
        ) from error


def milliseconds(uow: Transaction) -> int:
    """The start of a unit of work in ms since 1970 UTC."""
    return int(uow.now.timestamp() * 1000)


def bound(*names: str) -> dict[str, BindParameter[Any]]:
    """Values for columns, each bound under the name of its column."""
    return {name: bindparam(name) for name in names}


def among(keys: Iterable[object]) -> dict[str, str]:
    """The parameter of a statement on rows by their keys (`rendering.in_keys`)."""
    wanted = list(keys)
    numbers = all(type(key) is int for key in wanted)  # most are, and Python prints them as JSON does, at a third
    return {"_keys": str(wanted) if numbers else json.dumps(wanted)}


def keys_of(uow: Transaction, statement: str | ClauseElement, parameters: dict[str, Any]) -> list[Any]:
    """The first column of what a query returns."""
    return [row[0] for row in uow._rows(statement, parameters)]
