"""A page of a report as tests read it: its elements, and what a browser makes of it."""

from __future__ import annotations

import os
import shutil
import subprocess
import zlib
from html.parser import HTMLParser
from pathlib import Path

CHROMIUM = shutil.which("chromium")
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
SECTIONS = [
    *("Now", "Timeline", "Rows and bytes", "Backfill", "Certificates", "Mismatches and repairs", "Rejects"),
    *("Reads: legacy against normalized", "Writes", "Writes in the rehearsal", "Rehearsal"),
]


class Page(HTMLParser):
    """The elements, headings and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.headings: list[str] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._open.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & {*self._open}:
            self.texts.append(data)
        if self._open[-1:] == ["h2"]:
            self.headings.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)


def browse(page: Path, profile: Path, *options: str) -> str:
    """Open a page in headless Chromium, as far from any network as it can be kept."""
    assert CHROMIUM is not None
    command = [CHROMIUM, *QUIET, f"--user-data-dir={profile}", "--proxy-server=127.0.0.1:9", *options, page.as_uri()]
    environment = {**os.environ, "HOME": str(profile)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=environment)
    return done.stdout


def pixels(png: Path) -> tuple[tuple[int, ...], set[bytes]]:
    """The first pixel of a picture, and the different lines there are in it, as they are packed."""
    data, at, packed = png.read_bytes(), 8, b""
    width = int.from_bytes(data[16:20], "big")
    samples = {2: 3, 6: 4}[data[25]]
    while at < len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        packed += data[at + 8 : at + 8 + length] if kind == b"IDAT" else b""
        at += 12 + length
    raw, step = zlib.decompress(packed), width * samples + 1
    # With nothing above it and to its left, the first pixel is as it is, whatever the filter.
    return tuple(raw[1:4]), {raw[line : line + step] for line in range(0, len(raw), step)}
