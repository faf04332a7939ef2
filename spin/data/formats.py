"""Detect the format of a data set: which columns carry the prompt, the answers and the label.

Files are read in `file_readers.py`; `conversations.py` reads the columns of a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from spin.data.file_readers import Row
from spin.errors import ConfigError

TURN_COLUMNS = ("messages", "conversations", "conversation")
"""Columns of a whole conversation."""
PAIR_COLUMNS = (("chosen", "rejected"), ("chosen_response", "rejected_response"), ("real", "generated"))
"""The better and the worse answer. `real` and `generated` are those of the official SPIN set."""
LABEL_COLUMNS = ("label", "kto_tag")
MARGIN_COLUMN = "margin"
PREFERENCE_COLUMNS = ("preference", MARGIN_COLUMN)
"""P(chosen is better), or the difference of two scores that it follows from."""
SCORE_COLUMN = "score"
"""A number about one answer; the higher, the better."""
RANKED_COLUMNS = ("responses", "answers", "completions")
"""Lists of answers, each with a rank (Nectar) or a score (UltraFeedback) of its own, or with a list
of ranks in another column."""
RANK_COLUMNS = ("ranks", "scores")
"""Lists of numbers about the answers. The lowest rank and the highest score are the best."""
SUBSET_COLUMN = "subset"
"""Names the part of a set that a row belongs to, as in RewardBench; read for reward models."""
PROMPT_COLUMNS = ("prompt", "question", "query", "problem", "instruction", "input")
"""Columns of a prompt, in the order in which they are looked for."""
SINGLE_COLUMNS = (
    ("prompt", "completion"), ("question", "answer"), ("instruction", "output"), ("prompt", "response"),
    ("question", "response"), ("query", "response"), ("instruction", "response"), ("problem", "solution"),
    ("input", "output"), ("instruction", "completion"), ("question", "completion"), ("prompt", "generation"),
    ("instruction", "generation"), ("prompt", "output"), ("prompt", "answer"),
)  # fmt: skip
"""Columns of a prompt and its answer, in the order in which they are looked for."""


class Kind(Enum):
    """What the answers of a row are."""

    target = "one answer, which is the target"
    pair = "a better and a worse answer"
    ranking = "several answers with ranks or scores"
    rating = "one answer, labelled true or false, or with a score"


LABELLED = (Kind.pair, Kind.ranking, Kind.rating)
"""Kinds that tell better answers from worse ones."""


@dataclass(frozen=True)
class Format:
    """The columns that are read of each row, besides columns of context."""

    kind: Kind
    prompt: str | None
    """Column of the prompt; None if the answers contain it."""
    answers: tuple[str, ...]
    label: str | None = None
    number: str | None = None
    """Column of preferences, of a score, or of ranks; None if the answers have none."""

    @property
    def columns(self) -> list[str]:
        """Return the columns in the order prompt, answers, label, number."""
        columns = [self.prompt, *self.answers, self.label, self.number]
        return [column for column in columns if column is not None]

    @property
    def name(self) -> str:
        """Return the name, such as ``prompt+completion``."""
        return "+".join(self.columns)


def detect_format(rows: Iterable[Row], place: str, labelled: bool = False) -> Format:
    """Return the format of a data set by the columns of its first rows.

    Args:
        rows: the first rows; some may lack columns.
        place: of the first row, for the message.
        labelled: True if a column `score` rates the answer; else it is not read.

    Raises:
        ConfigError: the columns fit no format.
    """
    # Columns that have a value in one of the rows.
    columns: dict[str, Any] = {}
    for row in rows:
        for name, value in row.items():
            if value is not None:
                columns.setdefault(name, value)
    prompt = find_column(PROMPT_COLUMNS, columns)
    turns = find_column(TURN_COLUMNS, columns)
    label = find_column(LABEL_COLUMNS, columns)
    # Several answers. The prompt may be a column of turns, or be contained in the answers.
    for pair in PAIR_COLUMNS:
        if set(pair) <= set(columns):
            return Format(Kind.pair, prompt or turns, pair, number=find_column(PREFERENCE_COLUMNS, columns))
    # Lists of answers, and of numbers about them.
    lists = {name for name, value in columns.items() if isinstance(value, list)}
    for name in RANKED_COLUMNS:
        if prompt is not None and isinstance(columns.get(name), list | dict):
            return Format(Kind.ranking, prompt, (name,), number=find_column(RANK_COLUMNS, lists))
    # One answer: a turn of a conversation, or a column of its own.
    kind = Kind.target
    score = None
    if labelled and label is None and SCORE_COLUMN in columns:
        score = SCORE_COLUMN
    if label is not None or score is not None:
        kind = Kind.rating
    if turns is not None:
        return Format(kind, None, (turns,), label, score)
    for question, answer in SINGLE_COLUMNS:
        if question in columns and answer in columns:
            return Format(kind, question, (answer,), label, score)
    # No format: name what was found.
    hint = ""
    if "text" in columns:
        hint = " (text does not tell where the prompt ends and the answer begins)"
    raise ConfigError(
        f"{place}: columns {', '.join(sorted(columns)) or '(none)'} fit no known format{hint}; expected one of "
        "messages; conversations; prompt+completion; question+answer; instruction+output; prompt+chosen+rejected; "
        "chosen+rejected; prompt+completion+label; real+generated (docs/configuration.md lists all)"
    )


def find_column(names: Iterable[str], columns: Iterable[str]) -> str | None:
    """Return the first of the names that is a column; None if none is."""
    for name in names:
        if name in columns:
            return name
    return None


def find_value(names: Iterable[str], columns: Mapping[str, Any]) -> Any:
    """Return the value of the first of the names that is a column; None if none is."""
    name = find_column(names, columns)
    if name is None:
        return None
    return columns[name]
