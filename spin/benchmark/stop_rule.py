"""Decide when to stop the run: the deciding metric has not improved (config group `stop`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spin.benchmark.best_policy import deciding_metric, orient_metric
from spin.config.run import RunConfig


def count_without_improvement(values: Sequence[float | None], name: str, min_delta: float) -> int:
    """Return the number of values after the last improvement by more than `min_delta`.

    Null values do not count. The first value is an improvement.
    """
    # Best value at the last improvement. Smaller gains do not move it, so they can add up.
    top: float | None = None
    count = 0
    for value in values:
        if value is None:
            continue
        goodness = orient_metric(value, name)
        if top is None or goodness - top > min_delta:
            top = goodness
            count = 0
        else:
            count += 1
    return count


def should_stop(config: RunConfig, measured: Sequence[dict[str, Any]]) -> bool:
    """Return True if the last `stop.patience` policies brought no improvement.

    `measured`: metrics of the start, then of each iteration.
    """
    if config.stop.patience is None:
        return False
    name = deciding_metric(config)
    values = [metrics[name] for metrics in measured]
    return count_without_improvement(values, name, config.stop.min_delta) >= config.stop.patience
