"""One rendering: no doubled end, nothing added, clear errors."""

from pathlib import Path
from typing import Any

import pytest

from spin.data.builtin import write_tiny_model
from spin.data.chat import make_renderer
from spin.errors import ConfigError


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_model(folder, 0)
    return AutoTokenizer.from_pretrained(folder)


def test_prompt_and_completion_are_the_template_cut_in_two(tokenizer: Any) -> None:
    renderer = make_renderer(tokenizer, "auto")
    ids = renderer.prompt_ids([{"role": "user", "content": "Sort: ba"}]) + renderer.completion_ids("ab")
    assert tokenizer.decode(ids) == "<|im_start|>user\nSort: ba<|im_end|>\n<|im_start|>assistant\nab<|im_end|>"
    assert ids.count(renderer.end_id) == 2  # one a turn


def test_text_is_what_was_encoded_and_drops_what_ends_it(tokenizer: Any) -> None:
    renderer = make_renderer(tokenizer, "auto")
    assert renderer.text(renderer.completion_ids("Grüße, 世界")) == "Grüße, 世界"


def test_plain_is_the_prompts_text_alone(tokenizer: Any) -> None:
    renderer = make_renderer(tokenizer, "plain")
    assert tokenizer.decode(renderer.prompt_ids([{"role": "user", "content": "a b"}])) == "a b"
    assert renderer.completion_ids("c")[-1] == tokenizer.eos_token_id


def test_all_stop_ids_of_the_generation_config_are_kept(tokenizer: Any) -> None:
    assert make_renderer(tokenizer, "auto", [7, 2]).stop_ids == (2, 7)


def test_a_tokenizer_without_template_is_refused_with_the_way_out(tokenizer: Any) -> None:
    import copy

    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    with pytest.raises(ConfigError, match="no chat template; set model.chat_template to chatml, plain"):
        make_renderer(bare, "auto")
    assert make_renderer(bare, "chatml").end_id == 2


def test_a_template_that_raises_and_one_that_is_missing_are_refused(tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "x.jinja").write_text("{{ raise_exception('only one turn') }}")
    with pytest.raises(ConfigError, match="only one turn"):
        make_renderer(tokenizer, str(tmp_path / "x.jinja"))
    with pytest.raises(ConfigError, match="no such file"):
        make_renderer(tokenizer, "nowhere.jinja")
