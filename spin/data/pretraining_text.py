"""Read the rows that PPO-ptx trains beside its answers: plain text, or prompts with answers."""

from __future__ import annotations

from collections.abc import Container, Iterator
from itertools import chain, islice

from spin.config.groups import Turn
from spin.data.bos_token import add_opening, encode_plain
from spin.data.chat_renderer import Renderer
from spin.data.chat_templates import Unrenderable
from spin.data.datasets import stream_prompts
from spin.data.file_readers import PlacedRow, load_rows
from spin.data.formats import PROMPT_COLUMNS, TURN_COLUMNS
from spin.data.records import Prompt
from spin.data.rendered_rows import FORMAT_ROWS
from spin.data.row_report import RowReport, describe_empty
from spin.errors import ConfigError

TEXT_COLUMN = "text"


def stream_pretraining(
    report: RowReport,
    split: str,
    renderer: Renderer,
    max_prompt: int,
    max_completion: int,
    turn: Turn,
    held: Container[tuple[int, ...]],
) -> Iterator[Prompt]:
    """Yield the rows of the set at `report.path`, and count them in `report`.

    Args:
        report: Names the set; counts.
        split: Of a Hub data set.
        renderer: Of the run.
        max_prompt: Longest prompt, in tokens.
        max_completion: Longest completion, in tokens. A text is cut into pieces of as many tokens
            as both together.
        turn: Assistant turn that is the target, of rows with turns.
        held: Prompt ids of rows to drop, of rows with prompts.

    Raises:
        ConfigError: No row is usable.
    """
    rows = load_rows(report.path, split)
    first = list(islice(rows, FORMAT_ROWS))
    columns = {name for _, row in first for name in row}
    if TEXT_COLUMN not in columns or columns & {*PROMPT_COLUMNS, *TURN_COLUMNS}:
        yield from stream_prompts(report, split, renderer, max_prompt, max_completion, None, turn, held)
        return
    report.format = TEXT_COLUMN
    yield from cut_texts(report, chain(first, rows), renderer, max_prompt + max_completion)
    if not report.kept:
        raise ConfigError(f"{report.path}: {describe_empty(report)}")


def cut_texts(report: RowReport, rows: Iterator[PlacedRow], renderer: Renderer, longest: int) -> Iterator[Prompt]:
    """Yield pieces of at most `longest` tokens of each text, which ends with the EOS.

    No chat template is applied. The first token of a piece is its prompt, since nothing predicts
    it.
    """
    number = 0
    for place, row in rows:
        report.read += 1
        try:
            ids = encode_plain(renderer.tokenizer, str(row.get(TEXT_COLUMN) or ""))
        except Unrenderable as error:
            report.drop(error.reason, place)
            continue
        if not ids:
            report.drop("without text", place)
            continue
        ids = add_opening(renderer.opening_ids, ids)
        end = renderer.tokenizer.eos_token_id
        if end is not None:
            ids = [*ids, end]
        # A last piece of one token predicts nothing.
        for start in range(0, len(ids) - 1, longest):
            piece = ids[start : start + longest]
            if len(piece) > 1:
                yield Prompt(number, piece[:1], piece[1:], "stop", "", "", None)
                number += 1
        report.kept += 1
