"""ΨPO, which fits the margin of a pair to a target that is computed from judged preferences."""

from __future__ import annotations

import torch
from torch import Tensor

from spin.config.objective import PsipoObjective
from spin.config.objective_base import ObjectiveConfig
from spin.errors import TrainingError
from spin.objectives.completion_logps import CompletionLogps
from spin.objectives.losses import psipo
from spin.objectives.objective import Objective, StepBatch
from spin.objectives.pair_objectives import split_pairs
from spin.objectives.psi import PSI_FUNCTIONS, compute_targets, is_antisymmetric, make_psi


class PsipoLoss(Objective):
    """ΨPO on pairs; a pair without a target gets one from its own preference.

    Raises:
        ConfigError: There is no such Ψ, or it is not finite.
    """

    METRIC_SUMS = (*Objective.METRIC_SUMS, "psi/clamped")

    def __init__(self, config: ObjectiveConfig) -> None:
        super().__init__(config)
        assert isinstance(config, PsipoObjective)
        self.beta = config.tau
        self._psi_name = config.psi
        self._psi = make_psi(config.psi, config.clamp)
        self._antisymmetric = is_antisymmetric(self._psi)
        # The identity is not clamped.
        self._clamp = config.clamp if config.psi != "identity" else 0.0

    def check_user_code(self) -> list[str]:
        """Show a Ψ of the user's own at a few preferences."""
        if self._psi_name in PSI_FUNCTIONS:
            return []
        shown = [f"{float(value):.4g}" for value in self._psi(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))]
        kind = "Ψ(q) + Ψ(1 − q) is constant"
        if not self._antisymmetric:
            kind = "Ψ(q) + Ψ(1 − q) is not constant, so that three judged answers of a prompt are needed"
        return [
            f"objective.psi={self._psi_name} on preferences of Shape (3,), limited to {self._clamp:g} and "
            f"{1 - self._clamp:g}: Ψ(0), Ψ(½), Ψ(1) = {', '.join(shown)}; {kind}"
        ]

    def count_units(self, batch: StepBatch) -> int:
        """Return the number of pairs of a step."""
        return len(batch.rows)

    def compute_losses(self, logps: CompletionLogps, statistics: Tensor | None) -> Tensor:
        """Return the loss of each pair. Shape (pairs,).

        Raises:
            TrainingError: A pair has no target, and Ψ cannot be computed from two answers.
        """
        # A target from all judged answers of the prompt is better than one from two of them.
        target = logps.target[0::2]
        unknown = torch.isnan(target)
        if self._antisymmetric:
            own = self._compute_own_targets(logps.preference[0::2])
            target = torch.where(unknown, own, target)
        elif bool(unknown.any()):
            raise TrainingError(
                f"objective.psi={self._psi_name} needs three judged answers of a prompt, "
                f"and {int(unknown.sum())} pairs have no target; take psi=identity or psi=logit"
            )
        return psipo(split_pairs(logps), target, tau=self.beta)

    def _compute_own_targets(self, preference: Tensor) -> Tensor:
        """Return the targets of pairs whose two completions are all answers of the prompt."""
        half = torch.full_like(preference, 0.5)
        # [pairs, 2, 2]
        matrix = torch.stack([half, preference, 1 - preference, half], dim=-1).view(-1, 2, 2)
        return compute_targets(matrix, self._psi)[:, 0, 1]

    def sum_metrics(self, loss: Tensor, completions: CompletionLogps) -> Tensor:
        """Return the figures of METRIC_SUMS for one pass; the last counts the clamped pairs."""
        preference = completions.preference[0::2]
        outside = (preference < self._clamp) | (preference > 1 - self._clamp)
        clamped = (outside & torch.isnan(completions.target[0::2])).double().sum()
        return torch.cat([super().sum_metrics(loss, completions), clamped.view(1)])
