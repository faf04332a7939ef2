"""The formats of data sets: what is read from files, the Hub or the built-in task, and the turns in each row."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spin.config.groups import Turn
from spin.data import builtin
from spin.data.templates import Message, Tools
from spin.errors import ConfigError

Row = dict[str, Any]


@dataclass(frozen=True)
class Conversation:
    """The turns of a row, whole: with tool calls, names and other keys that a template may read."""

    prompt: list[Message]
    completion: Message
    """The assistant turn that is the target, or that is compared or rated."""
    tools: Tools | None = None
    """The row's tools, for the template."""


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


def to_conversations(row: Row, format_name: str, turn: Turn = Turn.last) -> list[Conversation]:
    """Return the conversations of a row: chosen and rejected of a pair, else one.

    Args:
        row: columns and values.
        format_name: from `detect_format`.
        turn: assistant turn of `messages` that is the completion.

    Raises:
        Unusable: the row has no such turns.
    """
    tools = row.get("tools") or None
    if format_name in PAIRED:
        return to_pair(row, format_name, tools)
    if format_name == "messages":
        return [split_turns(row.get("messages"), tools, turn)]
    prompt, completion = (row.get(column) for column in FORMATS[format_name][:2])
    if format_name == "instruction+output" and row.get("input"):
        prompt = f"{prompt}\n\n{row['input']}"
    return [join_turns(prompt, completion, tools)]


def to_pair(row: Row, format_name: str, tools: Tools | None) -> list[Conversation]:
    """Return the chosen and the rejected conversation of a preference row.

    Without a `prompt` column the prompt is what both begin with: whole turns, or text.
    """
    chosen, rejected = (row.get(column) for column in FORMATS[format_name][-2:])
    if format_name == "prompt+chosen+rejected":
        prompt = row.get("prompt")
        pair = [join_turns(prompt, chosen, tools), join_turns(prompt, rejected, tools)]
    elif isinstance(chosen, str) and isinstance(rejected, str):
        shared = os.path.commonprefix([chosen, rejected])
        # No word is cut in two.
        if shared not in (chosen, rejected) and " " in shared:
            shared = shared[: shared.rfind(" ") + 1]
        prompt = shared.rstrip()
        pair = [join_turns(prompt, text[len(shared) :], tools) for text in (chosen, rejected)]
    else:
        pair = [split_turns(chosen, tools), split_turns(rejected, tools)]
    if pair[0].prompt != pair[1].prompt:
        raise Unusable("with two prompts")
    return pair


def join_turns(prompt: Any, completion: Any, tools: Tools | None) -> Conversation:
    """Return the conversation of a prompt and a completion, each text or turns."""
    before = prompt
    if not isinstance(prompt, list):
        before = [{"role": "user", "content": prompt}]
    after = completion
    if not isinstance(completion, list):
        after = [{"role": "assistant", "content": completion}]
    return split_turns(before + after, tools)


def split_turns(messages: Any, tools: Tools | None, turn: Turn = Turn.last) -> Conversation:
    """Split turns into prompt and completion.

    Raises:
        Unusable: they are no turns, or one of the two is empty.
    """
    if not isinstance(messages, list):
        raise Unusable("not text")
    turns = [clean_turn(message) for message in messages]
    answers = [index for index, message in enumerate(turns) if message["role"] == "assistant"]
    if not answers:
        raise Unusable("without an assistant turn")
    target = answers[-1]
    if turn is Turn.first:
        target = answers[0]
    prompt = turns[:target]
    if not any(message["content"].strip() for message in prompt):
        raise Unusable("with an empty prompt")
    if not turns[target]["content"].strip() and not turns[target].get("tool_calls"):
        raise Unusable("with an empty completion")
    return Conversation(prompt, turns[target], tools)


def clean_turn(message: Any) -> Message:
    """Return a turn without its null values, which parquet fills in; a turn of tool calls may have no text."""
    if not isinstance(message, dict):
        raise Unusable("not text")
    turn = {key: value for key, value in message.items() if value is not None}
    if turn.get("tool_calls"):
        turn.setdefault("content", "")
    if not isinstance(turn.get("role"), str) or not isinstance(turn.get("content"), str):
        raise Unusable("not text")
    return turn
