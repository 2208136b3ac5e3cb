"""Imports the modules of all commands, which defines them."""

from __future__ import annotations

from consensus_orm.cli import copying, evidence, explain, look, rows, showcase, step, upkeep
from consensus_orm.cli.app import main

__all__ = ["main"]

assert all((copying, evidence, explain, look, rows, showcase, step, upkeep))
