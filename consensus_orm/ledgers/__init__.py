"""What the migration keeps in tables of its own: mismatches, rejects, images, records of writes, the audit."""
