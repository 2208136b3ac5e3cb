"""Which classes speak to which kind of database: the only module that names both kinds.

PostgreSQL's modules are imported where a URL names such a database: they need psycopg.
"""

from __future__ import annotations

from functools import cache

from consensus_orm.databases.base import Catalog
from consensus_orm.statements.rendering import Rendering

__all__ = ["catalog", "rendering"]


@cache
def rendering(name: str) -> Rendering:
    """How statements are printed for a kind of database.

    Args:
        name: `sqlite` or `postgresql`, as SQLAlchemy calls it.
    """
    if name == "postgresql":
        from consensus_orm.databases.postgresql.rendering import PostgresRendering

        return PostgresRendering()
    from consensus_orm.databases.sqlite.rendering import SQLiteRendering

    return SQLiteRendering()


@cache
def catalog(name: str) -> Catalog:
    """The catalog of a kind of database.

    Args:
        name: `sqlite` or `postgresql`, as SQLAlchemy calls it.
    """
    if name == "postgresql":
        from consensus_orm.databases.postgresql.catalog import PostgresCatalog

        return PostgresCatalog()
    from consensus_orm.databases.sqlite.catalog import SQLiteCatalog

    return SQLiteCatalog()
