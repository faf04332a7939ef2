"""The rows of a training stage, their order, and the groups that a batch of them makes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np

from spin.data.records import Example
from spin.models.packing import Group


class RowStream:
    """The rows of a stage, chunk by chunk: what is not there yet is waited for when it is asked for."""

    def __init__(self, chunks: Iterable[list[Example]], sizes: Sequence[int]) -> None:
        """`sizes`: of each chunk, how many rows it would have if none were dropped; known before the chunk is there."""
        self._chunks, self.sizes = iter(chunks), sizes
        self.examples: list[Example] = []
        """All rows so far."""
        self.taken: list[int] = []
        """Rows of each chunk so far."""

    @classmethod
    def whole(cls, examples: Sequence[Example]) -> RowStream:
        """One chunk that is there."""
        return cls([list(examples)], [len(examples)])

    @property
    def complete(self) -> bool:
        """Whether every chunk is there."""
        return len(self.taken) == len(self.sizes)

    def chunk(self, number: int) -> list[Example]:
        """The rows of a chunk; waits for it and for those before it."""
        while len(self.taken) <= number:
            more = next(self._chunks)
            self.examples += more
            self.taken.append(len(more))
        end = sum(self.taken[: number + 1])
        return self.examples[end - self.taken[number] : end]

    def all(self) -> list[Example]:
        """Every row; waits for all chunks."""
        self.chunk(len(self.sizes) - 1)
        return self.examples

    def some(self) -> list[Example]:
        """The rows of the first chunk that has any; waits for it. None, where there is no row at all."""
        return next((rows for number in range(len(self.sizes)) if (rows := self.chunk(number))), [])

    def steps(self, batch_size: int) -> int:
        """Optimizer steps of an epoch: as long as chunks are missing, as many as there would be if no row were dropped."""
        return math.ceil((len(self.examples) if self.complete else sum(self.sizes)) / batch_size)


def batches(
    rows: RowStream, seed: int, iteration: int, epochs: int | None, batch_size: int
) -> Iterator[tuple[list[int], int]]:
    """The rows of each optimizer step, and the place on the learning rate's schedule that it has; `epochs` None: without end.

    The first epoch takes the chunks in turn, each shuffled, as they arrive; the later ones shuffle all rows. The schedule counts steps as if no row had been
    dropped, since how many will be is not known at its start: what is left of a chunk is spread evenly over the chunk's length on it.
    """
    for epoch in itertools.count() if epochs is None else range(epochs):
        open_rows: list[tuple[int, float]] = []  # index and place in the epoch
        first, place = 0, 0
        for number in range(len(rows.sizes)) if epoch == 0 else (0,):
            chunk, size = (rows.chunk(number), rows.sizes[number]) if epoch == 0 else (rows.all(), sum(rows.sizes))
            order = epoch_order(chunk, seed, iteration, epoch, number)
            open_rows += [(first + index, place + at * size / len(chunk)) for at, index in enumerate(order)]
            first, place = first + len(chunk), place + size
            while len(open_rows) >= batch_size:
                yield _batch(open_rows[:batch_size], rows, epoch, batch_size)
                open_rows = open_rows[batch_size:]
        if open_rows:
            yield _batch(open_rows, rows, epoch, batch_size)
        if not rows.examples:
            return


def _batch(chosen: list[tuple[int, float]], rows: RowStream, epoch: int, batch_size: int) -> tuple[list[int], int]:
    """The place is that of the middle row: of the first, a stage of a single step would be at the start of a warm-up, where the rate is 0."""
    middle = chosen[len(chosen) // 2][1]
    return [index for index, _ in chosen], epoch * math.ceil(sum(rows.sizes) / batch_size) + int(middle // batch_size)


def epoch_order(examples: Sequence[Example], seed: int, iteration: int, epoch: int, chunk: int = 0) -> list[int]:
    """The order of a chunk's rows in an epoch: depends on nothing but its arguments. `iteration` is -1 for the warm start.

    Rows of one prompt stay together, so that they share it. Pairs, desirable and undesirable ratings are each shuffled, then spread evenly: every stretch of
    the order mixes both labels.
    """
    rng = np.random.default_rng([seed, iteration + 1, epoch, chunk])
    kinds: dict[tuple[bool, ...], dict[tuple[int, ...], list[int]]] = {}
    for index, example in enumerate(examples):
        kind = tuple(half.desirable for half in example.completions)
        kinds.setdefault(kind, {}).setdefault(tuple(example.prompt_ids), []).append(index)
    spread: list[tuple[float, int, list[int]]] = []
    for number, kind in enumerate(sorted(kinds)):
        prompts = list(kinds[kind].values())
        spread += [
            ((position + 0.5) / len(prompts), number, prompts[i])
            for position, i in enumerate(rng.permutation(len(prompts)))
        ]
    return [index for _, _, indices in sorted(spread, key=lambda entry: entry[:2]) for index in indices]


def group_by_prompt(examples: Sequence[Example]) -> tuple[list[Group], list[tuple[int, tuple[int, ...]]]]:
    """Groups in which no prompt and no completion of a prompt stands twice, and for each example its group and the places of its halves in it."""
    groups: dict[tuple[int, ...], int] = {}
    completions: list[dict[tuple[int, ...], int]] = []
    places = []
    for example in examples:
        group = groups.setdefault(tuple(example.prompt_ids), len(groups))
        if group == len(completions):
            completions.append({})
        own = completions[group]
        places.append((group, tuple(own.setdefault(tuple(half.ids), len(own)) for half in example.completions)))
    return [
        Group(list(prompt), [list(ids) for ids in own]) for prompt, own in zip(groups, completions, strict=True)
    ], places


def mismatched(examples: Sequence[Example]) -> list[Example]:
    """For KTO's z: each example's prompt with the completions of the next example that has another prompt; none when all share one prompt."""
    if all(example.prompt_ids == examples[0].prompt_ids for example in examples):
        return [replace(example, completions=()) for example in examples]
    count, following = len(examples), [0] * len(examples)
    nearest = 0
    for index in range(2 * count - 1, -1, -1):  # twice round, since the last ones look past the end
        here, after = examples[index % count], examples[(index + 1) % count]
        nearest = (index + 1) % count if after.prompt_ids != here.prompt_ids else nearest
        following[index % count] = nearest
    return [
        replace(example, completions=examples[other].completions)
        for example, other in zip(examples, following, strict=True)
    ]
