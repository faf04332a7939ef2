"""The rows of one training stage, in chunks that can be trained on as they arrive."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spin.cluster.run_ahead_queue import wait_for_shards
from spin.config.policy_gradient import PpoObjective
from spin.data.examples import Example, to_example
from spin.data.parquet import read_rows
from spin.data.records import Prompt
from spin.run_dir.store import RunStore
from spin.training.job import TrainingJob
from spin.training.pretraining_rows import PretrainingRows
from spin.training.row_stream import RowStream


def open_row_stream(job: TrainingJob, store: RunStore) -> RowStream:
    """Return the rows of a stage: one chunk for each shard, with an even part of the other sets.

    A stage without shards has one chunk, which holds the other sets.
    """
    # Read the sets that exist before training begins.
    other_sets: list[list[Example]] = []
    for row_type, path in job.others:
        store.fetch(Path(path))
        rows: list[Any] = read_rows(Path(path), row_type)
        other_sets.append([to_example(row) for row in rows])

    # Cut each of the other sets into as many parts as there are chunks.
    num_chunks = max(1, len(job.shards))
    parts: list[list[Example]] = []
    for chunk in range(num_chunks):
        part: list[Example] = []
        for examples in other_sets:
            part += examples[len(examples) * chunk // num_chunks : len(examples) * (chunk + 1) // num_chunks]
        parts.append(part)
    if not job.shards:
        return RowStream.whole(parts[0])

    # Read each shard once it is finished.
    def read_chunks() -> Iterator[list[Example]]:
        arrived = wait_for_shards(job.queue, [Path(path) for path in job.shards])
        for path, part in zip(arrived, parts, strict=True):
            store.fetch(path)
            shard: list[Any] = read_rows(path, job.shard_type)
            yield [to_example(row) for row in shard] + part

    # The sizes that the learning-rate schedule assumes.
    sizes = [size + len(part) for size, part in zip(job.sizes, parts, strict=True)]
    return RowStream(read_chunks(), sizes)


def open_pretraining_rows(job: TrainingJob, store: RunStore) -> PretrainingRows | None:
    """Return the ground truths that PPO-ptx trains beside the rows; None without it."""
    if job.pretraining is None:
        return None
    assert isinstance(job.objective, PpoObjective)
    path = Path(job.pretraining)
    store.fetch(path)
    truths = [to_example(row) for row in read_rows(path, Prompt)]
    return PretrainingRows(truths, job.seed, job.iteration, job.objective.ptx_rows)
