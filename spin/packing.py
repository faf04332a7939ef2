"""Prompts with their completions, and how they are cut into forward passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Group:
    """One prompt and every completion that is scored under it."""

    prompt_ids: list[int]
    completions: list[list[int]]


def micro_batches(groups: Sequence[Group], token_budget: int) -> list[list[int]]:
    """Indices of the groups of each forward pass; each group once, one that exceeds the budget alone."""
    batches: list[list[int]] = []
    room = 0
    for index, group in enumerate(groups):
        tokens = sum(len(group.prompt_ids) + len(completion) for completion in group.completions)
        if tokens > room or not batches:
            batches.append([])
            room = token_budget
        batches[-1].append(index)
        room -= tokens
    return batches
