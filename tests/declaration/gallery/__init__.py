"""Refactorings of tables, each declared with moves: what `test_gallery.py` carries there and back."""
