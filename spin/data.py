"""SFT sets, from local files, the Hub or the built-in task, to Prompt rows. No row is dropped without being counted by its reason."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from spin import builtin
from spin.chat import Renderer
from spin.config import ConfigError, DataConfig
from spin.records import Prompt

Row = dict[str, Any]
Turns = tuple[list[dict[str, str]], str]
"""The messages before the last assistant turn, and that turn's text."""

FORMATS: dict[str, tuple[str, ...]] = {
    "messages": ("messages",),
    "prompt+completion": ("prompt", "completion"),
    "question+answer": ("question", "answer"),
    "instruction+output": ("instruction", "output"),
    "real+generated": ("real", "generated"),
}
"""Columns that tell a format, in the order in which they are looked for. `real+generated` is the official SPIN set: its real side is used."""


class _Unusable(Exception):
    """A row that cannot be trained on; the message is the reason that is counted."""


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
        return text + (f"; {self.cut} ground truths cut at the token limit" if self.cut else "")


@dataclass
class Prepared:
    """The run's sets; ids are positions in each."""

    train: list[Prompt]
    heldout: list[Prompt]
    reports: list[Report]


def load_rows(path: str, split: str) -> Iterator[tuple[str, Row]]:
    """(place, row) of a set: `builtin:NAME`, a local file, or a Hub id. Raises ConfigError with the file and line of an unreadable row."""
    if path.startswith("builtin:"):
        yield from ((f"{path}[{i}]", dict(row)) for i, row in enumerate(builtin.rows(path.removeprefix("builtin:"), split)))
        return
    file = Path(path).expanduser()
    suffix = file.suffix.lower()
    if file.is_file() and suffix == ".jsonl":
        yield from _jsonl(file)
        return
    import datasets

    kinds = {".json": "json", ".parquet": "parquet", ".csv": "csv"}
    if file.is_file() and suffix not in kinds:
        raise ConfigError(f"{path}: files end in .jsonl, .json, .parquet or .csv; found {suffix or 'no ending'}")
    if not file.exists() and (path.startswith((".", "/", "~")) or suffix in (".jsonl", *kinds)):
        raise ConfigError(f"{path}: no such file; expected a .jsonl, .json, .parquet or .csv file, a Hub id, or builtin:letters")
    try:
        table = datasets.load_dataset(kinds[suffix], data_files=str(file), split="train") if file.is_file() else datasets.load_dataset(path, split=split)
    except Exception as error:  # a dozen kinds: not on the Hub, no network, no such split, unreadable file
        raise ConfigError(f"{path} (split {split}) cannot be read: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}") from error
    yield from ((f"{path}[{i}]", dict(row)) for i, row in enumerate(table))


def _jsonl(file: Path) -> Iterator[tuple[str, Row]]:
    with file.open("rb") as handle:
        for number, line in enumerate(handle, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ConfigError(f"{file}:{number}: no JSON ({error}); repair or remove the line") from error
            if not isinstance(row, dict):
                raise ConfigError(f"{file}:{number}: found a JSON {type(row).__name__}, expected an object with named columns")
            yield f"{file}:{number}", row


def detect_format(row: Row, place: str) -> str:
    """The format whose columns the row has. Raises ConfigError naming the columns found."""
    for name, columns in FORMATS.items():
        if all(column in row for column in columns):
            return name
    raise ConfigError(f"{place}: columns {', '.join(sorted(row)) or '(none)'} fit no known format; expected one of {'; '.join(FORMATS)}")


def to_turns(row: Row, format_name: str) -> Turns:
    """A row as the turns before the last assistant's, and that one."""
    if format_name in ("messages", "real+generated"):
        return _last_turn(row.get(format_name.split("+")[0]))
    prompt, completion = (row.get(column) for column in FORMATS[format_name])
    if format_name == "instruction+output" and row.get("input"):
        prompt = f"{prompt}\n\n{row['input']}"
    if isinstance(prompt, list) and isinstance(completion, list):
        return _last_turn(prompt + completion)
    return _last_turn([{"role": "user", "content": prompt}, {"role": "assistant", "content": completion}])


def _last_turn(messages: Any) -> Turns:
    if not isinstance(messages, list) or not all(isinstance(m, dict) and isinstance(m.get("content"), str) and isinstance(m.get("role"), str) for m in messages):
        raise _Unusable("not text")
    last = max((i for i, m in enumerate(messages) if m["role"] == "assistant"), default=None)
    if last is None:
        raise _Unusable("without an assistant turn")
    before = [{"role": m["role"], "content": m["content"]} for m in messages[:last]]
    if not any(m["content"].strip() for m in before):
        raise _Unusable("with an empty prompt")
    if not messages[last]["content"].strip():
        raise _Unusable("with an empty completion")
    return before, messages[last]["content"]


def extract_answer(text: str, pattern: str | None) -> str | None:
    """What must be equal in an answer and in the truth: the pattern's last match (group 1 if it has one), without thousands commas; or the whole text."""
    if pattern is None:
        return text.strip()
    found = list(re.finditer(pattern, text))
    if not found:
        return None
    return re.sub(r"(?<=\d),(?=\d)", "", found[-1].group(1 if found[-1].re.groups else 0).strip())


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
            prompt_ids, real_ids = renderer.prompt_ids(before), renderer.completion_ids(text)
            if len(prompt_ids) > max_prompt:
                raise _Unusable(f"with a prompt over {max_prompt} tokens")
            key = (tuple(prompt_ids), tuple(real_ids))
            if key in seen:
                raise _Unusable("twice there")
        except _Unusable as reason:
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
    kept = kept[: data.limit]
    report.kept = len(kept)
    if not kept:
        raise ConfigError(f"{data.path}: every usable row is also held out; give another data.eval_path")
    if not any(row.answer for row in heldout):
        raise ConfigError(f"data.answer_pattern={data.answer_pattern} matches no held-out ground truth; the first ends in {heldout[0].real_text[-40:]!r}")
    return Prepared(_numbered(kept), _numbered(heldout), reports)


def _numbered(prompts: list[Prompt]) -> list[Prompt]:
    return [replace(prompt, prompt_id=index) for index, prompt in enumerate(prompts)]
