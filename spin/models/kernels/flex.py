"""Compute the group attention on a GPU with PyTorch's FlexAttention, which skips masked blocks.

CPUs use `attention.py`: FlexAttention has no backward pass there.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from spin.models.device_copy import send
from spin.models.packing import Span

BLOCK = 128
"""Tokens in a block of FlexAttention. Sequences are padded to a multiple of it, so that fewer
lengths exist and fewer kernels are compiled."""


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


def classify_blocks(group: Tensor, part: Tensor) -> tuple[Tensor, Tensor]:
    """Return which blocks of keys a block of queries needs, and which of them without a mask.

    PyTorch's `create_block_mask` compares all pairs of tokens: 16 GB at 47,000 tokens. Here whole
    blocks are compared. A block that is needed but hides some keys, or in rare cases all of them,
    is masked token by token when it is computed.

    Args:
        group, part: From `number_parts`, of a multiple of BLOCK tokens.

    Returns:
        Two tables of bool, Shape (blocks of queries, blocks of keys). No block is in both.
    """
    # Padding has the number −1; as the largest number it keeps the groups in ascending order.
    ordered = torch.where(group < 0, len(group), group).view(-1, BLOCK)
    parts = part.view(-1, BLOCK)
    first, last = ordered[:, 0], ordered[:, -1]
    blocks = torch.arange(len(ordered))

    # A block of keys is needed if it is not later and shares a group with the queries, ...
    needed = (blocks[:, None] >= blocks) & (last[None, :] >= first[:, None])
    # ... except where both blocks lie inside two different completions.
    lowest, highest = parts.amin(1), parts.amax(1)
    one_part = (first == last) & (lowest == highest)
    both_in_one = one_part[:, None] & one_part[None, :] & (first[:, None] == first[None, :])
    other_completion = (lowest[None, :] > 0) & (lowest[:, None] != lowest[None, :])
    needed &= ~(both_in_one & other_completion)

    # Without a mask: earlier keys of one group that are all in the prompt, or all in the one
    # completion that the queries are in.
    same_group = (first == last)[:, None] & (first == last)[None, :] & (first[:, None] == first[None, :])
    in_prompt = (highest == 0)[None, :] & same_group
    whole = (blocks[:, None] > blocks) & (in_prompt | (both_in_one & (lowest[:, None] == lowest[None, :])))
    return needed & ~whole, whole


def list_blocks(table: Tensor) -> tuple[Tensor, Tensor]:
    """Return the number of True of each row, and the columns with those of True first.

    This is the form in which FlexAttention takes blocks. Shapes (1, 1, rows) and
    (1, 1, rows, columns), int32.
    """
    counts = table.sum(1, dtype=torch.int32)
    columns = table.int().argsort(dim=1, descending=True, stable=True).to(torch.int32)
    return counts[None, None], columns[None, None]


class FlexPlan:
    """The block mask of one packed sequence, shared by all layers."""

    def __init__(self, spans: Sequence[Span], tokens: int, device: torch.device) -> None:
        from torch.nn.attention.flex_attention import BlockMask

        # The padding is a group of its own, which no real token sees.
        self._padding = -tokens % BLOCK
        length = tokens + self._padding
        group, part = number_parts(spans, length)
        masked, whole = classify_blocks(group, part)
        group, part = send(group, device), send(part, device)

        def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return is_visible(query, key, group, part)

        lists = []
        for table in (masked, whole):
            lists += [send(column, device) for column in list_blocks(table)]
        self._mask = BlockMask.from_kv_blocks(*lists, BLOCK_SIZE=BLOCK, mask_mod=mask, seq_lengths=(length, length))

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
