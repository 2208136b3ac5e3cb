"""The schema of a database: what it holds, and its alembic revisions."""
