"""Pack prompts and their completions into sequences without padding, and split by token budget.

A packed sequence holds each prompt once and then its completions one after the other:

    tokens      p0 p1 p2 | r0 r1 r2 | g0 | …      the last token of a completion is not fed:
    positions   0  1  2  | 3  4  5  | 3  | …        nothing is predicted from it
    predicts    -  -  r0,g0 | r1 r2 r3 | g1 |     positions restart after the prompt, whose last
                                                    token predicts the first of each completion

The attention lets a completion see its prompt and itself alone; `Span` says where each part lies.
A reward model reads the last token of each completion, so `pack` can feed that too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spin.models.device_copy import send


@dataclass(frozen=True)
class Group:
    """One prompt and the completions that are scored under it.

    Raises:
        ValueError: The prompt or a completion is empty.
    """

    prompt_ids: list[int]
    completions: list[list[int]]

    def __post_init__(self) -> None:
        if not self.prompt_ids or not self.completions or not all(self.completions):
            sizes = [len(completion) for completion in self.completions]
            raise ValueError(
                f"a group of a prompt of {len(self.prompt_ids)} and completions of {sizes} tokens: "
                "expected at least one token in each"
            )

    @property
    def longest(self) -> int:
        """Return the number of tokens of the prompt with its longest completion."""
        return len(self.prompt_ids) + max(len(completion) for completion in self.completions)


@dataclass(frozen=True)
class Span:
    """Where a group lies in a packed sequence: its prompt, then the fed part of each completion."""

    start: int
    prompt: int
    fed: tuple[int, ...]
    """Number of fed tokens of each completion."""

    @property
    def end(self) -> int:
        """Return the position after the last token of the group."""
        return self.start + self.prompt + sum(self.fed)


@dataclass(frozen=True)
class Packed:
    """Groups in one sequence of tokens, and what is predicted where."""

    input_ids: Tensor
    """Shape (tokens,), int64."""
    position_ids: Tensor
    """Shape (tokens,), int64."""
    spans: tuple[Span, ...]
    kept: Tensor
    """Tokens whose last hidden state predicts something: the end of each prompt and the fed tokens
    of the completions. Shape (kept,)."""
    predictors: Tensor
    """Which kept token predicts each completion token. Shape (labels,)."""
    labels: Tensor
    """The completion tokens. Shape (labels,)."""
    owners: Tensor
    """The completion, counted over all groups, of each label. Shape (labels,)."""
    completions: int
    """Number of completions."""
    ends: Tensor
    """Which kept token is the last one of each completion; empty if those are not fed. Shape
    (completions,)."""


def one_by_one(groups: Sequence[Group]) -> list[Group]:
    """Return one group for each completion, in order; their shared layout is plain packing."""
    return [Group(group.prompt_ids, [completion]) for group in groups for completion in group.completions]


def pack(groups: Sequence[Group], device: torch.device | str = "cpu", feed_last: bool = False) -> Packed:
    """Return the packed sequence of groups, as drawn above.

    Args:
        groups: The groups.
        device: Of the tensors.
        feed_last: Whether the last token of each completion is fed as well.
    """
    ids: list[int] = []
    positions: list[int] = []
    kept: list[int] = []
    predictors: list[int] = []
    labels: list[int] = []
    owners: list[int] = []
    spans: list[Span] = []
    ends: list[int] = []
    number = 0
    left_out = int(not feed_last)
    for group in groups:
        # The prompt once; its last token predicts the first token of each completion.
        start, prompt = len(ids), len(group.prompt_ids)
        ids += group.prompt_ids
        positions += range(prompt)
        end_of_prompt = len(kept)
        kept.append(start + prompt - 1)
        # The completions, each at the positions after the prompt.
        for completion in group.completions:
            fed = len(completion) - left_out
            predictors += [end_of_prompt, *range(len(kept), len(kept) + len(completion) - 1)]
            kept += range(len(ids), len(ids) + fed)
            labels += completion
            owners += [number] * len(completion)
            ids += completion[:fed]
            positions += range(prompt, prompt + fed)
            number += 1
            if feed_last:
                ends.append(len(kept) - 1)
        spans.append(Span(start, prompt, tuple(len(completion) - left_out for completion in group.completions)))

    def column(values: list[int]) -> Tensor:
        # NumPy reads a list twice as fast as torch does.
        return send(torch.from_numpy(np.array(values, dtype=np.int64)), device)

    return Packed(
        column(ids),
        column(positions),
        tuple(spans),
        column(kept),
        column(predictors),
        column(labels),
        column(owners),
        number,
        column(ends),
    )


def token_cost(group: Group, layout: str) -> int:
    """Return the number of tokens of one group in a `shared` or `packed` sequence."""
    total = sum(len(completion) for completion in group.completions)
    if layout == "shared":
        return total + len(group.prompt_ids)
    return total + len(group.prompt_ids) * len(group.completions)


def micro_batches(groups: Sequence[Group], token_budget: int, layout: str = "shared") -> list[list[int]]:
    """Split groups into micro-batches of at most `token_budget` tokens.

    Each group is in exactly one micro-batch; one that is larger than the budget is alone. The
    result depends on the arguments alone. For `shared` and `packed` it is first-fit decreasing,
    which needs few micro-batches. For `padded`, groups of similar length are together, and padding
    counts.

    Args:
        groups: The groups.
        token_budget: Most tokens of a micro-batch.
        layout: The layout in which tokens are counted.

    Returns:
        The indices of the groups of each micro-batch.

    Raises:
        ValueError: The budget is below 1.
    """
    if token_budget < 1:
        raise ValueError(f"token_budget is {token_budget}, expected at least 1")
    if layout == "padded":
        return _padded_micro_batches(groups, token_budget)
    costs = [token_cost(group, layout) for group in groups]
    bins: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(groups)), key=lambda i: (-costs[i], i)):
        fits = next((b for b, left in enumerate(room) if left >= costs[index]), None)
        if fits is None:
            bins.append([])
            room.append(token_budget)
            fits = len(bins) - 1
        bins[fits].append(index)
        room[fits] -= costs[index]
    return bins


def _padded_micro_batches(groups: Sequence[Group], token_budget: int) -> list[list[int]]:
    """Split groups, sorted by their longest sequence, where rows × longest exceeds the budget."""
    bins: list[list[int]] = []
    rows = 0
    for index in sorted(range(len(groups)), key=lambda i: (-groups[i].longest, i)):
        count = len(groups[index].completions)
        if not bins or (rows + count) * groups[bins[-1][0]].longest > token_budget:
            bins.append([])
            rows = 0
        bins[-1].append(index)
        rows += count
    return bins
