"""The database that is rehearsed, with the parts of its store that a rehearsal uses."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from consensus_orm.databases.maintenance import Maintenance
from consensus_orm.migration import Migration
from consensus_orm.rehearsal.application import Rehearsed
from consensus_orm.settings import Settings
from consensus_orm.unit_of_work.factory import UnitOfWorkFactory
from consensus_orm.unit_of_work.upgrade import Upgrade

__all__ = ["Subject"]


@dataclass(frozen=True)
class Subject:
    """A database that is rehearsed, or the copy that it is rehearsed on.

    Attributes:
        units: Its units of work.
        migration: Its way from phase to phase.
        upgrade: Brings its schema up to date.
        maintenance: Backs it up, and knows its size.
        rehearsed: What is known about its tables besides the moves, if anything.
        beside: Opens another database of the same tables, by its path or URL.
    """

    units: UnitOfWorkFactory[Any]
    migration: Migration
    upgrade: Upgrade
    maintenance: Maintenance
    rehearsed: Rehearsed | None
    beside: Callable[[Path | str, Settings], AbstractContextManager[Subject]]
