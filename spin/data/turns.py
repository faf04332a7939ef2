"""Bring the cells of a row to chat turns, whatever their shape.

text                                        one turn
[{"role": …, "content": …}, …]              as it is (TRL, OpenAI)
[{"from": "human", "value": …}, …]          ShareGPT
{"role": ["user", …], "content": […]}       a struct of lists, as parquet may have it
"\n\nHuman: …\n\nAssistant: …"              a dialogue in one text (Anthropic HH, Nectar)
"""

from __future__ import annotations

import json
import re
from typing import Any

from spin.data.chat_templates import Message

ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
}
"""Roles of ShareGPT and others by the roles that chat templates know."""
KNOWN_ROLES = ("user", "assistant", "system", "tool", "developer")
SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
"""Begins a turn of a dialogue in one text."""
SPEAKERS = {"Human": "user", "Assistant": "assistant"}


ANSWER_HEADER = re.compile(
    r"(?:(?:^|\s)assistant\s*:|### *(?:assistant|answer|output|response)\s*:?|<\|assistant\|>|<\|im_start\|> *assistant"
    r"|<\|start_header_id\|> *assistant *<\|end_header_id\|>|<start_of_turn> *model|\[/INST\])\s*\Z",
    re.IGNORECASE,
)
"""End of a prompt to which a chat template was applied already."""
UNTRAINED = ("weight", "train", "training", "loss")
"""Keys of a turn that is not to be trained on where the value is 0 or false (OpenAI, axolotl)."""


class Unusable(Exception):
    """A row that cannot be used; the message is the reason, as in "3 rows not text"."""


def to_turns(value: Any, role: str) -> list[Message]:
    """Return the turns of a cell.

    Args:
        value: any of the shapes above.
        role: of a text that is one turn.

    Raises:
        Unusable: the cell has no such shape.
    """
    # A whole number is as exact as its text; other values are not.
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    # A text, a struct, or a list of turns.
    if isinstance(value, str):
        return split_dialogue(value, role) or [{"role": role, "content": value}]
    if isinstance(value, dict):
        value = split_struct(value)
    if not isinstance(value, list):
        raise Unusable("not text")
    turns: list[Message] = []
    for message in value:
        turns.append(clean_turn(message))
    return turns


def split_struct(value: dict[str, Any]) -> list[Any]:
    """Return the turns of a struct of lists; a struct of single values is one turn."""
    columns = {key: entry for key, entry in value.items() if isinstance(entry, list)}
    if not ({"role", "from"} & set(columns)):
        return [value]
    # Every turn has all keys, so the lists are equally long.
    lengths = {len(entry) for entry in columns.values()}
    if len(columns) < len(value) or len(lengths) > 1:
        raise Unusable("with turns whose lists differ in length")
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def split_dialogue(text: str, role: str) -> list[Message]:
    """Return the turns of a dialogue in one text; none if the text is no dialogue.

    A prompt (role ``user``) must end in an open turn of the assistant, which is left out. A
    completion (role ``assistant``) must end in the assistant's words.
    """
    if not begins_dialogue(text):
        return []
    # The parts are: text before the first speaker, speaker, words, speaker, words, …
    parts = SPEAKER.split(text)
    turns: list[Message] = []
    for speaker, words in zip(parts[1::2], parts[2::2], strict=True):
        turns.append({"role": SPEAKERS[speaker], "content": words.strip()})
    # An open turn of the assistant asks for an answer.
    is_open = turns[-1] == {"role": "assistant", "content": ""}
    if turns[-1]["role"] != "assistant" or is_open != (role == "user"):
        return []
    if is_open:
        turns.pop()
    return turns


def begins_dialogue(text: str) -> bool:
    """Return True if a text begins with a turn of a dialogue."""
    return re.match(r"\s*Human:", text) is not None


def clean_turn(message: Any) -> Message:
    """Return a turn with `role`, `content` and what else it has, without null values.

    Raises:
        Unusable: it is no turn, or its content is not text.
    """
    if not isinstance(message, dict):
        raise Unusable("not text")
    # Bring both styles to `role` and `content`.
    turn = {key: value for key, value in message.items() if value is not None}
    if "from" in turn:
        turn = clean_sharegpt_turn(turn)
    if not isinstance(turn.get("role"), str):
        raise Unusable("with a turn that has no role")
    turn["role"] = ROLES.get(turn["role"], turn["role"])
    # An older way to write one call.
    if "function_call" in turn:
        turn["tool_calls"] = parse_calls(turn.pop("function_call"))
    # A turn of tool calls may have no text, and the calls may be written as JSON.
    if turn.get("tool_calls"):
        turn.setdefault("content", "")
        turn["tool_calls"] = parse_json(turn["tool_calls"])
        if not isinstance(turn["tool_calls"], list):
            raise Unusable("with tool calls that are no list")
    if isinstance(turn.get("content"), list):
        turn["content"] = join_parts(turn["content"])
    if not isinstance(turn.get("content"), str):
        raise Unusable("not text")
    return turn


def is_untrained(turn: Message) -> bool:
    """Return True for an answer that its row takes out of the training."""
    return any(turn.get(key) in (0, False) for key in UNTRAINED)


def ends_in_header(prompt: list[Message]) -> bool:
    """Return True when the last turn of a prompt ends in the header of an answer.

    Such a prompt was rendered already. In a chat template the header would be the user's words.
    """
    return ANSWER_HEADER.search(str(prompt[-1]["content"])) is not None


def clean_sharegpt_turn(turn: Message) -> Message:
    """Return a turn of ShareGPT with `role` and `content`; a function call becomes a tool call."""
    role = ROLES.get(str(turn["from"]), str(turn["from"]))
    value = turn.get("value")
    others = {key: entry for key, entry in turn.items() if key not in ("from", "value")}
    if role == "function_call":
        return {"role": "assistant", "content": "", "tool_calls": parse_calls(value), **others}
    if role not in KNOWN_ROLES:
        raise Unusable(f"with a turn of the unknown role {role}")
    return {"role": role, "content": value, **others}


def parse_calls(value: Any) -> list[dict[str, Any]]:
    """Return the tool calls of a function call, which is JSON with `name` and `arguments`."""
    # One call, or several in parallel.
    calls = parse_json(value)
    if isinstance(calls, dict):
        calls = [calls]
    if not isinstance(calls, list) or not all(isinstance(call, dict) and "name" in call for call in calls):
        raise Unusable("with a function call that is no JSON with a name")
    return [{"type": "function", "function": call} for call in calls]


def join_parts(parts: list[Any]) -> str:
    """Return the text of a list of parts. Raises Unusable if a part is no text."""
    texts: list[str] = []
    for part in parts:
        # A part is a text, or an object with its type.
        kind = "text"
        if isinstance(part, dict):
            kind = str(part.get("type", "text"))
            part = part.get("text")
        if kind != "text" or not isinstance(part, str):
            raise Unusable(f"with content that is not text ({kind})")
        texts.append(part)
    return "".join(texts)


def parse_json(value: Any) -> Any:
    """Return the value of a text that is JSON; other values and texts as they are."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    # A text may begin with a bracket and still be no JSON.
    try:
        return json.loads(value)
    except ValueError:
        return value
