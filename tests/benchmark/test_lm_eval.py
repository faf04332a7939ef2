"""Prompts of lm-evaluation-harness are encoded as the run's prompts are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from spin.benchmark.lm_eval import encode_prompt, evaluate
from spin.config.benchmark import LmEvalConfig
from spin.data.renderer_setup import make_renderer
from spin.generation.requests import Answer, Request
from spin.models.policy import Policy
from tests.data.chat_templates import TEMPLATES
from tests.data.tokenizer_kinds import BOS, EOS, tokenizer_of

QUESTION = {"role": "user", "content": "Capital of France?"}


@pytest.mark.parametrize("setting", ["auto", "chatml", "plain"])
def test_a_chat_of_a_task_has_the_ids_of_the_runs_prompt(setting: str) -> None:
    renderer = make_renderer(tokenizer_of("adds_both", TEMPLATES["zephyr"]), setting)
    text = renderer.template.render(renderer.tokenizer, [QUESTION], generation_prompt=True)
    assert encode_prompt(renderer, text, True, None) == renderer.prompt_ids([QUESTION])


@pytest.mark.parametrize("add_special_tokens", [None, True, False])
def test_a_text_of_a_task_has_one_bos_and_no_end(add_special_tokens: bool | None) -> None:
    renderer = make_renderer(tokenizer_of("adds_both", TEMPLATES["zephyr"]), "auto")
    expected = 1
    if add_special_tokens is False:
        expected = 0
    for text in ("Paris.", "Capital of France? Paris."):
        ids = encode_prompt(renderer, text, False, add_special_tokens)
        assert ids.count(BOS) == expected
        assert EOS not in ids
        assert renderer.text(ids) == text


def test_an_answer_prefix_of_a_task_stays_open() -> None:
    renderer = make_renderer(tokenizer_of("byte_level", TEMPLATES["chatml"]), "auto")
    history = [QUESTION, {"role": "assistant", "content": "The capital"}]
    text = renderer.template.render(renderer.tokenizer, history, unfinished=True)
    assert text.endswith("<|im_start|>assistant\nThe capital")


class CountingEngine:
    """Answers every prompt with the same ids, and keeps the prompts."""

    def __init__(self, answer_ids: list[int]) -> None:
        self.answer_ids = answer_ids
        self.prompts: list[list[int]] = []

    def generate(self, policy: Policy, requests: list[Request], *args: Any) -> list[Answer]:
        self.prompts += [request.prompt_ids for request in requests]
        return [Answer(self.answer_ids, "stop", -1.0) for _ in requests]

    def score(self, policy: Policy, pairs: Any) -> list[tuple[float, bool]]:
        raise AssertionError("no task scores")


@pytest.mark.slow  # imports the harness
@pytest.mark.parametrize("is_chat", [False, True])
def test_a_task_is_answered_with_the_runs_prompts_and_ends(is_chat: bool, tmp_path: Path) -> None:
    (tmp_path / "test.jsonl").write_text(json.dumps({"question": "Capital of France?", "answer": "Paris."}) + "\n")
    (tmp_path / "capital.yaml").write_text(
        f"task: capital\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {tmp_path}/test.jsonl\n"
        "output_type: generate_until\ntest_split: test\ndoc_to_text: '{{question}}'\ndoc_to_target: '{{answer}}'\n"
        "generation_kwargs:\n  until: ['Q:']\n  max_gen_toks: 8\n"
        "metric_list:\n  - metric: exact_match\n    aggregation: mean\n    higher_is_better: true\nnum_fewshot: 0\n"
    )
    # The run uses chatml, which is not the tokenizer's own template.
    renderer = make_renderer(tokenizer_of("adds_both", TEMPLATES["zephyr"]), "chatml")
    exchange = renderer.exchange([QUESTION], "Paris.")
    engine = CountingEngine(exchange.completion_ids)
    config = LmEvalConfig(tasks=["capital"], include_path=str(tmp_path), apply_chat_template=is_chat)
    found = evaluate(engine, Request, Policy("x", "y"), renderer, 8, 100, config)
    assert found["capital"]["exact_match,none"] == 1
    if is_chat:
        assert engine.prompts == [exchange.prompt_ids]
    else:
        assert renderer.tokenizer.decode(engine.prompts[0]) == "<s>Capital of France?"
