"""What is known of the judge of each iteration as a table, for the console and the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from spin.run_dir.judge_statistics import JudgeStatistics

TITLE = (
    "bias: towards the first place, from -0.5 to 0.5 (of scores: towards high numbers, from -1 to 1); same place: "
    "share of judgements in which both orders prefer the same place (of scores: both scales the same end); "
    "consistency: 1 - that share; mass: probability of all labels together; ±: half the 95 % interval"
)
"""What the columns mean."""


@dataclass(frozen=True)
class JudgeTable:
    """Column titles, and one row of texts for each iteration with a judge."""

    columns: list[str]
    rows: list[list[str]]


def make_judge_table(statistics: Mapping[str, JudgeStatistics | None]) -> JudgeTable | None:
    """Return the table of the judge; None if no iteration has one.

    Args:
        statistics: By the label of the iteration; None without a judge.
    """
    texts = {}
    for label, known in statistics.items():
        if known is not None:
            texts[label] = {"judgements": f"{known.comparisons:,}", **known.to_texts()}
    if not texts:
        return None
    # Not every iteration has all figures.
    columns: dict[str, None] = {}
    for figures in texts.values():
        columns |= dict.fromkeys(figures)
    rows = []
    for label, figures in texts.items():
        rows.append([label, *[figures.get(column, "-") for column in columns]])
    return JudgeTable(["policy", *columns], rows)
