"""Prompts with their completions → packed sequences without padding, and micro-batches by token budget. No model code.

A packed sequence holds each prompt once and then its completions one after the other:

    tokens      p0 p1 p2 | r0 r1 r2 | g0 | …      the last token of a completion is not fed: nothing is predicted from it
    positions   0  1  2  | 3  4  5  | 3  | …      positions restart behind the prompt
    predicts    -  -  r0,g0 | r1 r2 r3 | g1 |     the last token of the prompt predicts the first of every completion

Who may see whom (a completion sees its prompt and itself only) is the attention's business; `Span` says where each part lies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

CPU_TOKEN_CAP = 2048
"""On a CPU the matrix products are at their full rate from a few hundred rows on; a larger micro-batch only falls out of the cache."""


@dataclass(frozen=True)
class Group:
    """One prompt and the completions that are scored under it. Raises ValueError when one of them is empty."""

    prompt_ids: list[int]
    completions: list[list[int]]

    def __post_init__(self) -> None:
        if not self.prompt_ids or not self.completions or not all(self.completions):
            sizes = [len(completion) for completion in self.completions]
            raise ValueError(
                f"a group of a prompt of {len(self.prompt_ids)} and completions of {sizes} tokens: expected at least one token in each"
            )

    @property
    def longest(self) -> int:
        """Tokens of the prompt with its longest completion."""
        return len(self.prompt_ids) + max(len(completion) for completion in self.completions)


@dataclass(frozen=True)
class Span:
    """Where one group lies in a packed sequence: tokens start … start + prompt, then the fed part of each completion."""

    start: int
    prompt: int
    fed: tuple[int, ...]

    @property
    def end(self) -> int:
        return self.start + self.prompt + sum(self.fed)


@dataclass(frozen=True)
class Packed:
    """Groups in one sequence of `tokens` tokens, and what is predicted where."""

    input_ids: Tensor
    """Shape (tokens,), int64."""
    position_ids: Tensor
    """Shape (tokens,), int64."""
    spans: tuple[Span, ...]
    kept: Tensor
    """Tokens whose last hidden state predicts something: the end of each prompt and all that is fed of the completions. Shape (kept,)."""
    predictors: Tensor
    """Which kept token predicts each completion token. Shape (labels,)."""
    labels: Tensor
    """The completion tokens. Shape (labels,)."""
    owners: Tensor
    """The completion, counted over all groups, of each label. Shape (labels,)."""
    completions: int


def one_by_one(groups: Sequence[Group]) -> list[Group]:
    """Each completion with a prompt of its own, in order: plain packing is the shared layout of these."""
    return [Group(group.prompt_ids, [completion]) for group in groups for completion in group.completions]


def pack(groups: Sequence[Group], device: torch.device | str = "cpu") -> Packed:
    """Lay out `groups` as drawn above."""
    ids: list[int] = []
    positions: list[int] = []
    kept: list[int] = []
    predictors: list[int] = []
    labels: list[int] = []
    owners: list[int] = []
    spans: list[Span] = []
    number = 0
    for group in groups:
        start, prompt = len(ids), len(group.prompt_ids)
        ids += group.prompt_ids
        positions += range(prompt)
        end_of_prompt = len(kept)
        kept.append(start + prompt - 1)
        for completion in group.completions:
            fed = len(completion) - 1
            predictors += [end_of_prompt, *range(len(kept), len(kept) + fed)]
            kept += range(len(ids), len(ids) + fed)
            labels += completion
            owners += [number] * len(completion)
            ids += completion[:-1]
            positions += range(prompt, prompt + fed)
            number += 1
        spans.append(Span(start, prompt, tuple(len(completion) - 1 for completion in group.completions)))

    def column(values: list[int]) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

    return Packed(
        column(ids),
        column(positions),
        tuple(spans),
        column(kept),
        column(predictors),
        column(labels),
        column(owners),
        number,
    )


def token_cost(group: Group, layout: str) -> int:
    """Tokens that one group takes in a `shared` or `packed` sequence."""
    total = sum(len(completion) for completion in group.completions)
    return total + len(group.prompt_ids) * (1 if layout == "shared" else len(group.completions))


def micro_batches(groups: Sequence[Group], token_budget: int, layout: str = "shared") -> list[list[int]]:
    """Split `groups` into micro-batches (lists of indices) of at most `token_budget` tokens as `layout` counts them.

    Each group is in exactly one micro-batch; one that is larger than the budget stands alone. Depends on the arguments only. `shared` and
    `packed`: the smallest number of micro-batches that first-fit decreasing finds. `padded`: neighbours in length, whose padding counts.
    Raises ValueError on a budget below 1.
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
    """Groups sorted by their longest sequence and cut where rows × longest would pass the budget."""
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


def bytes_per_token(config: Any, bytes_per_value: int, checkpointing: bool = False) -> int:
    """What one token keeps until its backward pass, in bytes.

    A Llama-like layer keeps two residual streams in float32 and, in the compute dtype, queries, keys, values, the attention's outcome and both
    halves of the gated MLP; other models are close to it. The logits of a completion token have a byte budget of their own (`spin.models.kernels.head`).
    With gradient checkpointing a layer keeps its input alone, and one layer at a time the rest.
    """
    hidden = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * hidden
    layers = config.num_hidden_layers
    layer = 2 * 4 * hidden + bytes_per_value * (4 * hidden + 2 * inner)
    transient = bytes_per_value * 3 * inner + 4 * 4 * hidden
    return (layers * 4 * hidden + layer if checkpointing else layers * layer) + transient


def free_memory(device: torch.device | str) -> int:
    """Bytes that the device reports free, or that the operating system calls available."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)


def auto_token_budget(
    config: Any, device: torch.device | str, bytes_per_value: int, free_bytes: int, checkpointing: bool = False
) -> int:
    """Tokens of one micro-batch: half of the free memory over `bytes_per_token`, at most CPU_TOKEN_CAP on a CPU; at least 256.

    `free_bytes`: what is left beside model, gradients and optimizer state.
    """
    tokens = max(256, free_bytes // 2 // bytes_per_token(config, bytes_per_value, checkpointing))
    return min(tokens, CPU_TOKEN_CAP) if torch.device(device).type == "cpu" else tokens
