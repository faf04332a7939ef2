"""One rendering of an exchange: end tokens, BOS, thoughts, tools, rows without a rendering."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spin.data.bos_token import encode_text
from spin.data.builtin import write_tiny_model
from spin.data.chat_renderer import Renderer
from spin.data.chat_templates import Unrenderable
from spin.data.renderer_setup import make_renderer
from spin.errors import ConfigError
from tests.data import tokenizer_kinds as kinds
from tests.data.chat_templates import DROPS_THOUGHTS, TEMPLATES
from tests.data.test_rendering_matrix import QUESTION, TURNS, own
from tests.data.tokenizer_kinds import BOS, END_THINK, EOS, IM_END, KINDS, THINK, Kind, tokenizer_of


def pieces(renderer: Renderer, ids: list[int]) -> list[str]:
    """Return ids as the vocabulary spells them."""
    return list(renderer.tokenizer.convert_ids_to_tokens(ids))


def completion(renderer: Renderer, answer: Any) -> list[str]:
    """Return the completion of the question as the vocabulary spells it."""
    return pieces(renderer, renderer.exchange([QUESTION], answer).completion_ids)


@pytest.mark.parametrize("setting", ["auto", "file"])
def test_a_bos_that_the_template_writes_is_not_doubled(setting: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of("adds_bos", TEMPLATES["llama3"])
    if setting == "file":
        (tmp_path / "own.jinja").write_text(TEMPLATES["llama3"])
        setting = str(tmp_path / "own.jinja")
    ids = make_renderer(tokenizer, setting).prompt_ids([QUESTION])
    assert (ids[0], ids.count(BOS)) == (BOS, 1)


def test_a_prompt_that_begins_with_the_bos_gets_no_second_one() -> None:
    ids = make_renderer(tokenizer_of("adds_bos"), "plain").prompt_ids([{"role": "user", "content": "<s>Paris"}])
    assert (ids[0], ids.count(BOS)) == (BOS, 1)


def test_an_own_template_without_bos_is_kept_and_noted() -> None:
    renderer = own("adds_bos", "chatml")
    assert BOS not in renderer.prompt_ids([QUESTION])
    assert any("writes no <s>" in note for note in renderer.notes)
    assert own("byte_level", "chatml").notes == ()


@pytest.mark.parametrize("kind", ["spm_bpe_legacy", "sentencepiece_bpe", "sentencepiece_unigram", "spm_unigram_always"])
def test_a_truth_after_a_line_break_has_no_blank_before_it(kind: str) -> None:
    """Alone, "Paris" begins with a blank in these tokenizers; after a line break it does not."""
    renderer = own(kind, "zephyr")
    alone = renderer.tokenizer("Paris.", add_special_tokens=False)["input_ids"]
    assert pieces(renderer, alone)[0].startswith(kinds.BLANK)
    tokens = completion(renderer, "Paris.")
    assert ("".join(tokens[:-1]), tokens[-1]) == ("Paris.", "</s>")
    assert renderer.text(alone) == "Paris."


@pytest.mark.parametrize("prefix", ["spm_bpe_legacy", "spm_bpe_never"])
def test_a_blank_that_the_template_writes_is_kept(prefix: str) -> None:
    renderer = own(prefix, "llama2")
    assert "".join(completion(renderer, "Paris.")) == f"{kinds.BLANK}Paris.{kinds.BLANK}</s>"


def test_a_thought_that_the_prompt_opens_is_closed_once() -> None:
    """Case 13."""
    renderer = own("byte_level", "thinking")
    assert renderer.prompt_ids([QUESTION])[-2:] == [THINK, renderer.tokenizer.convert_tokens_to_ids("Ċ")]
    assert completion(renderer, "42") == ["Ċ", "</think>", "Ċ", "Ċ", "42", "<|im_end|>"]
    thought = renderer.exchange([QUESTION], "<think>\n6\n</think>\n\n42")
    assert (thought.prompt_ids + thought.completion_ids).count(THINK) == 1
    assert pieces(renderer, thought.completion_ids) == ["6", "Ċ", "</think>", "Ċ", "Ċ", "42", "<|im_end|>"]


def test_a_line_break_split_between_prompt_and_answer_keeps_the_prompt_as_it_is_fed() -> None:
    """Two line breaks are one token here; the template alone would give <think> ĊĊ </think>."""
    renderer = own("byte_level_joins_line_breaks", "thinking")
    exchange = renderer.exchange([QUESTION], "42")
    assert pieces(renderer, exchange.prompt_ids[-2:]) == ["<think>", "Ċ"]
    assert pieces(renderer, exchange.completion_ids) == ["Ċ", "</think>", "ĊĊ", "42", "<|im_end|>"]
    assert exchange.boundary_split
    assert any("to one token" in note for note in renderer.notes)


def test_a_word_cannot_be_cut_between_prompt_and_answer() -> None:
    """WordPiece writes "black" as one word or two; in two parts it would decode to "bla ck"."""
    renderer = make_renderer(tokenizer_of("wordpiece"), "plain")
    with pytest.raises(Unrenderable, match="joins to one token"):
        renderer.exchange([{"role": "user", "content": "The sky is bla"}], "ck")


def test_a_blank_at_the_end_of_the_prompt_stays_there() -> None:
    renderer = make_renderer(tokenizer_of("spm_bpe_legacy"), "plain")
    exchange = renderer.exchange([{"role": "user", "content": "The capital is "}], "Paris")
    assert exchange.boundary_split
    assert pieces(renderer, exchange.prompt_ids)[-1] == kinds.BLANK
    assert "".join(pieces(renderer, exchange.completion_ids)) == "Paris</s>"


def test_variables_of_the_template_reach_prompt_and_exchange() -> None:
    thinks, answers = own("byte_level", "hybrid"), own("byte_level", "hybrid", {"enable_thinking": False})
    assert (thinks.prompt_ids([QUESTION]).count(THINK), answers.prompt_ids([QUESTION]).count(THINK)) == (0, 1)
    without, with_it = answers.exchange([QUESTION], "42"), thinks.exchange([QUESTION], "42")
    assert pieces(answers, without.completion_ids) == ["42", "<|im_end|>"]
    assert with_it.completion_ids.count(END_THINK) == 1
    assert without.prompt_ids + without.completion_ids == with_it.prompt_ids + with_it.completion_ids


def test_a_variable_that_changes_the_system_turn_is_in_prompt_and_exchange_alike() -> None:
    template = "{{ mood + '\n' if mood is defined else '' }}" + TEMPLATES["chatml"]
    renderer = make_renderer(tokenizer_of("byte_level", template), "auto", (), {"mood": "42"})
    assert pieces(renderer, renderer.prompt_ids([QUESTION]))[:3] == ["42", "Ċ", "<|im_start|>"]
    assert completion(renderer, "42") == ["42", "<|im_end|>"]


@pytest.mark.parametrize(("name", "message"), [("enable_thinkin", "reads no such variable"), ("tools", "set by spin")])
def test_variables_that_cannot_have_an_effect_are_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        own("byte_level", "hybrid", {name: False})


@pytest.mark.parametrize("answer", ["15.</s>", "15.<|im_end|>", "15.<|im_end|>\n", "15.<|im_end|></s>", "15."])
@pytest.mark.parametrize("setting", ["auto", "plain"])
def test_a_truth_that_ends_in_an_end_token_has_one(answer: str, setting: str) -> None:
    """Case 07."""
    tokenizer = tokenizer_of("byte_level", TEMPLATES["chatml"])
    renderer = make_renderer(tokenizer, setting, [EOS, IM_END])
    exchange = renderer.exchange([QUESTION], answer)
    end = "<|im_end|>" if setting == "auto" else "</s>"
    assert pieces(renderer, exchange.completion_ids) == ["1", "5", ".", end]
    assert exchange.text == "15."
    history = [QUESTION, {"role": "assistant", "content": answer}, QUESTION]
    clean = [QUESTION, {"role": "assistant", "content": "15."}, QUESTION]
    assert renderer.prompt_ids(history) == renderer.prompt_ids(clean)


@pytest.mark.parametrize("setting", ["auto", "plain"])
def test_a_truth_with_an_end_token_inside_is_a_row_to_drop(setting: str) -> None:
    renderer = make_renderer(tokenizer_of("byte_level", TEMPLATES["chatml"]), setting, [EOS, IM_END])
    with pytest.raises(Unrenderable, match="an end token inside"):
        renderer.exchange([QUESTION], "Paris.<|im_end|>\nMadrid.")


def test_only_whole_end_tokens_are_taken_off() -> None:
    """A generation config may stop at an ordinary token; truths that end in it keep it."""
    tokenizer = tokenizer_of("byte_level", TEMPLATES["chatml"])
    dot = tokenizer.convert_tokens_to_ids(".")
    renderer = make_renderer(tokenizer, "auto", [dot])
    assert renderer.end_texts == ("</s>", "<|im_end|>")
    assert renderer._without_end({"role": "assistant", "content": "42."})["content"] == "42."


def test_the_words_of_an_answer_are_without_stop_ids_and_special_tokens() -> None:
    """The stop at an ordinary token is as little a word as the BOS that a policy may sample."""
    tokenizer = tokenizer_of("byte_level", TEMPLATES["chatml"])
    number, dot = tokenizer.convert_tokens_to_ids(["42", "."])
    renderer = make_renderer(tokenizer, "auto", [dot])
    assert renderer.text([BOS, number, dot]) == "42"
    assert make_renderer(tokenizer, "auto").text([BOS, number, dot]) == "42."


def test_what_the_template_trims_is_not_trained() -> None:
    """Case 15."""
    renderer = own("byte_level", "llama3")
    assert completion(renderer, " 42\n") == completion(renderer, "42") == ["42", "<|im_end|>"]
    assert completion(own("byte_level", "chatml"), " 42\n") == ["Ġ42", "Ċ", "<|im_end|>"]


def test_the_end_of_a_turn_is_what_the_template_writes() -> None:
    """Case 16: the token is in no special-token map, and the generation config does not know it."""
    renderer = own("byte_level", "chatml")
    assert IM_END not in renderer.tokenizer.all_special_ids
    assert (renderer.end_id, renderer.stop_ids) == (IM_END, (EOS, IM_END))


def test_a_template_that_ends_turns_in_text_gets_the_tokenizers_end(tmp_path: Path) -> None:
    (tmp_path / "x.jinja").write_text(
        "{% for m in messages %}{{ '# ' + m.role + '\n' + m.content + '\n\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '# assistant\n' }}{% endif %}"
    )
    renderer = make_renderer(tokenizer_of("byte_level"), str(tmp_path / "x.jinja"))
    assert completion(renderer, "42") == ["42", "</s>"]


def test_an_end_of_sequence_may_come_from_the_generation_config_alone() -> None:
    tokenizer = tokenizer_of("byte_level", eos="</s>")
    tokenizer.eos_token = None
    assert make_renderer(tokenizer, "plain", [EOS]).end_id == EOS
    with pytest.raises(ConfigError, match="no eos token"):
        make_renderer(tokenizer, "plain")


@pytest.mark.parametrize("form", ["dict", "list"])
def test_of_named_templates_the_default_is_taken_and_named(form: str) -> None:
    """Case 17."""
    named: Any = {"default": TEMPLATES["chatml"], "rag": TEMPLATES["zephyr"]}
    tokenizer = tokenizer_of("byte_level")
    tokenizer.chat_template = named if form == "dict" else [{"name": n, "template": t} for n, t in named.items()]
    renderer = make_renderer(tokenizer, "auto")
    assert renderer.end_id == IM_END
    assert any("'default' is used" in note for note in renderer.notes)
    assert make_renderer(tokenizer, "rag").end_id == EOS


def test_named_templates_without_a_default_are_refused_by_their_names() -> None:
    tokenizer = tokenizer_of("byte_level")
    tokenizer.chat_template = {"rag": TEMPLATES["zephyr"], "tool_use": TEMPLATES["tools"]}
    with pytest.raises(ConfigError, match="to one of rag, tool_use"):
        make_renderer(tokenizer, "auto")
    tokenizer.chat_template = {"rag": TEMPLATES["zephyr"]}
    assert make_renderer(tokenizer, "auto").notes == ()


def test_chatml_without_its_markers_is_noted() -> None:
    tokenizer = kinds.without_markers()
    renderer = make_renderer(tokenizer, "chatml")
    assert any("<|im_start|> is 12 tokens and <|im_end|> is 10 tokens" in note for note in renderer.notes)
    assert completion(renderer, "42") == ["4", "2", "</s>"]
    assert not make_renderer(tokenizer_of("byte_level"), "chatml").notes


def test_one_row_that_the_template_refuses_is_told_from_a_template_that_refuses_all(tmp_path: Path) -> None:
    """Case 20."""
    guard = "{% if messages[0].role == 'system' %}{{ raise_exception('no system turns') }}{% endif %}"
    renderer = make_renderer(tokenizer_of("byte_level", guard + TEMPLATES["chatml"]), "auto")
    with pytest.raises(Unrenderable, match="no system turns") as refused:
        renderer.exchange(TURNS["system"], "Paris.")
    assert refused.value.reason == "that the chat template refuses (no system turns)"
    (tmp_path / "x.jinja").write_text("{{ raise_exception('never') }}")
    with pytest.raises(ConfigError, match="never") as all_refused:
        make_renderer(tokenizer_of("byte_level"), str(tmp_path / "x.jinja"))
    assert not isinstance(all_refused.value, Unrenderable)


def test_a_template_whose_prompts_are_never_in_its_exchanges_is_refused_with_the_difference() -> None:
    with pytest.raises(ConfigError, match="goes on with '<think>.*with 'sentinel answer.*enable_thinking") as error:
        make_renderer(tokenizer_of("byte_level", DROPS_THOUGHTS), "auto")
    assert not isinstance(error.value, Unrenderable)


def test_a_template_that_needs_a_thought_in_the_answer_drops_the_rows_without() -> None:
    keeps = DROPS_THOUGHTS.replace(".split('</think>')[-1]", "")
    renderer = make_renderer(tokenizer_of("byte_level", keeps), "auto")
    assert any("opens a thought" in note for note in renderer.notes)
    with pytest.raises(Unrenderable, match="no prompt can be cut"):
        renderer.exchange([QUESTION], "42")
    assert completion(renderer, "<think>\n6</think>42") == ["6", "</think>", "42", "<|im_end|>"]


CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Bern"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
CALLED = [
    {"role": "user", "content": "Weather in Bern?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "name": "weather", "content": "rain"},
]


def test_tools_and_their_calls_reach_the_template() -> None:
    """Case 04."""
    renderer = own("byte_level", "tools")
    exchange = renderer.exchange(CALLED, "It rains.", [TOOL])
    whole = renderer.tokenizer.apply_chat_template([*CALLED, {"role": "assistant", "content": "It rains."}], [TOOL])
    text = renderer.tokenizer.decode(whole["input_ids"])
    assert text.count('"city": "Bern"') == text.count('"parameters"') == 1
    assert renderer.tokenizer.decode(exchange.prompt_ids + exchange.completion_ids) + "\n" == text
    assert renderer.exchange(CALLED[:1], CALLED[1], [TOOL]).text.startswith('<call>[{"type": "function"')


def test_a_row_whose_tools_the_template_leaves_out_is_one_to_drop() -> None:
    renderer = own("byte_level", "chatml")
    with pytest.raises(Unrenderable, match="leaves out tools"):
        renderer.exchange([QUESTION], "42", [TOOL])
    with pytest.raises(Unrenderable, match="leaves out tool calls"):
        renderer.exchange(CALLED, "42")
    only_chat = "{% set messages = messages|rejectattr('role', 'equalto', 'system')|list %}" + TEMPLATES["chatml"]
    with pytest.raises(Unrenderable, match="leaves out a system turn"):
        make_renderer(tokenizer_of("byte_level", only_chat), "auto").exchange(TURNS["system"], "42")


def test_thoughts_of_an_answer_are_rendered_or_the_row_is_one_to_drop() -> None:
    answer = {"role": "assistant", "content": "42", "reasoning_content": "6"}
    with pytest.raises(Unrenderable, match="leaves out the reasoning_content of an answer"):
        own("byte_level", "chatml").exchange([QUESTION], answer)
    writes_it = TEMPLATES["chatml"].replace("m.content", "(m.reasoning_content or '') + m.content")
    renderer = make_renderer(tokenizer_of("byte_level", writes_it), "auto")
    assert renderer.exchange([QUESTION], answer).text == "642"


@pytest.mark.parametrize(("answer", "reason"), [("\ud83d", "not Unicode"), ("<|im_end|>", "empty completion")])
def test_other_rows_that_cannot_be_used_have_a_reason(answer: str, reason: str) -> None:
    with pytest.raises(Unrenderable, match=reason):
        own("byte_level", "chatml").exchange([QUESTION], answer)


def test_equal_words_are_equal_however_they_are_composed() -> None:
    renderer = own("nfc", "chatml")
    composed, apart = "caf\u00e9", "cafe\u0301"
    first, second = renderer.exchange([QUESTION], composed), renderer.exchange([QUESTION], apart)
    assert (first.text, first.completion_ids) == (second.text, second.completion_ids)
    assert first.text == composed
    bytes_only = own("byte_level", "chatml")
    assert bytes_only.exchange([QUESTION], apart).text == apart


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_text_without_a_template_has_the_bos_once_and_no_end(kind: Kind) -> None:
    tokenizer = tokenizer_of(kind.name)
    ids = encode_text(tokenizer, "Paris.")
    before = [tokenizer.convert_tokens_to_ids(token) for token in kind.adds]
    assert ids[: len(before)] == before
    assert ids[-1] not in (EOS, kinds.SEP)
    with_bos = "".join(kind.adds) + "Paris."
    assert encode_text(tokenizer, with_bos)[: len(before) + 1].count(BOS) == before.count(BOS)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return the tokenizer of the built-in model."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_model(folder, 0)
    return AutoTokenizer.from_pretrained(folder)


def test_prompt_and_completion_of_the_built_in_model_are_chatml_cut_in_two(tiny: Any) -> None:
    renderer = make_renderer(tiny, "auto")
    exchange = renderer.exchange([{"role": "user", "content": "Sort: ba"}], "ab")
    ids = exchange.prompt_ids + exchange.completion_ids
    assert tiny.decode(ids) == "<|im_start|>user\nSort: ba<|im_end|>\n<|im_start|>assistant\nab<|im_end|>"
    assert ids.count(renderer.end_id) == 2  # one a turn


def test_text_is_what_was_encoded_without_the_end(tiny: Any) -> None:
    renderer = make_renderer(tiny, "auto")
    assert (
        renderer.text(renderer.exchange([QUESTION], "Gr\u00fc\u00dfe, \u4e16\u754c").completion_ids)
        == "Gr\u00fc\u00dfe, \u4e16\u754c"
    )


def test_plain_is_the_prompts_text_alone(tiny: Any) -> None:
    renderer = make_renderer(tiny, "plain")
    assert tiny.decode(renderer.prompt_ids([{"role": "user", "content": "a b"}])) == "a b"
    assert completion(renderer, "c")[-1] == tiny.eos_token


def test_all_stop_ids_of_the_generation_config_are_kept(tiny: Any) -> None:
    assert make_renderer(tiny, "auto", [7, 2]).stop_ids == (2, 7)


def test_a_tokenizer_without_template_is_refused_with_the_way_out() -> None:
    tokenizer = tokenizer_of("byte_level", eos="<|im_end|>")
    with pytest.raises(ConfigError, match="no chat template; set model.chat_template to chatml, plain"):
        make_renderer(tokenizer, "auto")
    assert make_renderer(tokenizer, "chatml").end_id == IM_END


def test_a_template_file_that_is_missing_is_refused(tiny: Any) -> None:
    with pytest.raises(ConfigError, match="nowhere.jinja: no such file"):
        make_renderer(tiny, "nowhere.jinja")


def test_a_renderer_can_be_sent_without_its_tokenizer(tiny: Any) -> None:
    import pickle

    renderer = make_renderer(tiny, "auto")
    copy = pickle.loads(pickle.dumps(renderer.with_tokenizer(None))).with_tokenizer(tiny)
    assert copy.exchange([QUESTION], "42") == renderer.exchange([QUESTION], "42")
