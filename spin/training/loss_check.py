"""The check that the losses of a step are finite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from spin.errors import TrainingError
from spin.objectives.completion_logps import Member


class PassLoss(NamedTuple):
    """What is known of the loss of one forward pass."""

    loss: Tensor
    """Shape ()."""
    logps: Tensor
    """Log-probability of each completion. Shape (completions,)."""
    members: Sequence[Member]
    """The rows of the pass."""


def check_losses(losses: Sequence[PassLoss]) -> None:
    """Check the losses of all passes of a step, after the last of them.

    Reading a loss after each pass would let a GPU wait until the rows of the next one are packed.

    Raises:
        TrainingError: A loss is not finite; the message names its rows.
    """
    finite = torch.isfinite(torch.stack([each.loss for each in losses])).tolist()
    for is_finite, each in zip(finite, losses, strict=True):
        if not is_finite:
            raise TrainingError(_explain(each))


def _explain(found: PassLoss) -> str:
    """Return the message about a loss that is not finite, with the rows that caused it."""
    names = []
    for row, places in found.members:
        if not bool(torch.isfinite(found.logps[list(places)]).all()):
            names.append(row.name)
    if not names:
        names = [row.name for row, _ in found.members]
    return f"the loss of {', '.join(names[:5])} is not finite; lower training.learning_rate, or look at these rows"
