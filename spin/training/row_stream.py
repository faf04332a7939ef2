"""The rows of a training stage, chunk by chunk as they arrive, and how many steps they make.

Dropped rows are unknown before their chunk has arrived: `sizes` counts them, `taken` does not.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from spin.data.examples import Example


class RowStream:
    """The rows of a stage in chunks. A chunk that is not finished yet is waited for."""

    def __init__(self, chunks: Iterable[list[Example]], sizes: Sequence[int]) -> None:
        """Take chunks as they arrive.

        Args:
            chunks: The rows of each chunk, in order.
            sizes: For each chunk, the number of rows that it has if none is dropped.
        """
        self._chunks = iter(chunks)
        self.sizes = sizes
        self.examples: list[Example] = []
        """All rows that have arrived."""
        self.taken: list[int] = []
        """Number of rows of each chunk that has arrived."""

    @classmethod
    def whole(cls, examples: Sequence[Example]) -> RowStream:
        """Return a stream of one chunk that has arrived."""
        return cls([list(examples)], [len(examples)])

    @property
    def complete(self) -> bool:
        """Return whether every chunk has arrived."""
        return len(self.taken) == len(self.sizes)

    def chunk(self, number: int) -> list[Example]:
        """Return the rows of a chunk; wait for it and for those before it."""
        while len(self.taken) <= number:
            arrived = next(self._chunks)
            self.examples += arrived
            self.taken.append(len(arrived))
        end = sum(self.taken[: number + 1])
        return self.examples[end - self.taken[number] : end]

    def all(self) -> list[Example]:
        """Return every row; wait for all chunks."""
        self.chunk(len(self.sizes) - 1)
        return self.examples

    def replace_all(self, examples: list[Example]) -> None:
        """Put prepared rows in the place of all rows, in the same order."""
        assert self.complete
        assert len(examples) == len(self.examples)
        self.examples = examples

    def some(self) -> list[Example]:
        """Return the rows of the first chunk that has any; an empty list if there is no row."""
        for number in range(len(self.sizes)):
            rows = self.chunk(number)
            if rows:
                return rows
        return []

    def steps(self, batch_size: int) -> int:
        """Return the number of optimizer steps of an epoch.

        Until all chunks have arrived, this is the number of steps if no row is dropped.
        """
        num_rows = len(self.examples) if self.complete else sum(self.sizes)
        return math.ceil(num_rows / batch_size)
