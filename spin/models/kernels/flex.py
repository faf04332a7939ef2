"""Compute the group attention on a GPU with PyTorch's FlexAttention, which skips masked blocks.

CPUs use `attention.py`: FlexAttention has no backward pass there.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from spin.models.packing import Span

MULTIPLE = 128
"""Sequences are padded to a multiple of FlexAttention's block of 128 tokens.

Fewer lengths mean fewer compilations.
"""


@cache
def _compiled() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True)


def number_parts(spans: Sequence[Span], tokens: int) -> tuple[Tensor, Tensor]:
    """Return the group of each token, and its part of the group. Shapes (tokens,).

    The group is −1 for the padding after the last span. Part 0 is the prompt, part i + 1 is
    completion i.
    """
    group = torch.full((tokens,), -1)
    part = torch.zeros(tokens, dtype=torch.long)
    for number, span in enumerate(spans):
        group[span.start : span.end] = number
        first = span.start + span.prompt
        for index, fed in enumerate(span.fed):
            part[first : first + fed] = index + 1
            first += fed
    return group, part


def is_visible(query: Tensor, key: Tensor, group: Tensor, part: Tensor) -> Tensor:
    """Return True where token `query` may attend to token `key`.

    The key must not be later, must be in the same group, and must be in the prompt or in the
    query's own completion.
    """
    same_part = (part[key] == 0) | (part[key] == part[query])
    return (query >= key) & (group[query] == group[key]) & same_part


class FlexPlan:
    """The block mask of one packed sequence, shared by all layers."""

    def __init__(self, spans: Sequence[Span], tokens: int, device: torch.device) -> None:
        from torch.nn.attention.flex_attention import create_block_mask

        # The padding is a group of its own, which no real token sees.
        self._padding = -tokens % MULTIPLE
        length = tokens + self._padding
        group, part = number_parts(spans, length)
        group, part = group.to(device), part.to(device)

        def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return is_visible(query, key, group, part)

        self._mask = create_block_mask(mask, None, None, length, length, device=str(device))

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, softcap: float | None = None) -> Tensor:
        """Return the output of the attention, Shape (1, tokens, heads, width).

        Args:
            query: Shape (1, heads, tokens, width), already scaled.
            key, value: Shape (1, kv_heads, tokens, width).
            softcap: Scores become softcap · tanh(scores / softcap), as in Gemma 2.
        """
        tokens = query.shape[2]
        q, k, v = [torch.nn.functional.pad(x, (0, 0, 0, self._padding)) for x in (query, key, value)]

        def cap(score: Tensor, batch: Tensor, head: Tensor, query_index: Tensor, key_index: Tensor) -> Tensor:
            return softcap * torch.tanh(score / softcap)

        score_mod = None
        if softcap:
            score_mod = cap
        # Several query heads may share a key head. The scale is 1: queries are scaled already.
        is_grouped = q.shape[1] != k.shape[1]
        out: Tensor = _compiled()(q, k, v, score_mod, self._mask, scale=1.0, enable_gqa=is_grouped)
        return out[:, :, :tokens].transpose(1, 2)
