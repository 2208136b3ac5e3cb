"""Imports the modules of all commands, which defines them."""

from __future__ import annotations

from consensus_orm.cli import copying, demo, explain, external, maintenance, rehearsal, revisions, rows, status, steps
from consensus_orm.cli.app import main

__all__ = ["main"]

assert all((copying, demo, explain, external, maintenance, rehearsal, revisions, rows, status, steps))
