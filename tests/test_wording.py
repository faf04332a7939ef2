"""Numbers with their nouns."""

import pytest

from spin.wording import count_of


@pytest.mark.parametrize(("number", "text"), [(0, "0 policies"), (1, "1 policy"), (2000, "2,000 policies")])
def test_a_number_has_the_right_form_of_its_noun(number: int, text: str) -> None:
    assert count_of(number, "policy", "policies") == text


def test_most_nouns_take_an_s() -> None:
    assert [count_of(number, "row") for number in (1, 2)] == ["1 row", "2 rows"]
