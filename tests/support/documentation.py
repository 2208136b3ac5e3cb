"""The documentation: the README and the pages that the package ships, and the examples in them."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["PAGES", "ROOT", "TEXTS", "block", "blocks", "commands"]

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "consensus_orm" / "docs").glob("*.md"))]
TEXTS = {page.stem: page.read_text(encoding="utf-8") for page in PAGES}
"""The text of each page by its name; that of the README is `README`."""


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of a page in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXTS[page], flags=re.DOTALL | re.MULTILINE)


def block(page: str, language: str, containing: str = "") -> str:
    """The only fenced block of a page in a language that contains a text."""
    (found,) = (each for each in blocks(page, language) if containing in each)
    return found


def commands(page: str, containing: str = "") -> list[str]:
    """The commands of a console block, without prompt and comment."""
    lines = block(page, "console", containing).splitlines()
    return [line.removeprefix("$ ").partition("  #")[0].rstrip() for line in lines if line.startswith("$ ")]
