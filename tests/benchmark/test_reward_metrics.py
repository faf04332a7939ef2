"""Figures of a reward model, worked out by hand."""

import math

import numpy as np
import pytest

from spin.benchmark.reward_metrics import (
    compute_reward_metrics,
    correlate_with_length,
    expected_calibration_error,
    rank_values,
    share_of_best,
)
from spin.data.records import Ranking


def ranking(ranks: list[float], lengths: list[int] | None = None, subset: str | None = None) -> Ranking:
    lengths = lengths or [1] * len(ranks)
    completions = [[10 + place] * length for place, length in enumerate(lengths)]
    return Ranking(0, [1], completions, ranks, 1.0, 0.0, subset)


GAPS = [2.0, 1.0, -0.5, 0.2]
ROWS = [ranking([0, 1]) for _ in GAPS]
REWARDS = [[gap, 0.0] for gap in GAPS]


def test_four_pairs_give_the_figures_worked_out_by_hand() -> None:
    # σ(2) = 0.880797, σ(1) = 0.731059, σ(0.5) = 0.622459, σ(0.2) = 0.549834: a bin for each.
    metrics = compute_reward_metrics(ROWS, REWARDS, seed=0)
    assert (metrics["prompts"], metrics["pairs"]) == (4, 4)
    assert metrics["accuracy"] == 0.75
    assert metrics["ece"] == pytest.approx(0.365192, abs=1e-6)
    assert metrics["brier"] == pytest.approx(0.169161, abs=1e-6)
    assert metrics["nll"] == pytest.approx(0.503101, abs=1e-6)
    assert metrics["best_of_k"] == 0.75
    assert [(entry["pairs"], entry["accuracy"]) for entry in metrics["reliability"]] == [(1, 1), (1, 0), (1, 1), (1, 1)]


def test_the_interval_resamples_prompts_and_not_pairs() -> None:
    # Two prompts, one with all six pairs right and one with all six wrong: resamples of two prompts
    # give 0, ½ or 1, while twelve independent pairs would give 0.25 to 0.75 or so.
    rows = [ranking([0, 1, 2, 3]), ranking([0, 1, 2, 3])]
    metrics = compute_reward_metrics(rows, [[4, 3, 2, 1], [1, 2, 3, 4]], seed=0)
    assert metrics["accuracy"] == 0.5
    assert metrics["intervals"]["accuracy"] == [0.0, 1.0]


def test_a_tie_of_labels_is_no_pair_and_a_tie_of_rewards_is_half_right() -> None:
    metrics = compute_reward_metrics([ranking([0, 1, 1])], [[1.0, 1.0, 0.0]], seed=0)
    assert metrics["pairs"] == 2
    assert metrics["accuracy"] == 0.75
    assert metrics["best_of_k"] == 0.5


def test_several_best_answers_are_all_right() -> None:
    assert share_of_best(ranking([1, 1, 2]), [0.0, 3.0, 1.0]) == 1
    assert share_of_best(ranking([1, 1, 2]), [0.0, 1.0, 3.0]) == 0
    assert share_of_best(ranking([1, 2, 3]), [2.0, 2.0, 2.0]) == pytest.approx(1 / 3)


def test_subsets_have_their_own_accuracy_and_count_alike_in_the_mean_over_them() -> None:
    rows = [ranking([0, 1], subset=name) for name in ("easy", "easy", "easy", "hard")]
    metrics = compute_reward_metrics(rows, [[1.0, 0.0]] * 3 + [[0.0, 1.0]], seed=0)
    assert metrics["subsets"] == {"easy": {"prompts": 3, "accuracy": 1.0}, "hard": {"prompts": 1, "accuracy": 0.0}}
    assert metrics["accuracy"] == 0.75
    assert metrics["accuracy_over_subsets"] == 0.5


def test_subsets_weigh_as_much_as_the_given_counts_say() -> None:
    rows = [ranking([0, 1], subset=name) for name in ("easy", "hard", "other")]
    rewards = [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]
    metrics = compute_reward_metrics(rows, rewards, seed=0, subset_counts={"easy": 100, "hard": 300, "other": 20})
    # (100 · 1 + 300 · 0 + 20 · 1) / 420
    assert metrics["accuracy_over_subsets"] == pytest.approx(120 / 420)


def test_a_confident_model_that_is_always_right_is_calibrated() -> None:
    assert expected_calibration_error(np.array([50.0, 60.0])) == pytest.approx(0)
    assert expected_calibration_error(np.array([-50.0, 60.0])) == pytest.approx(0.5)


def test_the_correlation_with_length_is_that_of_ranks() -> None:
    assert rank_values(np.array([3.0, 1.0, 3.0, 2.0])).tolist() == [2.5, 0.0, 2.5, 1.0]
    rows = [ranking([0, 1], [1, 2]), ranking([0, 1], [3, 4])]
    assert correlate_with_length(rows, [[0.0, 1.0], [10.0, 11.0]]) == pytest.approx(1)
    # Ranks of rewards 1 0 3 2 against 0 1 2 3: covariance 3/5 of the variance.
    assert correlate_with_length(rows, [[1.0, 0.0], [11.0, 10.0]]) == pytest.approx(0.6)
    assert correlate_with_length([ranking([0, 1])], [[0.0, 1.0]]) is None
    assert math.isfinite(compute_reward_metrics(ROWS, REWARDS, seed=0)["nll"])
