"""The documentation, in Markdown; `consensus-orm docs` shows it."""
