"""PPO: advantages from a critic, whitened over the step, and the likelihood of ground truths.

    answers ──► policy ──► clipped loss with whitened advantages ─┐
    answers ──► critic ──► clipped loss of the values             ├─► one optimizer step of each
    truths  ──► policy ──► negative log-likelihood (PPO-ptx)     ─┘

arXiv 2203.02155, appendix C.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from spin.config.objective_base import ObjectiveConfig
from spin.config.policy_gradient import PpoObjective
from spin.models.device_copy import send
from spin.models.token_logps import TokenLogps
from spin.objectives.advantages import whiten
from spin.objectives.completion_logps import Member
from spin.objectives.objective import LossOutput, StepBatch
from spin.objectives.policy_gradient import PolicyGradientLoss, gather_rollouts, list_rollouts
from spin.objectives.policy_gradient_losses import RolloutLogps, clip_value_loss, weigh_tokens


class PpoLoss(PolicyGradientLoss):
    """The losses of the policy and of the critic."""

    METRIC_SUMS: ClassVar[tuple[str, ...]] = (*PolicyGradientLoss.METRIC_SUMS, "ptx_nll")

    VALUE_SUMS: ClassVar[tuple[str, ...]] = ("value_loss", "returns", "returns_squared", "errors", "errors_squared")
    """Sums over the tokens of a step, for the figures of the critic."""

    def __init__(self, config: ObjectiveConfig) -> None:
        super().__init__(config)
        assert isinstance(config, PpoObjective)
        self.ppo = config

    def scale_advantages(self, batch: StepBatch, advantages: Tensor) -> Tensor:
        """Return the advantages of a pass, whitened with the figures of the whole step."""
        if not self.ppo.whiten:
            return advantages
        # Every worker has all rows of the step, so all take the same figures.
        everything: list[float] = []
        for rollout in list_rollouts(batch):
            everything += rollout.advantages
        step = send(torch.tensor(everything, dtype=advantages.dtype), advantages.device)
        if len(step) < 2:
            return advantages - step.mean()
        return whiten(advantages, step.mean(), step.var())

    def compute_loss(
        self, batch: StepBatch, logps: TokenLogps, members: Sequence[Member], statistics: Tensor | None
    ) -> LossOutput:
        """Return the part of a forward pass in the loss of the policy; see Objective."""
        answers = [member for member in members if not member.row.pretraining]
        truths = [member for member in members if member.row.pretraining]
        loss = 0.0 * logps.values.double().sum()
        sums = loss.new_zeros(len(PolicyGradientLoss.METRIC_SUMS))
        if answers:
            output = super().compute_loss(batch, logps, answers, statistics)
            loss, sums = output.loss, output.metric_sums

        # The mean over the tokens of all truths of the step.
        nll = loss.new_zeros(())
        if truths:
            places = [place for member in truths for place in member.places]
            nll = -logps.sums()[send(torch.tensor(places), logps.values.device)].sum()
            loss = loss + self.ppo.ptx_weight * nll / batch.pretraining_tokens
        with torch.no_grad():
            return LossOutput(loss, torch.cat([loss.view(1), sums[1:], nll.view(1)]))

    def compute_value_loss(self, batch: StepBatch, values: TokenLogps, members: Sequence[Member]) -> LossOutput:
        """Return the part of a forward pass of the critic in the critic's loss.

        Args:
            batch: All rows of the step.
            values: The critic's values, in the place of log-probabilities.
            members: The rows of the pass; truths are left out.
        """
        answers = [member for member in members if not member.row.pretraining]
        if not answers:
            loss = 0.0 * values.values.double().sum()
            return LossOutput(loss, loss.new_zeros(len(self.VALUE_SUMS)))
        rollouts = gather_rollouts(values, answers)
        old_values, returns = gather_returns(rollouts, answers)
        losses = clip_value_loss(rollouts.policy, old_values, returns, self.ppo.value_clip)
        weights = weigh_tokens(
            rollouts.lengths,
            rollouts.owners,
            self.ppo.aggregate.name,
            len(batch.rows),
            batch.completion_tokens,
            self.ppo.constant,
        )
        value_loss = (weights * losses).sum()
        loss = self.ppo.value_weight * value_loss
        with torch.no_grad():
            errors = returns - rollouts.policy
            sums = [value_loss, returns.sum(), (returns**2).sum(), errors.sum(), (errors**2).sum()]
            return LossOutput(loss, torch.stack(sums))

    def name_metrics(self, batch: StepBatch, sums: Tensor, statistics: Tensor | None) -> dict[str, Any]:
        """Return the figures of a step; `ptx_nll` is the NLL of the truths in nats a token."""
        metrics = super().name_metrics(batch, sums, statistics)
        del metrics["ptx_nll"]
        if batch.pretraining:
            metrics["ptx_nll"] = float(sums[-1]) / batch.pretraining_tokens
        return metrics

    def name_value_metrics(self, batch: StepBatch, sums: Tensor) -> dict[str, float]:
        """Return the figures of the critic in a step.

        `explained_variance` is 1 − Var(returns − values) / Var(returns) over the tokens; 0 if all
        returns are equal.
        """
        total = dict(zip(self.VALUE_SUMS, sums.tolist(), strict=True))
        count = batch.completion_tokens
        variance = total["returns_squared"] / count - (total["returns"] / count) ** 2
        unexplained = total["errors_squared"] / count - (total["errors"] / count) ** 2
        explained = 0.0
        if variance > 0:
            explained = 1 - unexplained / variance
        return {"value_loss": total["value_loss"], "explained_variance": explained}


def gather_returns(rollouts: RolloutLogps, members: Sequence[Member]) -> tuple[Tensor, Tensor]:
    """Return the old values and the returns of the tokens of a pass. Each Shape (tokens,)."""
    old_values: list[float] = []
    returns: list[float] = []
    for member in members:
        rollout = member.row.completions[0].rollout
        assert rollout is not None
        old_values += rollout.values
        returns += rollout.returns
    columns = [torch.tensor(values, dtype=torch.float64) for values in (old_values, returns)]
    return send(columns[0], rollouts.old.device), send(columns[1], rollouts.old.device)
