"""Read the conversation of a row: its prompt, answers, label and tools.

    system | history | prompt, then input or context  →  prompt turns
    completion | chosen and rejected | ranked answers  →  assistant turns

System prompt, history and tools are read in `row_context.py`, labels and ranks in `row_labels.py`.
"""

from __future__ import annotations

import os
from typing import Any

from spin.config.groups import RankedPairs, Turn
from spin.data.chat_templates import Message
from spin.data.file_readers import Row
from spin.data.formats import TURN_COLUMNS, Format, Kind
from spin.data.row_context import INPUT_COLUMNS, Conversation, add_context, read_tools
from spin.data.row_labels import (
    RankedAnswer,
    read_label,
    read_margin,
    read_preference,
    read_ranked_answers,
    read_score,
    read_subset,
)
from spin.data.turns import Unusable, begins_dialogue, is_untrained, parse_json, split_dialogue, to_turns

FULL_ROLES = ("user", "system", "developer")
"""First role of an answer that is a whole conversation, prompt included."""


def read_conversation(
    row: Row, row_format: Format, turn: Turn = Turn.last, pairs: RankedPairs = RankedPairs.best_worst
) -> Conversation:
    """Return the conversation of a row.

    Args:
        row: columns and values.
        row_format: of the set.
        turn: assistant turn that is the answer, where a column holds a whole conversation.
        pairs: which of several ranked answers are read.

    Raises:
        Unusable: the row cannot be used.
    """
    ranked: list[RankedAnswer] = []
    if row_format.kind is Kind.ranking:
        ranked = read_ranked_answers(row, row_format, pairs)
    prompt, answers = read_prompt_and_answers(row, row_format, ranked)
    # The two answers of a pair differ in their last turn.
    if row_format.kind is Kind.pair:
        turn = Turn.last
    # All answers must have the same prompt.
    conversations: list[list[Message]] = []
    for answer in answers:
        turns = to_turns(answer, "assistant")
        # An answer may be a whole conversation, as in UltraFeedback.
        if not turns or turns[0]["role"] not in FULL_ROLES:
            if prompt and prompt[-1]["role"] == "assistant":
                raise Unusable("with a prompt that ends in an answer")
            turns = [*prompt, *turns]
        conversations.append(cut_after_answer(turns, turn))
    prompt = conversations[0][:-1]
    if any(conversation[:-1] != prompt for conversation in conversations):
        raise Unusable("with two prompts")
    prompt = add_context(prompt, row)
    # Nothing can be learned from an empty part.
    if not any(message["content"].strip() for message in prompt):
        raise Unusable("with an empty prompt")
    completions = [conversation[-1] for conversation in conversations]
    for completion in completions:
        if not completion["content"].strip() and not completion.get("tool_calls"):
            raise Unusable("with an empty completion")
        if is_untrained(completion):
            raise Unusable("with an answer that is not to be trained on (weight, train or loss)")
    return Conversation(
        prompt,
        completions,
        label=read_label(row, row_format),
        tools=read_tools(row.get("tools")),
        score=read_score(row, row_format),
        preference=read_preference(row, row_format),
        ranks=[rank for rank, _ in ranked],
        margin=read_margin(row, row_format),
        subset=read_subset(row),
    )


def read_prompt_and_answers(
    row: Row, row_format: Format, ranked: list[RankedAnswer]
) -> tuple[list[Message], list[Any]]:
    """Return the turns of the prompt column with its input, and the cells of the answers."""
    answers = [text for _, text in ranked] or [read_cell(row, name) for name in row_format.answers]
    # Without a column of its own the prompt is what two texts begin with, or is in the answers.
    if row_format.prompt is None:
        if row_format.kind is Kind.pair and all(is_plain_text(answer) for answer in answers):
            return split_common_text(*answers)
        return [], answers
    # The column of the prompt, and what follows it.
    cell = read_cell(row, row_format.prompt)
    prompt = to_turns(cell, "user")
    for name in INPUT_COLUMNS:
        if name != row_format.prompt and row.get(name) not in (None, "") and prompt:
            prompt[-1] = append_text(prompt[-1], row[name], name)
    # An answer that continues a dialogue has a blank before its words.
    if isinstance(cell, str) and split_dialogue(cell, "user"):
        answers = [strip_text(answer) for answer in answers]
    return prompt, answers


def append_text(turn: Message, value: Any, name: str) -> Message:
    """Return a turn whose content is followed by the text of another column."""
    if not isinstance(value, str):
        raise Unusable(f"with a column {name} that is not text")
    if not turn["content"].strip():
        return {**turn, "content": value}
    return {**turn, "content": f"{turn['content']}\n\n{value}"}


def strip_text(value: Any) -> Any:
    """Return a text without blanks around it; other values as they are."""
    if isinstance(value, str):
        return value.strip()
    return value


def read_cell(row: Row, name: str) -> Any:
    """Return a cell; a conversation may be written as JSON."""
    value = row.get(name)
    if name in TURN_COLUMNS and isinstance(value, str):
        value = parse_json(value)
        if isinstance(value, str):
            raise Unusable("with turns that are text but no JSON")
    return value


def is_plain_text(value: Any) -> bool:
    """Return True for a text that is no dialogue."""
    return isinstance(value, str) and not begins_dialogue(value)


def split_common_text(chosen: str, rejected: str) -> tuple[list[Message], list[Any]]:
    """Return the words that two texts begin with as the prompt, and what is left of each."""
    shared = os.path.commonprefix([chosen, rejected])
    # Cut after the last whole word that they share.
    if shared not in (chosen, rejected) and " " in shared:
        shared = shared[: shared.rfind(" ") + 1]
    prompt: list[Message] = [{"role": "user", "content": shared.rstrip()}]
    return prompt, [chosen[len(shared) :], rejected[len(shared) :]]


def cut_after_answer(turns: list[Message], turn: Turn) -> list[Message]:
    """Return the turns up to the first or last turn of the assistant."""
    answers = [index for index, message in enumerate(turns) if message["role"] == "assistant"]
    if not answers:
        raise Unusable("without an assistant turn")
    last = answers[-1]
    if turn is Turn.first:
        last = answers[0]
    return turns[: last + 1]
