"""Every tokenizer kind with every template: the ids of an exchange are the template's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spin.data.chat_renderer import Renderer
from spin.data.renderer_setup import make_renderer
from tests.data.chat_templates import TEMPLATES
from tests.data.tokenizer_kinds import BOS, CLS, EOS, IM_END, KINDS, SEP, Kind, tokenizer_of

QUESTION = {"role": "user", "content": "Capital of France?"}
TURNS = {
    "one_question": [QUESTION],
    "system": [{"role": "system", "content": "Be brief."}, QUESTION],
    "several_turns": [QUESTION, {"role": "assistant", "content": "Paris."}, {"role": "user", "content": "The sky?"}],
}
ANSWERS = ["Paris.", " blue.\n", "- a\n\n- b", "42", "  two"]
"""Words with blanks and line breaks, lists, digits; every vocabulary has all letters."""
ENDS = {
    "chatml": IM_END, "zephyr": EOS, "llama2": EOS, "llama3": IM_END, "thinking": IM_END, "hybrid": IM_END,
    "tools": IM_END, "bert": SEP,
}  # fmt: skip
"""The token that each template writes after an answer."""
FIRST = {"llama2": BOS, "llama3": BOS, "bert": CLS}
"""The token that a template writes first. Nothing is added to a tokenizer's own template."""
JOINS = ("byte_level_joins_line_breaks", "spm_bpe_joins_line_breaks")
"""Kinds with tokens that reach over a line break, and so over the boundary of an answer."""
PUTS_A_BLANK = {kind.name for kind in KINDS if kind.name.startswith(("spm", "sentencepiece"))}


def is_used(kind: Kind, template: str) -> bool:
    """Return True if both are used together: BERT's markers belong to WordPiece alone."""
    return (template == "bert") == (kind.name == "wordpiece")


PAIRS = [(kind, template) for kind in KINDS for template in TEMPLATES if is_used(kind, template)]


def own(kind: str, template: str, kwargs: dict[str, Any] | None = None) -> Renderer:
    """Return the renderer of a tokenizer that has this template."""
    return make_renderer(tokenizer_of(kind, TEMPLATES[template]), "auto", [EOS], kwargs)


@pytest.mark.parametrize(("kind", "template"), PAIRS, ids=[f"{kind.name}-{template}" for kind, template in PAIRS])
def test_ids_are_the_templates_own(kind: Kind, template: str) -> None:
    renderer = own(kind.name, template)
    tokenizer = renderer.tokenizer
    for messages in TURNS.values():
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        for answer in ANSWERS:
            exchange = renderer.exchange(messages, answer)
            whole = tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": answer}])["input_ids"]

            # The prompt of generation is the prompt of training.
            assert exchange.prompt_ids == prompt == renderer.prompt_ids(messages)
            assert exchange.boundary_split == (whole[: len(prompt)] != prompt)
            assert not exchange.boundary_split or kind.name in JOINS
            ours = exchange.prompt_ids + exchange.completion_ids
            if exchange.boundary_split:
                assert tokenizer.decode(whole) == tokenizer.decode(ours) + "\n"
            else:
                assert whole[: len(ours)] == ours
                assert tokenizer.decode(whole[len(ours) :]).strip() == ""  # nothing but blanks is left out

            # The completion ends where generation stops, once.
            assert exchange.completion_ids[-1] == ENDS[template] == renderer.end_id
            assert [token for token in exchange.completion_ids if token in renderer.stop_ids] == [ENDS[template]]
            assert {ENDS[template], EOS} <= set(renderer.stop_ids)

            # Llama 2 writes a BOS before each question, Llama 3 one, the others none.
            num_questions = sum(turn["role"] == "user" for turn in messages)
            assert ours.count(BOS) == {"llama2": num_questions, "llama3": 1}.get(template, 0)
            assert template not in FIRST or ours[0] == FIRST[template]

            # The text is the answer as the tokenizer normalises it; two templates trim nothing.
            words = exchange.text.split("</think>")[-1]
            expected = kind.normalise(answer)
            assert words.strip() == expected.strip()
            if template in ("chatml", "zephyr") and kind.name not in PUTS_A_BLANK:
                assert words == expected
            assert renderer.text(exchange.completion_ids) == exchange.text


@pytest.mark.parametrize("setting", ["chatml", "plain", "file"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_template_from_outside_keeps_what_the_tokenizer_puts_before_text(
    kind: Kind, setting: str, tmp_path: Path
) -> None:
    if setting == "file":
        (tmp_path / "own.jinja").write_text(TEMPLATES["zephyr"])
        setting = str(tmp_path / "own.jinja")
    tokenizer = tokenizer_of(kind.name)
    renderer = make_renderer(tokenizer, setting)
    exchange = renderer.exchange([QUESTION], "Paris.")
    ours = exchange.prompt_ids + exchange.completion_ids
    before = [tokenizer.convert_tokens_to_ids(token) for token in kind.adds]
    assert ours[: len(before)] == before
    assert [ours.count(token) for token in (BOS, CLS)] == [before.count(BOS), before.count(CLS)]
    assert exchange.prompt_ids[-1] not in (EOS, SEP)  # a tokenizer that adds an end does not end the prompt
    assert exchange.completion_ids[-1] == (IM_END if setting == "chatml" else EOS)
    assert renderer.prompt_ids([QUESTION]) == exchange.prompt_ids
