"""Comparisons of two answers in both orders."""

from __future__ import annotations

import math

import pytest

from spin.feedback.judge_comparison import (
    TRUTH,
    combine_orders,
    find_bias,
    is_tie,
    list_comparisons,
    make_preference_matrix,
    picks_same_place,
)
from spin.feedback.judge_labels import LabelProbabilities, restrict_to_labels


def certain(first: float) -> LabelProbabilities:
    """Return a judge's answer that prefers place 1 with probability `first`."""
    return LabelProbabilities([first, 1 - first], 1.0)


FORWARD = restrict_to_labels({1: -0.3, 2: -1.6}, [[1], [2]])
BACKWARD = restrict_to_labels({1: -0.9, 2: -0.7}, [[1], [2]])


def test_both_orders_are_averaged_and_the_bias_is_what_they_have_in_common() -> None:
    judgement = combine_orders(0, (0, 1), FORWARD, BACKWARD, 0.5)
    assert judgement.backward == pytest.approx(0.450166, abs=1e-6)
    assert judgement.mass_backward == pytest.approx(0.903155, abs=1e-6)
    assert judgement.preference == pytest.approx(0.667834, abs=1e-6)
    assert find_bias(judgement) == pytest.approx(0.118000, abs=1e-6)
    assert judgement.failure is None


def test_exchanged_answers_have_the_opposite_preference_and_the_same_bias() -> None:
    one = combine_orders(0, (0, 1), FORWARD, BACKWARD, 0.5)
    other = combine_orders(0, (1, 0), BACKWARD, FORWARD, 0.5)
    assert other.preference == pytest.approx(1 - one.preference, abs=1e-15)
    assert find_bias(other) == find_bias(one)


def test_a_judge_that_always_prefers_place_1_has_no_preference() -> None:
    judgement = combine_orders(0, (0, 1), certain(0.9), certain(0.9), 0.5)
    assert judgement.preference == pytest.approx(0.5)
    assert find_bias(judgement) == pytest.approx(0.4)
    assert picks_same_place(judgement)
    assert is_tie(judgement, 0.05)


def test_a_judge_that_follows_the_answer_picks_both_places() -> None:
    judgement = combine_orders(0, (0, 1), certain(0.9), certain(0.2), 0.5)
    assert not picks_same_place(judgement)
    assert not is_tie(judgement, 0.05)


@pytest.mark.parametrize("mass", [0.49, 0.0])
def test_too_little_mass_in_one_order_is_a_failure(mass: float) -> None:
    judgement = combine_orders(0, (0, 1), certain(0.9), LabelProbabilities([0.9, 0.1], mass), 0.5)
    assert judgement.failure == "mass"


def test_a_missing_label_probability_is_a_failure_even_without_a_least_mass() -> None:
    judgement = combine_orders(0, (0, 1), certain(0.9), LabelProbabilities([math.nan, math.nan], 0.0), 0.0)
    assert judgement.failure == "mass"


def test_every_two_answers_are_compared_or_the_truth_with_each() -> None:
    assert list_comparisons([TRUTH, 0, 1], against_truth=False) == [(-1, 0), (-1, 1), (0, 1)]
    assert list_comparisons([TRUTH, 0, 1], against_truth=True) == [(-1, 0), (-1, 1)]


def test_the_matrix_of_preferences_is_read_from_both_sides_and_failures_are_unknown() -> None:
    known = combine_orders(0, (0, 1), certain(0.9), certain(0.3), 0.5)
    failed = combine_orders(0, (0, 2), certain(0.9), LabelProbabilities([0.9, 0.1], 0.1), 0.5)
    matrix = make_preference_matrix([0, 1, 2], [known, failed])
    assert matrix[0][:2] == [0.5, pytest.approx(0.8)]
    assert matrix[1][:2] == [pytest.approx(0.2), 0.5]
    assert math.isnan(matrix[0][2])
    assert math.isnan(matrix[2][0])


def test_one_order_alone_keeps_the_preference_for_a_place() -> None:
    judgement = combine_orders(0, (0, 1), certain(0.7), None, 0.5)
    assert judgement.preference == 0.7
    assert judgement.failure is None
    assert math.isnan(judgement.backward)


def test_a_question_without_reply_is_counted_by_its_reason() -> None:
    too_long = LabelProbabilities([math.nan, math.nan], 0.0, "too_long")
    assert combine_orders(0, (0, 1), certain(0.9), too_long, 0.5).failure == "too_long"
