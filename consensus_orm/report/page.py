"""The HTML of the report and of the dashboard: one page, of one set of facts."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from importlib import resources
from typing import TypeAlias

from consensus_orm._version import __version__
from consensus_orm.formats import count, duration, moment, size
from consensus_orm.ledgers import samples
from consensus_orm.phase import Phase, Side
from consensus_orm.rehearsal import Evidence, RehearsalReport
from consensus_orm.report import charts
from consensus_orm.report.facts import Backfilled, Facts, ReadTimes
from consensus_orm.report.html import Child, Html, anchor, joined, note, tag
from consensus_orm.report.tables import Bytes, Link, Table, as_data, number
from consensus_orm.times import when

__all__ = ["STANDALONE", "Place", "Sections", "document", "page", "policy", "sections"]

NOT_STORED = "Not stored: "

Sections: TypeAlias = dict[str, list[Html | Table]]
"""The parts of a page by their titles."""


@dataclass(frozen=True)
class Place:
    """Where a page is shown.

    Attributes:
        link: Where its tables can be downloaded.
        mismatches: The address of a page about a mismatch, without its number; empty where there is none.
        refresh: Seconds after which it asks for itself again; 0 for a page that stays as it is.
    """

    link: Link = as_data
    mismatches: str = ""
    refresh: float = 0


STANDALONE = Place()
"""A file."""


@cache
def _resource(name: str) -> str:
    return resources.files("consensus_orm.report").joinpath(name).read_text(encoding="utf-8")


@cache
def policy() -> str:
    """What a page may load: its own style, its own script, and itself again."""
    script = base64.b64encode(hashlib.sha256(_resource("page.js").encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{script}'; connect-src 'self';"
        " base-uri 'none'; form-action 'none'"
    )


def page(facts: Facts, place: Place = STANDALONE) -> str:
    """The page for the facts of a store.

    Args:
        facts: The facts.
        place: Where it is shown.
    """
    parts = sections(facts, place)
    live = [_live(facts, place)] if place.refresh else []
    links = [tag("li", tag("a", title, href=f"#{anchor(title)}")) for title in parts]
    contents = tag("nav", tag("ul", *links), aria_label="Sections")
    body = [_section(title, each, place.link) for title, each in parts.items()]
    header = tag("header", tag("h1", _title(facts)), *live)
    return document(_title(facts), header, contents, tag("main", *body, id="content"), _footer(facts), place=place)


def document(title: str, *body: Html, place: Place = STANDALONE) -> str:
    """A whole document with the style and the script of the pages."""
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy()}">'
        '<meta name="color-scheme" content="light dark">'
    )
    skip = tag("a", "Skip to the content", href="#content", class_="skip")
    script = f"<script>{_resource('page.js')}</script>"
    if place.refresh:
        seconds = max(round(place.refresh), 1)
        head += f'<noscript><meta http-equiv="refresh" content="{seconds}"></noscript>'
    refresh = f' data-refresh="{place.refresh:g}"' if place.refresh else ""
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}{tag("title", title)}<style>{_resource("style.css")}</style>'
        f"</head><body{refresh}>{skip}{joined(body)}{script}</body></html>\n"
    )


def _title(facts: Facts) -> str:
    return f"Migration of {facts.database.rpartition('/')[2]}"


def _live(facts: Facts, place: Place) -> Html:
    """When the facts were read, what a screen reader is told of changes, and the button that stops them."""
    read = tag("span", f"Read {moment(facts.at)}, again every {duration(place.refresh)}. ", id="read")
    news = tag("span", role="status", id="news")
    button = tag("button", "Pause", type="button", id="pause", aria_pressed="false", hidden="")
    return tag("p", read, button, " ", news, class_="note")


def sections(facts: Facts, place: Place = STANDALONE) -> Sections:
    """The sections of a page.

    Args:
        facts: The facts.
        place: Where the page is shown.
    """
    found = {
        "Now": _summary(facts),
        "Timeline": _timeline(facts),
        "Rows and bytes": _sizes(facts),
        "Backfill": _backfill(facts),
        "Certificates": _certificates(facts),
        "Mismatches and repairs": _mismatches(facts, place),
        "Rejects": _rejects(facts),
        "Reads: legacy against normalized": _reads(facts),
        "Writes": _writes(facts),
        "Writes in the rehearsal": _rehearsed_writes(facts.evidence),
        "Rehearsal": _rehearsal(facts.evidence),
    }
    return {title: list(parts) for title, parts in found.items()}


def _section(title: str, parts: Iterable[Html | Table], link: Link) -> Html:
    name = anchor(title)
    body = [part.html(link) if isinstance(part, Table) else part for part in parts]
    return tag("section", tag("h2", title, id=f"{name}-title"), *body, id=name, aria_labelledby=f"{name}-title")


def _footer(facts: Facts) -> Html:
    sqlite = f", SQLite {facts.stats.sqlite_version}" if facts.stats else ""
    return tag(
        "footer",
        tag("p", f"Made {moment(facts.at)} by consensus_orm {__version__}{sqlite}; mapping {facts.mapping}."),
        tag("p", "All times are UTC. This page holds no contents of rows."),
    )


def _ms(seconds: float) -> float:
    return seconds * 1000


# Summary and timeline -------------------------------------------------------------------------------------


def _summary(facts: Facts) -> Iterator[Html | Table]:
    status = facts.status
    since = f", since {moment(status.since)} ({duration(facts.at - status.since)})" if status.since else ""
    prepared = "" if status.prepared else ", not prepared yet"
    entries: list[tuple[str, Child]] = [
        ("database", facts.database),
        ("phase", f"{status.phase.name}, {status.phase.value} of 5{since}{prepared}"),
        ("written", " and ".join(status.writes) + (", every write compared" if status.phase.compares else "")),
        ("read", status.reads.value),
        (
            "open",
            ", ".join(
                (
                    count(status.mismatches, "mismatch", "mismatches"),
                    count(status.rejects, "reject"),
                    count(status.foreign_writes, "foreign write"),
                )
            ),
        ),
        ("soak", _soak(facts)),
    ]
    entries += [("paused", f"long steps wait since {moment(at)}") for at in [status.control.paused_at] if at]
    entries += [("keeper", each.told(facts.at)) for each in [status.keeper] if each]
    entries += [("hold", f"no phase changes since {moment(at)}") for at in [status.control.held_at] if at]
    entries += [("external store", f"{each.told}{' (ALARM)' if each.late else ''}") for each in status.outboxes]
    if facts.stats is not None:
        entries.append(("on disk", f"{size(facts.stats.disk.total)}, journal mode {facts.stats.journal_mode}"))
    if status.next_command:
        entries.append(("next", tag("code", status.next_command)))
    yield tag("ol", *(_station(phase, status.phase) for phase in Phase), class_="track", aria_label="Phases")
    yield tag("dl", *(joined([tag("dt", name), tag("dd", value)]) for name, value in entries))
    yield _gate(facts)


def _soak(facts: Facts) -> Child:
    status = facts.status
    if not status.soak_left or status.since is None:
        return "over"
    lasted = max(facts.at - status.since, timedelta())
    text = f"{duration(status.soak_left)} left"
    seconds = lasted.total_seconds()
    return charts.progress("Soak", seconds, seconds + status.soak_left.total_seconds(), text)


def _station(phase: Phase, now: Phase) -> Html:
    state = "now" if phase is now else "done" if phase < now else "ahead"
    current = {"aria-current": "step"} if phase is now else {}
    return tag("li", tag("b", phase.value), f" {phase.name}", class_=state, **current)


def _gate(facts: Facts) -> Html:
    if facts.status.phase.next is None:
        return Html("")
    if not facts.status.gate:
        return tag("p", f"The gate to {facts.status.phase.next.name} is open.")
    reasons = tag("ul", *(tag("li", reason) for reason in facts.status.gate))
    return joined([tag("p", f"The gate to {facts.status.phase.next.name} is shut:"), reasons])


def _timeline(facts: Facts) -> Iterator[Html | Table]:
    if not facts.history:
        yield note("Nothing has happened yet.")
        return
    changes = [(entry.at, float(entry.to_phase)) for entry in facts.history if entry.to_phase is not None]
    if changes:
        yield charts.phases("The phase over time", [*changes, (facts.at, changes[-1][1])])
    rows = []
    for entry in facts.history:
        names = " → ".join(phase.name for phase in (entry.from_phase, entry.to_phase) if phase is not None)
        rows.append((entry.at, entry.action, names, entry.by, entry.why))
    yield Table("Changes and repairs", ("when", "what", "phase", "who", "why"), rows)


# What is where --------------------------------------------------------------------------------------------


def _sizes(facts: Facts) -> Iterator[Html | Table]:
    if not facts.tables:
        yield note("There is no table of this move.")
        return
    names = [table.name for table in facts.tables]
    for unit in ("rows", "bytes"):
        groups = {
            side.value: [getattr(table, unit) if table.side is side else None for table in facts.tables]
            for side in Side
        }
        if any(value is not None for values in groups.values() for value in values):
            shown = {name: values for name, values in groups.items() if any(v is not None for v in values)}
            yield charts.bars(f"{unit.capitalize()} of each table", names, shown, unit=unit)
    yield Table(
        "Tables",
        ("table", "side", "rows", "bytes"),
        [(t.name, t.side.value, t.rows, None if t.bytes is None else Bytes(t.bytes)) for t in facts.tables],
    )
    if all(table.bytes is None for table in facts.tables):
        yield note("Bytes of single tables are not known: this SQLite is built without dbstat.")
    else:
        yield note("Bytes are of whole pages, those of indexes included.")


def _backfill(facts: Facts) -> Iterator[Html | Table]:
    if not facts.backfills:
        yield note("No backfill is on record; a rollback to EXPAND forgets it.")
        return
    for b in facts.backfills:
        if not b.finished and b.of:
            yield charts.progress(f"Backfill of {b.pair}", b.rows, b.of, _left(b))
    yield Table(
        "Backfill of each pair",
        ("pair", "rows", "of", "finished", "first chunk", "last chunk", "rows a second"),
        [(b.pair, b.rows, b.of, b.finished, b.started, b.updated, b.rate) for b in facts.backfills],
    )
    carried = _by_minute(facts, samples.BACKFILL, lambda each: f"{each.name}")
    if carried:
        lines = {name: [(at, n / 60) for at, (n, _) in minutes.items()] for name, minutes in carried.items()}
        yield charts.over_time("Rows a second that were carried in each minute of the last day", lines)
    yield note("The rate of the table is the average, pauses and interruptions included.")


def _left(b: Backfilled) -> str:
    """How far a backfill has come, and how long the rest takes at its rate."""
    left = "" if b.seconds_left is None else f", {duration(b.seconds_left)} left at {number(b.rate or 0)} rows a second"
    return f"{b.pair}: {b.rows:,} of {b.of:,} rows{left}"


def _certificates(facts: Facts) -> Iterator[Html | Table]:
    if not facts.certificates:
        yield note("Nothing was verified yet.")
        return
    yield Table(
        "Verified",
        ("no.", "when", "build", "mapping", "legacy", "normalized", "compared", "differences", "rejects"),
        [
            (
                c.id,
                when(c.at),
                c.build,
                c.mapping,
                c.legacy_rows,
                c.normalized_rows,
                c.compared,
                c.differences,
                c.rejects,
            )
            for c in facts.certificates
        ],
    )


def _mismatches(facts: Facts, place: Place) -> Iterator[Html | Table]:
    if not facts.mismatches:
        yield note("No mismatch was ever confirmed.")
        return
    found = sorted(entry.found_at for entry in facts.mismatches)
    settled = sorted(entry.settled_at for entry in facts.mismatches if entry.settled_at is not None)
    moments = {"found": found, "settled": settled}
    yield charts.counts("Mismatches found and settled, added up", moments, found[0], facts.at)
    groups = Counter((m.pair, m.column or "whole row", m.kind, m.state, m.found_by) for m in facts.mismatches)
    seen: Counter[tuple[str, ...]] = Counter()
    for m in facts.mismatches:
        seen[m.pair, m.column or "whole row", m.kind, m.state, m.found_by] += m.seen
    yield Table(
        "Kinds of mismatches",
        ("pair", "column", "kind", "state", "found by", "entries", "times seen"),
        [(*group, count, seen[group]) for group, count in sorted(groups.items())],
    )
    yield Table(
        "Mismatches",
        ("no.", "pair", "key", "column", "kind", "state", "found by", "found", "settled", "note"),
        [
            (m.id, m.pair, str(m.key), m.column, m.kind, m.state, m.found_by, m.found_at, m.settled_at, m.note)
            for m in facts.mismatches
        ],
        pages=place.mismatches,
    )
    yield note(NOT_STORED, "when a mismatch was seen again; it is counted, and drawn once, where it was found.")


def _rejects(facts: Facts) -> Iterator[Html | Table]:
    if not facts.rejects:
        yield note("Every row could be carried.")
        return
    yield Table(
        "Rejected rows",
        ("no.", "table", "key", "reason", "state", "found", "settled", "note"),
        [(r.id, r.table, str(r.key), r.reason, r.state, r.found_at, r.settled_at, r.note) for r in facts.rejects],
    )


# How fast -------------------------------------------------------------------------------------------------


def _reads(facts: Facts) -> Iterator[Html | Table]:
    if not facts.reads:
        yield note("Not measured: there are no two sides with rows to compare, or this page is live.")
        return
    by_name: dict[str, dict[Side, ReadTimes]] = {}
    for times in facts.reads:
        by_name.setdefault(f"{times.pair} {times.kind}", {})[times.side] = times
    groups = {
        side.value: [_ms(sides[side].latency.median) if side in sides else None for sides in by_name.values()]
        for side in Side
    }
    yield charts.bars("Median time of a read", list(by_name), groups, unit="ms")
    yield Table(
        "Timed reads",
        ("pair", "read", "side", "reads", "median ms", "p99 ms", "longest ms"),
        [
            (
                t.pair,
                t.kind,
                t.side.value,
                t.latency.count,
                *map(_ms, (t.latency.median, t.latency.p99, t.latency.longest)),
            )
            for t in facts.reads
        ],
    )
    yield note("Measured while this page was made, on this machine, in a read-only unit of work, both sides in turn.")
    yield note(NOT_STORED, "the reads of the application.")


Minutes: TypeAlias = dict[datetime, tuple[int, float]]
"""What was done in each minute: how much, and in how many seconds altogether."""


def _by_minute(facts: Facts, kind: str, name: Callable[[samples.Entry], str]) -> dict[str, Minutes]:
    """The samples of a kind, added up for each name and minute."""
    found: dict[str, Minutes] = {}
    for each in (each for each in facts.samples if each.kind == kind):
        minutes = found.setdefault(name(each), {})
        amount, took = minutes.get(each.at, (0, 0.0))
        minutes[each.at] = amount + each.amount, took + each.took
    return found


def _written(phase: str) -> str:
    """The sides that are written in a phase, as it is called in samples."""
    known = Phase.__members__.get(phase.upper())
    if known is None:
        return "not prepared"
    sides = [Side.LEGACY.value] * known.writes_legacy + [Side.NORMALIZED.value] * known.writes_normalized
    return " and ".join(sides)


def _writes(facts: Facts) -> Iterator[Html | Table]:
    """How long writes take by the sides they write, and who writes."""
    minutes = _by_minute(facts, samples.WRITE, lambda each: _written(each.name))
    if minutes:
        lines = {name: [(at, _ms(s / n)) for at, (n, s) in each.items()] for name, each in minutes.items()}
        yield charts.over_time("Mean time of a unit of work that writes, by the sides it writes, in ms", lines)
    else:
        yield note(
            NOT_STORED,
            "the writes of applications, until one of them calls ",
            tag("code", "telemetry.report_to_dashboard(store)"),
        )
    writers: dict[tuple[str, ...], list[samples.Entry]] = {}
    for each in (each for each in facts.samples if each.kind == samples.WRITE):
        key = (each.application, f"consensus_orm {each.build}", each.process, _written(each.name))
        writers.setdefault(key, []).append(each)
    if writers:
        rows = [(*key, *_of_writer(found)) for key, found in writers.items()]
        names = ("application", "build", "process", "writes", "units of work", "mean ms", "longest ms", "last seen")
        yield Table("Writers of the last day", names, rows)
    status = facts.status
    undecided = f", {count(status.undecided, 'row waits', 'rows wait')} for a choice" if status.undecided else ""
    yield note(f"Foreign programs: {count(status.foreign_writes, 'noticed write')} of one side alone{undecided}.")
    for dependency in status.dependencies:
        yield note(dependency.told, "" if dependency.accepted is None else f", accepted: {dependency.accepted}")


def _of_writer(found: list[samples.Entry]) -> tuple[int, float, float, datetime]:
    amount = sum(each.amount for each in found)
    mean = sum(each.took for each in found) / max(amount, 1)
    return amount, _ms(mean), _ms(max(each.longest for each in found)), max(each.at for each in found)


def _rehearsed_writes(evidence: Evidence | None) -> Iterator[Html | Table]:
    if evidence is None or evidence.report.writers is None:
        yield note("Not measured. Measure them on a copy: ", tag("code", "consensus-orm rehearse --writers 4"))
        return
    latency = evidence.report.writers.latency
    medians = [_ms(each.median) for each in latency.values()]
    yield charts.bars("Median time of a unit of work that writes", list(latency), {"median": medians}, unit="ms")
    yield Table(
        "Writes of the rehearsal",
        ("phase", "units of work", "median ms", "p99 ms", "longest ms"),
        [(name, each.count, *map(_ms, (each.median, each.p99, each.longest))) for name, each in latency.items()],
    )
    yield note(
        f"Measured in the rehearsal of {moment(evidence.report.at)} on a copy, while it was moved, with"
        f" {evidence.report.writers.threads} writers at a time. EXPAND writes legacy alone, CONTRACT normalized alone."
    )


# Rehearsal ------------------------------------------------------------------------------------------------


def _rehearsal(evidence: Evidence | None) -> Iterator[Html | Table]:
    if evidence is None:
        yield note("None is on record beside the database. Run: ", tag("code", "consensus-orm rehearse"))
        return
    report = evidence.report
    if evidence.stale:
        yield note(f"It says nothing about this database any more: {evidence.stale}.")
    yield tag("p", *_verdict(report))
    if report.refused:
        yield tag("ul", *(tag("li", reason) for reason in report.refused))
    names = [f"{step.action}: {step.before.name} → {step.after.name}" for step in report.steps]
    groups = {
        "whole step": [step.seconds * 1000 for step in report.steps],
        "longest lock": [step.longest_lock * 1000 for step in report.steps],
    }
    yield charts.bars("Time of each step of the rehearsal", names, groups, unit="ms")
    yield Table(
        "Steps of the rehearsal",
        ("step", "from", "to", "rows", "seconds", "longest lock ms", "bytes on disk"),
        [
            (s.action, s.before.name, s.after.name, s.rows, s.seconds, _ms(s.longest_lock), Bytes(s.bytes))
            for s in report.steps
        ],
    )
    yield Table(
        "Proofs of the rehearsal",
        ("proved at", "table", "rows", "SHA-256 of types and bytes", "as it was"),
        [(p.phase.name, p.table, p.rows, p.digest, p.difference or True) for p in report.proofs],
    )
    for each in report.notes:
        yield note(each)


def _verdict(report: RehearsalReport) -> Iterator[Child]:
    yield tag("b", "Passed" if report.passed else "Not passed")
    yield f" on {moment(report.at)}, by build {report.build}: {count(report.rows, 'row')}"
    yield " came out byte for byte as they went in" if report.equal else " were read back, and NOT all as they went in"
    way = f"from {report.began.name} by way of {report.reached.name} to {report.ended.name}"
    yield f", {way} in {report.seconds:.1f} s."
