"""Describe which keys the queries of a packed sequence see, as segments and blocks of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from spin.models.packing import Span

BLOCK = 128
"""Query rows in one block. A larger block computes more scores above the diagonal in vain."""


@dataclass(frozen=True)
class Segment:
    """Consecutive queries and their keys: query i sees all keys except the last rows − 1 − i."""

    first: int
    """First query row."""
    rows: int
    """Number of query rows."""
    keys: tuple[slice, ...]
    """Key rows, in order; the last `rows` of them belong to the queries themselves."""


def segments(spans: Sequence[Span], trimmed: bool = False) -> list[Segment]:
    """Return the segments of all groups.

    Args:
        spans: Position of each group in the packed sequence.
        trimmed: Only tokens that predict a completion token have queries: the last token of each
            prompt, and the completions. Query rows then count these tokens.
    """
    result: list[Segment] = []
    # Query rows of the trimmed layout before the current segment.
    num_kept = 0
    for span in spans:
        prompt_end = span.start + span.prompt
        prompt = slice(span.start, prompt_end)

        # The prompt: all its tokens, or only the last one, which predicts the completions.
        if trimmed:
            result.append(Segment(num_kept, 1, (prompt,)))
        else:
            result.append(Segment(span.start, span.prompt, (prompt,)))
        num_kept += 1

        # The completions. The first one follows the prompt without a gap, so one slice gives its
        # keys without a copy.
        first = prompt_end
        for fed in span.fed:
            end = first + fed
            query_row = first
            if trimmed:
                query_row = num_kept
            keys: tuple[slice, ...] = (prompt, slice(first, end))
            if first == prompt_end:
                keys = (slice(span.start, end),)
            # A completion of one token is not fed: the prompt predicts it.
            if fed:
                result.append(Segment(query_row, fed, keys))
            first = end
            num_kept += fed
    return result


def split_blocks(segment: Segment) -> list[tuple[int, int, int]]:
    """Return first row, end row and number of keys of each block of queries."""
    # Only the rows of the segment are causal; its earlier keys are seen by all rows.
    num_keys = sum(part.stop - part.start for part in segment.keys)
    blocks = []
    for first in range(0, segment.rows, BLOCK):
        end = min(first + BLOCK, segment.rows)
        blocks.append((first, end, num_keys - segment.rows + end))
    return blocks


def probs_bytes(plan: Sequence[Segment], heads: int, dtype: torch.dtype) -> int:
    """Return the size, in bytes, of the attention probabilities of all blocks."""
    entries = 0
    for segment in plan:
        for first, end, seen in split_blocks(segment):
            entries += (end - first) * seen
    return entries * heads * dtype.itemsize
