"""The rows that `spin check` shows, rendered by the tokenizer of the built-in model."""

from pathlib import Path

import pytest

from spin.config.groups import DataConfig, FeedbackConfig, ModelConfig
from spin.config.objective import DpoObjective, SftObjective, SpinObjective
from spin.config.objective_base import ObjectiveConfig
from spin.config.run import RunConfig
from spin.data.builtin import write_tiny_model
from spin.data.chat_renderer import Renderer
from spin.data.parquet import write_rows
from spin.data.records import Pair, Prompt
from spin.data.renderer_setup import load_renderer
from spin.preflight.row_preview import describe_tokens, preview_rows
from spin.run_dir.paths import RunLayout

NAN = float("nan")


@pytest.fixture(scope="module")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    write_tiny_model(folder, 0)
    return load_renderer(ModelConfig(str(folder)), folder)


def config_of(objective: ObjectiveConfig, feedback: FeedbackConfig) -> RunConfig:
    return RunConfig(
        "unused",
        1,
        model=ModelConfig("builtin:tiny"),
        data=DataConfig("builtin:letters"),
        feedback=feedback,
        objective=objective,
    )


def write_train(layout: RunLayout, renderer: Renderer) -> None:
    rows = []
    for number, (question, answer) in enumerate([("Sort: ba", "ab"), ("Sort: dc", "cd"), ("Sort: fe", "ef")]):
        exchange = renderer.exchange([{"role": "user", "content": question}], answer)
        rows.append(
            Prompt(number, exchange.prompt_ids, exchange.completion_ids, "stop", question, exchange.text, answer)
        )
    write_rows(layout.prompts("train"), Prompt, rows)


def test_rows_of_self_play_show_the_target_with_its_end_token_and_say_that_no_answer_exists(
    tmp_path: Path, renderer: Renderer
) -> None:
    layout = RunLayout(tmp_path)
    write_train(layout, renderer)
    lines = preview_rows(config_of(SpinObjective(), FeedbackConfig()), layout, renderer)
    prompt = '"<|im_start|>user↵Sort: ba<|im_end|>↵<|im_start|>assistant↵"'
    assert lines[0] == "2 rows as iteration 0 trains on them (↵: line break):"
    assert lines[1] == f"  row 0, prompt, 27 tokens: {prompt}"
    assert lines[2] == '    chosen (the ground truth), 3 tokens: "ab<|im_end|>"'
    assert lines[3] == "    rejected: no answer exists yet; the opponent samples it during the run"
    assert lines[5] == '    chosen (the ground truth), 3 tokens: "cd<|im_end|>"'
    assert lines[7].startswith('  stop ids: 2 "<|im_end|>"')
    assert len(lines) == 8


def test_fine_tuning_shows_no_rejected_answer(tmp_path: Path, renderer: Renderer) -> None:
    layout = RunLayout(tmp_path)
    write_train(layout, renderer)
    lines = preview_rows(config_of(SftObjective(), FeedbackConfig()), layout, renderer)
    assert lines[2] == '    target, 3 tokens: "ab<|im_end|>"'
    assert "rejected" not in " ".join(lines)


def test_labelled_pairs_and_self_play_give_one_row_each(tmp_path: Path, renderer: Renderer) -> None:
    layout = RunLayout(tmp_path)
    write_train(layout, renderer)
    prompt_ids = renderer.prompt_ids([{"role": "user", "content": "Sort: ba"}])
    end = renderer.end_id
    chosen, rejected = [*renderer.encode("ab"), end], [*renderer.encode("ba"), end]
    pair = Pair(0, 0, "labelled", None, prompt_ids, chosen, rejected, NAN, NAN, NAN)
    write_rows(layout.prompts("labelled-pairs"), Pair, [pair, pair])
    # Without samples, both rows are labelled ones.
    alone = preview_rows(config_of(DpoObjective(), FeedbackConfig(path="pairs", rows=None)), layout, renderer)
    assert [line for line in alone if "rejected" in line] == ['    rejected, 3 tokens: "ba<|im_end|>"'] * 2
    both = preview_rows(config_of(DpoObjective(), FeedbackConfig(path="pairs")), layout, renderer)
    names = [line.split(",")[0] for line in both if ", prompt," in line]
    assert names == ["  labelled pair 0", "  row 0"]


def test_of_a_long_text_the_first_and_the_last_tokens_are_shown(renderer: Renderer) -> None:
    # The tokenizer has a token for each letter: 48 + 5 + 24.
    ids = renderer.encode("a" * 48 + "b" * 5 + "c" * 24)
    assert describe_tokens(renderer, ids) == f'77 tokens: "{"a" * 48}" … 5 more … "{"c" * 24}"'
    assert describe_tokens(renderer, renderer.encode("a")) == '1 token: "a"'
