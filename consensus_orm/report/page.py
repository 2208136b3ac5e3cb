"""The HTML of the report; `tag` escapes every value of the database."""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from importlib import resources

from consensus_orm._version import __version__
from consensus_orm.formats import duration, moment
from consensus_orm.phase import Phase, Side
from consensus_orm.rehearsal import Evidence, RehearsalReport
from consensus_orm.report import charts
from consensus_orm.report.facts import Facts, ReadTimes
from consensus_orm.times import when

__all__ = ["page"]

LISTED = 200
"""Entries of a table before the rest is only counted."""

NOT_STORED = "Not stored: "


class Html(str):
    """Text that is HTML, and not escaped again."""

    __slots__ = ()


Child = object


def tag(name: str, *children: Child, **attributes: str) -> Html:
    """An element with attributes (`class_` for `class`); its children are escaped unless they are HTML."""
    given = "".join(f' {key.rstrip("_")}="{html.escape(value)}"' for key, value in attributes.items())
    return Html(f"<{name}{given}>{_joined(children)}</{name}>")


def _joined(children: Iterable[Child]) -> str:
    return "".join(child if isinstance(child, Html) else html.escape(_visible(child)) for child in children)


def _visible(value: Child) -> str:
    """A value as text, without control characters; None is a dash."""
    text = "–" if value is None else str(value)
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def page(facts: Facts) -> str:
    """The page for the facts of a store."""
    style = resources.files("consensus_orm.report").joinpath("style.css").read_text(encoding="utf-8")
    title = f"Migration of {facts.database.rpartition('/')[2]}"
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}"><meta name="color-scheme" content="light dark">'
    )
    body = tag("header", tag("h1", title), _summary(facts)) + tag("main", *_sections(facts)) + _footer(facts)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head>{head}{tag("title", title)}<style>{style}</style></head>'
        f"<body>{body}</body></html>\n"
    )


def _sections(facts: Facts) -> Iterator[Html]:
    yield _section("Timeline", _timeline(facts))
    yield _section("Rows and bytes", _sizes(facts))
    yield _section("Backfill", _backfill(facts))
    yield _section("Certificates", _certificates(facts))
    yield _section("Mismatches and repairs", _mismatches(facts))
    yield _section("Rejects", _rejects(facts))
    yield _section("Reads: legacy against normalized", _reads(facts))
    yield _section("Writes by phase", _writes(facts.evidence))
    yield _section("Rehearsal", _rehearsal(facts.evidence))


def _section(title: str, parts: Iterable[Html]) -> Html:
    return tag("section", tag("h2", title), *parts)


def _footer(facts: Facts) -> Html:
    sqlite = f", SQLite {facts.stats.sqlite_version}" if facts.stats else ""
    return tag(
        "footer",
        tag("p", f"Made {moment(facts.at)} by consensus_orm {__version__}{sqlite}; mapping {facts.mapping}."),
        tag("p", "All times are UTC. This page holds no contents of rows."),
    )


# Pieces ---------------------------------------------------------------------------------------------------


def _note(*children: Child) -> Html:
    return tag("p", *children, class_="note")


def _chart(svg: str) -> Html:
    return tag("figure", Html(svg))


def _table(headings: Sequence[str], rows: Sequence[Sequence[Child]]) -> Html:
    shown = rows[-LISTED:]
    numeric = [all(_is_number(row[at]) for row in shown) for at in range(len(headings))]
    classes = ["number" if each else "text" for each in numeric]
    head = tag("tr", *(tag("th", text, class_=c, scope="col") for text, c in zip(headings, classes, strict=True)))
    body = [
        tag("tr", *(tag("td", _cell(cell), class_=c) for cell, c in zip(row, classes, strict=True))) for row in shown
    ]
    made = tag("div", tag("table", tag("thead", head), tag("tbody", *body)), class_="table")
    left_out = len(rows) - len(shown)
    return Html(made + _note(f"and {left_out:,} earlier ones")) if left_out else made


def _is_number(value: Child) -> bool:
    return isinstance(value, int | float | None) and not isinstance(value, bool)


def _cell(value: Child) -> Child:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: None}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.3f}"
    return moment(value) if isinstance(value, datetime) else value


def _ms(seconds: float) -> float:
    return seconds * 1000


# Summary and timeline -------------------------------------------------------------------------------------


def _summary(facts: Facts) -> Html:
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
            f"{status.mismatches:,} mismatches, {status.rejects:,} rejects, {status.foreign_writes:,} foreign writes",
        ),
        ("soak", f"{duration(status.soak_left)} left" if status.soak_left else "over"),
    ]
    if facts.stats is not None:
        entries.append(("on disk", f"{facts.stats.disk.total:,} bytes, journal mode {facts.stats.journal_mode}"))
    if status.next_command:
        entries.append(("next", tag("code", status.next_command)))
    track = tag("ol", *(_station(phase, status.phase) for phase in Phase), class_="track")
    gate = _gate(facts)
    return Html(track + tag("dl", *(Html(tag("dt", name) + tag("dd", value)) for name, value in entries)) + gate)


def _station(phase: Phase, now: Phase) -> Html:
    state = "now" if phase is now else "done" if phase < now else "ahead"
    current = {"aria-current": "step"} if phase is now else {}
    return tag("li", tag("b", phase.value), f" {phase.name}", class_=state, **current)


def _gate(facts: Facts) -> Html:
    if not facts.status.gate or facts.status.phase.next is None:
        return Html("")
    reasons = tag("ul", *(tag("li", reason) for reason in facts.status.gate))
    return Html(tag("p", f"The gate to {facts.status.phase.next.name} is shut:") + reasons)


def _timeline(facts: Facts) -> Iterator[Html]:
    if not facts.history:
        yield _note("Nothing has happened yet.")
        return
    changes = [(entry.at, float(entry.to_phase)) for entry in facts.history if entry.to_phase is not None]
    if changes:
        yield _chart(charts.phases("The phase over time", [*changes, (facts.at, changes[-1][1])]))
    rows = []
    for entry in facts.history:
        names = " → ".join(phase.name for phase in (entry.from_phase, entry.to_phase) if phase is not None)
        why = (entry.reason or "") + (" (forced)" if entry.forced else "")
        rows.append((entry.at, entry.action, names, entry.by, why))
    yield _table(("when", "what", "phase", "who", "why"), rows)


# What is where --------------------------------------------------------------------------------------------


def _sizes(facts: Facts) -> Iterator[Html]:
    if not facts.tables:
        yield _note("There is no table of this move.")
        return
    names = [table.name for table in facts.tables]
    for unit in ("rows", "bytes"):
        groups = {
            side.value: [getattr(table, unit) if table.side is side else None for table in facts.tables]
            for side in Side
        }
        if any(value is not None for values in groups.values() for value in values):
            shown = {name: values for name, values in groups.items() if any(v is not None for v in values)}
            yield _chart(charts.bars(f"{unit.capitalize()} of each table", names, shown, unit=unit, stacked=True))
    yield _table(
        ("table", "side", "rows", "bytes"),
        [(table.name, table.side.value, table.rows, table.bytes) for table in facts.tables],
    )
    if all(table.bytes is None for table in facts.tables):
        yield _note("Bytes of single tables are not known: this SQLite is built without dbstat.")
    else:
        yield _note("Bytes are of whole pages, those of indexes included.")


def _backfill(facts: Facts) -> Iterator[Html]:
    if not facts.backfills:
        yield _note("No backfill is on record; a rollback to EXPAND forgets it.")
        return
    yield _table(
        ("pair", "rows", "finished", "first chunk", "last chunk", "rows a second"),
        [(b.pair, b.rows, b.finished, b.started, b.updated, b.rate) for b in facts.backfills],
    )
    yield _note(NOT_STORED, "the rate of each chunk. What is shown is the average, pauses and interruptions included.")


def _certificates(facts: Facts) -> Iterator[Html]:
    if not facts.certificates:
        yield _note("Nothing was verified yet.")
        return
    yield _table(
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


def _mismatches(facts: Facts) -> Iterator[Html]:
    if not facts.mismatches:
        yield _note("No mismatch was ever confirmed.")
        return
    found = sorted(entry.found_at for entry in facts.mismatches)
    settled = sorted(entry.settled_at for entry in facts.mismatches if entry.settled_at is not None)
    lines = {"found": _cumulated(found, found[0], facts.at), "settled": _cumulated(settled, found[0], facts.at)}
    yield _chart(charts.over_time("Mismatches found and settled, added up", lines))
    groups = Counter((m.pair, m.column or "whole row", m.kind, m.state, m.found_by) for m in facts.mismatches)
    seen: Counter[tuple[str, ...]] = Counter()
    for m in facts.mismatches:
        seen[m.pair, m.column or "whole row", m.kind, m.state, m.found_by] += m.seen
    yield _table(
        ("pair", "column", "kind", "state", "found by", "entries", "times seen"),
        [(*group, count, seen[group]) for group, count in sorted(groups.items())],
    )
    yield _note(NOT_STORED, "when a mismatch was seen again; it is counted, and drawn once, where it was found.")


def _cumulated(moments: list[datetime], start: datetime, end: datetime) -> list[tuple[datetime, float]]:
    """The cumulated number of moments, in steps."""
    steps: list[tuple[datetime, float]] = [(start, 0.0)]
    for number, at in enumerate(moments, 1):
        steps += [(at, number - 1.0), (at, float(number))]
    return [*steps, (end, float(len(moments)))]


def _rejects(facts: Facts) -> Iterator[Html]:
    if not facts.rejects:
        yield _note("Every row could be carried.")
        return
    yield _table(
        ("no.", "table", "key", "reason", "state", "found", "settled", "note"),
        [(r.id, r.table, str(r.key), r.reason, r.state, r.found_at, r.settled_at, r.note) for r in facts.rejects],
    )


# How fast -------------------------------------------------------------------------------------------------


def _reads(facts: Facts) -> Iterator[Html]:
    if not facts.reads:
        yield _note("Not measured: there are no two sides with rows to compare.")
        return
    by_name: dict[str, dict[Side, ReadTimes]] = {}
    for times in facts.reads:
        by_name.setdefault(f"{times.pair} {times.kind}", {})[times.side] = times
    groups = {
        side.value: [_ms(sides[side].latency.median) if side in sides else None for sides in by_name.values()]
        for side in Side
    }
    yield _chart(charts.bars("Median time of a read", list(by_name), groups, unit="ms"))
    yield _table(
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
    yield _note("Measured while this page was made, on this machine, in a read-only unit of work, both sides in turn.")
    yield _note(NOT_STORED, "the reads of the application.")


def _writes(evidence: Evidence | None) -> Iterator[Html]:
    if evidence is None or evidence.report.writers is None:
        yield _note(
            NOT_STORED,
            "how long writes take; and none are made for a report. Measure them on a copy: ",
            tag("code", "consensus-orm rehearse --writers 4"),
        )
        return
    latency = evidence.report.writers.latency
    medians = [_ms(each.median) for each in latency.values()]
    yield _chart(
        charts.bars("Median time of a unit of work that writes", list(latency), {"median": medians}, unit="ms")
    )
    yield _table(
        ("phase", "units of work", "median ms", "p99 ms", "longest ms"),
        [(name, each.count, *map(_ms, (each.median, each.p99, each.longest))) for name, each in latency.items()],
    )
    yield _note(
        f"Measured in the rehearsal of {moment(evidence.report.at)} on a copy, while it was moved, with"
        f" {evidence.report.writers.threads} writers at a time. EXPAND writes legacy alone, CONTRACT normalized alone."
    )


# Rehearsal ------------------------------------------------------------------------------------------------


def _rehearsal(evidence: Evidence | None) -> Iterator[Html]:
    if evidence is None:
        yield _note("None is on record beside the database. Run: ", tag("code", "consensus-orm rehearse"))
        return
    report = evidence.report
    if evidence.stale:
        yield _note(f"It says nothing about this database any more: {evidence.stale}.")
    yield tag("p", *_verdict(report))
    if report.refused:
        yield tag("ul", *(tag("li", reason) for reason in report.refused))
    names = [f"{step.action}: {step.before.name} → {step.after.name}" for step in report.steps]
    groups = {
        "whole step": [step.seconds * 1000 for step in report.steps],
        "longest lock": [step.longest_lock * 1000 for step in report.steps],
    }
    yield _chart(charts.bars("Time of each step of the rehearsal", names, groups, unit="ms"))
    yield _table(
        ("step", "from", "to", "rows", "seconds", "longest lock ms", "bytes on disk"),
        [
            (s.action, s.before.name, s.after.name, s.rows, s.seconds, _ms(s.longest_lock), s.bytes)
            for s in report.steps
        ],
    )
    yield _table(
        ("proved at", "table", "rows", "SHA-256 of types and bytes", "as it was"),
        [(p.phase.name, p.table, p.rows, p.digest, p.difference or True) for p in report.proofs],
    )
    for note in report.notes:
        yield _note(note)


def _verdict(report: RehearsalReport) -> Iterator[Child]:
    yield tag("b", "Passed" if report.passed else "Not passed")
    yield f" on {moment(report.at)}, by build {report.build}: {report.rows:,} rows"
    yield " came out byte for byte as they went in" if report.equal else " were read back, and NOT all as they went in"
    way = f"from {report.began.name} by way of {report.reached.name} to {report.ended.name}"
    yield f", {way} in {report.seconds:.1f} s."
