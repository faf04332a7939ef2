"""Log-probabilities of single completion tokens, and their plain computation from logits."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor


class TokenLogps(NamedTuple):
    """The completion tokens of a forward pass, completion by completion, in reading order.

    A named tuple, so that DDP and FSDP2 find the tensors in it.
    """

    values: Tensor
    """log p(token | tokens before it), in nats; float32 or better. Shape (tokens,)."""
    owners: Tensor
    """Index of the completion that each token belongs to. Shape (tokens,)."""
    num_completions: int
    state_values: Tensor | None = None
    """Value of the state before each token, of a policy with a critic's head. Shape (tokens,)."""

    def as_values(self) -> TokenLogps:
        """Return the values of the states in the place of log-probabilities, as of a critic."""
        assert self.state_values is not None
        return TokenLogps(self.state_values, self.owners, self.num_completions)

    def sums(self) -> Tensor:
        """Return log p of each completion, summed over its tokens. Shape (completions,), float64.

        The sum is in float64: in float32 it would be ten times less accurate.
        """
        zeros = torch.zeros(self.num_completions, dtype=torch.float64, device=self.values.device)
        return zeros.index_add(0, self.owners, self.values.double())

    def starts(self) -> list[int]:
        """Return the position in `values` of the first token of each completion."""
        counts = torch.bincount(self.owners, minlength=self.num_completions)
        return (counts.cumsum(0) - counts).tolist()  # type: ignore[no-any-return]

    def lists(self) -> list[list[float]]:
        """Return log p of the tokens of each completion."""
        values = self.values.tolist()
        starts = [*self.starts(), len(values)]
        return [values[first:end] for first, end in pairwise(starts)]


def padded_logps(logits: Tensor, input_ids: Tensor, completion_mask: Tensor) -> TokenLogps:
    """Return log p(token_t | tokens before t) of the completion tokens of each row.

    Args:
        logits: Shape (batch, length, vocab), any float dtype.
        input_ids: Shape (batch, length).
        completion_mask: Shape (batch, length), bool: True at completion tokens. Position 0 must be
            False, because nothing comes before it.

    Raises:
        ValueError: The shapes do not match, or a completion token is at position 0.
    """
    if logits.dim() != 3 or logits.shape[:2] != input_ids.shape or input_ids.shape != completion_mask.shape:
        raise ValueError(
            f"logits {tuple(logits.shape)}, input_ids {tuple(input_ids.shape)}, "
            f"completion_mask {tuple(completion_mask.shape)} do not fit"
        )
    if bool(completion_mask[:, 0].any()):
        raise ValueError("a completion token at position 0 has nothing to be predicted from")
    rows, positions = completion_mask.nonzero(as_tuple=True)  # [tokens]
    # A token is predicted at the position before it.
    predicting = logits[rows, positions - 1].float()  # [tokens, vocab]
    labels = input_ids[rows, positions]  # [tokens]
    values = torch.log_softmax(predicting, dim=-1).gather(1, labels.unsqueeze(1)).squeeze(1)  # [tokens]
    return TokenLogps(values, rows, len(logits))
