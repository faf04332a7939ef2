"""T-SPIN, which also compares the opponent's answers with those of the start policy.

    row            chosen y       rejected y'      start y₀, the answer of iteration 0's opponent
    loss           ℓ(α[log π(y) − log π(y')])  +  β ℓ(α[log π(y') − log π(y₀)])

In iteration 0, y' is y₀: the second term is constant and is left out. arXiv 2601.08198.
"""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor

from spin.objectives.completion_logps import CompletionLogps
from spin.objectives.losses import LINKS, PairLogps, average_over_labels
from spin.objectives.objective import Objective, StepBatch
from spin.objectives.pair_objectives import split_pairs


def tspin(logps: PairLogps, start: Tensor, has_start: Tensor, *, beta: float, start_weight: float, link: str) -> Tensor:
    """Return ℓ(α[log π(y) − log π(y')]) + β ℓ(α[log π(y') − log π(y₀)]). Shape (batch,).

    arXiv 2601.08198 eq. 4, 6 and 7. A soft label averages the first term over both orders.

    Args:
        logps: The pairs of a batch; the reference is not used.
        start: log π(y₀|x) of the answer of the start policy. Shape (batch,).
        has_start: Whether there is such an answer; bool. Shape (batch,).
        beta: Scale of the differences, the paper's α.
        start_weight: Weight of the second term, the paper's β.
        link: A key of LINKS.
    """
    difference = logps.policy_chosen - logps.policy_rejected
    labelled = average_over_labels(LINKS[link], beta * difference, logps.preference, smoothing=0.0)
    against_start = LINKS[link](beta * (logps.policy_rejected - start))
    return labelled + start_weight * has_start * against_start


class TspinLoss(Objective):
    """T-SPIN on pairs. The reference is only logged, and checked before the first step."""

    METRIC_SUMS = (*Objective.METRIC_SUMS, "tokens/difference")

    def count_units(self, batch: StepBatch) -> int:
        """Return the number of pairs of a step."""
        return len(batch.rows)

    def compute_losses(self, logps: CompletionLogps, statistics: Tensor | None) -> Tensor:
        """Return the loss of each pair. Shape (pairs,)."""
        # The completions of a row stand together: chosen, rejected and, if there is one, start.
        has_start = logps.num_in_row[logps.chosen] == 3
        # Without one, any index will do: the term has weight 0.
        start = torch.where(has_start, logps.chosen + 2, logps.chosen + 1)
        return tspin(split_pairs(keep_pairs(logps)), logps.policy[start], has_start, **self.arguments)

    def sum_metrics(self, loss: Tensor, completions: CompletionLogps) -> Tensor:
        """Return the figures of METRIC_SUMS for one pass.

        The answers of the start policy do not count as rejected. The last figure is the number of
        tokens of the chosen less those of the rejected completions: the loss compares sums over
        tokens, so that it depends on the lengths.
        """
        pairs = keep_pairs(completions)
        difference = (pairs.tokens[0::2] - pairs.tokens[1::2]).double().sum()
        return torch.cat([super().sum_metrics(loss, pairs), difference.view(1)])


def keep_pairs(logps: CompletionLogps) -> CompletionLogps:
    """Return the chosen and the rejected completions alone, in turn."""
    kept = torch.stack([logps.chosen, logps.chosen + 1], dim=1).flatten()
    places = torch.arange(len(kept), device=kept.device)
    values = {
        "num_in_row": torch.full_like(kept, 2),
        "chosen": places[0::2],
        "rejected": places[1::2],
        "paired": places,
    }
    for entry in fields(logps):
        if entry.name not in values:
            values[entry.name] = getattr(logps, entry.name)[kept]
    return CompletionLogps(**values)
