"""The objectives as pure functions of log-probabilities, one loss a row. Torch only."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class PairLogps:
    """Summed completion log-probabilities of a batch of pairs; each Shape (batch,)."""

    policy_chosen: Tensor
    policy_rejected: Tensor
    reference_chosen: Tensor
    reference_rejected: Tensor

    @property
    def margin(self) -> Tensor:
        """Δ = [log π(y|x) − log π_ref(y|x)] − [log π(y'|x) − log π_ref(y'|x)]. Shape (batch,)."""
        return (self.policy_chosen - self.reference_chosen) - (self.policy_rejected - self.reference_rejected)


def sft(policy_chosen: Tensor) -> Tensor:
    """−log π(y|x); the trainer divides the sum by the step's completion tokens. Shape (batch,)."""
    return -policy_chosen


def spin(logps: PairLogps, beta: float, link: str) -> Tensor:
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


def spin_at_start(link: str) -> float:
    """The loss of every pair while the main player still is its opponent (Δ = 0)."""
    return math.log(2) if link == "logistic" else 1.0
