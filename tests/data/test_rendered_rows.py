"""Rows become the tokens of the model's own template; rows that it refuses are counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spin.config.groups import FeedbackConfig
from spin.data.chat_renderer import Renderer
from spin.data.datasets import load_prompts
from spin.data.labelled import load_labelled
from spin.data.parquet import read_rows, write_rows
from spin.data.records import Prompt
from spin.data.renderer_setup import make_renderer
from spin.errors import ConfigError
from tests.data.chat_templates import TEMPLATES
from tests.data.tokenizer_kinds import EOS, IM_END, tokenizer_of

QUESTION = {"role": "user", "content": "Capital of France?"}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(path: str, renderer: Renderer) -> tuple[list[Prompt], str]:
    """Return the prompts of a file, and the line of its report."""
    prompts, report = load_prompts(path, "train", renderer, 400, 100, None)
    return prompts, report.line()


CHAT = [
    {"role": "user", "content": "Capital of France?"},
    {"role": "assistant", "content": "Paris."},
    {"role": "user", "content": "Capital of Spain?"},
    {"role": "assistant", "content": "Madrid. The sky is blue."},
]
WORSE = {"role": "assistant", "content": "The sky is black."}


@pytest.mark.parametrize("kind", ["sentencepiece_bpe", "spm_bpe_legacy_adds_bos"])
def test_the_papers_recipe_has_the_tokens_of_the_template_in_prompt_target_pair_and_request(
    kind: str, tmp_path: Path
) -> None:
    """UltraChat's columns, a tokenizer as Mistral's, and the template of Zephyr."""
    renderer = make_renderer(tokenizer_of(kind, TEMPLATES["zephyr"]), "auto", [EOS])
    template = renderer.tokenizer.apply_chat_template
    before = template(CHAT[:3], add_generation_prompt=True)["input_ids"]
    whole = template(CHAT)["input_ids"]
    worse = template([*CHAT[:3], WORSE])["input_ids"]
    # The template writes a line break after the end token, which no policy has to learn.
    end = len(whole) - whole[::-1].index(EOS)
    worse_end = len(worse) - worse[::-1].index(EOS)
    assert renderer.tokenizer.decode(whole[end:]).strip() == ""
    assert renderer.tokenizer.convert_ids_to_tokens(whole[len(before)]).startswith("M")  # no blank before "Madrid"

    chat = write(tmp_path / "chat.jsonl", [{"prompt": CHAT[0]["content"], "prompt_id": "5", "messages": CHAT}])
    [prompt], _ = read(chat, renderer)
    assert prompt.prompt_ids == before
    assert prompt.completion_ids == whole[len(before) : end]
    assert prompt.completion_text == "Madrid. The sky is blue."

    row = {"chosen": CHAT, "rejected": [*CHAT[:3], WORSE]}
    source = FeedbackConfig(rows=None, path=write(tmp_path / "pairs.jsonl", [row]))
    [pair], _, _ = load_labelled(source, renderer, 400, 100, set())
    assert pair.prompt_ids == before
    assert pair.chosen_ids == prompt.completion_ids
    assert pair.rejected_ids == worse[len(before) : worse_end]

    # A request of generation is made of the ids in the prepared set.
    write_rows(tmp_path / "train.parquet", Prompt, [prompt])
    [stored] = read_rows(tmp_path / "train.parquet", Prompt)
    assert stored.prompt_ids == before


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
CALLED = {
    "messages": [
        {"role": "user", "content": "Weather in Bern?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "name": "weather", "content": "rain"},
        {"role": "assistant", "content": "It rains."},
    ],
    "tools": [TOOL],
}


def test_tool_calls_and_tools_are_rendered_or_the_row_is_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [CALLED, {"messages": [QUESTION, {"role": "assistant", "content": "Paris."}]}])
    renderer = make_renderer(tokenizer_of("byte_level", TEMPLATES["tools"]), "auto")
    prompts, _ = read(path, renderer)
    text = renderer.tokenizer.decode(prompts[0].prompt_ids)
    assert text.count('"city": "Bern"') == text.count('"parameters"') == text.count("rain") == 1
    assert prompts[0].completion_text == "It rains."
    prompts, line = read(path, make_renderer(tokenizer_of("byte_level", TEMPLATES["chatml"]), "auto"))
    assert [prompt.completion_text for prompt in prompts] == ["Paris."]
    assert f"1 with tools that the chat template leaves out (first: {path}:1)" in line


def test_a_row_that_the_template_refuses_is_dropped_with_its_line(tmp_path: Path) -> None:
    guard = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    answer = {"role": "assistant", "content": "Paris."}
    refused = [{"role": "system", "content": "Be brief."}, QUESTION, answer]
    path = write(tmp_path / "x.jsonl", [{"messages": [QUESTION, answer]}, {"messages": refused}])
    prompts, line = read(path, make_renderer(tokenizer_of("byte_level", guard + TEMPLATES["chatml"]), "auto"))
    assert len(prompts) == 1
    assert f"1 that the chat template refuses (no system turns) (first: {path}:2)" in line


def test_half_of_a_surrogate_pair_is_dropped_with_its_line(tmp_path: Path) -> None:
    rows = [{"prompt": "Name a red fruit.", "completion": text} for text in ("A cherry.", "A \ud83d")]
    path = write(tmp_path / "x.jsonl", rows)
    prompts, line = read(path, make_renderer(tokenizer_of("byte_level", TEMPLATES["chatml"]), "auto"))
    assert [prompt.completion_text for prompt in prompts] == ["A cherry."]
    assert f"1 with text that is not Unicode (half of a surrogate pair) (first: {path}:2)" in line


def test_a_target_that_ends_in_the_end_token_has_one(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [{"prompt": "Name a red fruit.", "completion": "A cherry.<|im_end|>"}])
    [prompt], _ = read(path, make_renderer(tokenizer_of("byte_level", TEMPLATES["chatml"]), "auto"))
    assert (prompt.completion_ids.count(IM_END), prompt.completion_ids[-1]) == (1, IM_END)
    assert (prompt.completion_text, prompt.answer) == ("A cherry.", "A cherry.")


def test_completions_that_differ_only_in_what_the_template_trims_are_equal(tmp_path: Path) -> None:
    row = {"prompt": "The sky is", "chosen": " blue.\n", "rejected": "blue."}
    other = {"prompt": "The sky is", "chosen": "blue.", "rejected": "black."}
    source = FeedbackConfig(rows=None, path=write(tmp_path / "x.jsonl", [row, other]))
    renderer = make_renderer(tokenizer_of("byte_level", TEMPLATES["llama3"]), "auto")
    pairs, _, report = load_labelled(source, renderer, 400, 100, set())
    assert len(pairs) == 1
    assert dict(report.dropped) == {"with two equal completions": 1}


def test_rows_whose_prompt_ends_inside_a_token_are_counted(tmp_path: Path) -> None:
    renderer = make_renderer(tokenizer_of("byte_level_joins_line_breaks", TEMPLATES["thinking"]), "auto")
    path = write(tmp_path / "x.jsonl", [{"prompt": "Name a red fruit.", "completion": "A cherry."}])
    _, line = read(path, renderer)
    assert line.endswith("; 1 row whose prompt ends inside a token of the exchange")


def test_a_file_whose_question_would_be_left_out_is_refused_with_column_and_line(tmp_path: Path) -> None:
    rows = [
        {"question": "Which one?", "choices": [], "answer": "ice"},
        {"question": "Which one?", "choices": ["ice", "fire"], "answer": "ice"},
    ]
    path = write(tmp_path / "x.jsonl", rows)
    renderer = make_renderer(tokenizer_of("byte_level", TEMPLATES["chatml"]), "auto")
    with pytest.raises(ConfigError, match=f"{path}:2: column choices is not read of rows of question.answer"):
        read(path, renderer)


def test_a_rating_without_a_label_is_dropped_with_its_line(tmp_path: Path) -> None:
    rows = [{"prompt": "Name a red fruit.", "completion": "A cherry.", "label": False}]
    rows.append({"prompt": "Name a red fruit.", "completion": "A cherry."})
    source = FeedbackConfig(rows=None, path=write(tmp_path / "x.jsonl", rows))
    renderer = make_renderer(tokenizer_of("byte_level", TEMPLATES["chatml"]), "auto")
    _, [rating], report = load_labelled(source, renderer, 400, 100, set())
    assert rating.desirable is False
    assert f"1 with a label that is neither true nor false (first: {source.path}:2)" in report.line()


def test_answers_that_are_all_ranked_alike_are_no_pair_but_a_target(tmp_path: Path) -> None:
    answers = [{"answer": "A cherry.", "rank": 1}, {"answer": "Blue.", "rank": 1}]
    better = [{"answer": "Blue.", "rank": 2}, {"answer": "A cherry.", "rank": 1}]
    rows = [{"prompt": "Name a red fruit.", "answers": answers}, {"prompt": "Name a fruit.", "answers": better}]
    source = FeedbackConfig(rows=None, path=write(tmp_path / "x.jsonl", rows))
    renderer = make_renderer(tokenizer_of("byte_level", TEMPLATES["chatml"]), "auto")
    [pair], _, report = load_labelled(source, renderer, 400, 100, set())
    assert [renderer.text(ids) for ids in (pair.chosen_ids, pair.rejected_ids)] == ["A cherry.", "Blue."]
    assert dict(report.dropped) == {"with answers that are all ranked alike": 1}
    prompts, _ = read(str(source.path), renderer)
    assert [prompt.completion_text for prompt in prompts] == ["A cherry.", "A cherry."]


def test_numbers_in_a_csv_file_are_targets_as_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("question,answer\n6 times 7?,42\n7?,007\nNone?,None\n")
    prompts, _ = read(str(path), make_renderer(tokenizer_of("byte_level", TEMPLATES["chatml"]), "auto"))
    assert [prompt.completion_text for prompt in prompts] == ["42", "007", "None"]


@pytest.mark.parametrize(
    "prompt",
    [
        "USER: Capital of France? ASSISTANT:",
        "### Instruction:\nCapital of France?\n\n### Response:\n",
        "<|im_start|>user\nCapital of France?<|im_end|>\n<|im_start|>assistant\n",
        "[INST] Capital of France? [/INST]",
    ],
)
def test_a_prompt_that_is_rendered_already_is_text_for_the_plain_template_alone(prompt: str, tmp_path: Path) -> None:
    """Another template would put the header of the answer into the user's turn."""
    rows = [{"prompt": prompt, "completion": "Paris."}, {"prompt": "Whose assistant?", "completion": "Hers."}]
    path = write(tmp_path / "rows.jsonl", rows)
    tokenizer = tokenizer_of("byte_level", TEMPLATES["chatml"])
    prompts, line = read(path, make_renderer(tokenizer, "auto", [EOS]))
    assert len(prompts) == 1
    assert f"1 with a prompt that ends in the header of an answer (it is rendered already) (first: {path}:1)" in line
    prompts, _ = read(path, make_renderer(tokenizer, "plain", [EOS]))
    assert len(prompts) == 2


def test_a_pair_whose_shared_words_end_in_a_speaker_is_dropped(tmp_path: Path) -> None:
    rows = [{"chosen": "User: Capital?\nAssistant: Paris.", "rejected": "User: Capital?\nAssistant: Rome."}]
    renderer = make_renderer(tokenizer_of("byte_level", TEMPLATES["chatml"]), "auto", [EOS])
    with pytest.raises(ConfigError, match="dropped: 1 with a prompt that ends in the header of an answer"):
        read(write(tmp_path / "rows.jsonl", rows), renderer)
