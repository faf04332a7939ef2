"""Peak memory of an actor's process."""

from __future__ import annotations

import resource


def measure_peak_memory() -> dict[str, float]:
    """Return the peaks of this process in GiB: resident memory, and memory reserved on its GPU."""
    import torch

    # Linux counts in KiB.
    kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peaks = {"memory": round(kib / 2**20, 3)}
    if torch.cuda.is_available():
        peaks["device_memory"] = round(torch.cuda.max_memory_reserved() / 2**30, 3)
    return peaks
