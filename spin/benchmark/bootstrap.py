"""Compute 95 % intervals of metrics and of their changes by resampling prompts (bootstrap)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from spin.config.benchmark import HIGHER_IS_BETTER

Column = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Numerator and denominator of a metric for each prompt. Shapes (prompts,)."""

Interval = tuple[float, float, float]
"""Value of a metric, then the lower and the upper end of its 95 % interval."""

RESAMPLES = 2000
"""Number of bootstrap resamples."""

BLOCK = 100
"""Number of resamples drawn at the same time, to limit memory."""


def bootstrap(columns: Mapping[str, Column], seed: int) -> dict[str, Interval]:
    """Return each metric that is not null with its 95 % interval, by resampling prompts."""
    known = {name: column for name, column in columns.items() if column[1].sum() > 0}
    draws = _resample(list(known.values()), seed)
    intervals = {}
    for index, (name, column) in enumerate(known.items()):
        intervals[name] = (_ratio(column), *_find_ends(draws[:, index]))
    return intervals


def bootstrap_difference(
    ours: Mapping[str, Column], theirs: Mapping[str, Column], names: Sequence[str], seed: int
) -> dict[str, Interval]:
    """Return our metrics minus theirs on the same prompts, with 95 % intervals."""
    columns = [ours[name] for name in names]
    columns += [theirs[name] for name in names]
    # Both policies in one call, so that each resample takes the same prompts of both.
    draws = _resample(columns, seed)
    differences = draws[:, : len(names)] - draws[:, len(names) :]
    intervals = {}
    for index, name in enumerate(names):
        value = _ratio(ours[name]) - _ratio(theirs[name])
        intervals[name] = (value, *_find_ends(differences[:, index]))
    return intervals


def is_worse(interval: Sequence[float], name: str) -> bool:
    """Return True if a metric changed for the worse, and its interval (low, high) excludes 0."""
    low, high = interval
    if HIGHER_IS_BETTER[name]:
        return high < 0
    return low > 0


def _ratio(column: Column) -> float:
    numerators, denominators = column
    return float(numerators.sum() / denominators.sum())


def _resample(columns: Sequence[Column], seed: int) -> NDArray[np.float64]:
    """Return the metrics of RESAMPLES bootstrap resamples of the prompts.

    Each resample draws as many prompts as there are, with replacement.

    Returns: Shape (RESAMPLES, metrics); NaN where the denominator of a resample is 0.
    """
    numerators = np.stack([column[0] for column in columns], axis=1)  # [prompts, metrics]
    denominators = np.stack([column[1] for column in columns], axis=1)  # [prompts, metrics]
    num_prompts = len(numerators)
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(RESAMPLES // BLOCK):
        # How often each prompt was drawn: sums over a resample are then one matrix product.
        counts = rng.multinomial(num_prompts, np.full(num_prompts, 1 / num_prompts), size=BLOCK)
        counts = counts.astype(np.float64)  # [BLOCK, prompts]
        with np.errstate(invalid="ignore"):
            draws.append((counts @ numerators) / (counts @ denominators))
    return np.concatenate(draws)


def _find_ends(draws: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return float(low), float(high)
