"""Statistics of the rewards of samples, which are added up over shards and shown to the user."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass
class RewardStatistics:
    """Sums over prompts, from which mean, interval and shares are computed.

    The samples of one prompt depend on each other, so a prompt counts as one observation.
    """

    prompts: int = 0
    mean_sum: float = 0.0
    """Sum over prompts of the mean reward of their samples."""
    square_sum: float = 0.0
    """Sum over prompts of the square of that mean."""
    all_right: int = 0
    """Prompts whose samples all have a reward above `feedback.threshold`."""
    all_wrong: int = 0
    """Prompts of which no sample has a reward above `feedback.threshold`."""
    truths: int = 0
    """Prompts whose ground truth has a reward too."""
    truth_sum: float = 0.0
    """Sum of these rewards."""

    def add_prompt(self, rewards: Sequence[float], threshold: float, truth: float | None = None) -> None:
        """Add the rewards of all samples of one prompt and, if it has one, of its ground truth."""
        if truth is not None:
            self.truths += 1
            self.truth_sum += truth
        mean = sum(rewards) / len(rewards)
        num_right = sum(reward > threshold for reward in rewards)
        self.prompts += 1
        self.mean_sum += mean
        self.square_sum += mean * mean
        self.all_right += num_right == len(rewards)
        self.all_wrong += num_right == 0

    @property
    def mean(self) -> float:
        """Mean reward of a sample; each prompt counts once."""
        return self.mean_sum / self.prompts

    @property
    def half_interval(self) -> float:
        """Half of the mean's 95 % interval: 1.96 standard errors over prompts; 0 for one prompt."""
        if self.prompts < 2:
            return 0.0
        # Unbiased variance of the means of the prompts; rounding may leave it slightly below 0.
        variance = (self.square_sum - self.prompts * self.mean**2) / (self.prompts - 1)
        return 1.96 * math.sqrt(max(0.0, variance) / self.prompts)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % interval of the mean."""
        return self.mean - self.half_interval, self.mean + self.half_interval

    @property
    def shares(self) -> dict[str, float]:
        """Shares of the prompts whose samples are all right, and all wrong."""
        return {"all_right": self.all_right / self.prompts, "all_wrong": self.all_wrong / self.prompts}

    def to_figures(self) -> dict[str, float]:
        """Return the mean with its interval, and the shares of prompts, by name."""
        low, high = self.interval
        figures = {"reward": self.mean, "reward_low": low, "reward_high": high, **self.shares}
        if self.truths:
            figures["truth_reward"] = self.truth_sum / self.truths
        return figures

    def describe(self) -> str:
        """Return ``reward 0.423±0.031 (12% of prompts all right, 30% all wrong)`` or the like."""
        right = self.all_right / self.prompts
        wrong = self.all_wrong / self.prompts
        text = (
            f"reward {self.mean:.3f}±{self.half_interval:.3f} ({right:.0%} of prompts all right, {wrong:.0%} all wrong)"
        )
        if self.truths:
            text += f", of the truths {self.truth_sum / self.truths:.3f}"
        return text


def sum_statistics(shards: Iterable[Mapping[str, Any] | None]) -> RewardStatistics | None:
    """Add up the statistics that the ledger records of shards; None if no shard has any."""
    total = RewardStatistics()
    for values in shards:
        if values is None:
            continue
        shard = RewardStatistics(**values)
        total.prompts += shard.prompts
        total.mean_sum += shard.mean_sum
        total.square_sum += shard.square_sum
        total.all_right += shard.all_right
        total.all_wrong += shard.all_wrong
        total.truths += shard.truths
        total.truth_sum += shard.truth_sum
    if not total.prompts:
        return None
    return total
