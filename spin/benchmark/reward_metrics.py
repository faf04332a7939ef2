"""Figures of a reward model on held-out rankings, with 95 % intervals over prompts.

`evaluation.json` has a key for each figure, and the keys `intervals`, `subsets`, `reliability`:

    {"prompts": 500, "pairs": 3000, "accuracy": 0.97, "best_of_k": 0.95, "ece": 0.03, …,
     "intervals": {"accuracy": [0.96, 0.98], …},
     "subsets": {"easy": {"prompts": 250, "accuracy": 0.99}, …},
     "reliability": [{"confidence": 0.52, "accuracy": 0.49, "pairs": 12}, …]}

A pair is two answers of one prompt of which one is better; ties of the labels do not count. The
probability that the model gives to its own choice, its confidence, is σ(|r_i − r_j|).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spin.benchmark.bootstrap import Column, bootstrap
from spin.data.examples import compare_ranked
from spin.data.records import Ranking

BINS = 10
"""Bins of the confidence between 0.5 and 1, each 0.05 wide."""

Numbers = NDArray[np.float64]


def compute_reward_metrics(
    rankings: Sequence[Ranking],
    rewards: Sequence[Sequence[float]],
    seed: int,
    subset_counts: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Return the figures of a reward model.

    Args:
        rankings: Held-out rankings.
        rewards: The reward of each completion of each ranking.
        seed: Seed of the bootstrap.
        subset_counts: Weight of each subset in the mean over subsets; without any they weigh alike.
    """
    # Gaps of all pairs, and the ranking that each belongs to.
    gaps_of = [list_gaps(row, values) for row, values in zip(rankings, rewards, strict=True)]
    gaps = np.array([gap for row_gaps in gaps_of for gap in row_gaps])
    # Of a few prompts, the answers of all may happen to be alike.
    if not len(gaps):
        return {"prompts": len(rankings), "pairs": 0, "intervals": {}, "subsets": {}, "reliability": []}
    owners = np.repeat(np.arange(len(rankings)), [len(row_gaps) for row_gaps in gaps_of])
    best = np.array([share_of_best(row, values) for row, values in zip(rankings, rewards, strict=True)])

    # Each figure is a ratio of two sums over prompts, so one resample of the prompts serves all.
    def over_pairs(values: Numbers) -> Column:
        sums = np.bincount(owners, weights=values, minlength=len(rankings)).astype(np.float64)
        counts = np.bincount(owners, minlength=len(rankings)).astype(np.float64)
        return sums, counts

    right = count_right(gaps)
    columns = {
        "accuracy": over_pairs(right),
        "best_of_k": (best, np.ones(len(rankings))),
        "brier": over_pairs((confidence(gaps) - right) ** 2),
        "nll": over_pairs(np.logaddexp(0, -gaps)),
    }
    intervals = bootstrap(columns, seed)
    metrics: dict[str, Any] = {"prompts": len(rankings), "pairs": len(gaps)}
    metrics |= {name: interval[0] for name, interval in intervals.items()}
    metrics["ece"] = expected_calibration_error(gaps)
    metrics["length_correlation"] = correlate_with_length(rankings, rewards)
    metrics["intervals"] = {name: list(interval[1:]) for name, interval in intervals.items()}
    metrics["subsets"] = _measure_subsets(rankings, columns["accuracy"])
    if metrics["subsets"]:
        # Weights by given counts, as RewardBench's `calculate_scores_per_section` has them.
        weights = [1.0] * len(metrics["subsets"])
        if subset_counts:
            weights = [subset_counts.get(name, 0.0) for name in metrics["subsets"]]
        accuracies = [figures["accuracy"] for figures in metrics["subsets"].values()]
        metrics["accuracy_over_subsets"] = float(np.average(accuracies, weights=weights))
    metrics["reliability"] = list_bins(gaps)
    return metrics


def list_gaps(row: Ranking, rewards: Sequence[float]) -> list[float]:
    """Return the reward of the better answer minus that of the worse one, for each pair."""
    gaps = []
    for pair in compare_ranked(row):
        # A tie of the labels cannot be ordered right or wrong.
        if pair.preference != 0.5:
            sign = 1 if pair.preference > 0.5 else -1
            gaps.append(sign * (rewards[pair.first] - rewards[pair.second]))
    return gaps


def count_right(gaps: Numbers) -> Numbers:
    """Return 1 for each pair that the model orders as its label does; ½ for equal rewards."""
    return np.where(gaps == 0, 0.5, (gaps > 0).astype(np.float64))


def share_of_best(row: Ranking, rewards: Sequence[float]) -> float:
    """Return whether the answer with the largest reward has the best rank; equal rewards share."""
    # Ranks of the answers that share the largest reward.
    chosen = [rank for rank, reward in zip(row.ranks, rewards, strict=True) if reward == max(rewards)]
    return chosen.count(min(row.ranks)) / len(chosen)


def confidence(gaps: Numbers) -> Numbers:
    """Return σ(|gap|), the probability that the model gives to its own choice."""
    return 1 / (1 + np.exp(-np.abs(gaps)))


def list_bins(gaps: Numbers) -> list[dict[str, float]]:
    """Return mean confidence, accuracy and number of pairs of each bin that has pairs."""
    confident = confidence(gaps)
    right = count_right(gaps)
    # A confidence of exactly 1 belongs to the last bin.
    number = np.minimum((confident - 0.5) * 2 * BINS, BINS - 1).astype(int)
    bins = []
    for index in range(BINS):
        inside = number == index
        if inside.any():
            pairs = int(inside.sum())
            bins.append(
                {"confidence": float(confident[inside].mean()), "accuracy": float(right[inside].mean()), "pairs": pairs}
            )
    return bins


def expected_calibration_error(gaps: Numbers) -> float:
    """Return the mean difference of confidence and accuracy over bins, weighted by their pairs."""
    error = 0.0
    for entry in list_bins(gaps):
        error += entry["pairs"] * abs(entry["confidence"] - entry["accuracy"])
    return error / len(gaps)


def correlate_with_length(rankings: Sequence[Ranking], rewards: Sequence[Sequence[float]]) -> float | None:
    """Return Spearman's correlation of rewards with answer lengths in tokens; None if undefined."""
    lengths = [float(len(ids)) for row in rankings for ids in row.completions]
    values = [reward for row_rewards in rewards for reward in row_rewards]
    # Spearman's correlation is Pearson's of the ranks.
    first, second = rank_values(np.array(lengths)), rank_values(np.array(values))
    if first.std() == 0 or second.std() == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def rank_values(values: Numbers) -> Numbers:
    """Return the rank of each value from 0; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    # The last rank of each distinct value, and the mean of its ranks.
    last = np.cumsum(counts) - 1
    means = last - (counts - 1) / 2
    return np.asarray(means[inverse], dtype=np.float64)


def _measure_subsets(rankings: Sequence[Ranking], accuracy: Column) -> dict[str, dict[str, float]]:
    """Return prompts and accuracy of each subset, by name."""
    # Rankings without a subset count in the figures of the whole set only.
    names = [row.subset for row in rankings]
    subsets: dict[str, dict[str, float]] = {}
    for name in sorted({name for name in names if name is not None}):
        inside = np.array([other == name for other in names])
        right, pairs = accuracy[0][inside].sum(), accuracy[1][inside].sum()
        if not pairs:
            continue
        subsets[name] = {"prompts": int(inside.sum()), "accuracy": float(right / pairs)}
    return subsets
