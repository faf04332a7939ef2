"""Held-out metrics by hand: judging, sums over prompts, intervals, the stop rule."""

import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from spin.benchmark.best_policy import deciding_metric, find_best, record_best
from spin.benchmark.bootstrap import bootstrap, bootstrap_difference, is_worse
from spin.benchmark.heldout_answers import judge_answers, measure_repetition
from spin.benchmark.lm_eval import cut_at_stop, read_decoding
from spin.benchmark.metrics import compute_columns, compute_metrics
from spin.benchmark.stop_rule import count_without_improvement
from spin.benchmark.verifier import make_verifier
from spin.config.benchmark import BenchmarkConfig
from spin.config.groups import DataConfig, FeedbackConfig, ModelConfig
from spin.config.objective import SpinObjective
from spin.config.run import RunConfig
from spin.data.answer_matching import is_identical
from spin.data.records import HeldoutAnswer, Prompt, Sample
from spin.errors import ConfigError
from spin.preflight.checks import check_verifier
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import RunLayout

PROMPTS = [
    Prompt(0, [1], [5, 6, 2], "stop", "Sort: ba", "ab", "ab"),
    Prompt(1, [1], [7, 2], "stop", "Sort: c", "c", "c"),
]


def make_config(verifier: str | None = None) -> RunConfig:
    return RunConfig(
        "run",
        model=ModelConfig("builtin:tiny"),
        data=DataConfig("builtin:vowels"),
        feedback=FeedbackConfig(),
        objective=SpinObjective(),
        benchmark=BenchmarkConfig(verifier=verifier),
    )


EXACT = make_verifier(make_config())


def sample(prompt_id: int, ids: list[int], text: str, finish: str = "stop") -> Sample:
    return Sample(prompt_id, 0, ids, finish, -1.0, text)


def answers() -> list[HeldoutAnswer]:
    greedy = [sample(0, [5, 6, 2], "ab"), sample(1, [8, 2], "d")]
    sampled = [
        [sample(0, [5, 6, 2], "ab"), sample(0, [5, 5, 5, 5, 5], "aaaaa", "length")],
        [sample(1, [7, 2], "c"), sample(1, [7, 2], "c")],
    ]
    logps = [[-1.0, -1.0, -6.0], [-2.0, -2.0, -2.0]]  # the target, then both samples
    return judge_answers(PROMPTS, greedy, sampled, logps, [[-3.0, -7.0], [-2.5, -2.5]], None, EXACT)


VOWELS = Prompt(0, [1], [5, 2], "stop", "Vowels first: abe", "aeb", "aeb")
"""Two answers are right."""


def test_a_verifier_takes_the_place_of_exact_match() -> None:
    texts = ["aeb", "eab", "abe"]
    assert [EXACT(VOWELS, sample(0, [5, 2], text)) for text in texts] == [True, False, False]
    is_right = make_verifier(make_config("spin.data.builtin.has_vowels_first"))
    assert [is_right(VOWELS, sample(0, [5, 2], text)) for text in texts] == [True, True, False]
    assert not is_right(VOWELS, sample(0, [5], "eab", "length"))
    assert deciding_metric(make_config()) == "nll"
    assert deciding_metric(make_config("spin.data.builtin.has_vowels_first")) == "exact_match_greedy"


def test_a_verifier_that_fails_names_the_prompt() -> None:
    is_right = make_verifier(make_config("tests.feedback.samples.share_of_letters"))
    with pytest.raises(RuntimeError, match="benchmark.verifier=.* failed for held-out prompt 0, answer ''"):
        is_right(VOWELS, sample(0, [2], ""))


def test_a_verifier_is_tried_at_launch() -> None:
    check_verifier("spin.data.builtin.has_vowels_first")
    with pytest.raises(ConfigError, match="benchmark.verifier: .*share_of_letters.* raised ZeroDivisionError"):
        check_verifier("tests.feedback.samples.share_of_letters")
    with pytest.raises(ConfigError, match="benchmark.verifier=spin.nothing cannot be imported"):
        check_verifier("spin.nothing")


def test_metrics_are_the_sums_worked_out_by_hand() -> None:
    found = compute_metrics(answers())
    assert found["heldout"] == 2
    assert found["exact_match_greedy"] == 0.5
    assert found["exact_match_sampled"] == (0.5 + 1.0) / 2
    assert found["nll"] == pytest.approx((1.0 + 2.0) / (3 + 2))  # over tokens, not over prompts
    assert found["truncated"] == 0.25
    assert found["length_greedy"] == 2.5
    assert found["length_sampled"] == ((3 + 5) / 2 + 2) / 2
    assert found["repetition_sampled"] == 0.125  # of two 4-grams one came before, in one answer of four
    assert found["kl_to_start"] == pytest.approx(((2.0 + 1.0) / 2 + 0.5) / 2)
    assert found["win_rate"] is None
    assert "win_rate" not in found["intervals"]


def test_the_start_is_no_distance_from_itself_and_short_answers_repeat_nothing() -> None:
    assert (
        judge_answers(PROMPTS[:1], [sample(0, [2], "")], [[sample(0, [2], "")]], [[-1.0, -4.0]], None, None, EXACT)[
            0
        ].kl
        == 0.0
    )
    assert measure_repetition([5, 5, 5]) == 0.0
    assert measure_repetition([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)


def test_win_rate_leaves_out_prompts_where_the_opponent_gave_the_target() -> None:
    opponent = answers()  # its first answer to the first prompt is [5, 6, 2], the target; to the second as well
    other = [
        opponent[0],
        replace(opponent[1], sampled_ids=[8, 2], sampled_text="d", target_logp=-2.0, sampled_logp=-1.0),
    ]
    logps = [[-1.0, -1.0, -1.0], [-1.5, -2.0, -1.75]]  # last: the opponent's answer under the policy
    greedy = [sample(0, [5, 6, 2], "ab"), sample(1, [7, 2], "c")]
    rows = judge_answers(PROMPTS, greedy, [[greedy[0]], [greedy[1]]], logps, None, other, EXACT)
    assert math.isnan(rows[0].margin)
    assert rows[1].margin == pytest.approx((-1.5 + 2.0) - (-1.75 + 1.0))
    assert compute_metrics(rows)["win_rate"] == 1.0


def test_an_interval_of_a_share_is_that_of_the_binomial() -> None:
    hits = np.array([1.0] * 300 + [0.0] * 100)
    value, low, high = bootstrap({"x": (hits, np.ones(400))}, seed=0)["x"]
    spread = 1.96 * math.sqrt(0.75 * 0.25 / 400)  # the normal approximation: 0.0424
    assert value == 0.75
    assert (low, high) == pytest.approx((0.75 - spread, 0.75 + spread), abs=0.006)
    assert bootstrap({"x": (hits, np.ones(400))}, seed=0)["x"] == (value, low, high)  # seeded


def test_the_interval_of_a_difference_is_paired() -> None:
    rng = np.random.default_rng(3)
    base = rng.normal(size=500)
    ours, theirs = {"nll": (base + 0.1, np.ones(500))}, {"nll": (base, np.ones(500))}
    value, low, high = bootstrap_difference(ours, theirs, ["nll"], seed=0)["nll"]
    assert (value, low, high) == pytest.approx((0.1, 0.1, 0.1))  # unpaired it would be ±0.12
    assert is_worse((low, high), "nll")
    assert not is_worse((low, high), "exact_match_greedy")


def test_changes_are_against_the_policy_before() -> None:
    found = compute_metrics(answers(), answers())
    assert (found["nll_change"], found["intervals"]["nll_change"]) == (0.0, [0.0, 0.0])
    assert set(compute_columns(answers())) <= set(found)


@pytest.mark.parametrize(
    ("values", "name", "min_delta", "position", "count"),
    [
        ([0.5, 0.6, 0.7], "exact_match_greedy", 0.0, 2, 0),
        ([0.5, 0.7, 0.6, 0.7], "exact_match_greedy", 0.0, 1, 2),  # the earliest of equals; equal is not better
        ([0.5, 0.4, 0.45], "nll", 0.0, 1, 1),
        ([0.50, 0.49, 0.48], "nll", 0.05, 2, 2),  # better, but by less than min_delta
        ([None, 0.9, 0.8], "win_rate", 0.0, 1, 1),  # the start has no opponent
        ([0.5, 0.6], "nll", 0.0, 0, 1),  # no iteration beats the start
    ],
)
def test_the_best_and_how_long_nothing_was_better(
    values: list[float | None], name: str, min_delta: float, position: int, count: int
) -> None:
    assert find_best(values, name) == position
    assert count_without_improvement(values, name, min_delta) == count


def test_the_best_policy_is_linked_and_linked_anew(tmp_path: Path) -> None:
    feedback = FeedbackConfig()
    config = RunConfig(
        str(tmp_path), model=ModelConfig("m"), data=DataConfig("d"), feedback=feedback, objective=SpinObjective()
    )
    layout, elsewhere = RunLayout(tmp_path / "run"), tmp_path / "model"
    ledger = Ledger(layout.ledger)
    measured = [(layout.start, {"nll": 0.5}), (layout.iteration(0), {"nll": 0.6})]
    layout.root.mkdir()
    record_best(config, layout, ledger, measured, elsewhere)
    assert os.readlink(layout.best) == str(elsewhere)  # a start that was given is where it is
    record_best(config, layout, ledger, [*measured, (layout.iteration(1), {"nll": 0.4})], elsewhere)
    assert os.readlink(layout.best) == "iterations/001/policy"
    assert (ledger.get("best") or {})["value"] == 0.4
    layout.best.unlink()
    layout.best.mkdir()  # what a copy that follows links leaves
    record_best(config, layout, ledger, measured, elsewhere)
    assert os.readlink(layout.best) == str(elsewhere)


def test_a_task_is_decoded_as_it_says_and_its_answer_ends_before_the_first_stop_text() -> None:
    assert read_decoding({"until": "\n", "max_gen_toks": 5}, 8) == (("\n",), 5, 0.0, 1.0)
    assert read_decoding({"temperature": 0.7}, 8) == ((), 8, 0.0, 1.0)  # greedy without do_sample
    assert read_decoding({"do_sample": True, "temperature": 0.7, "top_p": 0.9}, 8) == ((), 8, 0.7, 0.9)
    assert cut_at_stop("abcd", ["cd", "bc"]) == "a"  # the first in the text, though the two overlap
    assert cut_at_stop("abcd", ["", "x"]) == "abcd"


def test_a_sample_with_the_words_of_the_target_in_other_tokens_is_the_target() -> None:
    target = PROMPTS[0]  # "ab" as the tokens 5 and 6
    assert is_identical(target, [5, 6, 2], "stop", "ab")
    assert is_identical(target, [9, 2], "stop", "ab")
    assert not is_identical(target, [9], "length", "ab")  # it went on after these words
    assert not is_identical(target, [9, 2], "stop", "a b")
    truncated = replace(target, completion_ids=[5, 6], finish_reason="length")
    assert is_identical(truncated, [5, 6], "length", "ab")
    assert not is_identical(truncated, [9, 2], "stop", "ab")
