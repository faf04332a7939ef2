"""The order of the rows in an epoch, the batches, and the groups that a batch makes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

from spin.data.examples import Example
from spin.models.packing import Group
from spin.training.row_stream import RowStream


def batches(
    rows: RowStream, seed: int, iteration: int, epochs: int | None, batch_size: int
) -> Iterator[tuple[list[int], int]]:
    """Yield the rows of each optimizer step, and its place on the learning-rate schedule.

    The first epoch takes the chunks in turn, each shuffled, as they arrive. Later epochs shuffle
    all rows. The schedule assumes that no row is dropped, because the number of dropped rows is
    unknown at its start: the remaining rows of a chunk are spaced evenly over the planned length
    of the chunk.

    Args:
        rows: The rows.
        seed: Seed of the run.
        iteration: Number of the iteration; -1 for the warm start.
        epochs: Number of epochs; None to go on without end.
        batch_size: Rows of a step.
    """
    for epoch in itertools.count() if epochs is None else range(epochs):
        # Row index and place in the epoch of the rows that wait for a full batch.
        waiting: list[tuple[int, float]] = []
        first, place = 0, 0
        chunks = range(len(rows.sizes)) if epoch == 0 else range(1)
        for number in chunks:
            if epoch == 0:
                chunk, size = rows.chunk(number), rows.sizes[number]
            else:
                chunk, size = rows.all(), sum(rows.sizes)
            order = epoch_order(chunk, seed, iteration, epoch, number)
            waiting += [(first + index, place + at * size / len(chunk)) for at, index in enumerate(order)]
            first += len(chunk)
            place += size
            while len(waiting) >= batch_size:
                yield _place_batch(waiting[:batch_size], rows, epoch, batch_size)
                waiting = waiting[batch_size:]
        if waiting:
            yield _place_batch(waiting, rows, epoch, batch_size)
        if not rows.examples:
            return


def _place_batch(
    chosen: list[tuple[int, float]], rows: RowStream, epoch: int, batch_size: int
) -> tuple[list[int], int]:
    """Return the row indices of a batch and its place on the schedule."""
    # The place of the middle row: with that of the first row, a stage of a single step would be at
    # the start of a warm-up, where the rate is 0.
    middle = chosen[len(chosen) // 2][1]
    planned_steps = math.ceil(sum(rows.sizes) / batch_size)
    return [index for index, _ in chosen], epoch * planned_steps + int(middle // batch_size)


def epoch_order(examples: Sequence[Example], seed: int, iteration: int, epoch: int, chunk: int = 0) -> list[int]:
    """Return the order of a chunk's rows in an epoch, which depends on the arguments alone.

    Rows of one prompt stay together, so that they share it in a forward pass. Pairs, desirable and
    undesirable ratings are each shuffled and then spread evenly, so that every part of the order
    mixes both labels.

    Args:
        examples: The rows of the chunk.
        seed: Seed of the run.
        iteration: Number of the iteration; -1 for the warm start.
        epoch: Number of the epoch.
        chunk: Number of the chunk.
    """
    rng = np.random.default_rng([seed, iteration + 1, epoch, chunk])
    # Row indices by kind of row, then by prompt.
    by_kind: dict[tuple[bool, ...], dict[tuple[int, ...], list[int]]] = {}
    for index, example in enumerate(examples):
        kind = tuple(completion.desirable for completion in example.completions)
        by_prompt = by_kind.setdefault(kind, {})
        by_prompt.setdefault(tuple(example.prompt_ids), []).append(index)

    # Shuffle the prompts of each kind, and place them evenly between 0 and 1.
    placed: list[tuple[float, int, list[int]]] = []
    for number, kind in enumerate(sorted(by_kind)):
        prompts = list(by_kind[kind].values())
        for position, chosen in enumerate(rng.permutation(len(prompts))):
            placed.append(((position + 0.5) / len(prompts), number, prompts[chosen]))
    placed.sort(key=lambda entry: entry[:2])
    order: list[int] = []
    for _, _, indices in placed:
        order += indices
    return order


def group_by_prompt(examples: Sequence[Example]) -> tuple[list[Group], list[tuple[int, tuple[int, ...]]]]:
    """Group completions by prompt; no prompt and no completion of a prompt occurs twice.

    Returns:
        The groups, and for each example the index of its group and the places of its completions
        in it.
    """
    group_of: dict[tuple[int, ...], int] = {}
    # For each group, the place of each completion.
    places_of: list[dict[tuple[int, ...], int]] = []
    places = []
    for example in examples:
        group = group_of.setdefault(tuple(example.prompt_ids), len(group_of))
        if group == len(places_of):
            places_of.append({})
        known = places_of[group]
        own_places = []
        for completion in example.completions:
            own_places.append(known.setdefault(tuple(completion.ids), len(known)))
        places.append((group, tuple(own_places)))
    groups = []
    for prompt, known in zip(group_of, places_of, strict=True):
        groups.append(Group(list(prompt), [list(ids) for ids in known]))
    return groups, places
