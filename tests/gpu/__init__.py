"""Tests that need a GPU; `scripts/test-gpu` runs them with Python and torch alone."""
