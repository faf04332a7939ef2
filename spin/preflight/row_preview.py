"""Show two rows as they will be trained: prompt and completions with their special tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from spin.config.objective_base import RowType
from spin.config.run import RunConfig
from spin.data.chat_renderer import Renderer
from spin.data.parquet import read_rows
from spin.data.records import Pair, Prompt, Ranking, Rating
from spin.run_dir.paths import RunLayout
from spin.run_dir.stage_work import generates_samples
from spin.wording import count_of

NUM_ROWS = 2
"""Rows that are shown."""

HEAD_TOKENS, TAIL_TOKENS = 48, 24
"""First and last tokens that are shown of a longer text."""

TRUTH_BUILDERS = ("truth_pairs", "wrong_truth_pairs")
"""Values of `feedback.rows` whose chosen completion is the ground truth."""

Row = TypeVar("Row")

NOT_YET = "no answer exists yet; the opponent samples it during the run"


@dataclass(frozen=True)
class ShownRow:
    """One row, and what is known of its completions before the run."""

    name: str
    prompt_ids: list[int]
    completions: list[tuple[str, list[int] | str]]
    """Name of each completion with its token ids, or the reason why there are none."""


def preview_rows(config: RunConfig, layout: RunLayout, renderer: Renderer, reward_only: bool = False) -> list[str]:
    """Return lines with two rows as an iteration trains on them, and with the stop ids.

    Args:
        config: Config of the iteration.
        layout: Where the prepared sets are.
        renderer: Renderer of the run.
        reward_only: True for `spin reward`, which trains on rankings alone.
    """
    shown = "iteration 0"
    if reward_only:
        rows = read_rankings(layout)
        shown = "the reward model"
    else:
        rows = read_first_rows(config, layout)
    lines = [f"{count_of(len(rows), 'row')} as {shown} trains on them (↵: line break):"]
    for row in rows:
        lines.append(f"  {row.name}, prompt, {describe_tokens(renderer, row.prompt_ids)}")
        for name, completion in row.completions:
            if isinstance(completion, str):
                lines.append(f"    {name}: {completion}")
            else:
                lines.append(f"    {name}, {describe_tokens(renderer, completion)}")
    stops = [f"{stop} {show_ids(renderer, [stop])}" for stop in renderer.stop_ids]
    lines.append(
        f"  stop ids: {', '.join(stops)}; a completion without one was cut at "
        f"generation.max_tokens={config.generation.max_tokens}"
    )
    return lines


def read_first_rows(config: RunConfig, layout: RunLayout) -> list[ShownRow]:
    """Return two rows of an iteration, of two kinds where it has several kinds of rows."""
    kinds: list[list[ShownRow]] = []
    if config.objective.row_type is RowType.completion:
        kinds.append([show_target(row, "target") for row in read_set(layout, "train", Prompt)])
    else:
        if config.feedback.path is not None:
            kinds.append([show_pair(row) for row in read_set(layout, "labelled-pairs", Pair)])
            kinds.append([show_rating(row) for row in read_set(layout, "ratings", Rating)])
        if generates_samples(config):
            kinds.append([show_sampled(config, row) for row in read_set(layout, "train", Prompt)])
    kinds = [rows for rows in kinds if rows]
    if len(kinds) == 1:
        return kinds[0]
    return [rows[0] for rows in kinds]


def read_rankings(layout: RunLayout) -> list[ShownRow]:
    """Return the first two rankings of a reward model."""
    rows = []
    for row in read_set(layout, "rankings", Ranking):
        completions: list[tuple[str, list[int] | str]] = []
        for rank, ids in zip(row.ranks, row.completions, strict=True):
            completions.append((f"answer with rank {rank:g}", ids))
        rows.append(ShownRow(f"ranking {row.ranking_id}", row.prompt_ids, completions))
    return rows


def read_set(layout: RunLayout, name: str, row_type: type[Row]) -> list[Row]:
    """Return the first rows of a prepared set; none if the run has no such set."""
    path = layout.prompts(name)
    if not path.exists():
        return []
    return read_rows(path, row_type, 0, NUM_ROWS)


def show_target(row: Prompt, name: str) -> ShownRow:
    """Return a prompt with its ground truth under this name."""
    return ShownRow(f"row {row.prompt_id}", row.prompt_ids, [(name, row.completion_ids)])


def show_pair(row: Pair) -> ShownRow:
    """Return a labelled pair."""
    completions: list[tuple[str, list[int] | str]] = [("chosen", row.chosen_ids), ("rejected", row.rejected_ids)]
    return ShownRow(f"labelled pair {row.prompt_id}", row.prompt_ids, completions)


def show_rating(row: Rating) -> ShownRow:
    """Return a labelled rating."""
    name = "undesirable"
    if row.desirable:
        name = "desirable"
    return ShownRow(f"labelled rating {row.prompt_id}", row.prompt_ids, [(name, row.completion_ids)])


def show_sampled(config: RunConfig, row: Prompt) -> ShownRow:
    """Return a prompt whose answers the opponent will sample."""
    if config.feedback.rows in TRUTH_BUILDERS:
        shown = show_target(row, "chosen (the ground truth)")
        shown.completions.append(("rejected", NOT_YET))
        return shown
    # Only sampled answers are trained on; rewards and judges may compare them with the truth.
    shown = show_target(row, "ground truth (rewards and judges see it)")
    name = "answer"
    if config.objective.row_type is RowType.pair:
        name = "chosen and rejected"
    shown.completions.append((f"{name} (feedback.rows={config.feedback.rows})", NOT_YET))
    return shown


def describe_tokens(renderer: Renderer, ids: Sequence[int]) -> str:
    """Return the number of tokens and their text, of long ones only the beginning and the end."""
    count = count_of(len(ids), "token")
    if len(ids) == 1:
        count = "1 token"
    left_out = len(ids) - HEAD_TOKENS - TAIL_TOKENS
    if left_out <= 0:
        return f"{count}: {show_ids(renderer, ids)}"
    head, tail = show_ids(renderer, ids[:HEAD_TOKENS]), show_ids(renderer, ids[-TAIL_TOKENS:])
    return f"{count}: {head} … {left_out:,} more … {tail}"


def show_ids(renderer: Renderer, ids: Sequence[int]) -> str:
    """Return the text of tokens in quotes, with special tokens, as one line."""
    text = renderer.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    shown = []
    for letter in str(text):
        if letter == "\n":
            letter = "↵"
        elif not letter.isprintable():
            letter = letter.encode("unicode_escape").decode()
        shown.append(letter)
    return f'"{"".join(shown)}"'
