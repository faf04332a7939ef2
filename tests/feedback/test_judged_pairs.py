"""Pairs from a judge's comparisons, and the statistics of the judge, worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from spin.config.groups import FeedbackConfig
from spin.config.judge import Contestants, JudgedPairChoice, JudgedPairsConfig, OnFailure, OnTie
from spin.config.objective import PsipoObjective
from spin.data.judge_records import Judgement
from spin.data.records import Pair
from spin.errors import ConfigError, TrainingError
from spin.feedback.judge_comparison import list_contestants
from spin.feedback.judgement_files import check_failures, find_clamp, measure_judge
from spin.feedback.row_builders import make_row_builder
from spin.feedback.sample_group import SampleGroup
from spin.run_dir.judge_statistics import sum_judge_statistics
from tests.feedback.samples import make_group

EXAMPLE = [(0, 1, 0.8), (0, 2, 0.9), (1, 2, 0.7)]
"""The example of ΨPO: p01, p02 and p12."""


def make_judgement(first: int, second: int, preference: float, failure: str | None = None) -> Judgement:
    """A judgement of a judge without a preference for a place."""
    return Judgement(3, first, second, preference, 1 - preference, preference, 1.0, 1.0, failure)


def make_judged(judgements: list[Judgement], num_samples: int = 3) -> SampleGroup:
    return replace(make_group(*["a"] * num_samples), judgements=judgements)


def build(
    judgements: list[Judgement], objective: PsipoObjective | None = None, num_samples: int = 3, **judged: Any
) -> tuple[list[Pair], dict[str, int]]:
    feedback = FeedbackConfig(rows="judged_pairs", judged=JudgedPairsConfig(**judged))
    builder = make_row_builder(feedback)
    builder.use_objective(objective or PsipoObjective())
    rows, dropped = builder.build(make_judged(judgements, num_samples), [0.0] * num_samples)
    assert len(rows) <= builder.count_rows(num_samples)
    return [row for row in rows if isinstance(row, Pair)], dropped


def indices(pairs: list[Pair]) -> list[tuple[int, int]]:
    """Chosen and rejected by the index of the sample; the tokens of the truth are 5, 2."""
    return [(-1 if pair.chosen_ids == [5, 2] else pair.chosen_ids[1], pair.sample_index) for pair in pairs]


EXAMPLE_JUDGEMENTS = [make_judgement(*values) for values in EXAMPLE]


def test_best_worst_takes_the_answers_with_the_highest_and_the_lowest_mean_preference() -> None:
    [pair], dropped = build(EXAMPLE_JUDGEMENTS)
    assert indices([pair]) == [(0, 2)]
    assert pair.preference == 0.9
    # Means over all three answers, the answer itself with ½: (½ + .8 + .9)/3 and (.1 + .3 + ½)/3.
    assert pair.chosen_win_rate == pytest.approx(2.2 / 3)
    assert pair.rejected_win_rate == pytest.approx(0.3)
    assert dropped == {}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [(JudgedPairChoice.all, [(0, 1), (0, 2), (1, 2)]), (JudgedPairChoice.best_rest, [(0, 1), (0, 2)])],
)
def test_other_choices_of_pairs(choice: JudgedPairChoice, expected: list[tuple[int, int]]) -> None:
    pairs, _ = build(EXAMPLE_JUDGEMENTS, pairs=choice)
    assert indices(pairs) == expected


def test_targets_of_psipo_come_from_all_answers_of_the_prompt() -> None:
    pairs, _ = build(EXAMPLE_JUDGEMENTS, pairs=JudgedPairChoice.all)
    assert [pair.target for pair in pairs] == pytest.approx([0.266667, 0.433333, 0.166667], abs=1e-6)
    logit, _ = build(EXAMPLE_JUDGEMENTS, PsipoObjective(psi="logit"), pairs=JudgedPairChoice.all)
    assert [pair.target for pair in logit] == pytest.approx([1.374172, 2.209347, 0.835175], abs=1e-6)


def test_the_preferred_answer_is_chosen_and_an_exchanged_pair_has_the_opposite_preference() -> None:
    [pair], _ = build([make_judgement(0, 1, 0.2)], num_samples=2)
    assert indices([pair]) == [(1, 0)]
    assert pair.preference == 0.8
    assert pair.target == pytest.approx(0.3)


def test_the_truth_stays_chosen_even_if_the_judge_prefers_the_sample() -> None:
    judgements = [make_judgement(-1, 0, 0.3), make_judgement(-1, 1, 0.9)]
    pairs, _ = build(judgements, num_samples=2, contestants=Contestants.truth_and_samples, pairs=JudgedPairChoice.truth)
    assert indices(pairs) == [(-1, 0), (-1, 1)]
    assert [pair.preference for pair in pairs] == [0.3, 0.9]


@pytest.mark.parametrize(("on_tie", "preferences"), [(OnTie.drop, []), (OnTie.half, [0.5]), (OnTie.keep, [0.53])])
def test_ties_are_dropped_halved_or_kept(on_tie: OnTie, preferences: list[float]) -> None:
    pairs, dropped = build([make_judgement(0, 1, 0.53)], num_samples=2, on_tie=on_tie)
    assert [pair.preference for pair in pairs] == preferences
    assert dropped == ({} if preferences else {"tie": 1})


def test_failed_comparisons_are_dropped_or_count_as_undecided() -> None:
    failed = [make_judgement(0, 1, 0.9, "mass")]
    assert build(failed, num_samples=2) == ([], {"judge_failed": 1})
    pairs, _ = build(failed, num_samples=2, on_failure=OnFailure.half, on_tie=OnTie.keep)
    assert [pair.preference for pair in pairs] == [0.5]


def test_a_psi_that_needs_all_comparisons_gets_no_pair_of_a_prompt_where_one_failed() -> None:
    judgements = [make_judgement(0, 1, 0.8), make_judgement(0, 2, 0.9, "mass"), make_judgement(1, 2, 0.7)]
    square = PsipoObjective(psi="tests.feedback.test_judged_pairs.square")
    assert build(judgements, square, pairs=JudgedPairChoice.all) == ([], {"judge_failed": 3})


def square(q: Any) -> Any:
    """A function Ψ that is not antisymmetric."""
    return q * q


def test_contestants_are_the_samples_with_or_without_the_truth() -> None:
    assert list_contestants(make_group("a", "b"), Contestants.samples) == [0, 1]
    assert list_contestants(make_group("a", "b"), Contestants.truth_and_samples) == [-1, 0, 1]


def test_pairs_with_the_truth_need_the_truth_as_contestant() -> None:
    with pytest.raises(ConfigError, match="feedback.judged.pairs=truth compares the ground truth"):
        JudgedPairsConfig(pairs=JudgedPairChoice.truth)


def test_a_judge_with_a_planted_bias_is_measured_at_it() -> None:
    # q₁ = p + 0.2 and q₂ = 1 − p + 0.2, for p = 0.6 and p = 0.4.
    judgements = []
    for index, preference in enumerate((0.6, 0.4)):
        forward, backward = preference + 0.2, 1 - preference + 0.2
        judgements.append(Judgement(index, -1, 0, forward, backward, preference, 1.0, 0.8, None))
    judgements.append(Judgement(2, -1, 0, math.nan, 0.5, math.nan, 0.0, 0.9, "mass"))
    statistics = measure_judge(judgements, JudgedPairsConfig())
    assert statistics.bias.value == pytest.approx(0.2)
    assert statistics.bias.half_interval == pytest.approx(0.0, abs=1e-7)
    # Both orders of both comparisons prefer place 1: 0.8 and 0.6, then 0.6 and 0.8.
    assert statistics.same_place.value == 1
    assert statistics.mass.value == pytest.approx(0.9)
    assert statistics.truth.value == 0.5
    assert statistics.failures == {"mass": 1}
    assert statistics.ties == 0


def test_preferences_that_psi_does_not_get_are_counted() -> None:
    judgements = [make_judgement(0, 1, 0.9995), make_judgement(0, 2, 0.0005), make_judgement(1, 2, 0.998)]
    clamp = find_clamp(PsipoObjective(psi="logit"))
    assert clamp == 1e-3
    assert measure_judge(judgements, JudgedPairsConfig(), clamp).clamped == 2
    # The identity is not clamped, nor is any other objective.
    assert find_clamp(PsipoObjective()) == 0
    assert measure_judge(judgements, JudgedPairsConfig()).clamped == 0


def test_statistics_of_shards_add_up() -> None:
    def shard(bias: float, failures: dict[str, int]) -> dict[str, Any]:
        mean = {"count": 1, "total": bias, "squares": bias * bias}
        return {"comparisons": 2, "questions": 4, "ties": 1, "failures": failures, "bias": mean}

    total = sum_judge_statistics([shard(0.1, {"mass": 1}), None, shard(0.3, {"mass": 1, "too_long": 2})])
    assert total is not None
    assert (total.comparisons, total.questions, total.ties) == (4, 8, 2)
    assert total.failures == {"mass": 2, "too_long": 2}
    # Unbiased standard deviation of 0.1 and 0.3 is 0.141421; 1.96 · 0.141421 / √2 = 0.196.
    assert total.bias.describe() == "0.200±0.196"
    assert sum_judge_statistics([None]) is None


def test_too_many_failures_of_a_shard_stop_the_run() -> None:
    statistics = measure_judge([make_judgement(0, 1, 0.9, "mass")] * 3 + EXAMPLE_JUDGEMENTS, JudgedPairsConfig())
    check_failures(statistics, JudgedPairsConfig(max_failures=0.5), "samples")
    with pytest.raises(TrainingError, match=r"failed in 3 of 6 judgements \(3 mass\); allowed are 40%"):
        check_failures(statistics, JudgedPairsConfig(max_failures=0.4), "samples")
    with pytest.raises(TrainingError, match="allowed are 0%"):
        check_failures(statistics, JudgedPairsConfig(max_failures=1, on_failure=OnFailure.abort), "samples")
