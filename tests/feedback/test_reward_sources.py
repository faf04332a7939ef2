"""Reward sources on samples whose rewards are known, and the settings that are refused."""

import math
from typing import Any

import pytest

from spin.config.groups import FeedbackConfig, RewardConfig
from spin.config.run import to_plain
from spin.errors import ConfigError
from spin.feedback.reward_sources import ExactMatch, RewardSourceCache, check_reward_source
from spin.feedback.sample_group import SampleGroup
from tests.feedback.samples import (
    SAME_LENGTH,
    TEXT_LENGTH,
    TextLength,
    make_config,
    make_group,
    make_prompt,
    make_sample,
)


def test_exact_match_gives_1_for_the_answer_of_the_truth_and_0_for_another_a_truncated_or_no_answer() -> None:
    source = ExactMatch(make_config())
    truncated = SampleGroup(make_prompt(8), [make_sample(8, 0, "4", "length"), make_sample(8, 1, "4")], 2)
    groups = [make_group("4", "5", " 4 "), truncated, make_group("4", prompt_id=9, answer=None)]
    assert source.score(groups) == [[1.0, 0.0, 1.0], [0.0, 1.0], [0.0]]


def test_exact_match_compares_what_the_answer_pattern_finds() -> None:
    config = make_config()
    config.data.answer_pattern = r"= (\d+)"
    assert ExactMatch(config).score([make_group("2 + 2 = 4", "4", "= 1 = 4", "= 4 = 1")]) == [[1.0, 0.0, 1.0, 0.0]]


def test_a_source_may_be_given_by_name_or_as_a_mapping_with_weight_and_parameters() -> None:
    own = {"_target_": TEXT_LENGTH, "weight": 0.5, "parameters": {"most": 3}}
    feedback = FeedbackConfig(rows="best_worst_pairs", rewards=["exact_match", own])
    assert feedback.rewards == [
        RewardConfig("exact_match"),
        RewardConfig("TextLength", TEXT_LENGTH, 0.5, {"most": 3}),
    ]
    assert to_plain(feedback)["rewards"][0] == {
        "name": "exact_match",
        "_target_": None,
        "weight": 1.0,
        "parameters": {},
    }
    again = FeedbackConfig(rows="best_worst_pairs", rewards=to_plain(feedback)["rewards"])
    assert again == feedback


def test_a_source_is_made_once_until_its_settings_change() -> None:
    cache = RewardSourceCache()
    three = RewardConfig("length", TEXT_LENGTH, parameters={"most": 3})
    source = cache.get(three, make_config())
    assert isinstance(source, TextLength)
    assert source.score([make_group("ab", "abcd")]) == [[2.0, 3.0]]
    assert cache.get(RewardConfig("length", TEXT_LENGTH, parameters={"most": 3}), make_config()) is source
    assert cache.get(RewardConfig("length", TEXT_LENGTH, parameters={"most": 4}), make_config()) is not source


def test_a_function_is_called_with_the_texts_of_prompt_answer_and_truth_and_the_parameters() -> None:
    reward = RewardConfig("", SAME_LENGTH, parameters={"tolerance": 1})
    assert reward.name == "has_length_of_truth"
    # "It is 4" has 7 characters and the truth "4" has 1, the empty answer 0.
    [line] = check_reward_source(reward, make_config())
    assert "('What is 2 + 2?', 'It is 4', '4') gives 0, ('What is 2 + 2?', '', '4') gives 1" in line
    # The truth "It is 4" has 7 characters, the prompt "2 + 2?" has 6.
    rewards = RewardSourceCache().get(reward, make_config()).score([make_group("1234567", "12345678", "123456789")])
    assert rewards == [[1.0, 1.0, 0.0]]


def test_a_function_that_fails_is_reported_with_prompt_sample_and_answer() -> None:
    source = RewardSourceCache().get(RewardConfig("own", "tests.feedback.samples.share_of_letters"), make_config())
    assert source.score([make_group("a4")]) == [[0.5]]
    with pytest.raises(RuntimeError, match="reward function own failed for prompt 3, sample 1, answer '': ZeroDiv"):
        source.score([make_group("a4", "")])


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([3], "feedback.rewards: 3: expected a name such as exact_match, or a mapping with name, _target_, weight"),
        ([{"name": "exact_match", "wight": 2}], "feedback.rewards: no key wight; expected one of name, _target_"),
        (["a/b"], "feedback.rewards: name=a/b: expected letters, digits, _ and -"),
        ([{"weight": 2}], "feedback.rewards: name=: expected letters"),
        ([{"name": "exact_match", "weight": math.inf}], "weight=inf of exact_match: expected a finite number"),
        ([{"name": "exact_match", "weight": "a"}], "weight=a of exact_match: expected a finite number"),
        ([{"name": 3}], "feedback.rewards: name=3: expected letters"),
        ([{"name": "exact_match", "parameters": [1]}], "parameters=[1] of exact_match: expected a mapping"),
        (["exact_match", "exact_match"], "two sources are called exact_match; give one another name"),
    ],
)
def test_a_wrong_entry_is_refused_in_one_line(rewards: list[Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        FeedbackConfig(rows="best_worst_pairs", rewards=rewards)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (RewardConfig("exact"), "no source exact; expected one of exact_match"),
        (RewardConfig("exact_match", parameters={"pattern": "x"}), "got an unexpected keyword argument 'pattern'"),
        (RewardConfig("length", TEXT_LENGTH), "missing a required argument: 'most'"),
        (RewardConfig("own", "tests.feedback.none.Own"), "_target_=tests.feedback.none.Own cannot be imported"),
        (
            RewardConfig("own", "tests.feedback.samples.TEXT_LENGTH"),
            "expected a function, or a class with a method score",
        ),
        (
            RewardConfig("own", "tests.feedback.samples.make_group"),
            "returned SampleGroup(prompt=Prompt(prompt_id=3,",
        ),
        (RewardConfig("own", "tests.feedback.samples.make_sample"), "expected f(prompt, answer, truth) that returns a"),
        (RewardConfig("own", SAME_LENGTH, parameters={"most": 2}), "got an unexpected keyword argument 'most'"),
        (RewardConfig("own", "tests.feedback.samples.share_of_letters"), "raised ZeroDivisionError: division by zero"),
    ],
)
def test_a_source_that_cannot_be_made_is_refused_in_one_line(reward: RewardConfig, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_reward_source(reward, make_config())
    assert message in str(caught.value)
    assert str(caught.value).startswith("feedback.rewards: ")
    assert "\n" not in str(caught.value)
