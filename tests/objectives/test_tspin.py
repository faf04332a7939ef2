"""T-SPIN on rows with and without an answer of the start policy."""

import math

import pytest
import torch

from spin.config.objective import TspinLink, TspinObjective
from spin.data.examples import Completion, Example
from spin.objectives.completion_logps import Member, gather_completions
from spin.objectives.tspin import TspinLoss

CHOSEN, REJECTED = Completion([2, 3, 4], True, -10.0), Completion([5], False, -8.0)
START = Completion([6, 7], False, -9.0)
WITH_START = Example("with", [1], (CHOSEN, REJECTED, START))
WITHOUT = Example("without", [1], (CHOSEN, REJECTED))


def losses_of(logps: torch.Tensor, objective: TspinObjective) -> torch.Tensor:
    """The losses of WITHOUT and WITH_START, whose completions are scored in this order."""
    members = [Member(WITHOUT, (0, 1)), Member(WITH_START, (0, 1, 2))]
    return TspinLoss(objective).compute_losses(gather_completions(logps, members, 0.0), None)


# log π of the chosen, the rejected and the start policy's answer.
LOGPS = torch.tensor([-10.0, -8.0, -9.0], dtype=torch.float64)


def test_the_second_term_is_left_out_without_an_answer_of_the_start_policy() -> None:
    # ℓ(−10 + 8) = log(1 + e²), and 0.1 · ℓ(−8 + 9) = 0.1 · log(1 + e^−1) more.
    assert losses_of(LOGPS, TspinObjective()).tolist() == pytest.approx([2.126928, 2.158254], abs=1e-6)


def test_the_exponential_link_and_the_scale() -> None:
    objective = TspinObjective(beta=0.5, start_weight=0.2, link=TspinLink.exponential)
    expected = [math.exp(1.0), math.exp(1.0) + 0.2 * math.exp(-0.5)]
    assert losses_of(LOGPS, objective).tolist() == pytest.approx(expected)


def test_the_gradient_raises_the_opponents_answer_against_that_of_the_start_policy() -> None:
    logps = LOGPS.clone().requires_grad_()
    losses_of(logps, TspinObjective())[1].backward()
    assert logps.grad is not None
    # ℓ'(t) = −σ(−t), at t = −2 and t = 1.
    first, second = 1 / (1 + math.exp(-2)), 0.1 / (1 + math.exp(1))
    assert logps.grad.tolist() == pytest.approx([-first, first - second, second])


def test_metrics_count_pairs_alone_and_the_difference_of_their_lengths() -> None:
    members = [Member(WITHOUT, (0, 1)), Member(WITH_START, (0, 1, 2))]
    objective = TspinLoss(TspinObjective())
    sums = objective.sum_metrics(LOGPS.sum(), gather_completions(LOGPS, members, 0.0))
    values = dict(zip(TspinLoss.METRIC_SUMS, sums.tolist(), strict=True))
    assert values["pairs"] == 2
    assert values["rejected"] == 2
    assert values["logps/rejected"] == -16
    assert values["tokens/difference"] == 2 * (3 - 1)
