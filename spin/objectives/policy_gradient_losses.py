"""The clipped losses of policy gradients, token by token. They import torch alone.

log π, log π_old ──► ratio ρ ──► max(−ρA, −clip(ρ)A) ──► mean over the tokens of the step
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class RolloutLogps:
    """The answer tokens of a forward pass, answer by answer; Shape (tokens,) unless said otherwise.

    Log-probabilities are in nats, under each policy for the same tokens.
    """

    policy: Tensor
    old: Tensor
    """log π_old of the policy that sampled the answers."""
    base: Tensor | None
    """log π_base; None if no KL divergence to it is computed."""
    advantages: Tensor
    owners: Tensor
    """Index of the answer that each token belongs to."""
    lengths: Tensor
    """Number of tokens of each answer. Shape (answers,)."""

    def sum_answers(self, values: Tensor) -> Tensor:
        """Return the sum over the tokens of each answer. Shape (answers,)."""
        return values.new_zeros(len(self.lengths)).index_add(0, self.owners, values)


def compute_ratios(logps: RolloutLogps, ratio: str) -> Tensor:
    """Return ρ = π / π_old for each token. Shape (tokens,).

    Args:
        logps: The tokens.
        ratio: ``token``; ``sequence``, the product over the answer for all of its tokens; or
            ``sequence_mean``, the geometric mean over the answer, arXiv 2507.18071 eq. 7.

    Raises:
        ValueError: `ratio` is none of the three.
    """
    log_ratios = logps.policy - logps.old
    match ratio:
        case "token":
            return log_ratios.exp()
        case "sequence":
            return logps.sum_answers(log_ratios)[logps.owners].exp()
        case "sequence_mean":
            means = logps.sum_answers(log_ratios) / logps.lengths
            return means[logps.owners].exp()
    raise ValueError(f"ratio {ratio!r}: expected token, sequence or sequence_mean")


def clip_policy_gradient(ratios: Tensor, advantages: Tensor, lowest: float, highest: float) -> tuple[Tensor, Tensor]:
    """Return max(−ρA, −clip(ρ, lowest, highest)A), arXiv 1707.06347 eq. 7, and where it clips.

    Args:
        ratios: ρ. Shape (tokens,).
        advantages: A. Shape (tokens,).
        lowest: Lowest ratio that is not clipped, 1 − ε.
        highest: Highest ratio that is not clipped, 1 + ε.

    Returns:
        The loss of each token, and whether the clipped term is the larger one; then the token has
        no gradient. Each Shape (tokens,).
    """
    plain = -ratios * advantages
    clipped = -ratios.clamp(lowest, highest) * advantages
    return torch.maximum(plain, clipped), clipped > plain


def estimate_kl(logps: Tensor, others: Tensor) -> Tensor:
    """Return k3 = e^d − d − 1 with d = log q − log p, an estimate of KL(p‖q). Shape (tokens,).

    It is never negative, and unbiased where p wrote the tokens.
    http://joschu.net/blog/kl-approx.html

    Args:
        logps: log p. Shape (tokens,).
        others: log q. Shape (tokens,).
    """
    difference = others - logps
    return difference.exp() - difference - 1


def weigh_tokens(lengths: Tensor, owners: Tensor, aggregate: str, answers: int, tokens: int, constant: int) -> Tensor:
    """Return the weight of each token in the loss of an optimizer step. Shape (tokens,).

    Args:
        lengths: Number of tokens of each answer of the pass. Shape (answers,).
        owners: Index of the answer of each token. Shape (tokens,).
        aggregate: ``token``, ``sequence`` or ``constant``.
        answers: Number of answers of the step, over all passes and workers.
        tokens: Number of their tokens.
        constant: Tokens by which an answer is divided with ``constant``.

    Raises:
        ValueError: `aggregate` is none of the three.
    """
    match aggregate:
        case "token":
            weights = torch.full_like(lengths, 1 / tokens)
        case "sequence":
            weights = 1 / (answers * lengths)
        case "constant":
            weights = torch.full_like(lengths, 1 / (answers * constant))
        case _:
            raise ValueError(f"aggregate {aggregate!r}: expected token, sequence or constant")
    return weights[owners]


def clip_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float) -> Tensor:
    """Return ½ max((V − ret)², (V_old + clip(V − V_old, −ε, ε) − ret)²). Shape (tokens,).

    arXiv 2203.02155 and 2403.17031.

    Args:
        values: V of the critic. Shape (tokens,).
        old_values: V_old, of the critic that the advantages were computed with. Shape (tokens,).
        returns: Shape (tokens,).
        clip: ε, by which V may move away from V_old.
    """
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)
