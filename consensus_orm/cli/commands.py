"""Imports the modules of all commands, which defines them."""

from __future__ import annotations

from consensus_orm.cli import copying, demo, dependencies, explain, maintenance, rehearsal, rows, status, steps
from consensus_orm.cli.app import main

__all__ = ["main"]

assert all((copying, demo, dependencies, explain, maintenance, rehearsal, rows, status, steps))
