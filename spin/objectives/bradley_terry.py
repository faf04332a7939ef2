"""The loss of a reward model: all pairs of a prompt's ranked answers, and the mean over prompts.

    rewards of K answers ─► up to K(K − 1)/2 pairs ─► loss of each ─► mean over the prompt's pairs

All pairs of a prompt are in one step, so each answer is computed once, and a prompt with many
answers weighs as much as one with two (arXiv 2203.02155, section 3.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spin.config.objective_base import ObjectiveConfig
from spin.config.reward_model import BradleyTerryObjective, Ties
from spin.data.examples import Example, RankedPair
from spin.models.device_copy import send
from spin.models.token_logps import TokenLogps
from spin.objectives.completion_logps import Member
from spin.objectives.losses import bradley_terry
from spin.objectives.objective import LossOutput, Objective, StepBatch


@dataclass(frozen=True)
class PassPairs:
    """The pairs of a forward pass, each Shape (pairs,)."""

    first: Tensor
    """Index of the first answer among the rewards of the pass."""
    second: Tensor
    preference: Tensor
    """P(the first answer is better), from 0 to 1."""
    margin: Tensor
    share: Tensor
    """1 / number of pairs of the same prompt."""


class BradleyTerryLoss(Objective):
    """The mean over prompts of the mean loss of their pairs."""

    METRIC_SUMS = ("loss", "answers", "rewards/mean", "pairs", "rewards/accuracies", "rewards/margins")

    def __init__(self, config: ObjectiveConfig) -> None:
        super().__init__(config)
        assert isinstance(config, BradleyTerryObjective)
        self._ties = config.ties
        self._center_coefficient = config.center_coefficient

    def count_units(self, batch: StepBatch) -> int:
        """Return the number of prompts of a step."""
        return len(batch.rows)

    def compute_loss(
        self, batch: StepBatch, logps: TokenLogps, members: Sequence[Member], statistics: Tensor | None
    ) -> LossOutput:
        """See Objective; the sums of `logps` are the rewards."""
        rewards = logps.sums()
        pairs = gather_pairs(members, self._ties, rewards)
        # A pair whose first answer is the worse one has a preference below ½ and a margin below 0.
        better, worse = rewards[pairs.first], rewards[pairs.second]
        losses = bradley_terry(better - worse - pairs.margin, pairs.preference)
        # Rewards are defined up to a constant only; this term of
        # TRL's RewardTrainer (arXiv 2312.09244) keeps them near 0.
        losses = losses + self._center_coefficient * (better + worse) ** 2
        loss = (pairs.share * losses).sum() / batch.denominator
        with torch.no_grad():
            return LossOutput(loss, _sum_ranking_metrics(loss, rewards, pairs))

    def name_metrics(self, batch: StepBatch, sums: Tensor, statistics: Tensor | None) -> dict[str, Any]:
        """Return the figures of a step; accuracy and margin are means over pairs without ties."""
        # A step may have ties alone.
        total = dict(zip(self.METRIC_SUMS, sums.tolist(), strict=True))
        metrics = {"loss": total["loss"], "rewards/mean": total["rewards/mean"] / total["answers"]}
        for name in ("rewards/accuracies", "rewards/margins"):
            if total["pairs"]:
                metrics[name] = total[name] / total["pairs"]
        metrics["tokens"] = batch.tokens
        return metrics


def list_pairs(row: Example, ties: Ties) -> list[RankedPair]:
    """Return the pairs of a ranking that count, as `ties` says."""
    if ties is Ties.half:
        return list(row.ranked_pairs)
    return [pair for pair in row.ranked_pairs if pair.preference != 0.5]


def gather_pairs(members: Sequence[Member], ties: Ties, rewards: Tensor) -> PassPairs:
    """Return the pairs of a forward pass.

    Args:
        members: The rankings of the pass.
        ties: What two answers of equal rank are.
        rewards: Of the pass; gives dtype and device. Shape (completions,).
    """
    # Lists first: one copy to the device for each field, not one for each pair.
    first: list[int] = []
    second: list[int] = []
    preference: list[float] = []
    margin: list[float] = []
    share: list[float] = []
    for row, places in members:
        row_pairs = list_pairs(row, ties)
        for pair in row_pairs:
            first.append(places[pair.first])
            second.append(places[pair.second])
            preference.append(pair.preference)
            margin.append(pair.margin)
            share.append(1 / len(row_pairs))

    def column(values: Sequence[float], dtype: torch.dtype = rewards.dtype) -> Tensor:
        return send(torch.tensor(values, dtype=dtype), rewards.device)

    return PassPairs(
        first=column(first, torch.long),
        second=column(second, torch.long),
        preference=column(preference),
        margin=column(margin),
        share=column(share),
    )


def _sum_ranking_metrics(loss: Tensor, rewards: Tensor, pairs: PassPairs) -> Tensor:
    """Return the figures of METRIC_SUMS for one pass."""
    # Positive where the answer that is better according to its label has the larger reward.
    sign = torch.sign(pairs.preference - 0.5)
    gaps = sign * (rewards[pairs.first] - rewards[pairs.second])
    # The sums stand in the order of METRIC_SUMS.
    num_answers = rewards.new_full((), len(rewards))
    sums = [loss, num_answers, rewards.sum(), sign.abs().sum(), (gaps > 0).double().sum(), gaps.sum()]
    return torch.stack(sums).double()
