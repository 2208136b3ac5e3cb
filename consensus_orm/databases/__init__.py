"""What a database can do, for each kind of database: connections, the pool, the fence, the catalog."""
