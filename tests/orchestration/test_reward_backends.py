"""How far rewards of vLLM may differ from those of the trainer."""

import math

import pytest

from spin.orchestration.reward_backends import find_difference


def test_the_allowed_difference_is_in_parts_of_the_largest_reward() -> None:
    assert find_difference([[0.5], [-0.25]], [[0.5], [-0.2498]], 1e-3) == pytest.approx((2e-4, 1e-3))
    assert find_difference([[20.0, 1.0]], [[20.0, 1.5]], 5e-2) == pytest.approx((0.5, 1.0))


def test_a_reward_that_is_not_finite_is_no_small_difference() -> None:
    for found in ([[math.nan, 1.0]], [[1.0, math.nan]]):
        difference, allowed = find_difference([[1.0, 1.0]], found, 1e-3)
        assert not difference <= allowed
