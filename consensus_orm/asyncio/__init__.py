"""The same store, to be awaited."""
