"""Held-out measures of one checkpoint."""
