"""Read supervised sets to token ids, and split them into training and held-out prompts.

Every dropped row is counted by its reason, see `rendered_rows.py`. Labelled sets are read in
`labelled.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import regex

from spin.config.groups import DataConfig, Turn
from spin.data.answer_matching import extract_answer
from spin.data.chat_renderer import Renderer
from spin.data.heldout_split import take_heldout
from spin.data.parquet import reordered
from spin.data.records import Prompt
from spin.data.rendered_rows import open_rows, render_rows
from spin.data.row_report import HELD_OUT, RowReport, describe_empty
from spin.errors import ConfigError


@dataclass
class Prepared:
    """The sets of a run; ids are positions in each."""

    train: Iterable[Prompt]
    """Can be iterated once: rows are read as they are taken."""
    heldout: list[Prompt]
    reports: list[RowReport]
    """Complete after `train` was iterated."""


def stream_prompts(
    report: RowReport,
    split: str,
    renderer: Renderer,
    max_prompt: int,
    max_completion: int,
    pattern: str | None,
    turn: Turn,
    held: Container[tuple[int, ...]] = (),
) -> Iterator[Prompt]:
    """Yield the usable rows of the set at `report.path`, and count them in `report`.

    Args:
        report: names the set; counts.
        split: of a Hub data set.
        renderer: of the run.
        max_prompt: longest prompt, in tokens; rows over it are dropped.
        max_completion: longest completion, in tokens; the rest is cut off.
        pattern: extracts the answer of a row; None takes the whole text.
        turn: assistant turn that is the target.
        held: prompt ids of rows to drop.

    Raises:
        ConfigError: no row is usable.
    """
    seen: set[bytes] = set()
    row_format, rows = open_rows(report.path, split)
    if row_format is None:
        raise ConfigError(f"{report.path}: {describe_empty(report)}")
    for row in render_rows(report, row_format, rows, renderer, max_prompt, turn):
        exchange = row.exchanges[0]
        prompt_ids, completion_ids = exchange.prompt_ids, exchange.completion_ids
        # Equal rows are kept once; 16 bytes of each are remembered.
        ids = np.array([len(prompt_ids), *prompt_ids, *completion_ids])
        key = hashlib.blake2b(ids.tobytes(), digest_size=16).digest()
        if row.conversation.label is False:
            report.drop("without a truth (labelled false)", row.place)
            continue
        if key in seen:
            report.drop("twice there", row.place)
            continue
        seen.add(key)
        if tuple(prompt_ids) in held:
            report.drop(HELD_OUT, row.place)
            continue
        # A completion over the limit is cut, so it has no end token.
        finish_reason = "stop"
        if len(completion_ids) > max_completion:
            finish_reason = "length"
            report.cut += 1
        report.split += exchange.boundary_split
        report.kept += 1
        yield Prompt(
            prompt_id=report.kept - 1,
            prompt_ids=prompt_ids,
            completion_ids=completion_ids[:max_completion],
            finish_reason=finish_reason,
            prompt_text=str(row.conversation.prompt[-1]["content"]),
            completion_text=exchange.text,
            answer=extract_answer(exchange.text, pattern),
        )
    # Without a single row, the user needs the reasons.
    if not report.kept:
        if report.dropped[HELD_OUT]:
            raise ConfigError(f"{report.path}: every usable row is also held out; give another data.eval_path")
        raise ConfigError(f"{report.path}: {describe_empty(report)}")


def load_prompts(
    path: str,
    split: str,
    renderer: Renderer,
    max_prompt: int,
    max_completion: int,
    pattern: str | None,
    turn: Turn = Turn.last,
) -> tuple[list[Prompt], RowReport]:
    """Return the usable rows of a set; see `stream_prompts`."""
    report = RowReport(path)
    return list(stream_prompts(report, split, renderer, max_prompt, max_completion, pattern, turn)), report


def prepare(data: DataConfig, renderer: Renderer, max_prompt: int, max_completion: int, seed: int) -> Prepared:
    """Return the training prompts and the held-out ones; no prompt is in both.

    With a `data.eval_path` no more rows are read than needed, and the training prompts are never in
    memory together.

    Raises:
        ConfigError: a set is unusable, or no held-out target has an answer.
    """
    # A broken pattern is refused before anything is read.
    if data.answer_pattern is not None:
        try:
            regex.compile(data.answer_pattern)
        except regex.error as error:
            raise ConfigError(f"data.answer_pattern={data.answer_pattern}: no regular expression ({error})") from error
    limits = (renderer, max_prompt, max_completion, data.answer_pattern, data.turn)
    report = RowReport(data.path)
    reports = [report]
    train: Iterable[Prompt]
    # Held-out rows come from a set of their own, or from the training set.
    if data.eval_path is not None:
        reports.append(RowReport(data.eval_path))
        heldout = list(islice(stream_prompts(reports[1], data.eval_split, *limits), data.eval_limit))
        held = {tuple(row.prompt_ids) for row in heldout}
        train = islice(stream_prompts(report, data.split, *limits, held), data.limit)
    else:
        rows = list(stream_prompts(report, data.split, *limits))
        train, heldout = take_heldout(rows, data, report, seed)
    # Exact match would be 0 for every policy.
    if not any(row.answer for row in heldout):
        raise ConfigError(
            f"data.answer_pattern={data.answer_pattern} matches no held-out ground truth; "
            f"the first ends in {heldout[0].completion_text[-40:]!r}"
        )
    return Prepared(shuffle(train, seed), number(heldout), reports)


def shuffle(prompts: Iterable[Prompt], seed: int) -> Iterator[Prompt]:
    """Put the prompts in an order of the run's own, and number them anew.

    An epoch may take the shards in this order.
    """
    rows = reordered(prompts, Prompt, lambda count: np.random.default_rng([seed, 2]).permutation(count))
    return (replace(prompt, prompt_id=index) for index, prompt in enumerate(rows))


def number(prompts: list[Prompt]) -> list[Prompt]:
    """Number the prompts by position."""
    return [replace(prompt, prompt_id=index) for index, prompt in enumerate(prompts)]
