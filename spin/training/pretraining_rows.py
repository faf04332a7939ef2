"""The ground truths that PPO-ptx trains beside its answers, in an order fixed by the seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from spin.data.examples import Example


class PretrainingRows:
    """Takes the next truths for each step; the number of the step alone decides which."""

    def __init__(self, truths: Sequence[Example], seed: int, iteration: int, count: int) -> None:
        """Set the order.

        Args:
            truths: The rows.
            seed: Seed of the run.
            iteration: Number of the iteration; each has an order of its own.
            count: Rows of a step.
        """
        self._truths = truths
        self._count = min(count, len(truths))
        # The 3 keeps the order apart from that of other choices with the same seed.
        self._order = np.random.default_rng([seed, 3, iteration]).permutation(len(truths))

    def take(self, step: int) -> list[Example]:
        """Return the rows of a step, counted from 1; after the last row the order begins anew."""
        first = (step - 1) * self._count
        rows = []
        for position in range(first, first + self._count):
            truth = self._truths[self._order[position % len(self._order)]]
            rows.append(replace(truth, pretraining=True))
        return rows
