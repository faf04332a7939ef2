"""Labels of a judge: their tokens, their probabilities, and ratings on a scale."""

from __future__ import annotations

import math

import pytest

from spin.errors import ConfigError
from spin.feedback.judge_labels import find_label_ids, restrict_to_labels


class Vocabulary:
    """A tokenizer that knows only how each id reads."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts
        self.all_special_ids = [0]

    def __len__(self) -> int:
        return len(self.texts)

    def batch_decode(self, sequences: list[list[int]]) -> list[str]:
        return [self.texts[ids[0]] for ids in sequences]


def test_all_tokens_that_read_as_a_label_belong_to_it_except_special_ones() -> None:
    vocabulary = Vocabulary(["1", "1", "2", " 1", "12", "2\n"])
    assert find_label_ids(vocabulary, ["1", "2"]) == [[1, 3], [2, 5]]


def test_a_label_of_two_tokens_is_refused() -> None:
    with pytest.raises(ConfigError, match="no single token for 10; expected labels of one token each"):
        find_label_ids(Vocabulary(["<s>", "1", "0"]), ["1", "10"])


def test_labels_with_more_tokens_than_the_engine_returns_are_refused() -> None:
    with pytest.raises(ConfigError, match="have 129 tokens, expected at most 128"):
        find_label_ids(Vocabulary(["<s>"] + ["1"] * 129), ["1"])


def test_probabilities_are_restricted_to_the_labels() -> None:
    found = restrict_to_labels({7: -0.3, 8: -1.6, 9: -2.9}, [[7], [8]])
    assert found.probabilities == pytest.approx([0.785835, 0.214165], abs=1e-6)
    assert found.mass == pytest.approx(0.942715, abs=1e-6)


def test_the_tokens_of_a_label_are_added_and_a_missing_one_counts_as_zero() -> None:
    found = restrict_to_labels({1: math.log(0.2), 2: math.log(0.3), 3: math.log(0.5)}, [[1, 2], [3, 4]])
    assert found.probabilities == pytest.approx([0.5, 0.5])


def test_without_any_label_there_is_no_probability() -> None:
    found = restrict_to_labels({5: -0.1}, [[1], [2]])
    assert found.mass == 0
    assert math.isnan(found.probabilities[0])


def test_a_rating_is_the_expectation_over_the_scale_from_minus_one_to_one() -> None:
    logps = {7: math.log(0.20), 8: math.log(0.50), 9: math.log(0.25)}
    found = restrict_to_labels(logps, [[label] for label in range(1, 11)])
    assert found.mass == pytest.approx(0.95)
    # E = (7·0.2 + 8·0.5 + 9·0.25) / 0.95 = 8.052632, then (E − 5.5) / 4.5.
    assert found.expectation(range(1, 11)) == pytest.approx(0.567251, abs=1e-6)
