"""The group attention on a GPU, by FlexAttention: one compiled kernel that skips the blocks nobody sees. Not for CPUs (no backward there)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from spin.models.packing import Span

MULTIPLE = 128
"""Sequences are padded to a multiple of FlexAttention's block, so that few shapes are compiled."""


@cache
def _compiled() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def parts(spans: Sequence[Span], tokens: int) -> tuple[Tensor, Tensor]:
    """The group of each token (−1 behind the end), and its completion inside the group (0: the prompt). Shapes (tokens,)."""
    group, part = torch.full((tokens,), -1), torch.zeros(tokens, dtype=torch.long)
    for number, span in enumerate(spans):
        group[span.start : span.end] = number
        first = span.start + span.prompt
        for index, fed in enumerate(span.fed):
            part[first : first + fed] = index + 1
            first += fed
    return group, part


def sees(query: Tensor, key: Tensor, group: Tensor, part: Tensor) -> Tensor:
    """Whether token `query` sees token `key`: not later, same group, and the prompt or its own completion."""
    return (query >= key) & (group[query] == group[key]) & ((part[key] == 0) | (part[key] == part[query]))


class FlexPlan:
    """The block mask of one packed sequence, shared by all layers."""

    def __init__(self, spans: Sequence[Span], tokens: int, device: torch.device) -> None:
        from torch.nn.attention.flex_attention import create_block_mask

        self._padding = -tokens % MULTIPLE
        group, part = (column.to(device) for column in parts(spans, tokens + self._padding))

        def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return sees(query, key, group, part)

        length = tokens + self._padding
        self._mask = create_block_mask(mask, None, None, length, length, device=str(device))

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, softcap: float | None = None) -> Tensor:
        """query: Shape (1, heads, tokens, width), scaled already; returns (1, tokens, heads, width)."""
        tokens = query.shape[2]
        q, k, v = (torch.nn.functional.pad(x, (0, 0, 0, self._padding)) for x in (query, key, value))

        def cap(score: Tensor, batch: Tensor, head: Tensor, at: Tensor, to: Tensor) -> Tensor:
            return softcap * torch.tanh(score / softcap)

        out: Tensor = _compiled()(
            q, k, v, cap if softcap else None, self._mask, scale=1.0, enable_gqa=q.shape[1] != k.shape[1]
        )
        return out[:, :, :tokens].transpose(1, 2)
