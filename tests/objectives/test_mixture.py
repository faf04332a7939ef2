"""The mixture of opponent and base as a reference."""

import pytest
import torch

from spin.config.objective import DpoObjective, IpoObjective, KtoObjective, SpinObjective
from spin.config.objective_base import Reference
from spin.data.examples import Completion, Example
from spin.errors import ConfigError
from spin.objectives.completion_logps import Member, gather_completions
from spin.objectives.losses import ipo
from spin.objectives.pair_objectives import split_pairs

# Log-probabilities of the opponent and of the base.
PAIR = Example("pair", [1], (Completion([2], True, -4.0, -6.0), Completion([3], False, -5.0, -4.5)))


def margin(policy: tuple[float, float], base_weight: float) -> float:
    logps = torch.tensor(policy, dtype=torch.float64)
    return split_pairs(gather_completions(logps, [Member(PAIR, (0, 1))], base_weight)).margin.item()


def test_at_the_first_step_the_margin_is_that_of_the_opponent_against_the_base_times_alpha() -> None:
    # The policy is the opponent: Δ₀ = α · [(−4 + 6) − (−5 + 4.5)] = 0.3 · 2.5
    assert margin((-4.0, -5.0), 0.3) == pytest.approx(0.75)
    assert margin((-4.0, -5.0), 0.0) == 0


def test_ipo_with_a_mixture_is_inpo() -> None:
    # arXiv 2407.00617: h = Δ_π − (τ/η)Δ_base − (1 − τ/η)Δ_opponent, loss (h − 1/(2η))².
    eta = 7.5e-3
    tau = eta / 3
    policy = (-3.0, -6.0)
    h = (-3.0 + 6.0) - (tau / eta) * (-6.0 + 4.5) - (1 - tau / eta) * (-4.0 + 5.0)
    logps = torch.tensor(policy, dtype=torch.float64)
    pairs = split_pairs(gather_completions(logps, [Member(PAIR, (0, 1))], tau / eta))
    assert ipo(pairs, beta=eta).item() == pytest.approx((h - 1 / (2 * eta)) ** 2, rel=1e-12)


def test_a_mixture_without_a_weight_and_a_weight_without_a_mixture_are_refused() -> None:
    assert SpinObjective(reference=Reference.mixture, base_weight=0.5).needs_base
    assert not IpoObjective().needs_base
    with pytest.raises(ConfigError, match=r"base_weight=0.0: expected above 0 and below 1 with reference=mixture"):
        SpinObjective(reference=Reference.mixture)
    with pytest.raises(ConfigError, match=r"base_weight=0.5: expected 0 with reference=base, or set .*mixture"):
        IpoObjective(base_weight=0.5)


@pytest.mark.parametrize("objective", [DpoObjective, KtoObjective])
def test_other_objectives_take_one_policy_as_reference(objective: type) -> None:
    with pytest.raises(ConfigError, match="takes base or opponent; spin and ipo also take a mixture"):
        objective(reference=Reference.mixture)
