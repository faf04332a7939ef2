"""The formats of data sets: what is read from files, the Hub or the built-in task, and the turns in each row."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spin.config.groups import Turn
from spin.data import builtin
from spin.errors import ConfigError

Row = dict[str, Any]


Turns = tuple[list[dict[str, str]], str]
"""The messages before an assistant turn, and that turn's text."""


FORMATS: dict[str, tuple[str, ...]] = {
    "prompt+chosen+rejected": ("prompt", "chosen", "rejected"),
    "chosen+rejected": ("chosen", "rejected"),
    "prompt+completion+label": ("prompt", "completion", "label"),
    "messages": ("messages",),
    "prompt+completion": ("prompt", "completion"),
    "question+answer": ("question", "answer"),
    "instruction+output": ("instruction", "output"),
    "real+generated": ("real", "generated"),
}
"""Columns that tell a format, in the order in which they are looked for. The first three are TRL's of preference and rating sets: as an SFT set, what
is chosen or labelled true is the truth. `real+generated` is the official SPIN set.
"""


PAIRED = ("prompt+chosen+rejected", "chosen+rejected", "real+generated")


RATED = "prompt+completion+label"


class Unusable(Exception):
    """A row that cannot be trained on; the message is the reason that is counted."""


def load_rows(path: str, split: str) -> Iterator[tuple[str, Row]]:
    """(place, row) of a set: `builtin:NAME`, a local file, or a Hub id. Raises ConfigError with the file and line of an unreadable row."""
    if path.startswith("builtin:"):
        yield from (
            (f"{path}[{i}]", dict(row)) for i, row in enumerate(builtin.rows(path.removeprefix("builtin:"), split))
        )
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
        raise ConfigError(
            f"{path}: no such file; expected a .jsonl, .json, .parquet or .csv file, a Hub id, or builtin:letters"
        )
    try:
        table = (
            datasets.load_dataset(kinds[suffix], data_files=str(file), split="train")
            if file.is_file()
            else datasets.load_dataset(path, split=split)
        )
    except Exception as error:  # a dozen kinds: not on the Hub, no network, no such split, unreadable file
        raise ConfigError(
            f"{path} (split {split}) cannot be read: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        ) from error
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
                raise ConfigError(
                    f"{file}:{number}: found a JSON {type(row).__name__}, expected an object with named columns"
                )
            yield f"{file}:{number}", row


def detect_format(row: Row, place: str) -> str:
    """The format whose columns the row has. Raises ConfigError naming the columns found."""
    for name, columns in FORMATS.items():
        if all(column in row for column in columns):
            return name
    raise ConfigError(
        f"{place}: columns {', '.join(sorted(row)) or '(none)'} fit no known format; expected one of {'; '.join(FORMATS)}"
    )


def to_turns(row: Row, format_name: str, turn: Turn = Turn.last) -> Turns:
    """A row as the turns before an assistant's, and that one, which is the truth: of several the last, or the first where `turn` says so."""
    if format_name in PAIRED:
        return to_pair(row, format_name)[0]
    if format_name == "messages":
        return _split_turns(row.get("messages"), turn)
    if format_name == RATED and row.get("label") is not True:
        raise Unusable(
            "without a truth (labelled false)"
            if row.get("label") is False
            else "with a label that is neither true nor false"
        )
    prompt, completion = (row.get(column) for column in FORMATS[format_name][:2])
    if format_name == "instruction+output" and row.get("input"):
        prompt = f"{prompt}\n\n{row['input']}"
    return join_turns(prompt, completion)


def to_pair(row: Row, format_name: str) -> tuple[Turns, Turns]:
    """The chosen and the rejected turns of a preference row. Without a `prompt` column it is what both begin with: whole turns, or text."""
    good, bad = (row.get(column) for column in FORMATS[format_name][-2:])
    if format_name == "prompt+chosen+rejected":
        pair = join_turns(row.get("prompt"), good), join_turns(row.get("prompt"), bad)
    elif isinstance(good, str) and isinstance(bad, str):
        shared = os.path.commonprefix([good, bad])
        shared = (
            shared[: shared.rfind(" ") + 1] if shared not in (good, bad) and " " in shared else shared
        )  # no word is cut in two
        pair = join_turns(shared.rstrip(), good[len(shared) :]), join_turns(shared.rstrip(), bad[len(shared) :])
    else:
        pair = _split_turns(good), _split_turns(bad)
    if pair[0][0] != pair[1][0]:
        raise Unusable("with two prompts")
    return pair


def join_turns(prompt: Any, completion: Any) -> Turns:
    """Prompt and completion, each text or turns."""
    before = prompt if isinstance(prompt, list) else [{"role": "user", "content": prompt}]
    after = completion if isinstance(completion, list) else [{"role": "assistant", "content": completion}]
    return _split_turns(before + after)


def _split_turns(messages: Any, turn: Turn = Turn.last) -> Turns:
    if not isinstance(messages, list) or not all(
        isinstance(m, dict) and isinstance(m.get("content"), str) and isinstance(m.get("role"), str) for m in messages
    ):
        raise Unusable("not text")
    answers = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
    if not answers:
        raise Unusable("without an assistant turn")
    truth = answers[0 if turn is Turn.first else -1]
    before = [{"role": m["role"], "content": m["content"]} for m in messages[:truth]]
    if not any(m["content"].strip() for m in before):
        raise Unusable("with an empty prompt")
    if not messages[truth]["content"].strip():
        raise Unusable("with an empty completion")
    return before, messages[truth]["content"]
