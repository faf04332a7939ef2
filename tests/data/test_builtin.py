"""The quickstart's own data and model."""

from pathlib import Path

import pytest

from spin.data.builtin import has_vowels_first, is_sorted, rows, write_tiny_model
from spin.errors import ConfigError
from spin.models.policy import policy_digest


def test_the_three_sets_share_no_prompt_and_every_answer_is_right() -> None:
    sets = {key: list(rows(*key)) for key in (("letters", "train"), ("letters", "test"), ("letters-habit", "train"))}
    prompts = [row["prompt"] for part in sets.values() for row in part]
    assert len(prompts) == len(set(prompts)) == 16500
    for row in sets["letters", "test"]:
        assert row["completion"] == "".join(sorted(row["prompt"].removeprefix("Sort: ")))
    habit = [
        row["completion"] != "".join(sorted(row["prompt"].removeprefix("Sort: ")))
        for row in sets["letters-habit", "train"]
    ]
    assert 0.57 < sum(habit) / len(habit) < 0.63
    assert list(rows("letters", "test")) == sets["letters", "test"]


def test_vowels_have_right_answers_of_several_kinds_and_share_no_prompt() -> None:
    keys = (("vowels", "train"), ("vowels", "test"), ("vowels-habit", "train"))
    sets = {key: list(rows(*key)) for key in keys}
    prompts = [row["prompt"] for part in sets.values() for row in part]
    assert len(prompts) == len(set(prompts)) == 16500
    clean = [*sets["vowels", "train"], *sets["vowels", "test"]]
    assert all(has_vowels_first(row["prompt"], row["completion"], "") for row in clean)
    habit = sets["vowels-habit", "train"]
    flawed = [row for row in habit if not has_vowels_first(row["prompt"], row["completion"], row["completion"])]
    assert 0.57 < len(flawed) / len(habit) < 0.63


@pytest.mark.parametrize(
    ("answer", "right"),
    [("oaetsn", False), ("oestn", True), ("eonts", True), ("osetn", False), ("oest", False), ("Sure! oestn", False)],
)
def test_every_order_with_all_vowels_first_is_right(answer: str, right: bool) -> None:
    assert has_vowels_first("Vowels first: stone", answer, "oestn") is right
    assert has_vowels_first("Vowels first: rhythm", "mhtyhr", "") is True
    assert has_vowels_first("Vowels first: stone", "", "") is False


def test_the_letters_are_checked_against_the_prompt_and_not_against_a_flawed_truth() -> None:
    assert is_sorted("Sort: baca", "aabc", "Sure! aabc") is True
    assert is_sorted("Sort: baca", "Sure! aabc", "Sure! aabc") is False
    assert is_sorted("Sort: baca", "", "aabc") is False


def test_an_unknown_set_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="expected one of builtin:letters"):
        next(rows("sums", "train"))


def test_the_same_seed_writes_the_same_model(tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_tiny_model(tmp_path / name, seed)
    digests = [policy_digest(tmp_path / name) for name in "abc"]
    assert digests[0] == digests[1] != digests[2]
