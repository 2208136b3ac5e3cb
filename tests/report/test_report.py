"""The report: one page that needs nothing, hides nothing it should say, and shows nothing it should not."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner

from consensus_orm import ConsensusStore, Phase, errors, report
from consensus_orm.cli import main
from consensus_orm.rehearsal.evidence import evidence_path
from consensus_orm.settings import Settings
from consensus_orm.testing.phases import take_to
from tests.field import builders
from tests.support.databases import Database, build_legacy, odd_history

CHROMIUM = shutil.which("chromium")
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
HOSTILE = "<script>alert(1)</script>\"'&\x1b[31m\u202e"
SECTIONS = [
    *("Timeline", "Rows and bytes", "Backfill", "Certificates", "Mismatches and repairs", "Rejects"),
    *("Reads: legacy against normalized", "Writes by phase", "Rehearsal"),
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
        if "style" not in self._open:
            self.texts.append(data)
        if self._open[-1:] == ["h2"]:
            self.headings.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.texts)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The evidence of a rehearsal of a server is kept in the current folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "artifacts.db"
    odd_history(found)
    return found


@pytest.fixture
def legacy(new_database: Database) -> Database:
    odd_history(new_database.where)
    return new_database


@pytest.fixture
def eventful(legacy: Database) -> Iterator[ConsensusStore]:
    """A store to which everything has happened that a report speaks of."""
    with ConsensusStore.open(legacy.where) as store:
        migration = store.migration
        migration.rehearse(writers=2)
        migration.upgrade()
        migration.advance(reason=HOSTILE)
        migration.backfill()
        legacy.unnoticed(
            "UPDATE agent_outputs SET content = 'SECRET ONE' WHERE id = 1;"
            " UPDATE consensus_artifacts SET content_json = 'SECRET TWO' WHERE id = 2"
        )
        legacy.rows_of(
            "INSERT INTO consensus_orm_rejects (pair, key, table_name, reason, image, state, found_at)"
            " VALUES ('artifacts', '7', 'consensus_artifacts', ?, 'SECRET THREE', 'open', 1762222238000)",
            HOSTILE,
        )
        migration.verify()
        migration.accept_mismatch(1, reason=HOSTILE)
        migration.reconcile()
        migration.verify()
        yield store


# What is in it --------------------------------------------------------------------------------------------


def test_every_phase_has_every_section(every_phase: ConsensusStore) -> None:
    """In every phase the page has all sections; what cannot be shown is said, not left out."""
    page = Page(report.render(every_phase))

    assert page.headings == SECTIONS
    assert f"{every_phase.migration.phase.name}, {every_phase.migration.phase.value} of 5" in page.text
    assert "Not stored:" in page.text


@pytest.mark.parametrize("build", [builders.first_version, builders.empty_legacy, builders.executions_only])
def test_files_nobody_prepared(build: Callable[[Path], None], tmp_path: Path) -> None:
    """A file that was never upgraded has a page, too; it says that nothing has happened."""
    build(tmp_path / "field.db")
    with ConsensusStore.open(tmp_path / "field.db") as store:
        page = Page(report.render(store))

    assert page.headings == SECTIONS
    assert "Nothing has happened yet" in page.text


@pytest.mark.parametrize("phase", list(Phase), ids=lambda phase: phase.name)
def test_a_report_is_written_in_every_phase(new_database: Database, tmp_path: Path, phase: Phase) -> None:
    """The report has the rows and bytes of the tables there are, and shows no password."""
    build_legacy(new_database.where)
    url = str(new_database.where).replace("postgres@", "postgres:s3cret@")
    with ConsensusStore.open(url, settings=Settings(backup_dir=tmp_path)) as store:
        take_to(store, phase)
        report.write(store, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert phase.name in page
    assert ("consensus_artifacts" in page) is phase.has_legacy
    assert "agent_outputs" in page
    assert "s3cret" not in page


def test_tells_what_is_stored(eventful: ConsensusStore) -> None:
    """Each phase change with who and why, each certificate, mismatch, reject and row count is on the page."""
    text = Page(report.render(eventful)).text

    status = eventful.migration.status()
    for entry in eventful.migration.history():
        assert entry.by in text
        assert f"{entry.at:%Y-%m-%d %H:%M:%S}" in text
    assert "EXPAND → DUAL_WRITE" in text
    for pair in status.pairs:
        assert f"{pair.legacy_rows:,}" in text
    assert status.certificate is not None
    for word in (
        "repaired",
        "accepted",
        "different",
        "verify",
        "rows a second",
        "agent_outputs",
        "median ms",
        "p99 ms",
    ):
        assert word in text, word
    assert "Passed" in text
    assert "2 writers at a time" in text


def test_reads_of_both_sides_are_timed(eventful: ConsensusStore) -> None:
    """Legacy and normalized are timed with the same reads, as many on either side."""
    from consensus_orm.report.facts import collect

    reads = collect(eventful).reads
    by_side = {
        side: sorted((t.pair, t.kind, t.latency.count) for t in reads if t.side == side)
        for side in ("legacy", "normalized")
    }
    assert by_side["legacy"] == by_side["normalized"]
    assert {kind for _, kind, _ in by_side["legacy"]} == {"by key", "by spec_id, stage"}
    assert all(t.latency.median > 0 for t in reads)


def test_charts(eventful: ConsensusStore) -> None:
    """Phases, rows, bytes, mismatches, reads, writes and the rehearsal are drawn, each with a name to be read."""
    text = report.render(eventful)
    assert re.findall(r'<svg role="img" aria-label="([^"]+)"', text) == [
        "The phase over time",
        "Rows of each table",
        "Bytes of each table",
        "Mismatches found and settled, added up",
        "Median time of a read",
        "Median time of a unit of work that writes",
        "Time of each step of the rehearsal",
    ]


# What is not in it ----------------------------------------------------------------------------------------


def test_self_contained(eventful: ConsensusStore) -> None:
    """No script, no network: nothing on the page loads anything, and the browser is told to refuse it."""
    text = report.render(eventful)
    page = Page(text)

    assert not {"script", "link", "img", "iframe", "object", "embed", "image", "use", "a"} & set(page.tags)
    assert not [a for a in page.attributes if a[0] in ("src", "href", "xlink:href") or a[0].startswith("on")]
    assert not re.findall(r"url\(|@import|<\?xml-stylesheet", text)
    assert "default-src 'none'" in text


def test_escapes(eventful: ConsensusStore) -> None:
    """What people wrote is shown as they wrote it, does nothing, and cannot turn the text around."""
    text = report.render(eventful)

    assert "<script" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert Page(text).text.count("<script>alert(1)</script>") >= 2  # the reason of a phase, that of a reject


def test_name_of_the_file_is_escaped(tmp_path: Path) -> None:
    """A file may be called anything; on the page that is text."""
    path = tmp_path / "<b>&\udcff.db"
    try:
        builders.first_version(path)
    except OSError:
        pytest.skip("this file system knows no such name")
    with ConsensusStore.open(path) as store:
        written = report.write(store, tmp_path / "page.html")

    text = written.read_text(encoding="utf-8")
    assert "<b>&" not in text
    assert "&lt;b&gt;&amp;\ufffd.db" in text


def test_no_contents_of_rows(eventful: ConsensusStore) -> None:
    """No content of any row is on the page, of a mismatch or a reject neither."""
    text = report.render(eventful)
    assert "SECRET" not in text
    with eventful.unit_of_work(read_only=True) as uow:
        contents = [a.content_json for a in uow.artifacts.list()]
    assert not [c for c in contents if isinstance(c, str) and len(c) > 8 and c in text]


# What it does ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", [Phase.EXPAND, Phase.CUTOVER, Phase.CONTRACT])
def test_writes_nothing_into_the_database(phase: Phase, path: Path, tmp_path: Path) -> None:
    """The file is the same, byte for byte, and beside it stands the page alone."""
    with ConsensusStore.open(path) as store:
        take_to(store, phase)
    before = {each.name: hashlib.sha256(each.read_bytes()).hexdigest() for each in tmp_path.iterdir()}

    with ConsensusStore.open(path) as store:
        report.write(store, tmp_path / "page.html")

    after = {each.name: hashlib.sha256(each.read_bytes()).hexdigest() for each in tmp_path.iterdir()}
    assert after.pop("page.html")
    assert after == before


def test_never_replaces_the_database(path: Path) -> None:
    """A page is never written over the database it speaks of."""
    before = path.read_bytes()
    with ConsensusStore.open(path) as store, pytest.raises(errors.InvalidValueError, match="the database itself"):
        report.write(store, path)
    assert path.read_bytes() == before


def test_folder_that_is_not_there(legacy: Database, tmp_path: Path) -> None:
    """A page that cannot be written is an error of ours that names the path."""
    with ConsensusStore.open(legacy.where) as store, pytest.raises(errors.StorageError, match="nowhere"):
        report.write(store, tmp_path / "nowhere" / "page.html")


def test_without_the_extra(legacy: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pygal the error names the extra, and no page is left behind."""
    monkeypatch.setitem(sys.modules, "pygal", None)
    with (
        ConsensusStore.open(legacy.where) as store,
        pytest.raises(errors.ConfigurationError, match=re.escape("consensus-orm[report]")),
    ):
        report.write(store, tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


def test_pygal_is_imported_when_a_page_is_made() -> None:
    """Neither the package nor the command line needs the extra."""
    code = "import sys, consensus_orm, consensus_orm.cli, consensus_orm.report; sys.exit('pygal' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_command(legacy: Database, tmp_path: Path) -> None:
    """`consensus-orm report FILE.html` makes the page and says where it is."""
    target = tmp_path / "page.html"
    result = CliRunner().invoke(main, ["--url", str(legacy.where), "report", str(target)])

    assert result.exit_code == 0, result.output
    assert str(target) in result.output
    assert Page(target.read_text()).headings == SECTIONS


# In a browser ---------------------------------------------------------------------------------------------


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


@pytest.mark.long
@pytest.mark.skipif(
    CHROMIUM is None, reason="NO CHROMIUM: the report was not looked at in a browser (apt install chromium)"
)
def test_in_a_browser(eventful: ConsensusStore, tmp_path: Path) -> None:
    """Chromium shows the page with its charts, in light and in dark, and prints it."""
    page = report.write(eventful, tmp_path / "page.html")

    shown = browse(page, tmp_path / "profile", "--dump-dom")
    assert Page(shown).headings == SECTIONS
    assert shown.count("<svg ") == report.render(eventful).count("<svg ")

    pictures = {}
    for scheme, number in (("dark", 0), ("light", 1)):
        png = tmp_path / f"{scheme}.png"
        size = ("--window-size=1100,5200", f"--screenshot={png}")
        browse(page, tmp_path / f"profile-{scheme}", *size, f"--blink-settings=preferredColorScheme={number}")
        pictures[scheme] = pixels(png)
    assert min(pictures["light"][0]) > 240
    assert max(pictures["dark"][0]) < 50
    # An empty page is one line again and again; each of these has text and charts from top to bottom.
    assert all(len(lines) > 1000 for _, lines in pictures.values())

    browse(page, tmp_path / "profile-print", f"--print-to-pdf={tmp_path / 'page.pdf'}", "--no-pdf-header-footer")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")


def test_evidence_with_odd_names(eventful: ConsensusStore) -> None:
    """The evidence is a file that others can write: what it says is escaped like everything else."""
    place = evidence_path(eventful._units)
    assert place is not None
    place.write_text(json.dumps({**json.loads(place.read_text()), "notes": [HOSTILE], "refused": [HOSTILE]}))

    text = report.render(eventful)
    assert "<script" not in text
    assert Page(text).text.count("<script>alert(1)</script>") >= 4
