"""Add the answers of the start policy to pairs, which T-SPIN learns from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from spin.data.parquet import read_rows
from spin.data.records import Pair, Sample, TrainingRow


def add_start_answers(rows: Sequence[TrainingRow], start_samples: str | None) -> list[TrainingRow]:
    """Return rows in which each pair has an answer of iteration 0's opponent to its prompt.

    Args:
        rows: Built and replayed rows of one shard.
        start_samples: Iteration 0's samples for the same prompts; None if the objective needs none.

    Returns:
        The rows. A pair of iteration 0 gets no answer: its rejected completion is one already.
    """
    samples_of: dict[int, list[list[int]]] = {}
    if start_samples is not None:
        for sample in read_rows(Path(start_samples), Sample):
            samples_of.setdefault(sample.prompt_id, []).append(sample.completion_ids)

    added: list[TrainingRow] = []
    for row in rows:
        if isinstance(row, Pair):
            answers = samples_of.get(row.prompt_id)
            # A replayed pair may have an answer that this objective does not need.
            start_ids: list[int] = []
            if answers and row.iteration != 0:
                # Iteration 0 may have sampled fewer answers of a prompt.
                start_ids = answers[row.sample_index % len(answers)]
            row = replace(row, start_ids=start_ids, reference_start_logp=math.nan)
        added.append(row)
    return added
