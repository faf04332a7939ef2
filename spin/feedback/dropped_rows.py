"""Why self-play rows are dropped: they carry no signal, or the answer was truncated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from spin.config.groups import PairsConfig
from spin.data.answer_matching import is_identical
from spin.data.records import Pair, Prompt, Sample, TrainingRow
from spin.run_dir.facts import PairsFacts


def find_drop_reason(config: PairsConfig, prompt: Prompt, row: TrainingRow, sample: Sample) -> str | None:
    """Return why a row is not trained on: ``identical`` or ``cut``; None if it is.

    Args:
        config: The rules.
        prompt: The prompt of the row.
        row: The row.
        sample: The rejected sample of a pair, or the sample that a rating is about.
    """
    # The first reason that applies is the one that is counted.
    if config.drop_identical and isinstance(row, Pair):
        # A sample with the target's text is the target, whatever its tokens are.
        identical = row.chosen_ids == row.rejected_ids
        if row.chosen_ids == prompt.completion_ids:
            identical = is_identical(prompt, sample.completion_ids, sample.finish_reason, sample.text)
        if identical:
            return "identical"
    if config.drop_cut and sample.finish_reason == "length":
        return "cut"
    return None


def describe_dropped(shards: Sequence[PairsFacts]) -> str:
    """Return the dropped rows of an iteration by reason, such as ``dropped: 40 identical``."""
    dropped: Counter[str] = Counter()
    for facts in shards:
        dropped.update(facts.dropped)
    if not dropped:
        return "none was dropped: no row was made"
    parts = [f"{count:,} {reason}" for reason, count in dropped.most_common()]
    return f"dropped: {', '.join(parts)}"
