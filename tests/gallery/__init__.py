"""Refactorings of tables, each declared with moves: what `tests/gallery/test_gallery.py` carries there and back."""
