"""Describe which keys the queries of packed groups see: segments and blocks of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from spin.models.packing import Span

BLOCK = 128
"""Number of query rows in one block."""


@dataclass(frozen=True)
class Segment:
    """Consecutive queries: query i of `rows` sees all `keys` but the last rows − 1 − i."""

    first: int
    """First query row."""
    rows: int
    keys: tuple[slice, ...]
    """Key rows, in order; the last `rows` of them belong to the queries themselves."""


def segments(spans: Sequence[Span], trimmed: bool = False) -> list[Segment]:
    """Return the segments of all groups.

    `trimmed`: queries are the kept tokens only, that is the last token of each prompt and the
    completions. Query rows then count kept tokens.
    """
    result: list[Segment] = []
    num_kept = 0
    for span in spans:
        prompt_end = span.start + span.prompt
        prompt = slice(span.start, prompt_end)

        # The prompt: all its tokens, or its last one.
        if trimmed:
            result.append(Segment(num_kept, 1, (prompt,)))
        else:
            result.append(Segment(span.start, span.prompt, (prompt,)))
        num_kept += 1

        # Its completions. The keys of the first one follow those of the prompt without a gap.
        first = prompt_end
        for fed in span.fed:
            end = first + fed
            query_row = first
            if trimmed:
                query_row = num_kept
            keys: tuple[slice, ...] = (prompt, slice(first, end))
            if first == prompt_end:
                keys = (slice(span.start, end),)
            if fed:
                result.append(Segment(query_row, fed, keys))
            first = end
            num_kept += fed
    return result


def split_blocks(segment: Segment) -> list[tuple[int, int, int]]:
    """Return first row, end row and number of keys of each block of queries."""
    num_keys = sum(part.stop - part.start for part in segment.keys)
    blocks = []
    for first in range(0, segment.rows, BLOCK):
        end = min(first + BLOCK, segment.rows)
        blocks.append((first, end, num_keys - segment.rows + end))
    return blocks


def probs_bytes(plan: Sequence[Segment], heads: int, dtype: torch.dtype) -> int:
    """Return the bytes that the probabilities of all blocks take."""
    entries = 0
    for segment in plan:
        for first, end, seen in split_blocks(segment):
            entries += (end - first) * seen
    return entries * heads * dtype.itemsize
