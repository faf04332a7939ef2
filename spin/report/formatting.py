"""Format durations and numbers of bytes."""

from __future__ import annotations


def format_duration(seconds: float) -> str:
    """Return a duration as ``42 s``, ``12 min`` or ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def format_bytes(count: float) -> str:
    """Return a number of bytes in MiB, or in GiB from 0.1 GiB on."""
    if count < 0.1 * 2**30:
        return f"{count / 2**20:,.1f} MiB"
    return f"{count / 2**30:,.1f} GiB"
