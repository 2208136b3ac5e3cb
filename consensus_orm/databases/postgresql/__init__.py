"""What PostgreSQL says otherwise than SQLite: imported only where a URL names it."""
