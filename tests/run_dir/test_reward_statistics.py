"""Mean, interval and shares of rewards, from numbers worked out by hand."""

import math
from dataclasses import asdict

import pytest

from spin.run_dir.reward_statistics import RewardStatistics, sum_statistics
from spin.run_dir.rollout_statistics import RolloutStatistics, sum_rollout_statistics


def test_the_interval_is_1_96_standard_errors_over_prompts_not_over_samples() -> None:
    statistics = RewardStatistics()
    for rewards in ([1.0, 1.0], [0.0, 1.0], [0.0, 0.0], [1.0, 0.0]):
        statistics.add_prompt(rewards, 0.5)
    # Means 1, ½, 0, ½: mean ½, variance (¼ + 0 + ¼ + 0) / 3.
    assert statistics == RewardStatistics(4, 2.0, 1.5, 1, 1)
    assert statistics.mean == 0.5
    assert statistics.half_interval == pytest.approx(1.96 * math.sqrt(0.5 / 3 / 4))
    assert statistics.describe() == "reward 0.500±0.400 (25% of prompts all right, 25% all wrong)"
    figures = statistics.to_figures()
    assert figures["reward_high"] - figures["reward"] == pytest.approx(0.400083)
    assert (figures["all_right"], figures["all_wrong"]) == (0.25, 0.25)


def test_a_reward_at_the_threshold_is_wrong_and_one_prompt_has_no_interval() -> None:
    statistics = RewardStatistics()
    statistics.add_prompt([2.0, 2.0], 2.0)
    assert (statistics.all_right, statistics.all_wrong, statistics.half_interval) == (0, 1, 0.0)


def test_statistics_of_shards_are_added_and_shards_without_rewards_are_left_out() -> None:
    first, second = RewardStatistics(2, 1.0, 0.5, 1, 0), RewardStatistics(3, 2.0, 1.5, 0, 2)
    assert sum_statistics([asdict(first), None, asdict(second)]) == RewardStatistics(5, 3.0, 2.0, 1, 2)
    assert sum_statistics([None, None]) is None


def test_the_mean_reward_of_the_truths_is_shown_where_they_have_one() -> None:
    statistics = RewardStatistics()
    statistics.add_prompt([1.0, 0.0], 0.5, truth=1.0)
    statistics.add_prompt([0.0, 0.0], 0.5, truth=0.5)
    statistics.add_prompt([0.0, 0.0], 0.5)
    assert statistics.to_figures()["truth_reward"] == 0.75
    assert statistics.describe().endswith("67% all wrong), of the truths 0.750")
    assert sum_statistics([asdict(statistics), asdict(statistics)]).truths == 4
    assert "truth_reward" not in RewardStatistics(2, 1.0, 0.5, 1, 0).to_figures()


def test_figures_of_rollouts_are_means_over_answers_or_tokens() -> None:
    statistics = RolloutStatistics()
    statistics.add([-1.0, -0.5, -1.5], [-1.0, -1.0, -1.2], truncated=False)
    statistics.add([-2.0], [-1.5], truncated=True)
    # Σ log π_old − Σ log π_base: −3 + 3.2 and −2 + 1.5.
    assert statistics.to_figures() == {
        "rollout_tokens": 2.0,
        "rollout_truncated": 0.5,
        "rollout_entropy": 5.0 / 4,
        "rollout_kl": pytest.approx((0.2 - 0.5) / 2),
    }
    both = sum_rollout_statistics([asdict(statistics), None, asdict(statistics)])
    assert both is not None
    assert both.answers == 4
    assert both.to_figures()["rollout_kl"] == pytest.approx(-0.15)
    assert sum_rollout_statistics([None]) is None


def test_without_a_base_there_is_no_divergence_from_it() -> None:
    statistics = RolloutStatistics()
    statistics.add([-1.0, -3.0], [], truncated=False)
    assert statistics.describe() == "2.0 tokens an answer, 0% truncated, entropy 2.000"
