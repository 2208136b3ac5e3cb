"""What other programs have made upon the legacy tables of a SQLite file: views, triggers and foreign keys.

SQLite keeps the text of a view or trigger, and no record of the tables that it uses. So a text that contains the name
of a table as a word counts as a use of it, even where it is in a string: an operator can accept it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from consensus_orm.databases.base import MARK, Dependency, Transaction
from consensus_orm.databases.guard_record import ours
from consensus_orm.phase import Side

__all__ = ["dependencies"]

_TEXTS = "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE type IN ('view', 'trigger') ORDER BY rowid"
_REFERRING = (
    "SELECT DISTINCT t.name FROM sqlite_master AS t, pragma_foreign_key_list(t.name) AS f"
    " WHERE t.type = 'table' AND f.\"table\" = ? COLLATE NOCASE ORDER BY 1"
)


def dependencies(uow: Transaction) -> Iterator[Dependency]:
    """Views and triggers of other tables whose text names a legacy table, views of these, and foreign keys."""
    legacy = uow.statements.moves.tables(Side.LEGACY)
    own = {MARK, *(trigger.name for trigger in ours(uow))}
    texts = [row for row in uow._rows(_TEXTS) if row[1] not in own]
    for table in (pair.legacy_name for pair in uow.statements.moves):
        names = [table]
        for name in names:  # grows by each view that uses one of them
            for kind, user, on, sql in texts:
                if user in names or on.lower() == table.lower() or not _names(sql, name):
                    continue
                if kind == "view":
                    names.append(user)
                yield Dependency(kind, user, table)
        for (name,) in uow._rows(_REFERRING, (table,)):
            if name.lower() in legacy:
                continue  # it goes, too
            remedy = "the rows that refer to it would go or stay behind; drop the foreign key"
            yield Dependency("foreign key", name, table, remedy=remedy)


def _names(sql: str, name: str) -> bool:
    return re.search(rf"(?<![\w$]){re.escape(name)}(?![\w$])", sql, re.IGNORECASE) is not None
