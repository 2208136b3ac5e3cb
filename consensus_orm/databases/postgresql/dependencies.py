"""What other programs have made upon the legacy tables of a PostgreSQL database, by its catalog.

| depends on a legacy table | what happens without it |
|---|---|
| view, materialized view, rule, function, column of its row type | finds no rows, or fails |
| policy of another table, which reads it | lets no row through, or fails |
| policy of its own | does not apply to the normalized table, from which reads are answered since CUTOVER |
| publication | its subscribers get no changes any more |
| subscription | writes past every trigger, and fails |
| table that inherits from it | is written past every trigger |
| table that it inherits from, or is a partition of | loses its rows |
| foreign key | keeps it from being emptied |

The server records no dependencies of a function whose body is a string, and that is nearly every one: there, a text
that contains the name of the table as a word counts.
"""

from __future__ import annotations

from collections.abc import Iterator

from consensus_orm.databases.base import PREFIX, Dependency, Transaction
from consensus_orm.phase import Phase

__all__ = ["dependencies"]

_QUERY = r"""
WITH RECURSIVE legacy AS MATERIALIZED (
  SELECT c.oid, n.name, c.reltype, t.typarray, c.relispartition
  FROM unnest(CAST(:names AS TEXT[])) AS n(name) JOIN pg_class AS c ON c.oid = to_regclass(quote_ident(n.name))
  LEFT JOIN pg_type AS t ON t.oid = c.reltype
), whole AS MATERIALIZED (
  SELECT name, oid FROM legacy UNION SELECT l.name, p.relid FROM legacy AS l, pg_partition_tree(l.oid) AS p
), uses AS MATERIALIZED (
  SELECT name, oid FROM whole
  UNION SELECT u.name, r.ev_class FROM uses AS u
  JOIN pg_depend AS d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = u.oid
    AND d.classid = 'pg_rewrite'::regclass
  JOIN pg_rewrite AS r ON r.oid = d.objid AND r.rulename = '_RETURN'
), referring AS MATERIALIZED (
  SELECT u.name, d.classid, d.objid, d.objsubid FROM uses AS u
  JOIN pg_depend AS d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = u.oid
  UNION SELECT l.name, d.classid, d.objid, d.objsubid FROM legacy AS l
  JOIN pg_depend AS d ON d.refclassid = 'pg_type'::regclass AND d.refobjid IN (l.reltype, l.typarray)
), relation AS MATERIALIZED (
  SELECT c.oid, c.relkind, c.relispartition, format('%I.%I', n.nspname, c.relname) AS told, n.nspname, c.relname
  FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
)
SELECT CASE c.relkind WHEN 'v' THEN 'view' ELSE 'materialized view' END, c.told, u.name
FROM uses AS u JOIN relation AS c ON c.oid = u.oid AND c.relkind IN ('v', 'm')
UNION SELECT 'rule', format('%I on %s', r.rulename, c.told), f.name
FROM referring AS f JOIN pg_rewrite AS r ON f.classid = 'pg_rewrite'::regclass AND r.oid = f.objid
JOIN relation AS c ON c.oid = r.ev_class WHERE r.rulename <> '_RETURN'
UNION SELECT CASE WHEN p.polrelid = ANY (SELECT oid FROM whole) THEN 'policy of its own' ELSE 'policy' END,
  format('%I on %s', p.polname, c.told), f.name
FROM referring AS f JOIN pg_policy AS p ON f.classid = 'pg_policy'::regclass AND p.oid = f.objid
JOIN relation AS c ON c.oid = p.polrelid
UNION SELECT 'column', format('%s.%I', c.told, a.attname), f.name
FROM referring AS f JOIN pg_attribute AS a ON f.classid = 'pg_class'::regclass AND a.attrelid = f.objid
  AND a.attnum = f.objsubid AND f.objsubid > 0
JOIN relation AS c ON c.oid = a.attrelid AND c.relkind IN ('r', 'p', 'f') AND c.oid <> ALL (SELECT oid FROM whole)
UNION SELECT 'function', format('%I.%I(%s)', n.nspname, p.proname, pg_get_function_identity_arguments(p.oid)), l.name
FROM legacy AS l CROSS JOIN pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
JOIN pg_language AS g ON g.oid = p.prolang
WHERE n.nspname NOT IN ('pg_catalog', 'information_schema') AND NOT starts_with(p.proname, :prefix)
  AND NOT EXISTS (SELECT FROM pg_depend AS e
    WHERE e.classid = 'pg_proc'::regclass AND e.objid = p.oid AND e.deptype = 'e')
  AND (EXISTS (SELECT FROM referring AS f
      WHERE f.name = l.name AND f.classid = 'pg_proc'::regclass AND f.objid = p.oid)
    OR g.lanname NOT IN ('internal', 'c')
      AND p.prosrc ~* ('(?<!\w)' || regexp_replace(l.name, '(\W)', '\\\1', 'g') || '(?!\w)'))
UNION SELECT CASE WHEN p.rowfilter IS NULL THEN 'publication' ELSE 'filtering publication' END, p.pubname, w.name
FROM whole AS w JOIN relation AS c ON c.oid = w.oid
JOIN pg_publication_tables AS p ON p.schemaname = c.nspname AND p.tablename = c.relname
UNION SELECT 'subscription', s.subname, w.name
FROM whole AS w JOIN pg_subscription_rel AS r ON r.srrelid = w.oid JOIN pg_subscription AS s ON s.oid = r.srsubid
UNION SELECT CASE c.relkind WHEN 'f' THEN 'foreign table' ELSE 'inheriting table' END, c.told, l.name
FROM legacy AS l JOIN pg_inherits AS i ON i.inhparent = l.oid JOIN relation AS c ON c.oid = i.inhrelid
WHERE NOT c.relispartition OR c.relkind = 'f'
UNION SELECT CASE WHEN l.relispartition THEN 'partitioned table' ELSE 'inherited table' END, c.told, l.name
FROM legacy AS l JOIN pg_inherits AS i ON i.inhrelid = l.oid JOIN relation AS c ON c.oid = i.inhparent
UNION SELECT 'foreign key', format('%I on %s', k.conname, c.told), w.name
FROM whole AS w JOIN pg_constraint AS k ON k.contype = 'f' AND k.confrelid = w.oid AND k.conparentid = 0
JOIN relation AS c ON c.oid = k.conrelid
WHERE k.conrelid NOT IN (SELECT oid FROM whole)
ORDER BY 3, 1, 2
"""

_SHUTS = {
    "policy of its own": Phase.CUTOVER,
    "subscription": Phase.DUAL_WRITE,
    "inheriting table": Phase.DUAL_WRITE,
    "foreign table": Phase.DUAL_WRITE,
}
"""The kinds that matter before CONTRACT: the phase from which rows, or what protects them, would be missed."""

_REMEDIES = {
    "foreign key": "the table cannot be emptied while it is there; drop it",
    "filtering publication": "its condition could not be given back; ALTER PUBLICATION ... DROP TABLE",
    "column": "the table cannot be rewritten while it has that type; give it another one",
}
"""The kinds that cannot be accepted."""


def dependencies(uow: Transaction) -> Iterator[Dependency]:
    """What the catalog has, and functions whose text names a legacy table."""
    uow._execute("SET LOCAL jit = off")  # the planner cannot tell how little this reads, and compiled it for seconds
    names = [pair.legacy_name for pair in uow.statements.moves]
    for kind, name, table in uow._rows(_QUERY, {"names": names, "prefix": PREFIX}):
        yield Dependency(kind, name, table, _SHUTS.get(kind, Phase.CONTRACT), _REMEDIES.get(kind, ""))
