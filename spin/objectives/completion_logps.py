"""The completions of a forward pass: their log-probabilities, and what is known of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from spin.data.examples import Completion, Example
from spin.models.device_copy import send


class Member(NamedTuple):
    """A row of a forward pass."""

    row: Example
    places: tuple[int, ...]
    """Index of each of its completions among the log-probabilities of the pass."""


@dataclass(frozen=True)
class CompletionLogps:
    """The completions of a forward pass in the order of the rows, each Shape (completions,)."""

    policy: Tensor
    """log π(y|x), summed over tokens, in nats."""
    reference: Tensor
    """log π_ref(y|x), summed over tokens, in nats."""
    tokens: Tensor
    """Number of tokens."""
    desirable: Tensor
    """True if the completion is the chosen one, or rated as desirable."""
    preference: Tensor
    """Probability of the row's label, from 0 to 1."""
    win_rate: Tensor
    """P(the completion is better than an answer of the opponent), from 0 to 1."""
    target: Tensor
    """Target of ΨPO of the row; NaN if the row has none."""
    num_in_row: Tensor
    """Number of completions of the same row."""
    chosen: Tensor
    """Indices of the desirable completions. Shape (chosen,).

    With a mask in its place, a GPU would have to tell the CPU how many there are."""
    rejected: Tensor
    """Indices of the other completions. Shape (rejected,)."""
    paired: Tensor
    """Indices of the completions of rows with two. Shape (paired,)."""


def mix_reference(completion: Completion, base_weight: float) -> float:
    """Return log π_ref of a completion, in nats."""
    # Without a mixture the base is NaN, and 0 times NaN is NaN.
    if base_weight == 0:
        return completion.reference_logp
    return (1 - base_weight) * completion.reference_logp + base_weight * completion.base_logp


def gather_completions(logps: Tensor, members: Sequence[Member], base_weight: float) -> CompletionLogps:
    """Return the completions of a forward pass with what is known of each.

    Args:
        logps: Summed log-probabilities of the pass. Shape (completions,).
        members: The rows of the pass.
        base_weight: Weight of the base in the reference.
    """
    # Lists first: one copy to the device for each field, not one for each completion.
    places: list[int] = []
    reference: list[float] = []
    tokens: list[int] = []
    desirable: list[bool] = []
    preference: list[float] = []
    win_rate: list[float] = []
    target: list[float] = []
    num_in_row: list[int] = []
    for row, row_places in members:
        places += row_places
        for completion in row.completions:
            reference.append(mix_reference(completion, base_weight))
            tokens.append(len(completion.ids))
            desirable.append(completion.desirable)
            preference.append(row.preference)
            win_rate.append(completion.win_rate)
            target.append(row.target)
            num_in_row.append(len(row.completions))

    def column(values: Sequence[float], dtype: torch.dtype = logps.dtype) -> Tensor:
        return send(torch.tensor(values, dtype=dtype), logps.device)

    indices = range(len(places))
    return CompletionLogps(
        policy=logps[column(places, torch.long)],
        reference=column(reference),
        tokens=column(tokens),
        desirable=column(desirable, torch.bool),
        preference=column(preference),
        win_rate=column(win_rate),
        target=column(target),
        num_in_row=column(num_in_row, torch.long),
        chosen=column([index for index in indices if desirable[index]], torch.long),
        rejected=column([index for index in indices if not desirable[index]], torch.long),
        paired=column([index for index in indices if num_in_row[index] == 2], torch.long),
    )
