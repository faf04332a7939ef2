"""The quickstart's own data and model."""

from pathlib import Path

import pytest

from spin.data.builtin import has_vowels_first, is_sorted, rows, write_tiny_model
from spin.errors import ConfigError
from spin.feedback.judge_template import load_template
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


def is_better(answer: str) -> bool:
    """Whether an answer begins with no needless phrase: it has small letters alone."""
    return answer.isalpha() and answer.islower()


def test_comparisons_follow_the_rule_and_those_of_the_test_set_have_a_better_answer() -> None:
    decided = []
    for split in ("train", "test"):
        for row in rows("letters-judge", split):
            _, first, second = row["prompt"].splitlines()
            better = [is_better(first.removeprefix("A: ")), is_better(second.removeprefix("B: "))]
            decided.append(better[0] != better[1])
            if decided[-1]:
                assert row["completion"] == f"Better: {'AB'[better.index(True)]}"
    assert 0.72 < sum(decided[:8000]) / 8000 < 0.78
    assert all(decided[8000:])


def test_scores_follow_the_rule() -> None:
    both = list(rows("letters-self", "train"))
    # Each word is asked for twice: how good an answer is, and for an answer.
    assert len(both) == 16000
    for row in both[0::2]:
        _, answer, scale = row["prompt"].splitlines()
        assert scale == "Score from 0 to 5"
        expected = 5 if is_better(answer.removeprefix("Answer: ")) else 0
        assert row["completion"] == f"Score: {expected}"
    assert {row["prompt"] for row in both[1::2]} == {row["prompt"] for row in rows("letters-habit", "train")}


def test_the_questions_have_the_form_of_the_templates() -> None:
    row = next(rows("letters-judge", "test"))
    prompt, first, second = row["prompt"].splitlines()
    answers = [first.removeprefix("A: "), second.removeprefix("B: ")]
    question = load_template("plain", ["A", "B"], 100).ask(prompt, answers)
    assert (question.text, question.ending) == (row["prompt"], row["completion"][:-1])
    row = next(rows("letters-self", "train"))
    prompt, answer, _ = row["prompt"].splitlines()
    template = load_template("plain_score", [str(number) for number in range(6)], 100, 1)
    question = template.ask(prompt, [answer.removeprefix("Answer: ")])
    assert (question.text, question.ending) == (row["prompt"], row["completion"][:-1])
