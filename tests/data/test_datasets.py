"""Every format, every reason for dropping a row, and no prompt on both sides."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from spin.config.groups import DataConfig, FeedbackConfig, RankedPairs, Turn
from spin.data.answer_matching import extract_answer
from spin.data.builtin import write_tiny_model
from spin.data.chat_renderer import Renderer
from spin.data.datasets import load_prompts, prepare
from spin.data.labelled import load_labelled
from spin.data.renderer_setup import make_renderer
from spin.errors import ConfigError


@pytest.fixture(scope="module")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_model(folder, 0)
    return make_renderer(AutoTokenizer.from_pretrained(folder), "auto")


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


USER, AI = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"messages": [USER, AI]}, "messages"),
        ({"prompt": "q", "completion": "a"}, "prompt+completion"),
        ({"prompt": [USER], "completion": [AI]}, "prompt+completion"),
        ({"question": "q", "answer": "a"}, "question+answer"),
        ({"instruction": "q", "input": "", "output": "a"}, "instruction+output"),
        ({"real": [USER, AI], "generated": [USER, AI]}, "real+generated"),
    ],
)
def test_each_format_gives_the_same_prompt(renderer: Renderer, tmp_path: Path, row: dict[str, Any], name: str) -> None:
    [prompt], report = load_prompts(write(tmp_path / "x.jsonl", [row]), "train", renderer, 100, 10, None)
    assert report.format == name
    assert prompt.prompt_ids == renderer.prompt_ids([USER])
    assert (prompt.completion_ids, prompt.finish_reason, prompt.completion_text) == (
        renderer.exchange([USER], "a").completion_ids,
        "stop",
        "a",
    )


@pytest.mark.parametrize("kind", ["json", "parquet", "csv"])
def test_other_files_give_the_rows_of_a_jsonl(renderer: Renderer, tmp_path: Path, kind: str) -> None:
    import pandas as pd

    frame = pd.DataFrame([{"question": "q", "answer": "a"}, {"question": "r", "answer": "b"}])
    path = tmp_path / f"x.{kind}"
    if kind == "json":
        frame.to_json(path, orient="records")
    elif kind == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False)
    prompts, _ = load_prompts(str(path), "train", renderer, 100, 10, None)
    assert [p.completion_text for p in prompts] == ["a", "b"]


def test_several_turns_keep_the_last_answer_or_the_first_and_an_input_joins_its_instruction(
    renderer: Renderer, tmp_path: Path
) -> None:
    turns = [
        USER,
        AI,
        {"role": "user", "content": "more"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "bye"},
    ]
    [prompt], _ = load_prompts(write(tmp_path / "x.jsonl", [{"messages": turns}]), "train", renderer, 200, 10, None)
    assert prompt.prompt_ids == renderer.prompt_ids(turns[:3])
    assert prompt.completion_text == "b"
    [prompt], _ = load_prompts(str(tmp_path / "x.jsonl"), "train", renderer, 200, 10, None, Turn.first)
    assert (prompt.prompt_ids, prompt.completion_text) == (renderer.prompt_ids(turns[:1]), "a")
    [prompt], _ = load_prompts(
        write(tmp_path / "y.jsonl", [{"instruction": "q", "input": "i", "output": "a"}]),
        "train",
        renderer,
        200,
        10,
        None,
    )
    assert prompt.prompt_text == "q\n\ni"


def test_rows_that_cannot_be_used_are_counted_by_reason(renderer: Renderer, tmp_path: Path) -> None:
    rows = [
        {"messages": m}
        for m in (
            [USER, AI],
            [USER, AI],
            [USER],
            [AI],
            [USER, {"role": "assistant", "content": " "}],
            "text",
            [{"role": "user", "content": "q" * 99}, AI],
        )
    ]
    prompts, report = load_prompts(write(tmp_path / "x.jsonl", rows), "train", renderer, 60, 10, None)
    assert len(prompts) == 1
    assert dict(report.dropped) == {
        "twice there": 1,
        "without an assistant turn": 1,
        "with an empty prompt": 1,
        "with an empty completion": 1,
        "with turns that are text but no JSON": 1,
        "with a prompt over 60 tokens": 1,
    }
    assert report.line().startswith("1 of 7 rows")
    assert f"1 twice there (first: {tmp_path}/x.jsonl:2), 1 with a prompt over 60 tokens (first:" in report.line()


def test_a_truth_that_is_cut_carries_no_end_of_sequence(renderer: Renderer, tmp_path: Path) -> None:
    [prompt], report = load_prompts(
        write(tmp_path / "x.jsonl", [{"prompt": "q", "completion": "abcdef"}]), "train", renderer, 60, 4, None
    )
    assert (prompt.finish_reason, len(prompt.completion_ids), report.cut) == ("length", 4, 1)
    assert renderer.end_id not in prompt.completion_ids


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": "q", "completion": "a"}\n{"prompt"', r"x.jsonl:2: no JSON"),
        ("[1]\n", r"x.jsonl:1: found a JSON list, expected an object"),
        ('{"text": "q"}\n', r"columns text fit no known format"),
        ("", r"the set is empty"),
        ('{"prompt": "", "completion": "a"}\n', r"no usable row: .* 1 with an empty prompt"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_one_line(
    renderer: Renderer, tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(ConfigError, match=message) as caught:
        load_prompts(str(tmp_path / "x.jsonl"), "train", renderer, 60, 10, None)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_not_taken_for_a_hub_id(renderer: Renderer) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_prompts("data/none.jsonl", "train", renderer, 60, 10, None)


@pytest.mark.parametrize("own_file", [True, False])
def test_no_held_out_prompt_is_trained_on(renderer: Renderer, tmp_path: Path, own_file: bool) -> None:
    train = write(tmp_path / "x.jsonl", [{"prompt": f"q{i}", "completion": f"a{i}"} for i in range(40)])
    held = write(tmp_path / "y.jsonl", [{"prompt": "q3", "completion": "other"}, {"prompt": "new", "completion": "b"}])
    prepared = prepare(DataConfig(path=train, eval_path=held if own_file else None, limit=30), renderer, 60, 10, seed=0)
    trained = list(prepared.train)
    assert not {p.prompt_text for p in trained} & {p.prompt_text for p in prepared.heldout}
    assert [p.prompt_id for p in trained] == list(range(30))
    assert len(prepared.heldout) == (2 if own_file else 4)


def test_no_more_rows_are_read_than_are_asked_for(renderer: Renderer, tmp_path: Path) -> None:
    train = write(tmp_path / "x.jsonl", [{"prompt": f"q{i}", "completion": "a"} for i in range(40)])
    held = write(tmp_path / "y.jsonl", [{"prompt": f"q{i}", "completion": "a"} for i in range(2, 40)])
    prepared = prepare(DataConfig(path=train, eval_path=held, limit=5, eval_limit=1), renderer, 60, 10, seed=0)
    assert sorted(p.prompt_text for p in prepared.train) == ["q0", "q1", "q3", "q4", "q5"]
    assert [report.line() for report in prepared.reports] == [
        f"5 of 6 rows of {train} as prompt+completion; dropped: 1 held out (first: {train}:3)",
        f"1 of 1 rows of {held} as prompt+completion",
    ]


def test_a_set_that_is_held_out_as_a_whole_is_refused(renderer: Renderer, tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [{"prompt": "q", "completion": "a"}])
    prepared = prepare(DataConfig(path=path, eval_path=path), renderer, 60, 10, seed=0)
    with pytest.raises(ConfigError, match="every usable row is also held out"):
        list(prepared.train)


def test_too_few_rows_to_hold_some_out_are_refused_with_the_reasons_of_the_dropped_ones(
    renderer: Renderer, tmp_path: Path
) -> None:
    good = [{"prompt": f"q{i}", "completion": "a"} for i in range(3)]
    path = write(
        tmp_path / "x.jsonl", [*good, {"prompt": "q", "completion": ""}, {"prompt": "x" * 90, "completion": "a"}]
    )
    with pytest.raises(ConfigError) as error:
        prepare(DataConfig(path=path), renderer, 60, 10, seed=0)
    message = str(error.value)
    assert "3 usable rows are too few to hold some out; give data.eval_path, or at least 10 rows; dropped: " in message
    assert f"(first: {path}:4)" in message
    assert f"(first: {path}:5)" in message


def test_the_answer_is_the_last_match_without_thousands_commas() -> None:
    assert extract_answer("#### 1\nso #### 1,234", r"#### (-?[\d,]+)") == "1234"
    assert extract_answer("none", r"#### (\d+)") is None
    assert extract_answer(" ab ", None) == "ab"


def test_a_pattern_that_matches_nothing_held_out_is_refused(renderer: Renderer, tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [{"prompt": f"q{i}", "completion": "a"} for i in range(40)])
    with pytest.raises(ConfigError, match="matches no held-out ground truth"):
        prepare(DataConfig(path=path, answer_pattern="#### (.*)"), renderer, 60, 10, seed=0)
    with pytest.raises(ConfigError, match="no regular expression"):
        prepare(DataConfig(path=path, answer_pattern="("), renderer, 60, 10, seed=0)


BAD = {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": [USER], "chosen": [AI], "rejected": [BAD]},
        {"chosen": [USER, AI], "rejected": [USER, BAD]},
        {"real": [USER, AI], "generated": [USER, BAD]},
    ],
)
def test_each_preference_format_gives_the_same_pair(renderer: Renderer, tmp_path: Path, row: dict[str, Any]) -> None:
    path = write(tmp_path / "x.jsonl", [row])
    [pair], ratings, report = load_labelled(FeedbackConfig(rows=None, path=path), renderer, 100, 10, set())
    assert (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids) == (
        renderer.prompt_ids([USER]),
        renderer.exchange([USER], "a").completion_ids,
        renderer.exchange([USER], "b").completion_ids,
    )
    assert (pair.source, pair.iteration, ratings, report.kept) == ("labelled", None, [], 1)
    [prompt], _ = load_prompts(path, "train", renderer, 100, 10, None)
    assert (prompt.prompt_ids, prompt.completion_ids) == (pair.prompt_ids, pair.chosen_ids)


def test_the_prompt_of_plain_preferences_is_what_both_begin_with(renderer: Renderer, tmp_path: Path) -> None:
    row = {"chosen": "The sky is blue.", "rejected": "The sky is black."}
    [pair], _, _ = load_labelled(
        FeedbackConfig(rows=None, path=write(tmp_path / "x.jsonl", [row])), renderer, 100, 20, set()
    )
    assert pair.prompt_ids == renderer.prompt_ids([{"role": "user", "content": "The sky is"}])
    assert [renderer.text(ids) for ids in (pair.chosen_ids, pair.rejected_ids)] == ["blue.", "black."]


def test_ratings_keep_both_labels_and_the_desirable_are_truths(renderer: Renderer, tmp_path: Path) -> None:
    path = write(
        tmp_path / "x.jsonl",
        [{"prompt": "q", "completion": "a", "label": True}, {"prompt": "q", "completion": "b", "label": False}],
    )
    pairs, ratings, _ = load_labelled(FeedbackConfig(rows=None, path=path), renderer, 100, 10, set())
    assert pairs == []
    assert [(renderer.text(r.completion_ids), r.desirable) for r in ratings] == [("a", True), ("b", False)]
    prompts, report = load_prompts(path, "train", renderer, 100, 10, None)
    assert [prompt.completion_text for prompt in prompts] == ["a"]
    assert dict(report.dropped) == {"without a truth (labelled false)": 1}


def test_labelled_rows_that_cannot_be_used_are_counted_by_reason(renderer: Renderer, tmp_path: Path) -> None:
    rows = [
        {"prompt": "q", "chosen": "a", "rejected": "a"},
        {"prompt": "held", "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": "a", "rejected": ""},
        {"prompt": "q" * 99, "chosen": "a", "rejected": "b"},
        {"prompt": "q", "chosen": "a", "rejected": "abcdef"},
    ]
    source = FeedbackConfig(rows=None, path=write(tmp_path / "x.jsonl", rows))
    held = {tuple(renderer.prompt_ids([{"role": "user", "content": "held"}]))}
    [pair], _, report = load_labelled(source, renderer, 60, 4, held)
    assert dict(report.dropped) == {
        "with two equal completions": 1,
        "held out": 1,
        "with an empty completion": 1,
        "with a prompt over 60 tokens": 1,
    }
    assert (len(pair.rejected_ids), report.cut) == (4, 1)
    assert renderer.end_id not in pair.rejected_ids


@pytest.mark.parametrize(
    ("column", "value", "preference"),
    [
        ("preference", 0.8, 0.8),
        ("preference", 0, 0.0),
        ("preference", "0.25", 0.25),  # as a CSV file has it
        ("margin", 0.0, 0.5),
        ("margin", 2.0, 1 / (1 + math.exp(-2))),
        ("margin", -800, 0.0),
    ],
)
def test_pairs_have_the_preference_of_their_row(
    renderer: Renderer, tmp_path: Path, column: str, value: Any, preference: float
) -> None:
    path = write(tmp_path / "x.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b", column: value}])
    [pair], _, report = load_labelled(FeedbackConfig(rows=None, path=path), renderer, 100, 10, set())
    assert pair.preference == pytest.approx(preference, abs=1e-15)
    assert report.ignored == set()


def test_rows_with_a_wrong_preference_are_dropped_with_the_first_line(renderer: Renderer, tmp_path: Path) -> None:
    row = {"prompt": "q", "chosen": "a", "rejected": "b"}
    rows = [{**row, "preference": 1.0}, {**row, "preference": 1.5}, {**row, "preference": -0.1}, row]
    source = FeedbackConfig(rows=None, path=write(tmp_path / "x.jsonl", rows))
    pairs, _, report = load_labelled(source, renderer, 100, 10, set())
    assert [pair.preference for pair in pairs] == [1.0]
    assert "2 with a preference outside 0 to 1 (first: " in report.line()
    assert "x.jsonl:2)" in report.line()
    assert report.dropped["with a value of preference that is no finite number"] == 1


def test_a_score_above_the_threshold_is_desirable_and_no_part_of_an_sft_set(renderer: Renderer, tmp_path: Path) -> None:
    rows = [{"prompt": "q", "completion": text, "score": score} for text, score in (("a", 3), ("b", 4), ("c", 4.5))]
    path = write(tmp_path / "x.jsonl", rows)
    source = FeedbackConfig(rows=None, path=path, threshold=4.0)
    pairs, ratings, report = load_labelled(source, renderer, 100, 10, set())
    assert (pairs, report.format) == ([], "prompt+completion+score")
    assert [rating.desirable for rating in ratings] == [False, False, True]
    prompts, report = load_prompts(path, "train", renderer, 100, 10, None)
    assert [prompt.completion_text for prompt in prompts] == ["a", "b", "c"]
    assert report.ignored == {"score"}


@pytest.mark.parametrize(
    "columns",
    [
        {"responses": ["b", "a", "c", "d"], "ranks": [2, 1, 3, 3]},
        {"responses": ["b", "a", "c", "d"], "scores": [0.5, 0.9, 0.1, 0.1]},
        {"answers": [{"answer": text, "rank": rank} for text, rank in (("a", 1), ("d", 3), ("b", 2), ("c", 3))]},
    ],
)
def test_ranked_answers_become_one_pair_or_all_pairs_of_different_ranks(
    renderer: Renderer, tmp_path: Path, columns: dict[str, Any]
) -> None:
    path = write(tmp_path / "x.jsonl", [{"prompt": "q", **columns}])

    def texts(pairs: RankedPairs) -> list[str]:
        source = FeedbackConfig(rows=None, path=path, pairs=pairs)
        rows, _, report = load_labelled(source, renderer, 100, 10, set())
        assert report.kept == 1
        assert [row.prompt_id for row in rows] == list(range(len(rows)))
        return [renderer.text(row.chosen_ids) + renderer.text(row.rejected_ids) for row in rows]

    [pair] = texts(RankedPairs.best_worst)
    assert pair in ("ac", "ad")  # of equal ranks the first
    assert sorted(texts(RankedPairs.all)) == ["ab", "ac", "ad", "bc", "bd"]


def test_answers_of_equal_rank_or_text_make_no_pair(renderer: Renderer, tmp_path: Path) -> None:
    rows = [
        {"prompt": "q", "responses": ["a", "b"], "ranks": [1, 1]},
        {"prompt": "q", "responses": ["a", "a"], "ranks": [1, 2]},
        {"prompt": "q", "responses": ["a", "a", "b"], "ranks": [1, 2, 3]},
        {"prompt": "q", "responses": ["a", "b"], "ranks": [1, 2, 3]},
    ]
    source = FeedbackConfig(rows=None, path=write(tmp_path / "x.jsonl", rows), pairs=RankedPairs.all)
    pairs, _, report = load_labelled(source, renderer, 100, 10, set())
    assert [renderer.text(pair.chosen_ids) for pair in pairs] == ["a", "a"]
    assert dict(report.dropped) == {
        "with answers that are all ranked alike": 1,
        "with two equal completions": 1,
        "with ranks of another number than answers": 1,
    }


def test_rows_that_nobody_labelled_are_no_feedback(renderer: Renderer, tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", [{"question": "q", "answer": "a"}])
    with pytest.raises(
        ConfigError, match="question.answer, which have no labels; expected one of prompt.chosen.rejected"
    ):
        load_labelled(FeedbackConfig(rows=None, path=path), renderer, 60, 10, set())
