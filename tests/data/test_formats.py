"""The formats of data sets in use, one example row each, and columns that must not be left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spin.data.conversations import read_conversation
from spin.data.formats import Kind
from spin.data.rendered_rows import open_rows
from spin.data.row_context import Conversation, find_unread_column
from spin.data.turns import Unusable
from spin.errors import ConfigError

USER = {"role": "user", "content": "Is ice cold?"}
GOOD = {"role": "assistant", "content": "Yes, it is."}
BAD = {"role": "assistant", "content": "No, it is warm."}
SYSTEM = {"role": "system", "content": "Be brief."}
FIRST = [{"role": "user", "content": "Is fire hot?"}, {"role": "assistant", "content": "Yes."}]
HUMAN = {"from": "human", "value": "Is ice cold?"}
GPT = {"from": "gpt", "value": "Yes, it is."}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {}}}

FORMATS: list[tuple[str, dict[str, Any], str, list[Any], list[Any]]] = [
    # TRL
    ("TRL messages", {"messages": [SYSTEM, USER, GOOD]}, "messages", [SYSTEM, USER], [GOOD]),
    ("TRL text", {"prompt": "Is ice cold?", "completion": "Yes, it is."}, "prompt+completion", [USER], [GOOD]),
    ("TRL turns", {"prompt": [SYSTEM, USER], "completion": [GOOD]}, "prompt+completion", [SYSTEM, USER], [GOOD]),
    (
        "TRL preference",
        {"prompt": "Is ice cold?", "chosen": "Yes, it is.", "rejected": "No, it is warm."},
        "prompt+chosen+rejected",
        [USER],
        [GOOD, BAD],
    ),
    (
        "TRL preference in turns",
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        "prompt+chosen+rejected",
        [USER],
        [GOOD, BAD],
    ),
    (
        "TRL implicit prompt in turns",
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        "chosen+rejected",
        [USER],
        [GOOD, BAD],
    ),
    (
        "TRL implicit prompt in text",
        {"chosen": "Is ice cold? Yes, it is.", "rejected": "Is ice cold? No, it is warm."},
        "chosen+rejected",
        [USER],
        [GOOD, BAD],
    ),
    (
        "TRL rating",
        {"prompt": [USER], "completion": [GOOD], "label": True},
        "prompt+completion+label",
        [USER],
        [GOOD],
    ),
    # LLaMA-Factory
    (
        "alpaca",
        {"instruction": "Is ice cold?", "input": "", "output": "Yes, it is.", "system": "", "history": []},
        "instruction+output",
        [USER],
        [GOOD],
    ),
    (
        "alpaca with context",
        {
            "instruction": "Is ice cold?",
            "input": "It is winter.",
            "output": "Yes, it is.",
            "system": "Be brief.",
            "history": [["Is fire hot?", "Yes."]],
        },
        "instruction+output",
        [SYSTEM, *FIRST, {"role": "user", "content": "Is ice cold?\n\nIt is winter."}],
        [GOOD],
    ),
    (
        "alpaca preference",
        {"instruction": "Is ice cold?", "input": "", "chosen": "Yes, it is.", "rejected": "No, it is warm."},
        "instruction+chosen+rejected",
        [USER],
        [GOOD, BAD],
    ),
    (
        "alpaca rating",
        {"instruction": "Is ice cold?", "input": "", "output": "Yes, it is.", "kto_tag": True},
        "instruction+output+kto_tag",
        [USER],
        [GOOD],
    ),
    (
        "ShareGPT",
        {"conversations": [HUMAN, GPT], "system": "Be brief.", "tools": json.dumps([TOOL["function"]])},
        "conversations",
        [SYSTEM, USER],
        [GOOD],
    ),
    (
        "ShareGPT with tools",
        {
            "conversations": [
                HUMAN,
                {"from": "function_call", "value": '{"name": "weather", "arguments": {"city": "Bern"}}'},
                {"from": "observation", "value": "0 degrees"},
                GPT,
            ]
        },
        "conversations",
        [
            USER,
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}},
                ],
            },
            {"role": "tool", "content": "0 degrees"},
        ],
        [GOOD],
    ),
    (
        "ShareGPT preference",
        {"conversations": [HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": "No, it is warm."}},
        "conversations+chosen+rejected",
        [USER],
        [GOOD, BAD],
    ),
    ("OpenAI", {"messages": [USER, GOOD], "tools": [TOOL]}, "messages", [USER], [GOOD]),
    (
        "OpenAI with tool calls as JSON",
        {
            "messages": [
                USER,
                {"role": "assistant", "tool_calls": json.dumps([TOOL])},
                {"role": "tool", "content": "0 degrees"},
                GOOD,
            ]
        },
        "messages",
        [
            USER,
            {"role": "assistant", "content": "", "tool_calls": [TOOL]},
            {"role": "tool", "content": "0 degrees"},
        ],
        [GOOD],
    ),
    (
        "OpenAI with a function call",
        {
            "messages": [
                USER,
                {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": "{}"}},
                {"role": "function", "name": "weather", "content": "0 degrees"},
                GOOD,
            ]
        },
        "messages",
        [
            USER,
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": "{}"}}],
            },
            {"role": "tool", "name": "weather", "content": "0 degrees"},
        ],
        [GOOD],
    ),
    (
        "a history under another name",
        {
            "question": "Is ice cold?",
            "answer": "Yes, it is.",
            "chat_history": [["Is fire hot?", "Yes."]],
            "system_message": "Be brief.",
        },
        "question+answer",
        [SYSTEM, *FIRST, USER],
        [GOOD],
    ),
    # axolotl
    (
        "axolotl intel",
        {"system": "Be brief.", "question": "Is ice cold?", "chosen": "Yes, it is.", "rejected": "No, it is warm."},
        "question+chosen+rejected",
        [SYSTEM, USER],
        [GOOD, BAD],
    ),
    (
        "axolotl argilla",
        {"instruction": "Is ice cold?", "chosen_response": "Yes, it is.", "rejected_response": "No, it is warm."},
        "instruction+chosen_response+rejected_response",
        [USER],
        [GOOD, BAD],
    ),
    (
        "axolotl icr",
        {"system": "Be brief.", "input": "Is ice cold?", "chosen": "Yes, it is.", "rejected": "No, it is warm."},
        "input+chosen+rejected",
        [SYSTEM, USER],
        [GOOD, BAD],
    ),
    (
        "axolotl chat_template",
        {"messages": [SYSTEM, USER], "chosen": GOOD, "rejected": BAD},
        "messages+chosen+rejected",
        [SYSTEM, USER],
        [GOOD, BAD],
    ),
    (
        "axolotl load_open_orca",
        {"system_prompt": "Be brief.", "question": "Is ice cold?", "response": "Yes, it is."},
        "question+response",
        [SYSTEM, USER],
        [GOOD],
    ),
    (
        "axolotl context_qa",
        {"question": "Is ice cold?", "context": "It is winter.", "answer": "Yes, it is."},
        "question+answer",
        [{"role": "user", "content": "Is ice cold?\n\nIt is winter."}],
        [GOOD],
    ),
    # Anthropic HH
    (
        "HH",
        {
            "chosen": "\n\nHuman: Is fire hot?\n\nAssistant: Yes.\n\nHuman: Is ice cold?\n\nAssistant: Yes, it is.",
            "rejected": "\n\nHuman: Is fire hot?\n\nAssistant: Yes."
            "\n\nHuman: Is ice cold?\n\nAssistant: No, it is warm.",
        },
        "chosen+rejected",
        [*FIRST, USER],
        [GOOD, BAD],
    ),
    (
        "HH with a prompt",
        {
            "prompt": "\n\nHuman: Is ice cold?\n\nAssistant:",
            "response": " Yes, it is.",
            "chosen": " Yes, it is.",
            "rejected": " No, it is warm.",
        },
        "prompt+chosen+rejected",
        [USER],
        [GOOD, BAD],
    ),
    # UltraFeedback and UltraChat
    (
        "UltraFeedback binarized",
        {
            "prompt": "Is ice cold?",
            "prompt_id": "0",
            "chosen": [USER, GOOD],
            "rejected": [USER, BAD],
            "messages": [USER, GOOD],
            "score_chosen": 8.0,
            "score_rejected": 3.0,
        },
        "prompt+chosen+rejected",
        [USER],
        [GOOD, BAD],
    ),
    (
        "UltraFeedback",
        {
            "source": "flan",
            "instruction": "Is ice cold?",
            "models": ["a", "b"],
            "completions": [
                {"model": "a", "response": "No, it is warm.", "overall_score": 2.0},
                {"model": "b", "response": "Yes, it is.", "overall_score": 8.5},
            ],
        },
        "instruction+completions",
        [USER],
        [GOOD, BAD],
    ),
    ("UltraChat", {"prompt": "Is ice cold?", "prompt_id": "0", "messages": [USER, GOOD]}, "messages", [USER], [GOOD]),
    # Nectar
    (
        "Nectar",
        {
            "prompt": "\n\nHuman: Is ice cold?\n\nAssistant: ",
            "answers": [
                {"answer": "It may be.", "model": "b", "rank": 2.0},
                {"answer": "Yes, it is.", "model": "a", "rank": 1.0},
                {"answer": "No, it is warm.", "model": "c", "rank": 3.0},
            ],
            "turns": 1,
            "num_responses": 3,
            "source": ["x"],
            "good_natured": True,
        },
        "prompt+answers",
        [USER],
        [GOOD, BAD],
    ),
    (
        "answers with ranks in another column",
        {
            "prompt": "Is ice cold?",
            "responses": ["It may be.", "No, it is warm.", "Yes, it is."],
            "ranks": [2, 3, 1],
        },
        "prompt+responses+ranks",
        [USER],
        [GOOD, BAD],
    ),
    (
        "answers with scores in another column",
        {"prompt": "Is ice cold?", "responses": ["No, it is warm.", "Yes, it is."], "scores": [0.2, 0.9]},
        "prompt+responses+scores",
        [USER],
        [GOOD, BAD],
    ),
    (
        "soft preference",
        {"prompt": "Is ice cold?", "chosen": "Yes, it is.", "rejected": "No, it is warm.", "preference": 0.8},
        "prompt+chosen+rejected+preference",
        [USER],
        [GOOD, BAD],
    ),
    # SPIN
    ("SPIN", {"real": [USER, GOOD], "generated": [USER, BAD]}, "real+generated", [USER], [GOOD, BAD]),
    # Others
    ("GSM8K", {"question": "Is ice cold?", "answer": "Yes, it is."}, "question+answer", [USER], [GOOD]),
    (
        "Dolly",
        {"instruction": "Is ice cold?", "context": "", "response": "Yes, it is.", "category": "open_qa"},
        "instruction+response",
        [USER],
        [GOOD],
    ),
    (
        "MetaMath",
        {"query": "Is ice cold?", "response": "Yes, it is.", "type": "x", "original_question": "Ice?"},
        "query+response",
        [USER],
        [GOOD],
    ),
    (
        "Alpaca with the rendered text",
        {
            "instruction": "Is ice cold?",
            "input": "",
            "output": "Yes, it is.",
            "text": "Below is an instruction.\n\nIs ice cold?\n\n### Response:\nYes, it is.",
        },
        "instruction+output",
        [USER],
        [GOOD],
    ),
    (
        "LMSYS",
        {"conversation_id": "0", "model": "m", "conversation": [USER, GOOD], "language": "English"},
        "conversation",
        [USER],
        [GOOD],
    ),
]


def read(path: Path, rows: list[dict[str, Any]]) -> list[Conversation]:
    """Return the conversations of a file with these rows."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    row_format, placed = open_rows(str(path), "train")
    assert row_format is not None
    conversations = []
    for _, row in placed:
        conversations.append(read_conversation(row, row_format))
        assert find_unread_column(row, row_format, conversations[-1]) is None
    return conversations


@pytest.mark.parametrize(
    ("row", "name", "prompt", "completions"), [entry[1:] for entry in FORMATS], ids=[entry[0] for entry in FORMATS]
)
def test_each_format_in_use_gives_its_conversation(
    row: dict[str, Any], name: str, prompt: list[Any], completions: list[Any], tmp_path: Path
) -> None:
    path = tmp_path / "x.jsonl"
    [conversation] = read(path, [row])
    row_format, _ = open_rows(str(path), "train")
    assert row_format is not None
    assert row_format.name == name
    assert conversation.prompt == prompt
    assert conversation.completions == completions
    assert conversation.tools == ([TOOL] if "tools" in row else None)
    assert conversation.label == (True if row_format.kind is Kind.rating else None)


UNREAD = [
    {"question": "Which one?", "choices": ["ice", "fire"], "answer": "ice"},
    {"prompt": "Sum it up.", "article": "A long text.", "completion": "It is long."},
    {"messages": [USER, GOOD], "context": "It is winter."},
    {"messages": [USER, GOOD], "prompt": "Is fire hot?"},
    {"prompt": "Is fire hot?", "chosen": [USER, GOOD], "rejected": [USER, BAD]},
    {"question": "Is ice cold?", "answer": "Yes.", "images": [{"path": "ice.png"}]},
    {"question": "Is ice cold?", "answer": "Yes.", "Persona": "You are a pirate."},
    {"prompt": "Is ice cold?", "completion": "Yes.", "instruction": "Answer in French."},
    {"question": "Is ice cold?", "answer": "Yes.", "few_shot_examples": "Is fire hot? Yes."},
    {"question": "Is ice cold?", "answer": "Yes.", "passages": ["It is winter.", "Snow falls."]},
]


@pytest.mark.parametrize("row", UNREAD, ids=["+".join(row) for row in UNREAD])
def test_a_column_of_context_that_is_not_read_is_found(row: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n")
    row_format, rows = open_rows(str(tmp_path / "x.jsonl"), "train")
    assert row_format is not None
    [(_, found)] = rows
    names = {
        "choices",
        "article",
        "context",
        "prompt",
        "images",
        "Persona",
        "instruction",
        "few_shot_examples",
        "passages",
    }
    [expected] = names & set(row) - {"prompt" if "completion" in row else ""}
    assert find_unread_column(found, row_format, read_conversation(found, row_format)) == expected


UNUSABLE = [
    ({"messages": [USER, GOOD], "system": "Be brief.", "tools": "weather"}, "with tools that are no list of JSON"),
    ({"messages": [SYSTEM, USER, GOOD], "system": "Be long."}, "with two system prompts"),
    ({"messages": [{"content": "Is ice cold?"}, GOOD]}, "with a turn that has no role"),
    ({"conversations": [{"from": "pirate", "value": "Arr."}, GPT]}, "with a turn of the unknown role pirate"),
    ({"conversations": [HUMAN, {"from": "function_call", "value": "weather"}]}, "with a function call that is no JSON"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}, GOOD]},
        "with content that is not text .image.",
    ),
    ({"messages": {"role": ["user", "assistant"], "content": ["Is ice cold?"]}}, "with turns whose lists differ"),
    ({"prompt": "q", "completion": "a", "label": "maybe"}, "with a label that is neither true nor false"),
    ({"instruction": "q", "output": "a", "history": ["q", "a"]}, "with a history of neither pairs nor turns"),
    ({"question": "q", "answer": "a", "context": ["a", "b"]}, "with a column context that is not text"),
    ({"prompt": "q", "completion": 1.5}, "not text"),
    ({"messages": [USER, GOOD], "chosen": "Yes, it is.", "rejected": "No."}, "with a prompt that ends in an answer"),
    ({"prompt": "q", "answers": [{"answer": "a", "rank": None}]}, "without ranked answers"),
    ({"prompt": "q", "responses": ["a", "b"], "ranks": [1]}, "with ranks of another number than answers"),
    ({"prompt": "q", "responses": ["a", "b"], "scores": [1, None]}, "with a value of scores that is no finite number"),
    ({"prompt": "q", "responses": ["a", 2], "ranks": [1, 2]}, "with a ranked answer that is not text"),
    ({"prompt": "q", "responses": ["a", "b"]}, "without ranked answers"),
    ({"prompt": "q", "chosen": "a", "rejected": "b", "preference": 1.01}, "with a preference outside 0 to 1"),
    (
        {"prompt": "q", "chosen": "a", "rejected": "b", "preference": "a"},
        "with a value of preference that is no finite number",
    ),
    (
        {"prompt": "q", "chosen": "a", "rejected": "b", "margin": True},
        "with a value of margin that is no finite number",
    ),
    ({"chosen": [USER, GOOD], "rejected": [SYSTEM, USER, BAD]}, "with two prompts"),
    ({"messages": [USER, {**GOOD, "weight": 0}]}, "with an answer that is not to be trained on"),
    ({"conversations": [HUMAN, {**GPT, "train": False}]}, "with an answer that is not to be trained on"),
    ({"messages": [USER, {**GOOD, "tool_calls": "weather"}]}, "with tool calls that are no list"),
    ({"chosen": "\n\nHuman: q\n\nAssistant:", "rejected": "\n\nHuman: q\n\nAssistant: a"}, "with two prompts"),
]


@pytest.mark.parametrize(("row", "reason"), UNUSABLE, ids=[entry[1] for entry in UNUSABLE])
def test_a_row_that_cannot_be_used_has_a_reason(row: dict[str, Any], reason: str, tmp_path: Path) -> None:
    with pytest.raises(Unusable, match=reason):
        read(tmp_path / "x.jsonl", [row])


def test_content_in_parts_a_struct_of_lists_and_whole_numbers_are_read(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "Is ice "}, {"type": "text", "text": "cold?"}]
    struct = {"role": ["user", "assistant"], "content": ["Is ice cold?", "Yes, it is."]}
    rows = [{"messages": [{"role": "user", "content": parts}, GOOD]}, {"messages": struct}]
    for conversation in read(tmp_path / "x.jsonl", rows):
        assert (conversation.prompt, conversation.completions) == ([USER], [GOOD])
    [conversation] = read(tmp_path / "y.jsonl", [{"question": "6 times 7?", "answer": 42}])
    assert conversation.completions == [{"role": "assistant", "content": "42"}]


def test_the_format_is_known_although_the_first_row_lacks_a_column(tmp_path: Path) -> None:
    rows = [{"prompt": "q", "completion": "a"}, {"prompt": "q", "completion": "a", "label": 0}]
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    row_format, _ = open_rows(str(path), "train")
    assert row_format is not None
    assert row_format.name == "prompt+completion+label"
    with pytest.raises(Unusable, match="neither true nor false"):
        read_conversation(rows[0], row_format)
    assert read_conversation(rows[1], row_format).label is False


@pytest.mark.parametrize("row", [{"text": "Ice is cold."}, {"human_ref_A": "a", "human_ref_B": "b", "history": "q"}])
def test_columns_of_no_known_format_are_refused_by_name(row: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ConfigError, match=f"columns {', '.join(sorted(row))} fit no known format"):
        open_rows(str(tmp_path / "x.jsonl"), "train")
