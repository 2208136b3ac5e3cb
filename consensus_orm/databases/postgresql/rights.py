"""The rights of roles on a PostgreSQL server: who may use a legacy table may use what this package puts beside it.

A role that may read, insert, update or delete rows of a legacy table needs the same right on the tables that take its
place, and some on the control tables. None of these changes the phase or removes an entry of a ledger that others need:
revision 0012 has the triggers that see to it. A legacy table that is made again has the roles of the other side.

A program that knows only the legacy tables needs none of these rights, because the functions of the triggers run as
their owner.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator
from itertools import product
from typing import NamedTuple

from consensus_orm import errors
from consensus_orm.databases.base import FENCE, Dependency, Transaction
from consensus_orm.declaration.attributes import table_of
from consensus_orm.declaration.moves import Moves
from consensus_orm.models.base import Base
from consensus_orm.models.control import (
    Acceptance,
    BackfillCheckpoint,
    Certificate,
    Change,
    ControlRow,
    GuardRecord,
    MigrationState,
    Mismatch,
    PhaseChange,
    ReadCount,
    Reject,
    RowImage,
)
from consensus_orm.phase import Phase, Side

__all__ = ["Lack", "dependencies", "give", "grants", "lacking"]

ALL = ("SELECT", "INSERT", "UPDATE", "DELETE")
WRITES = ALL[1:]

_BESIDE = {"SELECT": ("SELECT",), "INSERT": WRITES, "UPDATE": WRITES, "DELETE": WRITES}
"""What a right on a mapped table asks for on parents, parts and kept originals: a write may make or remove them."""

_READABLE = (
    MigrationState,
    GuardRecord,
    PhaseChange,
    Mismatch,
    Reject,
    RowImage,
    BackfillCheckpoint,
    Certificate,
    ControlRow,
    Change,
    Acceptance,
    ReadCount,
)
"""The control tables that units of work and `status` read; without the images of rows, which may be of any table."""


def _to_read(model: type[Base]) -> str:
    columns = [column.name for column in table_of(model).columns]
    return f"SELECT ({', '.join(name for name in columns if name != 'image')})" if "image" in columns else "SELECT"


_TO_WRITE: dict[str, tuple[str, ...]] = {
    "consensus_orm_changes": ("DELETE",),
    "consensus_orm_images": ("INSERT",),
    "consensus_orm_rejects": ("INSERT",),
    "consensus_orm_outbox": ("INSERT",),
    "consensus_orm_samples": ("SELECT", "INSERT", "UPDATE", "DELETE"),
}
_CONTROL: dict[str, dict[str, tuple[str, ...]]] = {
    "SELECT": {
        "consensus_orm_version": ("SELECT",),
        "consensus_orm_sinks": ("SELECT",),
        **{table_of(model).name: (_to_read(model),) for model in _READABLE},
        FENCE: ("UPDATE",),
        "consensus_orm_state": ("SELECT", "UPDATE (schema_version)"),
        "consensus_orm_mismatches": ("SELECT", "INSERT", "UPDATE (seen, state, settled_at, note)"),
        "consensus_orm_history": ("SELECT", "INSERT"),
    },
    **dict.fromkeys(WRITES, _TO_WRITE),
}
"""What a right on a mapped table asks for on the control tables. Who reads may find a difference, and records it."""


class _Need(NamedTuple):
    """A right that follows from another one."""

    source: str
    """The table on which a role has a right."""
    held: str
    """That right."""
    kind: str
    """What the other right is on: a table, its sequences, its schema."""
    table: str
    right: str


class Lack(NamedTuple):
    """A right that a role lacks.

    Attributes:
        source: The table from whose rights it follows.
        role: The quoted role, or PUBLIC.
        kind: TABLE, SEQUENCE or SCHEMA.
        name: The quoted name of what it is on, with its schema.
        right: The right, with columns where it is on these.
        table: The table that needs it.
    """

    source: str
    role: str
    kind: str
    name: str
    right: str
    table: str


_QUERY = """
WITH given AS MATERIALIZED (
  SELECT n.name, a.grantee, a.privilege_type AS held
  FROM unnest(CAST(:sources AS TEXT[])) AS n(name)
  JOIN pg_class AS c ON c.oid = to_regclass(quote_ident(n.name)) AND c.relkind IN ('r', 'p')
  CROSS JOIN aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) AS a
), need AS MATERIALIZED (
  SELECT g.name, g.grantee, n.kind, c.oid, c.relnamespace, n.wanted, split_part(n.wanted, ' ', 1) AS verb,
    substring(n.wanted FROM '[(](.*)[)]') AS columns, n.object
  FROM given AS g
  JOIN unnest(CAST(:needs_source AS TEXT[]), CAST(:needs_held AS TEXT[]), CAST(:needs_kind AS TEXT[]),
    CAST(:needs_table AS TEXT[]), CAST(:needs_right AS TEXT[])) AS n(source, held, kind, object, wanted)
    ON n.source = g.name AND n.held = g.held
  JOIN pg_class AS c ON c.oid = to_regclass(quote_ident(n.object)) AND c.relkind IN ('r', 'p', 'v')
), target AS (
  SELECT n.*, n.oid AS of FROM need AS n WHERE n.kind = 'TABLE'
  UNION ALL SELECT n.*, n.relnamespace FROM need AS n WHERE n.kind = 'SCHEMA'
  UNION ALL SELECT n.*, s.oid FROM need AS n JOIN pg_class AS s ON s.relkind = 'S' AND s.oid IN (
    SELECT d.objid FROM pg_depend AS d WHERE d.classid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
      AND d.refclassid = 'pg_class'::regclass AND d.refobjid = n.oid
    UNION SELECT d.refobjid FROM pg_attrdef AS e JOIN pg_depend AS d ON d.classid = 'pg_attrdef'::regclass
      AND d.objid = e.oid AND d.refclassid = 'pg_class'::regclass WHERE e.adrelid = n.oid
  ) WHERE n.kind = 'SEQUENCE'
)
SELECT DISTINCT name, CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END, kind,
  CASE kind WHEN 'SCHEMA' THEN CAST(CAST(of AS regnamespace) AS TEXT)
    ELSE (SELECT format('%I.%I', s.nspname, c.relname) FROM pg_class AS c JOIN pg_namespace AS s
      ON s.oid = c.relnamespace WHERE c.oid = of) END, wanted, object
FROM target AS t WHERE CASE
  WHEN kind = 'SCHEMA' THEN NOT has_schema_privilege(grantee, of, 'USAGE')
  WHEN kind = 'SEQUENCE' THEN NOT has_sequence_privilege(grantee, of, verb)
  WHEN has_table_privilege(grantee, of, verb) THEN FALSE
  WHEN verb = 'DELETE' THEN TRUE
  ELSE EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = t.of AND a.attnum > 0 AND NOT a.attisdropped
    AND (columns IS NULL OR a.attname = ANY (string_to_array(columns, ', ')))
    AND NOT has_column_privilege(t.grantee, t.of, a.attnum, t.verb))
END ORDER BY 1, 2, 3 DESC, 4, 5
"""
"""The rights that roles lack; what a role has by its own roles, as the owner, or on each column counts."""

_PARTIAL = """
SELECT n.name, CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(x.grantee) END, x.privilege_type,
  string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum)
FROM unnest(CAST(:names AS TEXT[])) AS n(name) JOIN pg_class AS c ON c.oid = to_regclass(quote_ident(n.name))
JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
CROSS JOIN aclexplode(a.attacl) AS x
WHERE NOT has_table_privilege(x.grantee, c.oid, x.privilege_type)
GROUP BY 1, 2, 3 ORDER BY 1, 2, 3
"""
"""Rights on columns of the legacy tables, of roles that lack them on the whole table."""


def _needs(moves: Moves) -> Iterator[_Need]:
    """What follows from rights on the tables of either side."""
    for pair in moves:
        legacy, own = pair.legacy_name, pair.table.name
        beside = [parent.table.name for parent in pair.parents]
        beside += [table.name for table in (*pair.tables_beside, pair.originals) if table is not None]
        for source, held in product((legacy, own), ALL):
            # A right on one of the two is one on the other: the legacy table may have been made again.
            moved = {legacy: (held,), own: (held,), **dict.fromkeys(beside, _BESIDE[held])}
            yield from _on(source, held, moved | _CONTROL[held])
            if held == "SELECT":
                yield _Need(source, held, "SEQUENCE", "consensus_orm_changes", "SELECT")  # the counter of such writes
            if held == "INSERT" and len(moves.sharing(pair, Side.LEGACY)) > 1:
                yield _Need(source, held, "SEQUENCE", own, "UPDATE")  # it follows the ids that the others give


def _on(source: str, held: str, rights: dict[str, tuple[str, ...]]) -> Iterator[_Need]:
    for table, wanted in rights.items():
        yield from (_Need(source, held, "TABLE", table, right) for right in wanted)
        yield _Need(source, held, "SCHEMA", table, "USAGE")
        if "INSERT" in wanted:
            yield _Need(source, held, "SEQUENCE", table, "USAGE")


def lacking(uow: Transaction, tables: Collection[str] | None = None) -> list[Lack]:
    """The rights that roles lack.

    What follows from the rights of a normalized table counts only where there is no legacy table, and for a legacy
    table that was just made again.

    Args:
        uow: Sees the catalog.
        tables: The tables on which rights are looked for, those just made; all where left out.
    """
    moves, there = uow.statements.moves, uow.catalog.tables(uow)
    legacy = {pair.legacy_name for pair in moves}
    made = legacy & set(tables or ())
    sources = (legacy & there) - made or {pair.table.name for pair in moves}
    if made:
        sources |= {pair.table.name for pair in moves}
    needs = [need for need in dict.fromkeys(_needs(moves)) if need.source in sources]
    needs = [need for need in needs if (need.table not in legacy or need.kind == "SEQUENCE" or need.table in made)]
    if tables is not None:
        needs = [need for need in needs if need.table in tables]
    uow._execute("SET LOCAL jit = off")
    columns = {f"needs_{name}": [getattr(need, name) for need in needs] for name in _Need._fields}
    return [Lack(*row) for row in uow._rows(_QUERY, {"sources": sorted(sources), **columns})]


def grants(lacks: Iterable[Lack], *, merged: bool = False) -> list[str]:
    """The statements that give rights.

    Args:
        lacks: The rights that roles lack.
        merged: Whether one statement gives a role the same rights on several objects; of such a statement the server
            executes all or nothing.
    """
    by_object: dict[tuple[str, str, str], dict[str, None]] = {}
    for lack in lacks:
        by_object.setdefault((lack.role, lack.kind, lack.name), {})[lack.right] = None
    objects: dict[tuple[str, ...], list[str]] = {}
    for (role, kind, name), rights in by_object.items():
        objects.setdefault((role, kind, ", ".join(rights), "" if merged else name), []).append(name)
    return [
        f"GRANT {rights} ON {kind} {', '.join(names)} TO {role}" for (role, kind, rights, _), names in objects.items()
    ]


def give(uow: Transaction, tables: Collection[str] | None = None) -> list[str]:
    """Give the rights that roles lack, as far as the role of this connection may.

    Args:
        uow: May write.
        tables: As for `lacking`.

    Returns:
        The statements that were executed.
    """
    wanted = grants(lacking(uow, tables))
    for statement in wanted:
        with contextlib.suppress(errors.ReadOnlyDatabaseError), uow._connected.attempt():
            uow._execute(statement)
    left = grants(lacking(uow, tables)) if wanted else ()  # who has some rights is only warned that none were granted
    return [statement for statement in wanted if statement not in left]


def dependencies(uow: Transaction) -> Iterator[Dependency]:
    """The roles that a phase would cut off, and rights on columns, which have no counterpart."""
    # What several tables ask for is told once.
    first = {lack[1:5]: lack for lack in reversed(lacking(uow) if uow.prepared else [])}
    by_role: dict[tuple[str, str], list[Lack]] = {}
    for lack in reversed(first.values()):
        by_role.setdefault((lack.role, lack.source), []).append(lack)
    for (role, table), lacks in by_role.items():
        yield Dependency("role", role, table, Phase.DUAL_WRITE, grants=tuple(grants(lacks, merged=True)))
    names = sorted({pair.legacy_name for pair in uow.statements.moves})
    for table, role, right, columns in uow._rows(_PARTIAL, {"names": names}):
        yield Dependency("column right", f"{right} ({columns}) of {role}", table, Phase.CUTOVER)
