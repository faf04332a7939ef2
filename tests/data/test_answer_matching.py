"""The search for an answer comes to an end."""

import time

import pytest
import yaml

from spin.config.run import CONF_DIR
from spin.data import answer_matching
from spin.data.answer_matching import EndlessPattern, extract_answer, is_right
from spin.data.records import Prompt, Sample

ENDLESS = "((?:a|aa)+)$"
"""The time for a text of a and one other letter doubles with every second a."""


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("She sells 16 - 3 = <<16-3=13>>13 eggs.\n#### 13", "13"),
        ("The profit is $1,234.00.", "1234"),
        ("\\boxed{42}", "42"),
        ("Total: **-7** dollars", "-7"),
        ("It takes 3.5 hours.", None),
        ("I do not know.", None),
    ],
)
def test_the_recipe_for_gsm8k_compares_the_last_whole_number(text: str, answer: str | None) -> None:
    recipe = yaml.safe_load((CONF_DIR / "experiment" / "gsm8k.yaml").read_text())
    assert extract_answer(text, recipe["data"]["answer_pattern"]) == answer


def test_a_pattern_without_end_is_refused_for_a_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_matching, "MATCH_SECONDS", 0.2)
    start = time.monotonic()
    with pytest.raises(EndlessPattern, match=r"in a text of 81 characters did not end within 0.2 s"):
        extract_answer("a" * 80 + "b", ENDLESS)
    assert time.monotonic() - start < 5


def test_a_sample_in_which_the_search_does_not_end_is_not_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer_matching, "MATCH_SECONDS", 0.2)
    prompt = Prompt(0, [1], [2], "stop", "q", "aa", "aa")
    assert is_right(prompt, Sample(0, 0, [2], "stop", -1.0, "aa"), ENDLESS)
    assert not is_right(prompt, Sample(0, 0, [2], "stop", -1.0, "a" * 80 + "b"), ENDLESS)
