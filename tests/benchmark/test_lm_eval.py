"""Prompts of lm-evaluation-harness are encoded as the run's prompts are."""

from __future__ import annotations

import pytest

from spin.benchmark.lm_eval import encode_prompt
from spin.data.chat import make_renderer
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
