"""Applies log records to the index: the same code while running and while rebuilding."""
