"""Answers of the start policy beside the pairs of a later iteration."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from spin.config.objective import SftObjective, TspinObjective
from spin.config.run import RunConfig
from spin.data.examples import from_pair
from spin.data.parquet import write_rows
from spin.data.records import Pair, Rating, Sample
from spin.errors import ConfigError
from spin.feedback.feedback_checks import check_start_answers
from spin.feedback.start_answers import add_start_answers
from tests.feedback.samples import make_config

PAIR = Pair(7, 3, "self-play", 2, [1], [2], [3], math.nan, math.nan, math.nan)


@pytest.fixture
def start_samples(tmp_path: Path) -> str:
    path = tmp_path / "samples.parquet"
    write_rows(path, Sample, [Sample(7, index, [40 + index], "stop", -1.0, "") for index in range(2)])
    return str(path)


def test_a_pair_gets_an_answer_of_iteration_0_to_its_prompt(start_samples: str) -> None:
    # Two answers of iteration 0: that with the index 3 % 2.
    [pair] = add_start_answers([PAIR], start_samples)
    assert isinstance(pair, Pair)
    assert pair.start_ids == [41]
    pair = replace(pair, reference_start_logp=-2.0)
    assert [(half.ids, half.desirable) for half in from_pair(pair).completions] == [
        ([2], True),
        ([3], False),
        ([41], False),
    ]
    assert from_pair(pair).completions[2].reference_logp == -2.0


def test_pairs_of_iteration_0_and_of_other_prompts_get_none(start_samples: str) -> None:
    rating = Rating(7, 0, 1, [1], [2], True, math.nan)
    rows = [replace(PAIR, iteration=0), replace(PAIR, prompt_id=8), rating]
    assert add_start_answers(rows, start_samples) == rows


def test_a_replayed_pair_loses_an_answer_that_the_objective_does_not_need() -> None:
    [pair] = add_start_answers([replace(PAIR, start_ids=[41], reference_start_logp=-2.0)], None)
    assert isinstance(pair, Pair)
    assert pair.start_ids == []
    assert math.isnan(pair.reference_start_logp)


def make_iteration(objective: SftObjective | TspinObjective) -> RunConfig:
    config = make_config(1, rows="truth_pairs")
    config.objective = objective
    return config


def test_an_iteration_0_without_samples_is_refused() -> None:
    check_start_answers([make_iteration(TspinObjective()), make_iteration(TspinObjective())])
    with pytest.raises(ConfigError, match=r"iteration 1: objective=tspin needs the answers that iteration 0 samples"):
        check_start_answers([make_iteration(SftObjective()), make_iteration(TspinObjective())])
