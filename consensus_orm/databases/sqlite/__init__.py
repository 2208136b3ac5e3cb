"""SQLite: connections, pragmas, the catalog, triggers, vacuum and backup."""
