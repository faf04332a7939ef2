"""Record the expected seconds of each kind of work, for the time left in `spin status`."""

from __future__ import annotations

from spin.preflight.estimate import Estimate
from spin.run_dir.ledger import Ledger
from spin.run_dir.unit import EXPECTED


def record_expected(ledger: Ledger, estimate: Estimate) -> None:
    """Record the mean seconds of an iteration by kind of work, as estimated at this launch."""
    means = mean_seconds(estimate)
    if means:
        ledger.append(EXPECTED, seconds=means)


def mean_seconds(estimate: Estimate) -> dict[str, float]:
    """Return the mean seconds of an iteration by kind of work.

    Work of unknown length is left out, such as that of a reward source before its first shard.
    """
    totals: dict[str, list[float]] = {}
    for label, stage in estimate.seconds.items():
        if label.startswith("iteration"):
            for work, seconds in stage.items():
                if seconds > 0:
                    totals.setdefault(work, []).append(seconds)
    return {work: round(sum(values) / len(values), 3) for work, values in totals.items()}
