"""Read what a row says about its answers: a label, a score, a preference, or ranks.

label true | false                      →  a desirable answer, or not
score 0.7                               →  desirable if above `feedback.threshold`
chosen, rejected, preference 0.8        →  P(chosen is better) = 0.8
chosen, rejected, margin 1.4            →  P(chosen is better) = 1 / (1 + exp(-1.4))
responses, ranks [1, 2] or scores       →  the answers, the best first
"""

from __future__ import annotations

import math
from typing import Any

from spin.config.groups import RankedPairs
from spin.data.file_readers import Row
from spin.data.formats import SUBSET_COLUMN, Format, Kind, find_value
from spin.data.turns import Unusable, split_struct

TEXT_KEYS = ("answer", "response", "completion", "content", "text")
SCORE_KEYS = ("overall_score", "score", "rating")
"""Keys of a ranked answer, in the order in which they are looked for."""

RankedAnswer = tuple[float, str]
"""Rank, of which the lowest is the best, and text."""


def read_label(row: Row, row_format: Format) -> bool | None:
    """Return the label of a rated row; None if the format has none."""
    if row_format.label is None:
        return None
    # A CSV file has the label as text, some sets as 0 and 1.
    text = str(row.get(row_format.label)).strip().lower()
    if text in ("true", "1", "1.0"):
        return True
    if text in ("false", "0", "0.0"):
        return False
    raise Unusable("with a label that is neither true nor false")


def read_score(row: Row, row_format: Format) -> float | None:
    """Return the score of a row with one answer; None if the format has none."""
    if row_format.number is None or row_format.kind is not Kind.rating:
        return None
    return parse_number(row.get(row_format.number), row_format.number)


def read_preference(row: Row, row_format: Format) -> float:
    """Return P(the first answer is better than the second); 1 if the format has no such column."""
    if row_format.number is None or row_format.kind is not Kind.pair:
        return 1.0
    value = parse_number(row.get(row_format.number), row_format.number)
    # The difference of two scores, after Bradley and Terry.
    if row_format.number == "margin":
        return sigmoid(value)
    if not 0 <= value <= 1:
        raise Unusable("with a preference outside 0 to 1")
    return value


def read_margin(row: Row, row_format: Format) -> float:
    """Return the margin of a pair; 0 if the format has no such column."""
    if row_format.number != "margin":
        return 0.0
    return parse_number(row.get(row_format.number), row_format.number)


def read_subset(row: Row) -> str | None:
    """Return the part of the set that a row belongs to; None if the set has no parts."""
    value = row.get(SUBSET_COLUMN)
    if value is None:
        return None
    return str(value)


def sigmoid(value: float) -> float:
    """Return 1 / (1 + exp(-value)) without overflow."""
    if value >= 0:
        return 1 / (1 + math.exp(-value))
    return math.exp(value) / (1 + math.exp(value))


def parse_number(value: Any, column: str) -> float:
    """Return the finite number in a cell; a CSV file has it as text."""
    number = math.nan
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            number = math.nan
    elif is_number(value):
        number = float(value)
    if not math.isfinite(number):
        raise Unusable(f"with a value of {column} that is no finite number")
    return number


def read_ranked_answers(row: Row, row_format: Format, pairs: RankedPairs) -> list[RankedAnswer]:
    """Return the answers of a row, the best first.

    With `pairs` = best_worst these are the best and the worst one, or only the best if all are
    equally good. Of equal ranks the first answer is taken.
    """
    [column] = row_format.answers
    value = row.get(column)
    # Parquet files may hold the list as a struct of lists.
    if isinstance(value, dict):
        value = split_struct(value)
    if not isinstance(value, list):
        raise Unusable("without ranked answers")
    ranked = _collect_from_entries(value)
    if row_format.number is not None:
        ranked = _collect_from_columns(value, row.get(row_format.number), row_format.number)
    if not ranked:
        raise Unusable("without ranked answers")

    # Sorting keeps the order of equal ranks.
    ranked.sort(key=lambda answer: answer[0])
    if pairs is RankedPairs.all:
        return ranked
    best = ranked[0]
    worst = next(answer for answer in ranked if answer[0] == ranked[-1][0])
    if best[0] == worst[0]:
        return [best]
    return [best, worst]


def _collect_from_entries(entries: list[Any]) -> list[RankedAnswer]:
    """Return the answers that carry their rank or score; those without one are left out."""
    ranked: list[RankedAnswer] = []
    for entry in entries:
        if not isinstance(entry, dict):
            continue
        text = find_value(TEXT_KEYS, entry)
        rank: Any = entry.get("rank")
        score = find_value(SCORE_KEYS, entry)
        # A high score is a low rank.
        if rank is None and is_number(score):
            rank = -score
        if isinstance(text, str) and is_number(rank):
            ranked.append((float(rank), text))
    return ranked


def _collect_from_columns(answers: list[Any], numbers: Any, column: str) -> list[RankedAnswer]:
    """Return the answers with their ranks or scores, which are a list in another column."""
    if not isinstance(numbers, list) or len(numbers) != len(answers):
        raise Unusable(f"with {column} of another number than answers")
    ranked: list[RankedAnswer] = []
    for answer, number in zip(answers, numbers, strict=True):
        text = answer
        if isinstance(answer, dict):
            text = find_value(TEXT_KEYS, answer)
        if not isinstance(text, str):
            raise Unusable("with a ranked answer that is not text")
        rank = parse_number(number, column)
        # A high score is a low rank.
        if column == "scores":
            rank = -rank
        ranked.append((rank, text))
    return ranked


def is_number(value: Any) -> bool:
    """Return True for a number that is no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool)
