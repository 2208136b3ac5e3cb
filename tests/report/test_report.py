"""The report: one page that needs nothing, hides nothing it should say, and shows nothing it should not."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import escape, unescape
from pathlib import Path
from urllib.parse import unquote

import pytest
from click.testing import CliRunner

from consensus_orm import ConsensusStore, Phase, errors, report
from consensus_orm.cli import main
from consensus_orm.ledgers.entries import HistoryEntry
from consensus_orm.rehearsal.evidence import evidence_path
from consensus_orm.settings import Settings
from consensus_orm.testing.phases import take_to
from tests.field import builders
from tests.report.pages import CHROMIUM, SECTIONS, Page, browse, pixels
from tests.support.databases import Database, build_legacy, made, odd_history

FORMULA = "=1+1"
"""What a spreadsheet would run."""
HOSTILE = "<script>alert(1)</script>\"'&\x1b[31m\u202e"
WIDTHS = (390, 768, 1100)
"""A phone, a tablet, a desk."""


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


def happen(store: ConsensusStore, legacy: Database) -> None:
    """Let everything happen to a store that a report speaks of."""
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
    migration.pause(reason=FORMULA)


@pytest.fixture
def eventful(legacy: Database) -> Iterator[ConsensusStore]:
    """A store to which everything has happened that a report speaks of."""
    with ConsensusStore.open(legacy.where) as store:
        happen(store, legacy)
        yield store


@dataclass(frozen=True)
class Shown:
    """The report of such a store on SQLite, made once."""

    text: str
    history: list[HistoryEntry]
    contents: list[object]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Shown:
    path = tmp_path_factory.mktemp("shown") / "artifacts.db"
    with made("sqlite", odd_history, path) as legacy, ConsensusStore.open(legacy.where) as store:
        happen(store, legacy)
        with store.unit_of_work(read_only=True) as uow:
            contents: list[object] = [artifact.content_json for artifact in uow.artifacts.list()]
        return Shown(report.render(store), store.migration.history(), contents)


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


@pytest.mark.long
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


@pytest.mark.long
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


@pytest.mark.long
def test_charts(shown: Shown) -> None:
    """What can be drawn is drawn; lines over time are pictures with a name to be read, once for each of two widths."""
    text = shown.text
    assert re.findall(r"<figcaption>([^<]+)", text) == [
        "The phase over time",
        "Rows of each table",
        "Bytes of each table",
        "Rows a second that were carried in each minute of the last day",
        "Mismatches found and settled, added up",
        "Median time of a read",
        "Median time of a unit of work that writes",
        "Time of each step of the rehearsal",
    ]
    lines = [
        "The phase over time",
        "Rows a second that were carried in each minute of the last day",
        "Mismatches found and settled, added up",
    ]
    assert sorted(re.findall(r'<svg role="img" aria-label="([^"]+)"', text)) == sorted(lines * 2)


def test_numbers_are_rounded(shown: Shown) -> None:
    """No number of a table has more than three significant digits behind a point, and sizes have units."""
    cells = re.findall(r'<td class="number"[^>]*>([^<]*)</td>', shown.text)
    assert not [cell for cell in cells if re.fullmatch(r"[\d,]*\d{3}\.\d+|\d*\.\d{6,}", cell)]
    assert any(cell.endswith(" kB") for cell in cells)


def test_downloads(shown: Shown) -> None:
    """Each table can be downloaded from the page itself; a spreadsheet runs none of its texts."""
    downloads = {}
    for address, name in re.findall(r'<a href="(data:[^"]+)" download="([^"]+)"', shown.text):
        downloads[name] = unquote(address.partition(",")[2])
    names = {name.rpartition(".")[0] for name in downloads}

    assert len(downloads) == 2 * len(names)
    assert {"changes-and-repairs", "tables", "verified", "mismatches", "rejected-rows", "timed-reads"} <= names
    rows = json.loads(downloads["changes-and-repairs.json"])
    assert [(row["when"], row["what"], row["who"]) for row in rows] == [
        (entry.at.isoformat(), entry.action, entry.by) for entry in shown.history
    ]
    table = list(csv.DictReader(io.StringIO(downloads["changes-and-repairs.csv"])))
    assert [row["what"] for row in table] == [entry.action for entry in shown.history]
    assert table[-1]["why"] == f"'{FORMULA}"


# What is not in it ----------------------------------------------------------------------------------------


def test_self_contained(shown: Shown) -> None:
    """Nothing on the page loads anything, and the browser is told to refuse it, and every script but one."""
    text = shown.text
    page = Page(text)

    assert not {"link", "img", "iframe", "object", "embed", "image", "use", "form"} & set(page.tags)
    assert not [a for a in page.attributes if a[0] in ("src", "xlink:href") or a[0].startswith("on")]
    assert {value.partition(":")[0][:1] for name, value in page.attributes if name == "href"} == {"#", "d"}
    assert not re.findall(r"url\(|@import|<\?xml-stylesheet", text)
    assert "default-src 'none'" in text
    (script,) = re.findall("<script>(.*?)</script>", text, re.DOTALL)
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in text


def test_can_be_heard_and_steered_by_keys(shown: Shown) -> None:
    """The page has landmarks, one main heading and a name for each part; what can be scrolled can have the focus."""
    page = Page(shown.text)
    named = [value for name, value in page.attributes if name == "aria-labelledby"]
    ids = [value for name, value in page.attributes if name == "id"]

    assert [page.tags.count(tag) for tag in ("header", "nav", "main", "footer", "h1")] == [1] * 5
    assert len(named) == page.tags.count("section") == len(SECTIONS)
    assert set(named) <= set(ids)
    assert page.tags.count("caption") == page.tags.count("table") == page.attributes.count(("tabindex", "0"))
    assert page.tags.count("th") == page.attributes.count(("scope", "col"))
    assert len(ids) == len(set(ids))
    anchors = {value[1:] for name, value in page.attributes if name == "href" and value.startswith("#")}
    assert anchors <= set(ids)


def test_escapes(shown: Shown) -> None:
    """What people wrote is shown as they wrote it, does nothing, and cannot turn the text around."""
    text = shown.text

    assert text.count("<script") == 1  # its own
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


def test_no_contents_of_rows(shown: Shown) -> None:
    """No content of any row is on the page, of a mismatch or a reject neither."""
    text = shown.text
    assert "SECRET" not in text
    text = Page(shown.text).text + "".join(
        unquote(value) for name, value in Page(shown.text).attributes if name == "href"
    )
    assert not [c for c in shown.contents if isinstance(c, str) and len(c) > 8 and c in text]


# What it does ---------------------------------------------------------------------------------------------


@pytest.mark.long
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


@pytest.mark.long
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


@pytest.mark.long
@pytest.mark.skipif(
    CHROMIUM is None, reason="NO CHROMIUM: the report was not looked at in a browser (apt install chromium)"
)
def test_in_a_browser(shown: Shown, tmp_path: Path) -> None:
    """Chromium shows the page with its charts, in light and in dark, and prints it."""
    page = tmp_path / "page.html"
    page.write_text(shown.text, encoding="utf-8")

    pictures = {}
    for scheme, number, width in (("dark", 0, WIDTHS[0]), ("light", 1, WIDTHS[-1])):
        png = tmp_path / f"{scheme}.png"
        size = (f"--window-size={width},5200", f"--screenshot={png}")
        browse(page, tmp_path / f"profile-{scheme}", *size, f"--blink-settings=preferredColorScheme={number}")
        pictures[scheme] = pixels(png)
    assert min(pictures["light"][0]) > 240
    assert max(pictures["dark"][0]) < 50
    # An empty page is one line again and again; each of these has text and charts from top to bottom.
    assert all(len(lines) > 1000 for _, lines in pictures.values())

    browse(page, tmp_path / "profile-print", f"--print-to-pdf={tmp_path / 'page.pdf'}", "--no-pdf-header-footer")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")


MEASURE = """
const parts = [...document.querySelectorAll("figure, dl, .bar")];
const texts = [...document.querySelectorAll("figure svg.chart text")];
const letters = texts.map((each) => each.getBoundingClientRect().height);
const head = document.querySelector("#timeline th");
head.firstChild.click();
head.firstChild.click();
document.title = JSON.stringify({
  width: document.documentElement.scrollWidth,
  cut: parts.filter((each) => each.scrollWidth > each.clientWidth + 1).length,
  small: letters.filter((height) => height > 0 && height < 9).length,
  sorted: head.getAttribute("aria-sort"),
  first: head.closest("table").tBodies[0].rows[0].cells[0].dataset.key,
});
"""
COLLECT = """
onload = () => { document.title = [...Array(frames.length).keys()].map((at) => frames[at].document.title).join(" "); };
"""


@pytest.mark.long
@pytest.mark.skipif(CHROMIUM is None, reason="NO CHROMIUM: the report was not measured in a browser")
def test_fits_each_width(shown: Shown, tmp_path: Path) -> None:
    """At each width nothing reaches out of the page, charts can be read, and a heading sorts its table when pressed."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", shown.text)
    measured = escape(text.replace("</body>", f"<script>{MEASURE}</script></body>"))
    frames = [f'<iframe style="width: {width}px; border: 0" srcdoc="{measured}"></iframe>' for width in WIDTHS]
    (tmp_path / "frames.html").write_text(
        f"<!DOCTYPE html><title></title>{''.join(frames)}<script>{COLLECT}</script>", encoding="utf-8"
    )

    dumped = browse(tmp_path / "frames.html", tmp_path / "profile", "--dump-dom")

    newest = max(entry.at for entry in shown.history).isoformat()
    assert [json.loads(each) for each in re.findall("{[^}]*}", unescape(dumped.partition("</title>")[0]))] == [
        {"width": width, "cut": 0, "small": 0, "sorted": "descending", "first": newest} for width in WIDTHS
    ]


@pytest.mark.long
def test_evidence_with_odd_names(eventful: ConsensusStore) -> None:
    """The evidence is a file that others can write: what it says is escaped like everything else."""
    place = evidence_path(eventful._units)
    assert place is not None
    place.write_text(json.dumps({**json.loads(place.read_text()), "notes": [HOSTILE], "refused": [HOSTILE]}))

    text = report.render(eventful)
    assert text.count("<script") == 1
    assert Page(text).text.count("<script>alert(1)</script>") >= 4
