"""Read the context of a row, and find context that would be left out.

Context is the system prompt, the history, the tools, and columns of other names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from spin.data.chat_templates import Message, Tools
from spin.data.file_readers import Row
from spin.data.formats import PROMPT_COLUMNS, TURN_COLUMNS, Format, find_value
from spin.data.turns import Unusable, parse_json, split_dialogue, to_turns

SYSTEM_COLUMNS = ("system", "system_prompt", "system_message")
HISTORY_COLUMNS = ("history", "chat_history", "conversation_history")
INPUT_COLUMNS = ("input", "context")
"""Texts that follow the prompt after an empty line."""
MEDIA_COLUMNS = {"audio", "audios", "image", "images", "video", "videos"}
CONTEXT_COLUMNS = {
    *TURN_COLUMNS, *PROMPT_COLUMNS, *SYSTEM_COLUMNS, *INPUT_COLUMNS, *HISTORY_COLUMNS, *MEDIA_COLUMNS, "article",
    "articles", "background",
    "chat_template_kwargs", "choices", "contexts", "demonstrations", "dialog", "dialogue", "docs", "document",
    "documents", "evidence", "facts", "few_shot", "few_shot_examples", "functions", "hypothesis", "instructions",
    "knowledge", "options", "paragraph", "paragraphs", "passage", "passages", "persona", "premise", "previous_turns",
    "schema", "search_results", "story", "system_instruction", "table", "text", "tools",
}  # fmt: skip
"""Columns that change what the answer is an answer to."""
CONTENT_KEYS = ("content", "value", "text")
"""Keys of a turn, or of a part of its content, that hold its text."""


@dataclass(frozen=True)
class Conversation:
    """The turns of a row, whole: with tool calls, names and other keys that a template may read."""

    prompt: list[Message]
    completions: list[Message]
    """Assistant turns: the target, or the better answer before the worse one, or the rated one."""
    label: bool | None
    """True if the answer is desirable; None if the format has no label."""
    tools: Tools | None
    score: float | None = None
    """The higher, the better the answer; None if the format has no score."""
    preference: float = 1.0
    """P(the first answer is better than the second), from 0 to 1."""
    ranks: list[float] = field(default_factory=list)
    """Rank of each answer, of which the lowest is the best; empty if the answers have none."""
    margin: float = 0.0
    """By how much the first answer of a pair is better, for reward models; 0 without a margin."""
    subset: str | None = None
    """Part of the set, for figures of a reward model by subset; None if the set has no parts."""


def add_context(prompt: list[Message], row: Row) -> list[Message]:
    """Put the system prompt and the history of a row before its prompt."""
    system = find_value(SYSTEM_COLUMNS, row) or ""
    if not isinstance(system, str):
        raise Unusable("with a system prompt that is not text")
    # The prompt may begin with a system turn of its own.
    own: list[Message] = []
    if prompt and prompt[0]["role"] in ("system", "developer"):
        own = prompt[:1]
        prompt = prompt[1:]
    if own and system.strip() and own[0]["content"].strip() != system.strip():
        raise Unusable("with two system prompts")
    if not own and system.strip():
        own = [{"role": "system", "content": system}]
    return [*own, *read_history(find_value(HISTORY_COLUMNS, row)), *prompt]


def read_history(value: Any) -> list[Message]:
    """Return earlier turns, given as pairs of question and answer or as turns."""
    value = parse_json(value)
    if value in (None, "", []):
        return []
    if not isinstance(value, list):
        raise Unusable("with a history that is no list")
    turns: list[Message] = []
    for entry in value:
        if isinstance(entry, dict):
            turns += to_turns([entry], "user")
        elif isinstance(entry, list | tuple) and len(entry) == 2:
            turns += [*to_turns(entry[0], "user"), *to_turns(entry[1], "assistant")]
        else:
            raise Unusable("with a history of neither pairs nor turns")
    return turns


def read_tools(value: Any) -> Tools | None:
    """Return the tools of a row in the form that templates expect."""
    # Some sets write the list as JSON text.
    value = parse_json(value)
    if value in (None, "", []):
        return None
    if not isinstance(value, list) or not all(isinstance(tool, dict) for tool in value):
        raise Unusable("with tools that are no list of JSON objects")
    tools: list[dict[str, Any]] = []
    for tool in value:
        # Some sets have the function alone.
        if "function" not in tool and "name" in tool:
            tool = {"type": "function", "function": tool}
        tools.append(tool)
    return tools


def find_unread_column(row: Row, row_format: Format, conversation: Conversation) -> str | None:
    """Return a column of context whose text is not in the conversation; None if there is none."""
    # Blanks and line breaks may differ between two columns with the same text.
    turns = [*conversation.prompt, *conversation.completions]
    read = [squeeze(str(message["content"])) for message in turns]
    everything = "\n".join(read)
    for name, value in row.items():
        column = name.lower()
        if column not in CONTEXT_COLUMNS or name in row_format.answers or name == "tools":
            continue
        # Nothing of an image is in the text of a conversation.
        if column in MEDIA_COLUMNS and value:
            return name
        texts = [squeeze(text) for text in list_texts(value)]
        # A column may also hold the row as a whole, as `text` does in Alpaca.
        if len(texts) == 1 and all(text in texts[0] for text in read):
            continue
        if any(text not in everything for text in texts):
            return name
    return None


def list_texts(value: Any) -> list[str]:
    """Return all texts in a value, at any depth; of turns only their contents."""
    if isinstance(value, str):
        turns = split_dialogue(value, "user") or split_dialogue(value, "assistant")
        return [turn["content"] for turn in turns] or [value]
    # Of a turn only what it says, not its role.
    if isinstance(value, dict):
        contents = [value[key] for key in CONTENT_KEYS if key in value]
        value = contents or list(value.values())
    texts: list[str] = []
    if isinstance(value, list | tuple):
        for entry in value:
            texts += list_texts(entry)
    return texts


def squeeze(text: str) -> str:
    """Write every run of blanks as one blank."""
    return " ".join(text.split())
