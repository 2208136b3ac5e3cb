"""Adopt the rows of the two builds that had normalized tables before.

The dual-write build kept both sides, and its legacy side is the truth: rows that only its normalized side has become
rejects. The final build had dropped the legacy side, so all rows are carried over; those that cannot be are kept whole
in consensus_orm_rejects.

The rules are copied here, not imported: this revision must not change with the package.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

EXPAND = 1
RUNS, OUTPUTS = "consensus_orm_founding_runs", "consensus_orm_founding_outputs"
SYNTHESES = "consensus_orm_founding_syntheses"
RUN_COLUMNS = ("id", "spec_id", "stage", "run_timestamp", "consensus_ok", "degraded", "synthesis_json")
OUTPUT_COLUMNS = ("id", "run_id", "agent_name", "model_version", "content", "output_timestamp")
SYNTHESIS_TYPES: dict[str, tuple[type, ...]] = {
    "output_markdown": (str,),
    "output_path": (str, type(None)),
    "status": (str,),
    "artifacts_count": (int, type(None)),
    "agreements": (str, type(None)),
    "conflicts": (str, type(None)),
}


def upgrade() -> None:
    if not sa.inspect(op.get_bind()).has_table(RUNS):
        return
    if _sql("SELECT phase FROM consensus_orm_state").scalar_one() == EXPAND:
        _quarantine_what_legacy_lacks()
    else:
        _carry_everything()
    op.drop_table(OUTPUTS)
    op.drop_table(RUNS)


def downgrade() -> None:
    """Do nothing: the adopted rows are in the tables of 0002, whose downgrade refuses to lose them."""


def _sql(statement: str, parameters: Any = None) -> sa.CursorResult[*tuple[Any, ...]]:
    return op.get_bind().exec_driver_sql(statement, parameters)


# Rejects


def _image(table: str, columns: tuple[str, ...], prefix: str = "") -> str:
    """The arguments of json_object that keep a row exactly: column, [typeof, hex of the bytes]."""
    return ", ".join(
        f"'{prefix}{name}', json_array(typeof({table}.{name}), hex(CASE typeof({table}.{name})"
        f" WHEN 'real' THEN printf('%!.20g', {table}.{name}) ELSE {table}.{name} END))"
        for name in columns
    )


def _reject_output(output_id: int, reason: str) -> None:
    """Keep an output with its run, without a key: ids of a founding table do not match those of legacy rows."""
    _sql(
        f"""
        INSERT INTO consensus_orm_rejects (pair, table_name, reason, state, found_at, image)
        SELECT 'artifacts', 'agent_outputs', ?, 'open', (SELECT since FROM consensus_orm_state),
               json_object({_image("o", OUTPUT_COLUMNS)}, {_image("r", RUN_COLUMNS, "run.")})
        FROM {OUTPUTS} AS o LEFT JOIN {RUNS} AS r ON r.id = o.run_id WHERE o.id = ?""",
        (reason, output_id),
    )


def _reject_runs(reasons: dict[str, str], *, accepted: tuple[str, ...] = ()) -> None:
    """Keep the runs of which one of the conditions is true, with the reason of the first such condition.

    Args:
        reasons: SQL condition on a run `r` -> reason.
        accepted: Reasons that lose no information: such rows are kept, and the gate stays open.
    """
    whens = " ".join(f"WHEN {condition} THEN '{reason}'" for condition, reason in reasons.items())
    state = f"CASE WHEN reason IN ({', '.join(map(repr, accepted))}) THEN 'accepted' ELSE 'open' END"
    _sql(
        f"""
        INSERT INTO consensus_orm_rejects
               (pair, table_name, reason, state, found_at, settled_at, note, image)
        SELECT CASE WHEN r.synthesis_json IS NULL THEN 'artifacts' ELSE 'syntheses' END, 'consensus_runs',
               reason, {state}, since, iif({state} = 'accepted', since, NULL),
               iif({state} = 'accepted', 'adopted; kept for the record', NULL),
               json_object({_image("r", RUN_COLUMNS)})
        FROM (SELECT r.*, CASE {whens} END AS reason FROM {RUNS} AS r) AS r, consensus_orm_state
        WHERE reason IS NOT NULL ORDER BY r.id"""
    )


NO_OUTPUTS = f"r.id NOT IN (SELECT run_id FROM {OUTPUTS} WHERE run_id IS NOT NULL)"
SAYS_MORE = "(r.consensus_ok IS NOT 1 OR r.degraded IS NOT 0)"


# The dual-write build: legacy is the truth


def _quarantine_what_legacy_lacks() -> None:
    _quarantine_outputs()
    _parse_syntheses()
    _forget_syntheses_that_legacy_lacks()
    status_says = f"(SELECT instr(lower(s.status), 'failed') = 0 FROM {SYNTHESES} AS s WHERE s.id = r.id)"
    _reject_runs(
        {
            f"r.synthesis_json IS NOT NULL AND r.id NOT IN (SELECT id FROM {SYNTHESES})": (
                "the legacy side has no such synthesis"
            ),
            # That build set this to 1 in every run.
            f"r.synthesis_json IS NOT NULL AND r.consensus_ok IS NOT 1 AND r.consensus_ok IS NOT {status_says}": (
                "consensus_ok is not what the status of the synthesis says"
            ),
            f"r.synthesis_json IS NULL AND {NO_OUTPUTS}": "a run without outputs",
            f"r.synthesis_json IS NULL AND {SAYS_MORE}": (
                "the legacy side has no place for consensus_ok and degraded of a run"
            ),
        }
    )
    op.drop_table(SYNTHESES)


def _quarantine_outputs() -> None:
    lacking = _lacking(
        _fingerprints("spec_id, stage, agent_name, content_json", "consensus_artifacts"),
        _fingerprints(
            "r.spec_id, r.stage, o.agent_name, o.content",
            f"{OUTPUTS} AS o LEFT JOIN {RUNS} AS r ON r.id = o.run_id ORDER BY o.id",
            key="o.id",
        ),
    )
    with_model = {row_id for (row_id,) in _sql(f"SELECT id FROM {OUTPUTS} WHERE model_version IS NOT NULL")}
    for output_id in sorted(lacking | with_model):
        if output_id in lacking:
            _reject_output(output_id, "the legacy side has no such row")
        else:
            _reject_output(output_id, "the legacy side has no place for model_version")


def _forget_syntheses_that_legacy_lacks() -> None:
    """Remove from the parsed syntheses those that equal one of the legacy side: they are copies of it."""
    lacking = _lacking(
        _fingerprints(f"spec_id, stage, degraded, {', '.join(SYNTHESIS_TYPES)}", "consensus_synthesis"),
        _fingerprints(
            f"r.spec_id, r.stage, r.degraded, {', '.join(f's.{name}' for name in SYNTHESIS_TYPES)}",
            f"{SYNTHESES} AS s JOIN {RUNS} AS r ON r.id = s.id ORDER BY s.id",
            key="s.id",
        ),
    )
    for run_id in lacking:
        _sql(f"DELETE FROM {SYNTHESES} WHERE id = ?", (run_id,))


Fingerprint = tuple[int, bytes]


def _lacking(legacy: Iterator[Fingerprint], founding: Iterator[Fingerprint]) -> set[int]:
    """Ids of the founding rows without a counterpart of their own.

    Equal rows are matched one to one: two of them need two counterparts.
    """
    counterparts = Counter(fingerprint for _, fingerprint in legacy)
    lacking = set()
    for row_id, fingerprint in founding:
        counterparts[fingerprint] -= 1
        if counterparts[fingerprint] < 0:
            lacking.add(row_id)
    return lacking


def _fingerprints(columns: str, source: str, *, key: str = "id") -> Iterator[Fingerprint]:
    """Yield id and a hash over type and bytes of some columns; streamed, since contents are large."""
    names = columns.split(", ")
    types = " || ".join(f"typeof({name}) || ' '" for name in names)
    blobs = ", ".join(f"CAST({name} AS BLOB)" for name in names)
    for row_id, kinds, *values in _sql(f"SELECT {key}, {types}, {blobs} FROM {source}"):
        digest = hashlib.blake2b(kinds.encode(), digest_size=16)
        for value in values:
            digest.update(b"%d:" % len(value or b""))
            digest.update(value or b"")
        yield row_id, digest.digest()


# The final build: normalized is the truth


def _time(ms: str) -> str:
    """A time made from ms: YYYY-MM-DD HH:MM:SS[.fff]; the value itself outside the years 1 to 9999."""
    rest = f"(({ms} % 1000 + 1000) % 1000)"  # SQL's % keeps the sign
    second = f"datetime(({ms} - {rest}) / 1000, 'unixepoch')"
    return (
        f"(CASE WHEN typeof({ms}) = 'integer' AND {second} >= '0001'"
        f" THEN {second} || iif({rest} = 0, '', printf('.%03d', {rest})) ELSE {ms} END)"
    )


SECOND = "[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9] [0-9][0-9]:[0-9][0-9]:[0-9][0-9]"
IS_TIME = (
    "(typeof(created_at) = 'text' AND instr(created_at, char(0)) = 0"
    f" AND (created_at GLOB '{SECOND}' OR (created_at GLOB '{SECOND}.[0-9]*'"
    " AND substr(created_at, 21) NOT GLOB '*[^0-9]*')))"
)
MILLISECONDS = (
    f"(CASE WHEN {IS_TIME} AND substr(created_at, 1, 4) > '0000'"
    # Without a modifier, SQLite before 3.43 returns 30 February unchanged.
    " AND datetime(substr(created_at, 1, 19), '+0 seconds') IS substr(created_at, 1, 19)"
    " AND substr(created_at, 12, 2) < '24'"
    " THEN CAST(strftime('%s', substr(created_at, 1, 19)) AS INTEGER) * 1000"
    " + CAST(substr(substr(created_at, 21) || '000', 1, 3) AS INTEGER) ELSE 0 END)"
)
RUN_KEY = (
    f"(CASE WHEN {IS_TIME} THEN 'at:' || substr(created_at, 1, 19)"
    " ELSE 'at-' || typeof(created_at) || ':' || CASE typeof(created_at) WHEN 'null' THEN ''"
    " WHEN 'blob' THEN hex(created_at) WHEN 'real' THEN printf('%!.20g', created_at)"
    " ELSE CAST(created_at AS TEXT) END END)"
)


def _keyed(table: str, columns: str, ms: str, join: str) -> str:
    """Rows of a founding table with the identity of the run to which they belong from now on (rule 4)."""
    return (
        f"SELECT *, {MILLISECONDS} AS ms, {RUN_KEY} AS run_key FROM"
        f" (SELECT {columns}, r.spec_id, r.stage, {_time(ms)} AS created_at"
        f" FROM {table} AS x JOIN {RUNS} AS r ON r.id = {join})"
    )


def _carry_everything() -> None:
    _parse_syntheses()
    outputs = _keyed(OUTPUTS, "x.*", "x.output_timestamp", "x.run_id")
    syntheses = _keyed(SYNTHESES, "x.*, r.degraded", "r.run_timestamp", "x.id")
    _sql(
        f"""
        INSERT INTO consensus_runs (spec_id, stage, run_key, run_timestamp, consensus_ok)
        SELECT spec_id, stage, run_key, min(ms), 1
        FROM (SELECT spec_id, stage, run_key, ms FROM ({outputs})
              UNION ALL SELECT spec_id, stage, run_key, ms FROM ({syntheses}))
        GROUP BY spec_id, stage, run_key ORDER BY 4, 1, 2, 3"""
    )
    same_run = "(n.spec_id, n.stage, n.run_key) = (x.spec_id, x.stage, x.run_key)"
    _sql(
        f"""
        INSERT INTO agent_outputs
               (id, run_id, agent_name, model_version, output_timestamp, created_at, mirrored, content)
        SELECT x.id, n.id, x.agent_name, x.model_version, x.ms, x.created_at, 1, x.content
        FROM ({outputs}) AS x JOIN consensus_runs AS n ON {same_run} ORDER BY x.id"""
    )
    _sql(
        f"""
        INSERT INTO consensus_syntheses
               (id, run_id, status, artifacts_count, degraded, synthesis_timestamp, created_at, mirrored,
                output_path, agreements, conflicts, output_markdown)
        SELECT x.id, n.id, x.status, x.artifacts_count, x.degraded, x.ms, x.created_at, 1,
               x.output_path, x.agreements, x.conflicts, x.output_markdown
        FROM ({syntheses}) AS x JOIN consensus_runs AS n ON {same_run} ORDER BY x.id"""
    )
    _derive_from_latest_synthesis()
    _reject_what_was_not_carried()
    op.drop_table(SYNTHESES)


def _parse_syntheses() -> None:
    """Read the syntheses that are exactly what the final build wrote; the others become rejects."""
    _sql(
        f"CREATE TABLE {SYNTHESES} (id INTEGER PRIMARY KEY, output_markdown TEXT, output_path TEXT,"
        " status TEXT, artifacts_count INTEGER, agreements TEXT, conflicts TEXT)"
    )
    candidates = _sql(f"SELECT id, CAST(synthesis_json AS BLOB) FROM {RUNS} WHERE typeof(synthesis_json) = 'text'")
    for run_id, text in candidates:
        if (synthesis := _parse(text)) is not None:
            _sql(f"INSERT INTO {SYNTHESES} VALUES (?, ?, ?, ?, ?, ?, ?)", (run_id, *synthesis))


def _parse(text: bytes) -> tuple[Any, ...] | None:
    """The six values of a synthesis; None where the text is not exactly one such object."""
    try:
        pairs = json.loads(text.decode(), object_pairs_hook=tuple)
    except (ValueError, RecursionError):
        return None
    # As pairs, because a dict would hide that a key was given twice.
    if not isinstance(pairs, tuple) or sorted(key for key, _ in pairs) != sorted(SYNTHESIS_TYPES):
        return None
    fields = dict(pairs)
    values = tuple(fields[name] for name in SYNTHESIS_TYPES)
    if any(type(fields[name]) not in types for name, types in SYNTHESIS_TYPES.items()):
        return None
    count = fields["artifacts_count"] or 0
    speakable = all(_is_unicode(value) for value in values if isinstance(value, str))
    return values if speakable and -(2**63) <= count < 2**63 else None


def _is_unicode(text: str) -> bool:
    """Whether a text is without lone surrogates, which JSON can spell and UTF-8 cannot hold."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _derive_from_latest_synthesis() -> None:
    _sql(
        """
        UPDATE consensus_runs SET (consensus_ok, degraded, synthesis_json) = (
            SELECT instr(lower(s.status), 'failed') = 0,
                   CASE WHEN typeof(s.degraded) IN ('integer', 'real') THEN s.degraded <> 0
                        WHEN typeof(s.degraded) = 'text' THEN lower(s.degraded) = 'true' ELSE 0 END
                   OR instr(lower(s.status), 'degraded') > 0,
                   json_object('output_markdown', s.output_markdown, 'output_path', s.output_path,
                               'status', s.status, 'artifacts_count', s.artifacts_count,
                               'agreements', s.agreements, 'conflicts', s.conflicts)
            FROM consensus_syntheses AS s WHERE s.run_id = consensus_runs.id
            ORDER BY s.synthesis_timestamp DESC, s.id DESC LIMIT 1)
        WHERE id IN (SELECT run_id FROM consensus_syntheses)"""
    )


def _reject_what_was_not_carried() -> None:
    orphans = _sql(f"SELECT id FROM {OUTPUTS} WHERE id NOT IN (SELECT id FROM agent_outputs) ORDER BY id")
    for (output_id,) in orphans.all():
        _reject_output(output_id, "an output whose run does not exist")
    # Equal rows of one second now belong to one run, whose time is that of its earliest output.
    other_time = "the run had a time of its own, other than that of its outputs"
    not_what_status_says = (
        f"EXISTS (SELECT 1 FROM {SYNTHESES} AS s WHERE s.id = r.id"
        " AND r.consensus_ok IS NOT (instr(lower(s.status), 'failed') = 0))"
    )
    _reject_runs(
        {
            f"r.synthesis_json IS NOT NULL AND r.id NOT IN (SELECT id FROM {SYNTHESES})": (
                "synthesis_json is not the object the final build wrote"
            ),
            f"r.synthesis_json IS NULL AND {NO_OUTPUTS}": "a run without outputs and without a synthesis",
            f"r.synthesis_json IS NULL AND {SAYS_MORE}": (
                "consensus_ok and degraded say something, and there is no synthesis to carry it"
            ),
            not_what_status_says: "consensus_ok is not what the status of the synthesis says",
            "r.synthesis_json IS NULL AND r.run_timestamp IS NOT"
            f" (SELECT min(o.output_timestamp) FROM {OUTPUTS} AS o WHERE o.run_id = r.id)": other_time,
        },
        accepted=(other_time,),
    )
