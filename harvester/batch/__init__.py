"""Batch systems behind one small port; each adapter is one file."""
