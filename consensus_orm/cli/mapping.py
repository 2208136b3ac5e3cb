"""What a command is about, imported by name: moves (those of the project, or the consensus tables), and classes."""

from __future__ import annotations

import importlib
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from consensus_orm.errors import ConfigurationError

if TYPE_CHECKING:
    from sqlalchemy.orm import DeclarativeBase

    from consensus_orm.declaration.moves import Moves

__all__ = ["class_named", "moves_named", "of_project"]

PROJECT = Path("pyproject.toml")
CLASS_HINT = "give the module and the name of a mapped class: package.module:Class"
HINT = "give the module and the name of its Moves: --mapping package.module:MOVES"


def of_project() -> str | None:
    """The moves that the project in the current folder names, in `[tool.consensus_orm] mapping`.

    Raises:
        ConfigurationError: The file cannot be read.
    """
    try:
        found = tomllib.loads(PROJECT.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{PROJECT} cannot be read: {type(error).__name__}",
            hint="mend it, or give --mapping",
        ) from error
    name = found.get("tool", {}).get("consensus_orm", {}).get("mapping")
    return name if name is None else str(name)


def moves_named(name: str | None) -> Moves:
    """Import moves by their name; the current folder is searched too, as `python -m` does.

    Args:
        name: `package.module:NAME`; the consensus tables where left out.

    Raises:
        ConfigurationError: There is no such module, or no such Moves in it.
    """
    from consensus_orm.consensus.declaration import CONSENSUS  # here, because it takes a while
    from consensus_orm.declaration.moves import Moves

    if name is None:
        return CONSENSUS
    found = _named(name, HINT)
    if not isinstance(found, Moves):
        raise ConfigurationError(f"{name!r:.100} is a {type(found).__name__}, and no Moves", hint=HINT)
    return found


def class_named(name: str) -> tuple[str, str, type[DeclarativeBase]]:
    """Import a mapped class by its name, as moves are.

    Args:
        name: `package.module:Class`.

    Returns:
        Its module, its name there, and the class.

    Raises:
        ConfigurationError: There is no such module, or no such class in it that is mapped to a table.
    """
    from sqlalchemy import Table

    found = _named(name, CLASS_HINT)
    if not isinstance(getattr(found, "__table__", None), Table):
        raise ConfigurationError(f"{name!r:.100} is not mapped to a table", hint=CLASS_HINT)
    module, _, attribute = name.partition(":")
    return module, attribute, found


def _named(name: str, hint: str) -> Any:
    module, _, attribute = name.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(f"there is no {name!r:.100}: {error}", hint=hint) from error
