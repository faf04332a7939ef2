"""Log-probabilities of single completion tokens."""

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
