"""SFT, preference and rating sets to token ids. No row is dropped without being counted by its reason."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np

from spin.config.groups import DataConfig, FeedbackConfig, Turn
from spin.data.answer_matching import extract_answer
from spin.data.chat import Renderer
from spin.data.formats import PAIRED, RATED, Unusable, detect_format, join_turns, load_rows, to_pair, to_turns
from spin.data.parquet import reordered
from spin.data.records import Pair, Prompt, Rating
from spin.errors import ConfigError


@dataclass
class Report:
    """What was read from one set."""

    path: str
    format: str = ""
    read: int = 0
    kept: int = 0
    cut: int = 0
    """Ground truths longer than the limit: kept without an end of sequence."""
    dropped: Counter[str] = field(default_factory=Counter)

    def line(self) -> str:
        """One line for the person at the terminal."""
        text = f"{self.kept} of {self.read} rows of {self.path} as {self.format}"
        if self.dropped:
            text += "; dropped: " + ", ".join(f"{count} {reason}" for reason, count in sorted(self.dropped.items()))
        return text + (f"; {self.cut} completions cut at the token limit" if self.cut else "")


@dataclass
class Prepared:
    """The run's sets; ids are positions in each."""

    train: Iterable[Prompt]
    """To be gone through once: rows are read as they are taken."""
    heldout: list[Prompt]
    reports: list[Report]
    """Complete when `train` was gone through."""


def _encoded(
    before: list[dict[str, str]], texts: list[str], renderer: Renderer, max_prompt: int
) -> tuple[list[int], list[list[int]]]:
    """Prompt ids, and those of each completion, not yet cut. Raises Unusable when the prompt is over its limit."""
    prompt_ids = renderer.prompt_ids(before)
    if len(prompt_ids) > max_prompt:
        raise Unusable(f"with a prompt over {max_prompt} tokens")
    return prompt_ids, [renderer.completion_ids(text) for text in texts]


def load_labelled(
    source: FeedbackConfig, renderer: Renderer, max_prompt: int, max_completion: int, held: set[tuple[int, ...]]
) -> tuple[list[Pair], list[Rating], Report]:
    """All usable pairs or ratings of a labelled set whose prompt is not held out. Raises ConfigError when none is usable."""
    assert source.path is not None
    report = Report(f"{source.path} (labelled)")
    pairs: list[Pair] = []
    ratings: list[Rating] = []
    for place, row in load_rows(source.path, source.split):
        report.read += 1
        report.format = report.format or detect_format(row, place)
        if report.format not in (*PAIRED, RATED):
            raise ConfigError(
                f"feedback.path={source.path}: rows are {report.format}, which nobody labelled; expected one of {'; '.join((*PAIRED, RATED))}"
            )
        try:
            (before, first), second = (
                to_pair(row, report.format)
                if report.format in PAIRED
                else (join_turns(row["prompt"], row["completion"]), None)
            )
            if second is None and not isinstance(row["label"], bool):
                raise Unusable("with a label that is neither true nor false")
            prompt_ids, completions = _encoded(
                before, [first] if second is None else [first, second[1]], renderer, max_prompt
            )
            if tuple(prompt_ids) in held:
                raise Unusable("held out")
            if second is not None and first == second[1]:
                raise Unusable("with two equal completions")
        except Unusable as reason:
            report.dropped[str(reason)] += 1
            continue
        report.cut += any(len(ids) > max_completion for ids in completions)
        ids = [completion[:max_completion] for completion in completions]
        if second is None:
            ratings.append(Rating(len(ratings), prompt_ids, ids[0], row["label"], math.nan))
        else:
            pairs.append(
                Pair(len(pairs), 0, "labelled", None, prompt_ids, ids[0], ids[1], math.nan, math.nan, math.nan)
            )
        report.kept += 1
        if report.kept == source.limit:
            break
    if not report.kept:
        raise ConfigError(
            f"feedback.path={source.path}: no usable row: {report.line() if report.read else 'the set is empty'}"
        )
    return pairs, ratings, report


def stream_prompts(
    report: Report,
    split: str,
    renderer: Renderer,
    max_prompt: int,
    max_completion: int,
    pattern: str | None,
    turn: Turn,
    held: Container[tuple[int, ...]] = (),
) -> Iterator[Prompt]:
    """The usable rows of the set at `report.path` whose prompt is not in `held`, one by one, counted in `report`. Limits are in tokens.

    Raises ConfigError when none is usable.
    """
    seen: set[bytes] = set()
    for place, row in load_rows(report.path, split):
        report.read += 1
        report.format = report.format or detect_format(row, place)
        try:
            before, text = to_turns(row, report.format, turn)
            prompt_ids, [completion_ids] = _encoded(before, [text], renderer, max_prompt)
            key = hashlib.blake2b(
                np.array([len(prompt_ids), *prompt_ids, *completion_ids]).tobytes(), digest_size=16
            ).digest()
            if key in seen:
                raise Unusable("twice there")
            seen.add(key)
            if tuple(prompt_ids) in held:
                raise Unusable("held out")
        except Unusable as reason:
            report.dropped[str(reason)] += 1
            continue
        cut = len(completion_ids) > max_completion
        report.cut += cut
        finish, answer = ("length" if cut else "stop"), extract_answer(text, pattern)
        report.kept += 1
        yield Prompt(
            report.kept - 1, prompt_ids, completion_ids[:max_completion], finish, before[-1]["content"], text, answer
        )
    if not report.kept:
        if report.dropped["held out"]:
            raise ConfigError(f"{report.path}: every usable row is also held out; give another data.eval_path")
        raise ConfigError(f"{report.path}: no usable row: {report.line() if report.read else 'the set is empty'}")


def load_prompts(
    path: str,
    split: str,
    renderer: Renderer,
    max_prompt: int,
    max_completion: int,
    pattern: str | None,
    turn: Turn = Turn.last,
) -> tuple[list[Prompt], Report]:
    """All usable rows of a set, as `stream_prompts` gives them."""
    report = Report(path)
    return list(stream_prompts(report, split, renderer, max_prompt, max_completion, pattern, turn)), report


def prepare(data: DataConfig, renderer: Renderer, max_prompt: int, max_completion: int, seed: int) -> Prepared:
    """The training prompts and the held-out ones; no prompt is in both. Raises ConfigError when a set is unusable or no held-out truth has an answer.

    With a `data.eval_path` no more rows are read than are asked for, and the training prompts are never in memory together.
    """
    if data.answer_pattern is not None:
        try:
            re.compile(data.answer_pattern)
        except re.error as error:
            raise ConfigError(f"data.answer_pattern={data.answer_pattern}: no regular expression ({error})") from error
    how = (renderer, max_prompt, max_completion, data.answer_pattern, data.turn)
    report = Report(data.path)
    reports = [report]
    if data.eval_path is not None:
        reports.append(Report(data.eval_path))
        heldout = list(islice(stream_prompts(reports[1], data.eval_split, *how), data.eval_limit))
        held = {tuple(row.prompt_ids) for row in heldout}
        train: Iterable[Prompt] = islice(stream_prompts(report, data.split, *how, held), data.limit)
    else:
        rows = list(stream_prompts(report, data.split, *how))
        chosen = np.random.default_rng([seed, 1]).permutation(len(rows))[: min(data.eval_limit, len(rows) // 10)]
        heldout = [rows[i] for i in sorted(chosen)]
        if not heldout:
            raise ConfigError(
                f"{data.path}: {len(rows)} usable rows are too few to hold some out; give data.eval_path, or at least 10 rows"
            )
        held = {tuple(row.prompt_ids) for row in heldout}
        kept = [row for row in rows if tuple(row.prompt_ids) not in held]
        report.dropped["held out"] += len(rows) - len(kept)
        train = kept[: data.limit]
        report.kept = len(train)
        if not train:
            raise ConfigError(f"{data.path}: every usable row is also held out; give data.eval_path")
    if not any(row.answer for row in heldout):
        raise ConfigError(
            f"data.answer_pattern={data.answer_pattern} matches no held-out ground truth; the first ends in {heldout[0].completion_text[-40:]!r}"
        )
    return Prepared(_shuffled(train, seed), _numbered(heldout), reports)


def _shuffled(prompts: Iterable[Prompt], seed: int) -> Iterator[Prompt]:
    """An order of the run's own, since an epoch may take the shards in theirs; numbered anew."""
    rows = reordered(prompts, Prompt, lambda count: np.random.default_rng([seed, 2]).permutation(count))
    return (replace(prompt, prompt_id=index) for index, prompt in enumerate(rows))


def _numbered(prompts: list[Prompt]) -> list[Prompt]:
    return [replace(prompt, prompt_id=index) for index, prompt in enumerate(prompts)]
