"""SFT, preference and rating sets to token ids. No row is dropped without being counted by its reason."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np

from spin.chat import Renderer
from spin.errors import ConfigError
from spin.formats import PAIRED, RATED, Unusable, detect_format, joined, load_rows, to_pair, to_turns
from spin.groups import DataConfig, FeedbackConfig
from spin.records import Pair, Prompt, Rating


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

    train: list[Prompt]
    heldout: list[Prompt]
    reports: list[Report]


def extract_answer(text: str, pattern: str | None) -> str | None:
    """What must be equal in an answer and in the truth: the pattern's last match (group 1 if it has one), without thousands commas; or the whole text."""
    if pattern is None:
        return text.strip()
    found = list(re.finditer(pattern, text))
    if not found:
        return None
    return re.sub(r"(?<=\d),(?=\d)", "", found[-1].group(1 if found[-1].re.groups else 0).strip())


def _encoded(before: list[dict[str, str]], texts: list[str], renderer: Renderer, max_prompt: int) -> tuple[list[int], list[list[int]]]:
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
            raise ConfigError(f"feedback.path={source.path}: rows are {report.format}, which nobody labelled; expected one of {'; '.join((*PAIRED, RATED))}")
        try:
            (before, first), second = to_pair(row, report.format) if report.format in PAIRED else (joined(row["prompt"], row["completion"]), None)
            if second is None and not isinstance(row["label"], bool):
                raise Unusable("with a label that is neither true nor false")
            prompt_ids, completions = _encoded(before, [first] if second is None else [first, second[1]], renderer, max_prompt)
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
            pairs.append(Pair(len(pairs), 0, -1, prompt_ids, ids[0], ids[1], math.nan, math.nan, math.nan))
        report.kept += 1
        if report.kept == source.limit:
            break
    if not report.kept:
        raise ConfigError(f"feedback.path={source.path}: no usable row: {report.line() if report.read else 'the set is empty'}")
    return pairs, ratings, report


def load_prompts(path: str, split: str, renderer: Renderer, max_prompt: int, max_completion: int, pattern: str | None) -> tuple[list[Prompt], Report]:
    """All usable rows of a set. Limits are in tokens. Raises ConfigError when no row is usable."""
    report = Report(path)
    prompts: list[Prompt] = []
    seen: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()
    for place, row in load_rows(path, split):
        report.read += 1
        report.format = report.format or detect_format(row, place)
        try:
            before, text = to_turns(row, report.format)
            prompt_ids, [real_ids] = _encoded(before, [text], renderer, max_prompt)
            key = (tuple(prompt_ids), tuple(real_ids))
            if key in seen:
                raise Unusable("twice there")
        except Unusable as reason:
            report.dropped[str(reason)] += 1
            continue
        seen.add(key)
        cut = len(real_ids) > max_completion
        report.cut += cut
        finish, answer = ("length" if cut else "stop"), extract_answer(text, pattern)
        prompts.append(Prompt(len(prompts), prompt_ids, real_ids[:max_completion], finish, before[-1]["content"], text, answer))
    report.kept = len(prompts)
    if not prompts:
        raise ConfigError(f"{path}: no usable row: {report.line() if report.read else 'the set is empty'}")
    return prompts, report


def prepare(data: DataConfig, renderer: Renderer, max_prompt: int, max_completion: int, seed: int) -> Prepared:
    """The training prompts and the held-out ones; no prompt is in both. Raises ConfigError when a set is unusable or no held-out truth has an answer."""
    if data.answer_pattern is not None:
        try:
            re.compile(data.answer_pattern)
        except re.error as error:
            raise ConfigError(f"data.answer_pattern={data.answer_pattern}: no regular expression ({error})") from error
    train, report = load_prompts(data.path, data.split, renderer, max_prompt, max_completion, data.answer_pattern)
    reports = [report]
    if data.eval_path is not None:
        heldout, eval_report = load_prompts(data.eval_path, data.eval_split, renderer, max_prompt, max_completion, data.answer_pattern)
        heldout = heldout[: data.eval_limit]
        eval_report.kept = len(heldout)
        reports.append(eval_report)
    else:
        chosen = np.random.default_rng([seed, 1]).permutation(len(train))[: min(data.eval_limit, len(train) // 10)]
        heldout = [train[i] for i in sorted(chosen)]
        if not heldout:
            raise ConfigError(f"{data.path}: {len(train)} usable rows are too few to hold some out; give data.eval_path, or at least 10 rows")
    held = {tuple(row.prompt_ids) for row in heldout}
    kept = [row for row in train if tuple(row.prompt_ids) not in held]
    if len(kept) < len(train):
        report.dropped["held out"] += len(train) - len(kept)
    kept = [kept[i] for i in np.random.default_rng([seed, 2]).permutation(len(kept[: data.limit]))]  # an epoch may take the shards in their order
    report.kept = len(kept)
    if not kept:
        raise ConfigError(f"{data.path}: every usable row is also held out; give another data.eval_path")
    if not any(row.answer for row in heldout):
        raise ConfigError(f"data.answer_pattern={data.answer_pattern} matches no held-out ground truth; the first ends in {heldout[0].real_text[-40:]!r}")
    return Prepared(_numbered(kept), _numbered(heldout), reports)


def _numbered(prompts: list[Prompt]) -> list[Prompt]:
    return [replace(prompt, prompt_id=index) for index, prompt in enumerate(prompts)]
