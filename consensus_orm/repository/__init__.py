"""The repositories: the dual write, its comparison, and the routing of reads."""
