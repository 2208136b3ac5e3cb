"""The consensus data: its tables, its declaration, its repositories, and the programs that wrote it."""
