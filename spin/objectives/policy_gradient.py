"""RLOO and GRPO: a clipped policy gradient on answers whose advantages were computed before.

    generate ─► rate ─► score, advantages ─► train: ratio to π_old, clipped, a few epochs

The frozen opponent is π_old, so its log-probabilities are columns of the rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from spin.config.objective_base import ObjectiveConfig
from spin.config.policy_gradient import GrpoObjective, PolicyGradientObjective
from spin.data.rollouts import Rollout
from spin.models.device_copy import send
from spin.models.token_logps import TokenLogps
from spin.objectives.completion_logps import Member
from spin.objectives.objective import LossOutput, Objective, StepBatch
from spin.objectives.policy_gradient_losses import (
    RolloutLogps,
    clip_policy_gradient,
    compute_ratios,
    estimate_kl,
    weigh_tokens,
)

MAX_CLIP_FRACTION = 0.3
"""With `objective.target_kl`, a larger share of clipped tokens ends the training too."""


class PolicyGradientLoss(Objective):
    """A clipped policy gradient; the reference of its rows is the opponent, π_old."""

    METRIC_SUMS: ClassVar[tuple[str, ...]] = ("loss", "clip_fraction", "kl_to_opponent", "kl_to_base", "entropy")

    def __init__(self, config: ObjectiveConfig) -> None:
        super().__init__(config)
        assert isinstance(config, PolicyGradientObjective)
        self.settings = config
        # With RLOO the divergence is a part of the advantages.
        self._loss_kl_weight = 0.0
        if isinstance(config, GrpoObjective):
            self._loss_kl_weight = config.kl_weight

    def count_units(self, batch: StepBatch) -> int:
        """Return the number of answers of a step."""
        return len(batch.rows)

    def scale_advantages(self, batch: StepBatch, advantages: Tensor) -> Tensor:
        """Return the advantages of a pass as the loss uses them. Shape (tokens,)."""
        return advantages

    def compute_loss(
        self, batch: StepBatch, logps: TokenLogps, members: Sequence[Member], statistics: Tensor | None
    ) -> LossOutput:
        """Return the part of a forward pass in the loss of the step; see Objective."""
        settings = self.settings
        rollouts = gather_rollouts(logps, members)

        # The clipped loss of each token, with the divergence to the base.
        ratios = compute_ratios(rollouts, settings.ratio.name)
        advantages = self.scale_advantages(batch, rollouts.advantages)
        losses, is_clipped = clip_policy_gradient(ratios, advantages, *settings.clip_range)
        kl_to_base = torch.zeros_like(losses)
        if rollouts.base is not None:
            kl_to_base = estimate_kl(rollouts.policy, rollouts.base)
        losses = losses + self._loss_kl_weight * kl_to_base

        # Their share of the mean over the whole step.
        lengths, owners = rollouts.lengths, rollouts.owners
        weights = weigh_tokens(
            lengths, owners, settings.aggregate.name, len(batch.rows), batch.completion_tokens, settings.constant
        )
        loss = (weights * losses).sum()
        with torch.no_grad():
            kl_to_opponent = estimate_kl(rollouts.old, rollouts.policy)
            sums = [loss]
            for values in (is_clipped, kl_to_opponent, kl_to_base, -rollouts.policy):
                sums.append(values.double().sum())
            return LossOutput(loss, torch.stack(sums))

    def name_metrics(self, batch: StepBatch, sums: Tensor, statistics: Tensor | None) -> dict[str, Any]:
        """Return the figures of a step.

        `kl_to_opponent` and `kl_to_base` are estimates of KL(π_old‖π) and KL(π‖π_base) in nats a
        token. `entropy` is the mean of −log π over the tokens of the answers, an estimate of the
        entropy of the policy as long as it is close to the opponent, which wrote them.
        """
        total = dict(zip(self.METRIC_SUMS, sums.tolist(), strict=True))
        metrics = {"loss": total["loss"]}
        for name in self.METRIC_SUMS[1:]:
            metrics[name] = total[name] / batch.completion_tokens
        if not self.config.needs_base:
            del metrics["kl_to_base"]

        # What is known of the answers themselves.
        rollouts = list_rollouts(batch)
        count = len(rollouts)
        metrics["reward"] = sum(rollout.reward for rollout in rollouts) / count
        metrics["answer_tokens"] = batch.completion_tokens / count
        metrics["truncated"] = sum(rollout.finish_reason == "length" for rollout in rollouts) / count
        metrics["tokens"] = batch.tokens
        return metrics

    def should_stop(self, metrics: Mapping[str, Any]) -> bool:
        """Return whether the policy is too far from the opponent for another step."""
        target = self.settings.target_kl
        if target is None:
            return False
        return bool(metrics["kl_to_opponent"] > target or metrics["clip_fraction"] > MAX_CLIP_FRACTION)


def list_rollouts(batch: StepBatch) -> list[Rollout]:
    """Return the answers of a step with their rewards."""
    rollouts = []
    for row in batch.rows:
        rollout = row.completions[0].rollout
        assert rollout is not None
        rollouts.append(rollout)
    return rollouts


def gather_rollouts(logps: TokenLogps, members: Sequence[Member]) -> RolloutLogps:
    """Return the tokens of a forward pass with what is known of each; log-probabilities in float64.

    Equal answers to a prompt are computed once, and stand here as often as there are rows.
    """
    # Lists first: one copy to the device for each field.
    starts = logps.starts()
    positions: list[int] = []
    old: list[float] = []
    base: list[float] = []
    advantages: list[float] = []
    owners: list[int] = []
    lengths: list[int] = []
    for number, (row, (place,)) in enumerate(members):
        rollout = row.completions[0].rollout
        assert rollout is not None
        length = len(rollout.completion_ids)
        positions += range(starts[place], starts[place] + length)
        old += rollout.old_logps
        base += rollout.base_logps
        advantages += rollout.advantages
        owners += [number] * length
        lengths.append(length)

    def column(values: Sequence[float], dtype: torch.dtype = torch.float64) -> Tensor:
        return send(torch.tensor(values, dtype=dtype), logps.values.device)

    base_column = None
    if base:
        base_column = column(base)
    return RolloutLogps(
        policy=logps.values[column(positions, torch.long)].double(),
        old=column(old),
        base=base_column,
        advantages=column(advantages),
        owners=column(owners, torch.long),
        lengths=column(lengths),
    )
