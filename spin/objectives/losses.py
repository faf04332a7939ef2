"""The objectives as pure functions of log-probabilities, one loss a row. Torch only.

`OBJECTIVES` says of each which rows it takes; its keyword arguments are the keys of its config group. A user's own objective is such a function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class PairLogps:
    """Summed completion log-probabilities of a batch of pairs, and the lengths of both completions in tokens; each Shape (batch,)."""

    policy_chosen: Tensor
    policy_rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor

    @property
    def chosen_ratio(self) -> Tensor:
        """log π(y|x) − log π_ref(y|x). Shape (batch,)."""
        return self.policy_chosen - self.reference_chosen

    @property
    def rejected_ratio(self) -> Tensor:
        """log π(y'|x) − log π_ref(y'|x). Shape (batch,)."""
        return self.policy_rejected - self.reference_rejected

    @property
    def margin(self) -> Tensor:
        """Δ = [log π(y|x) − log π_ref(y|x)] − [log π(y'|x) − log π_ref(y'|x)]. Shape (batch,)."""
        return self.chosen_ratio - self.rejected_ratio


@dataclass(frozen=True)
class RatingLogps:
    """Summed log-probabilities of single completions, each desirable or not; each Shape (batch,), `desirable` bool."""

    policy: Tensor
    reference: Tensor
    desirable: Tensor

    @property
    def ratio(self) -> Tensor:
        """r = log π(y|x) − log π_ref(y|x). Shape (batch,)."""
        return self.policy - self.reference


def sft(policy_chosen: Tensor) -> Tensor:
    """−log π(y|x); the trainer divides the sum by the step's completion tokens. Shape (batch,)."""
    return -policy_chosen


def spin(logps: PairLogps, *, beta: float, link: str) -> Tensor:
    """ℓ(βΔ), arXiv 2401.01335 eq. 4.7. `link`: logistic log(1+e^−t), hinge max(0,1−t), exponential e^−t. Shape (batch,)."""
    t = beta * logps.margin
    match link:
        case "logistic":
            return F.softplus(-t)
        case "hinge":
            return F.relu(1 - t)
        case "exponential":
            return torch.exp(-t)
    raise ValueError(f"link {link!r}: expected logistic, hinge or exponential")


def dpo(logps: PairLogps, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """−(1−ε) log σ(βΔ) − ε log σ(−βΔ), arXiv 2305.18290 eq. 7 with the smoothing of its authors' code. Shape (batch,)."""
    t = beta * logps.margin
    return (1 - label_smoothing) * F.softplus(-t) + label_smoothing * F.softplus(t)


def ipo(logps: PairLogps, *, beta: float, length_normalize: bool = False) -> Tensor:
    """(Δ − 1/(2β))², arXiv 2310.12036 eq. 17; with `length_normalize` Δ is made of per-token means, as TRL and HALOs do. Shape (batch,)."""
    margin = logps.margin
    if length_normalize:
        margin = logps.chosen_ratio / logps.chosen_tokens.clamp(
            min=1
        ) - logps.rejected_ratio / logps.rejected_tokens.clamp(min=1)
    return (margin - 1 / (2 * beta)) ** 2


def slic(logps: PairLogps, *, link: str, beta: float, delta: float, regularization: float) -> Tensor:
    """`calibrated`: max(0, δ − log π(y|x) + log π(y'|x)) − λ log π(y|x), arXiv 2305.10425, no reference; `margin`: max(0, 1 − βΔ). Shape (batch,)."""
    match link:
        case "calibrated":
            return F.relu(delta - logps.policy_chosen + logps.policy_rejected) - regularization * logps.policy_chosen
        case "margin":
            return F.relu(1 - beta * logps.margin)
    raise ValueError(f"link {link!r}: expected calibrated or margin")


def kto(logps: RatingLogps, z: Tensor, *, beta: float, desirable_weight: float, undesirable_weight: float) -> Tensor:
    """λ_D (1 − σ(β(r − z))) where desirable, λ_U (1 − σ(β(z − r))) where not, arXiv 2402.01306 eq. 8. Shape (batch,).

    `z`, Shape (): max(0, mean log-ratio of mismatched prompts and completions) over the whole optimizer step; no gradient flows through it.
    """
    z = z.detach()
    good = desirable_weight * (1 - torch.sigmoid(beta * (logps.ratio - z)))
    bad = undesirable_weight * (1 - torch.sigmoid(beta * (z - logps.ratio)))
    return torch.where(logps.desirable, good, bad)


def kto_pair(logps: PairLogps, z: Tensor, *, beta: float) -> Tensor:
    """Mean of 1 − σ(β(r_w − z_l)) and 1 − σ(β(z_w − r_l)); its author calls it weaker than `kto`. Shape (batch,).

    `z`, Shape (2,): (z_w, z_l), the clamped means of the step's matched log-ratios; no gradient flows through them.
    """
    z = z.detach()
    good = 1 - torch.sigmoid(beta * (logps.chosen_ratio - z[1]))
    bad = 1 - torch.sigmoid(beta * (z[0] - logps.rejected_ratio))
    return (good + bad) / 2


@dataclass(frozen=True)
class LossFunction:
    """A loss and what it takes: `rows` is real (policy log-probabilities of the truth), pairs or ratings; `z` names the step's statistic it wants."""

    loss: Callable[..., Tensor]
    rows: str = "pairs"
    z: str | None = None
    """None; ``mismatched``: mean log-ratio of completions under other prompts; ``matched``: means of both halves' log-ratios."""


OBJECTIVES = {
    "sft": LossFunction(sft, rows="real"),
    "spin": LossFunction(spin),
    "dpo": LossFunction(dpo),
    "ipo": LossFunction(ipo),
    "slic": LossFunction(slic),
    "kto": LossFunction(kto, rows="ratings", z="mismatched"),
    "kto_pair": LossFunction(kto_pair, z="matched"),
}
