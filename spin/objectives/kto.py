"""KTO, which compares each log-ratio with an estimate of the KL divergence over the step.

prompts       x0  x1  x2          the completion of the next row that has another prompt stands
completions   y0  y1  y2          under each prompt; the mean log-ratio of these mismatched
mismatched    y1  y2  y0          completions, at least 0, is the baseline z of the loss
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from spin.data.examples import Completion, Example
from spin.objectives.completion_logps import CompletionLogps
from spin.objectives.losses import RatingLogps, kto, kto_pair
from spin.objectives.objective import Objective, ScoreFunction, StepBatch
from spin.objectives.pair_objectives import split_pairs


class KtoLoss(Objective):
    """KTO on ratings; a pair counts as a desirable and an undesirable completion."""

    def prepare_rows(self, rows: Sequence[Example], score: ScoreFunction) -> list[Example]:
        """Return the rows with mismatched completions, scored by the reference."""
        mismatched = choose_mismatched(rows)
        # Rows of a single prompt have no mismatched completions.
        # They are left out of the scoring, so that no empty group is passed to the model.
        scored = iter(score([row for row in mismatched if row.completions]))
        prepared = []
        for row, other in zip(rows, mismatched, strict=True):
            completions = next(scored).completions if other.completions else ()
            prepared.append(replace(row, mismatched=completions))
        return prepared

    def statistics_rows(self, rows: Sequence[Example]) -> list[Example]:
        """Return the mismatched completions of a step."""
        return [replace(row, completions=row.mismatched) for row in rows if row.mismatched]

    def reduce_statistics(self, ratio_sums: Tensor) -> Tensor:
        """Return z, the mean log-ratio of all mismatched completions, at least 0. Shape ()."""
        # An estimate of a KL divergence, which is never negative, hence the limit at 0.
        total = ratio_sums.sum(0)
        return (total[0] / total[1].clamp(min=1)).clamp(min=0)

    def count_units(self, batch: StepBatch) -> int:
        """Return the number of completions of a step."""
        return sum(len(row.completions) for row in batch.rows)

    def compute_losses(self, logps: CompletionLogps, statistics: Tensor | None) -> Tensor:
        """Return the loss of each completion. Shape (completions,)."""
        assert statistics is not None
        # The label of a rejected or undesirable completion is "undesirable".
        desirability = torch.where(logps.desirable, logps.preference, 1 - logps.preference)
        return kto(RatingLogps(logps.policy, logps.reference, desirability), statistics, **self.arguments)

    def name_metrics(self, batch: StepBatch, sums: Tensor, statistics: Tensor | None) -> dict[str, Any]:
        """Return the figures of a step; `kl` is z."""
        assert statistics is not None
        return {**super().name_metrics(batch, sums, statistics), "kl": float(statistics)}


class KtoPairLoss(Objective):
    """KTO's form on pairs, with the means of the step's own log-ratios as baselines."""

    def reduce_statistics(self, ratio_sums: Tensor) -> Tensor:
        """Return the mean log-ratio of each side, at least 0. Shape (2,)."""
        return (ratio_sums[:, 0] / ratio_sums[:, 1].clamp(min=1)).clamp(min=0)

    def count_units(self, batch: StepBatch) -> int:
        """Return the number of pairs of a step."""
        return len(batch.rows)

    def compute_losses(self, logps: CompletionLogps, statistics: Tensor | None) -> Tensor:
        """Return the loss of each pair. Shape (pairs,)."""
        assert statistics is not None
        return kto_pair(split_pairs(logps), statistics, **self.arguments)


def choose_mismatched(rows: Sequence[Example]) -> list[Example]:
    """Return each row's prompt with the completions of the next row that has another prompt.

    The last rows look past the end to the first. A row gets no completions if all rows have one
    prompt.
    """
    if all(row.prompt_ids == rows[0].prompt_ids for row in rows):
        return [replace(row, completions=()) for row in rows]

    # From the end to the start, twice, because the last rows take from the first.
    count = len(rows)
    donors = [0] * count
    nearest = 0
    for index in range(2 * count - 1, -1, -1):
        following = (index + 1) % count
        if rows[following].prompt_ids != rows[index % count].prompt_ids:
            nearest = following
        donors[index % count] = nearest

    mismatched = []
    # The prompt stays, so that π(y|x) of a wrong x is computed.
    for row, donor in zip(rows, donors, strict=True):
        completions: tuple[Completion, ...] = rows[donor].completions
        mismatched.append(replace(row, completions=completions))
    return mismatched
