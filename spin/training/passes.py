"""Split the rows of a step into forward passes, on each worker."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from spin.data.examples import Example
from spin.errors import OutOfMemory
from spin.models.packing import Group, micro_batches
from spin.objectives.completion_logps import Member
from spin.training.batches import group_by_prompt


@dataclass(frozen=True)
class ForwardPass:
    """The groups of one forward pass, and the rows that they hold."""

    groups: list[Group]
    """Empty on a worker that has fewer passes than another one."""
    members: list[Member]


def share_of_worker(rows: Sequence[Example], rank: int, world: int) -> list[int]:
    """Return the indices of a worker's rows, which have about as many tokens as those of others.

    The slowest worker sets the time of a step. The largest group of rows with one prompt goes to
    the worker with the fewest tokens, then the next one. Rows of one prompt stay together, unless
    there are fewer prompts than workers.

    Args:
        rows: The rows to share.
        rank: Number of the worker.
        world: Number of workers.
    """
    # The tokens that a worker computes for a unit of rows: a shared prompt counts once.
    units: dict[tuple[int, ...], list[int]] = {}
    for index, row in enumerate(rows):
        units.setdefault(tuple(row.prompt_ids), []).append(index)
    members = list(units.values())
    if len(members) < world:
        members = [[index] for index in range(len(rows))]
    sizes = []
    for unit in members:
        completions = sum(rows[index].completion_tokens for index in unit)
        sizes.append(len(rows[unit[0]].prompt_ids) + completions)

    # Largest first; the sort is stable, so that every worker finds the same parts.
    loads = [0] * world
    own: list[int] = []
    for number in sorted(range(len(members)), key=lambda number: -sizes[number]):
        worker = loads.index(min(loads))
        loads[worker] += sizes[number]
        if worker == rank:
            own += members[number]
    return sorted(own)


def plan_passes(rows: Sequence[Example], token_budget: int, layout: str, accelerator: Accelerator) -> list[ForwardPass]:
    """Return the forward passes of this worker over a batch. Collective.

    Every worker gets the same number of passes, because gradients are exchanged in each; the last
    ones may be empty.

    Args:
        rows: All rows of the batch, of which this worker takes its part.
        token_budget: Tokens of one pass.
        layout: The layout in which tokens are counted.
        accelerator: The workers.
    """
    rank, world = accelerator.process_index, accelerator.num_processes
    own_rows = [rows[index] for index in share_of_worker(rows, rank, world)]
    groups, places = group_by_prompt(own_rows)
    passes = []
    for group_indices in micro_batches(groups, token_budget, layout):
        # Completions are numbered over all groups of a pass.
        first_of_group: dict[int, int] = {}
        count = 0
        for index in group_indices:
            first_of_group[index] = count
            count += len(groups[index].completions)
        members = []
        for row, (index, in_group) in zip(own_rows, places, strict=True):
            if index in first_of_group:
                first = first_of_group[index]
                members.append(Member(row, tuple(first + place for place in in_group)))
        passes.append(ForwardPass([groups[index] for index in group_indices], members))

    # Fill up to the number of passes of the busiest worker.
    if world > 1:
        count_here = torch.tensor([len(passes)], device=accelerator.device)
        most = int(accelerator.gather(count_here).max())
        passes += [ForwardPass([], [])] * (most - len(passes))
    return passes


@contextmanager
def explain_out_of_memory(groups: Sequence[Group]) -> Iterator[None]:
    """Raise OutOfMemory with the size of the pass whenever torch runs out of memory."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        # On a CPU torch raises a plain RuntimeError that names its allocator.
        out_of_memory = isinstance(error, torch.OutOfMemoryError | MemoryError) or "DefaultCPUAllocator" in str(error)
        if not out_of_memory:
            raise
        tokens = 0
        for group in groups:
            tokens += len(group.prompt_ids) + sum(len(completion) for completion in group.completions)
        raise OutOfMemory(f"a pass of {tokens:,} tokens does not fit into memory") from error
