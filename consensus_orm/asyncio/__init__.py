"""The store for coroutines, and the threads that do its calls."""
