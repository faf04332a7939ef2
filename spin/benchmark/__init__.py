"""Measure the held-out metrics of a policy."""
