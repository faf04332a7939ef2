"""Objectives whose loss is a function of one completion or one pair: SFT, SPIN, DPO, SPPO …"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from spin.config.objective import CustomObjective
from spin.config.objective_base import ObjectiveConfig
from spin.objectives.completion_logps import CompletionLogps
from spin.objectives.custom_loss import load_custom_loss, try_custom_loss
from spin.objectives.losses import PAIR_LOSSES, PairLogps, sft
from spin.objectives.objective import Objective, StepBatch


class SftLoss(Objective):
    """Token-mean negative log-likelihood of the target completions."""

    def count_units(self, batch: StepBatch) -> int:
        """Return the number of target tokens of a step."""
        return batch.target_tokens

    def compute_losses(self, logps: CompletionLogps, statistics: Tensor | None) -> Tensor:
        """Return the loss of each completion. Shape (completions,)."""
        return sft(logps.policy)

    def name_metrics(self, batch: StepBatch, sums: Tensor, statistics: Tensor | None) -> dict[str, Any]:
        """Return loss and log-probability alone: without a reference there are no rewards."""
        metrics = super().name_metrics(batch, sums, statistics)
        return {name: metrics[name] for name in ("loss", "logps/chosen", "tokens")}


class PairLoss(Objective):
    """The mean over the pairs of a step of a loss of `PAIR_LOSSES`, or of the user's own.

    Raises:
        ConfigError: The function of a custom objective cannot be imported.
    """

    def __init__(self, config: ObjectiveConfig) -> None:
        super().__init__(config)
        self._loss: Callable[..., Tensor]
        if isinstance(config, CustomObjective):
            self._loss = load_custom_loss(config)
        else:
            self._loss = PAIR_LOSSES[config.name]

    def check_user_code(self) -> list[str]:
        """Try the loss of a custom objective on two made-up pairs."""
        if isinstance(self.config, CustomObjective):
            return [try_custom_loss(self.config)]
        return []

    def count_units(self, batch: StepBatch) -> int:
        """Return the number of pairs of a step."""
        return len(batch.rows)

    def compute_losses(self, logps: CompletionLogps, statistics: Tensor | None) -> Tensor:
        """Return the loss of each pair. Shape (pairs,)."""
        return self._loss(split_pairs(logps), **self.arguments)


def split_pairs(logps: CompletionLogps) -> PairLogps:
    """Return the completions of a pass as pairs; chosen and rejected stand in turn."""
    return PairLogps(
        policy_chosen=logps.policy[0::2],
        policy_rejected=logps.policy[1::2],
        reference_chosen=logps.reference[0::2],
        reference_rejected=logps.reference[1::2],
        chosen_tokens=logps.tokens[0::2],
        rejected_tokens=logps.tokens[1::2],
        preference=logps.preference[0::2],
        chosen_win_rate=logps.win_rate[0::2],
        rejected_win_rate=logps.win_rate[1::2],
    )
