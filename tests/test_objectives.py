"""Losses against values worked out by hand."""

import math

import pytest
import torch

from spin.objectives import PairLogps, sft, spin, spin_at_start


def pair(policy_chosen: float, policy_rejected: float, reference_chosen: float = 0.0, reference_rejected: float = 0.0) -> PairLogps:
    return PairLogps(*(torch.tensor([value], dtype=torch.float64) for value in (policy_chosen, policy_rejected, reference_chosen, reference_rejected)))


def test_the_margin_is_the_difference_of_the_two_log_ratios() -> None:
    assert pair(-1.0, -5.0, -2.0, -3.0).margin.item() == 3.0  # (−1 + 2) − (−5 + 3)


@pytest.mark.parametrize(
    ("link", "expected"),
    [("logistic", math.log(1 + math.exp(-0.3))), ("hinge", 0.7), ("exponential", math.exp(-0.3))],
)
def test_spin_is_the_link_of_beta_times_the_margin(link: str, expected: float) -> None:
    assert spin(pair(-1.0, -5.0, -2.0, -3.0), beta=0.1, link=link).item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("link", ["logistic", "hinge", "exponential"])
def test_spin_of_a_player_that_is_its_own_opponent_is_the_start_value(link: str) -> None:
    assert spin(pair(-4.0, -9.0, -4.0, -9.0), beta=5.0, link=link).item() == pytest.approx(spin_at_start(link), abs=1e-12)


def test_the_gradient_of_a_huge_margin_is_finite() -> None:
    chosen = torch.tensor([-1e4], dtype=torch.float64, requires_grad=True)
    zero = torch.zeros(1, dtype=torch.float64)
    spin(PairLogps(chosen, zero, zero, zero), beta=5.0, link="logistic").sum().backward()
    assert chosen.grad is not None
    assert chosen.grad.item() == pytest.approx(-5.0)


def test_an_unknown_link_is_refused() -> None:
    with pytest.raises(ValueError, match="expected logistic, hinge or exponential"):
        spin(pair(0, 0), beta=1.0, link="square")


def test_sft_is_the_negative_log_likelihood() -> None:
    assert sft(torch.tensor([-2.5])).item() == 2.5
