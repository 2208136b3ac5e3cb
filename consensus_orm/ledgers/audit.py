"""The audit: who changed the phase, or repaired what, when and why."""

from __future__ import annotations

import getpass
import json
import os
import socket

from sqlalchemy import bindparam, func, insert, select

from consensus_orm.databases.base import Transaction
from consensus_orm.ledgers.binding import bound, milliseconds
from consensus_orm.models.control import PhaseChange
from consensus_orm.phase import Phase

__all__ = ["add", "newest", "whoami"]

_ADD = (
    insert(PhaseChange)
    .inline()
    .values(**bound("action", "from_phase", "to_phase", "at", "by", "reason", "forced", "detail"))
)


def add(
    uow: Transaction,
    action: str,
    *,
    to: Phase | None = None,
    reason: str | None = None,
    forced: bool = False,
    **detail: object,
) -> None:
    """Add an entry to the audit.

    Args:
        uow: The unit of work that does what the entry says.
        action: What it does.
        to: The next phase, where the phase changes.
        reason: Why.
        forced: Whether waiting was skipped.
        **detail: Facts that JSON can hold; never contents of rows.
    """
    facts = {"action": action, "from_phase": uow.phase.value, "to_phase": to.value if to else None}
    facts |= {"at": milliseconds(uow), "by": whoami(), "reason": reason, "forced": forced}
    uow._execute(_ADD, facts | {"detail": json.dumps(detail) if detail else None})


_NEWEST = select(func.coalesce(func.max(PhaseChange.at), 0)).where(PhaseChange.action == bindparam("action"))


def newest(uow: Transaction, action: str) -> int:
    """When an action was last taken, in ms since 1970 UTC; 0 where it never was."""
    return int(uow._rows(_NEWEST, {"action": action})[0][0])


def whoami() -> str:
    """Who runs this process: user, host and process id."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # no such user: containers with a bare number
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()} ({os.getpid()})"
