"""How much better an answer, or a token of it, is than expected.

RLOO and GRPO compare an answer with the other answers to its prompt, PPO with a critic. These are
pure functions of rewards, log-probabilities and values, in float64.
"""

from __future__ import annotations

import torch
from torch import Tensor

STD_EPSILON = 1e-4
"""Added to the standard deviation of GRPO, as in TRL."""

WHITENING_EPSILON = 1e-8
"""Added to the variance of PPO's advantages, as in verl."""


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


def spread_reward(reward: float, old_logps: Tensor, base_logps: Tensor | None, kl_weight: float) -> Tensor:
    """Return r_t = −κ (log π_old − log π_base) of each token, and R added to the last one.

    arXiv 2203.02155, appendix C.

    Args:
        reward: R of the answer.
        old_logps: log π_old. Shape (tokens,).
        base_logps: log π_base; None without a divergence. Shape (tokens,).
        kl_weight: κ.
    """
    rewards = torch.zeros_like(old_logps)
    if base_logps is not None:
        rewards = -kl_weight * (old_logps - base_logps)
    rewards[-1] += reward
    return rewards


def estimate_advantages(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> Tensor:
    """Return the generalized advantage estimates of the tokens of one answer, arXiv 1506.02438.

    δ_t = r_t + γ V_{t+1} − V_t with V = 0 after the last token, A_t = Σ_l (γλ)^l δ_{t+l}. The
    returns are A + V.

    Args:
        rewards: r. Shape (tokens,).
        values: V, each before its token. Shape (tokens,).
        gamma: γ.
        lam: λ.
    """
    following = torch.cat([values[1:], values.new_zeros(1)])
    differences = rewards + gamma * following - values
    advantages = torch.empty_like(differences)
    # From the last token to the first.
    running = 0.0
    for position in range(len(differences) - 1, -1, -1):
        running = float(differences[position]) + gamma * lam * running
        advantages[position] = running
    return advantages


def whiten(values: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Return (x − mean) / √(variance + 1e-8), as in verl. The same Shape as `values`."""
    return (values - mean) * torch.rsqrt(variance + WHITENING_EPSILON)
