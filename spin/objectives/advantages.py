"""How much better an answer is than the other answers to its prompt.

These are pure functions of rewards and log-probabilities, in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

STD_EPSILON = 1e-4
"""Added to the standard deviation of GRPO, as in TRL."""


def subtract_others_mean(rewards: Tensor) -> Tensor:
    """Return A_i = R_i − mean of R_j over j ≠ i, RLOO's advantages, arXiv 2402.14740.

    Args:
        rewards: R of the answers to one prompt, at least two. Shape (answers,).
    """
    count = len(rewards)
    others_mean = (rewards.sum() - rewards) / (count - 1)
    return rewards - others_mean


def compare_with_group(rewards: Tensor, normalise: bool) -> Tensor:
    """Return A_i = (R_i − mean) / (std + 1e-4), GRPO's advantages, arXiv 2402.03300.

    Args:
        rewards: R of the answers to one prompt, at least two. Shape (answers,).
        normalise: Whether to divide by the standard deviation, with the unbiased variance.
    """
    centred = rewards - rewards.mean()
    if not normalise:
        return centred
    return centred / (rewards.std() + STD_EPSILON)


def penalise_divergence(rewards: Tensor, log_ratios: Tensor, kl_weight: float) -> Tensor:
    """Return R′ = R − κ Σ_t (log π_old − log π_base). Shape (answers,).

    Args:
        rewards: R. Shape (answers,).
        log_ratios: Σ_t (log π_old − log π_base) of each answer, in nats. Shape (answers,).
        kl_weight: κ.
    """
    return rewards - kl_weight * log_ratios


def sum_log_ratios(old_logps: list[list[float]], base_logps: list[list[float]]) -> Tensor:
    """Return Σ_t (log π_old − log π_base) of each answer. Shape (answers,), float64."""
    sums = []
    for old, base in zip(old_logps, base_logps, strict=True):
        sums.append(sum(old) - sum(base))
    return torch.tensor(sums, dtype=torch.float64)
