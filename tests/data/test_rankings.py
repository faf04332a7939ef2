"""Sets of ranked answers: which formats are read, what is dropped, and what is held out."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spin.config.groups import ModelConfig
from spin.data import builtin
from spin.data.chat_renderer import Renderer
from spin.data.rankings import RankingSource, check_subsets, hold_out_rankings, load_rankings, spread_places
from spin.data.records import Ranking
from spin.data.renderer_setup import load_renderer
from spin.errors import ConfigError


@pytest.fixture(scope="module")
def renderer(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    folder = tmp_path_factory.mktemp("model")
    builtin.write_tiny_model(folder, seed=0)
    return load_renderer(ModelConfig(str(folder)), folder)


def read(tmp_path: Path, renderer: Renderer, *rows: dict[str, Any], **limits: int) -> tuple[list[Ranking], str]:
    """Rankings of a file with these rows, and the line for the user."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"max_prompt": 64, "max_completion": 64, "max_responses": 9, **limits}
    source = RankingSource("reward_model.data_path", str(path), "train", None, **settings)
    rankings, report = load_rankings(source, renderer)
    return rankings, report.line()


def texts(renderer: Renderer, ranking: Ranking) -> list[str]:
    return [renderer.tokenizer.decode(ids, skip_special_tokens=True) for ids in ranking.completions]


FORMATS: dict[str, dict[str, Any]] = {
    "pairs": {"prompt": "Say a", "chosen": "aa", "rejected": "b"},
    "dialogues": {
        "chosen": "\n\nHuman: Say a\n\nAssistant: aa",
        "rejected": "\n\nHuman: Say a\n\nAssistant: b",
    },
    "ranks in a list": {"prompt": "Say a", "responses": ["b", "aa"], "ranks": [2, 1]},
    "scores in a list": {"prompt": "Say a", "responses": ["b", "aa"], "scores": [0.1, 0.9]},
    "answers with ranks": {"prompt": "Say a", "answers": [{"answer": "b", "rank": 3}, {"answer": "aa", "rank": 1}]},
    "completions with scores": {
        "instruction": "Say a",
        "completions": [{"response": "b", "overall_score": 2}, {"response": "aa", "overall_score": 7.5}],
    },
}


@pytest.mark.parametrize("name", FORMATS)
def test_the_better_answer_stands_first_in_every_format(tmp_path: Path, renderer: Renderer, name: str) -> None:
    [ranking], line = read(tmp_path, renderer, FORMATS[name])
    assert texts(renderer, ranking) == ["aa", "b"]
    assert ranking.ranks[0] < ranking.ranks[1]
    assert (ranking.preference, ranking.margin) == (1.0, 0.0)
    assert line.startswith("1 of 1 rows of ")


def test_answers_of_one_rank_are_kept_as_ties(tmp_path: Path, renderer: Renderer) -> None:
    row = {"prompt": "Say a", "responses": ["b", "aa", "c"], "ranks": [2, 1, 2]}
    [ranking], _ = read(tmp_path, renderer, row)
    assert texts(renderer, ranking) == ["aa", "b", "c"]
    assert ranking.ranks == [1.0, 2.0, 2.0]


def test_a_margin_is_no_preference_and_a_preference_no_margin(tmp_path: Path, renderer: Renderer) -> None:
    [ranking], _ = read(tmp_path, renderer, {**FORMATS["pairs"], "margin": 1.5, "subset": "easy"})
    assert (ranking.preference, ranking.margin, ranking.subset) == (1.0, 1.5, "easy")
    [ranking], _ = read(tmp_path, renderer, {**FORMATS["pairs"], "preference": 0.8})
    assert (ranking.preference, ranking.margin, ranking.subset) == (0.8, 0.0, None)


UNUSABLE: dict[str, dict[str, Any]] = {
    "with a single answer": {"prompt": "Say a", "responses": ["b"], "ranks": [1]},
    "with ranks of another number than answers": {"prompt": "Say a", "responses": ["b", "c"], "ranks": [1]},
    "with answers that are all ranked alike": {"prompt": "Say a", "responses": ["b", "c"], "ranks": [1, 1]},
    "with equal completions": {"prompt": "Say a", "responses": ["b", "b"], "ranks": [1, 2]},
}


@pytest.mark.parametrize("reason", UNUSABLE)
def test_a_row_without_a_comparison_is_counted_by_its_reason(tmp_path: Path, renderer: Renderer, reason: str) -> None:
    good = FORMATS["ranks in a list"]
    rankings, line = read(tmp_path, renderer, good, UNUSABLE[reason])
    assert len(rankings) == 1
    assert f"dropped: 1 {reason}" in line
    with pytest.raises(ConfigError, match=f"no usable row: .*1 {reason}"):
        read(tmp_path, renderer, UNUSABLE[reason])


def test_rows_without_ranks_are_refused(tmp_path: Path, renderer: Renderer) -> None:
    with pytest.raises(ConfigError, match=r"rows are prompt\+completion, which rank no answers; expected one of"):
        read(tmp_path, renderer, {"prompt": "Say a", "completion": "a"})


def test_of_many_answers_the_best_the_worst_and_some_between_are_used(tmp_path: Path, renderer: Renderer) -> None:
    assert spread_places(9, 4) == [0, 3, 5, 8]
    row = {"prompt": "Say a", "responses": list("abcde"), "ranks": [1, 2, 3, 4, 5]}
    [ranking], line = read(tmp_path, renderer, row, max_responses=3)
    assert texts(renderer, ranking) == ["a", "c", "e"]
    assert "2 answers left out" in line


def test_a_long_answer_is_cut_without_an_end_of_turn(tmp_path: Path, renderer: Renderer) -> None:
    [ranking], line = read(tmp_path, renderer, FORMATS["pairs"], max_completion=1)
    assert [len(ids) for ids in ranking.completions] == [1, 1]
    assert texts(renderer, ranking) == ["a", "b"]
    assert "1 completions cut at the token limit" in line


def test_a_tenth_is_held_out_and_no_prompt_is_in_both(renderer: Renderer) -> None:
    source = RankingSource("reward_model.data_path", "builtin:letters-ranked", "train", 50, 64, 64, 9)
    rankings, report = load_rankings(source, renderer)
    kept, heldout = hold_out_rankings(rankings, 500, 0, source, report)
    assert (len(kept), len(heldout), report.kept) == (45, 5, 45)
    assert not {tuple(row.prompt_ids) for row in kept} & {tuple(row.prompt_ids) for row in heldout}


def test_the_builtin_rankings_count_misplaced_letters() -> None:
    rows = list(builtin.rows("letters-ranked", "test"))
    assert len(rows) == 500
    full = 0
    for row in rows:
        right = sorted(row["prompt"].removeprefix("Sort: "))
        assert len(set(row["ranks"])) == len(row["ranks"]) >= 2
        full += len(row["ranks"]) == 4
        for response, rank in zip(row["responses"], row["ranks"], strict=True):
            assert sum(found != expected for found, expected in zip(response, right, strict=True)) == rank
    assert full > 450


def test_the_builtin_rankings_of_the_vowel_task_count_errors() -> None:
    rows = [*builtin.rows("vowels-ranked", "train"), *builtin.rows("vowels-ranked", "test")]
    kinds = set()
    for row in rows:
        word = row["prompt"].removeprefix("Vowels first: ")
        num_vowels = sum(letter in "aeiou" for letter in word)
        assert sorted(row["ranks"]) == [0, 1, 2, 3]
        for response, rank in zip(row["responses"], row["ranks"], strict=True):
            assert len(response) == len(word)
            exchanged = sum(letter not in "aeiou" for letter in response[:num_vowels])
            foreign = sum(letter not in word for letter in response)
            assert exchanged + foreign == rank
            assert builtin.has_vowels_first(row["prompt"], response, "") is (rank == 0)
            kinds.add((exchanged, foreign))
    # Both kinds of errors come up, alone and together.
    assert {(0, 0), (1, 0), (0, 1), (1, 1), (0, 3), (2, 1)} <= kinds


def test_columns_may_have_other_names_or_not_be_read(tmp_path: Path, renderer: Renderer) -> None:
    path = tmp_path / "rows.jsonl"
    row = {**FORMATS["pairs"], "margin": 1.5, "gap": 0.5, "subset": "easy", "section": "chat"}
    path.write_text(json.dumps(row) + "\n")
    source = RankingSource("reward_model.data_path", str(path), "train", None, 64, 64, 9)
    [renamed], _ = load_rankings(replace(source, margin_column="gap", subset_column="section"), renderer)
    assert (renamed.margin, renamed.subset) == (0.5, "chat")
    [unread], _ = load_rankings(replace(source, margin_column=None, subset_column=None), renderer)
    assert (unread.margin, unread.preference, unread.subset) == (0.0, 1.0, None)


def test_weights_of_subsets_name_every_subset_and_no_other() -> None:
    rows = [Ranking(0, [1], [[2], [3]], [0.0, 1.0], 1.0, 0.0, name) for name in ("easy", "hard")]
    check_subsets("subset_counts", {"easy": 1, "hard": 2}, rows)
    check_subsets("subset_counts", {}, rows)
    with pytest.raises(ConfigError, match="subset_counts names easy; the held-out rows have the subsets easy, hard"):
        check_subsets("subset_counts", {"easy": 1}, rows)
