"""How the rows of a batch are shared by workers."""

from spin.data.examples import Completion, Example
from spin.training.passes import share_of_worker


def row(prompt: int, completion_tokens: int) -> Example:
    return Example("row", [prompt], (Completion([1] * completion_tokens, True),))


def test_the_workers_get_about_as_many_tokens_each() -> None:
    # With one token of prompt: 100, 40, 30, 20 and 10 tokens.
    rows = [row(0, 9), row(1, 99), row(2, 29), row(3, 39), row(4, 19)]
    assert share_of_worker(rows, 0, 2) == [1]
    assert share_of_worker(rows, 1, 2) == [0, 2, 3, 4]


def test_rows_of_one_prompt_stay_together_and_the_prompt_counts_once() -> None:
    # The first prompt has 1 + 10 + 10 tokens, the second 1 + 12, the third 1 + 9.
    rows = [row(0, 10), row(1, 12), row(0, 10), row(2, 9)]
    assert share_of_worker(rows, 0, 2) == [0, 2]
    assert share_of_worker(rows, 1, 2) == [1, 3]


def test_rows_of_one_prompt_are_parted_where_a_worker_would_have_none() -> None:
    rows = [row(0, 5), row(0, 5), row(0, 5), row(0, 5)]
    assert [share_of_worker(rows, rank, 2) for rank in range(2)] == [[0, 2], [1, 3]]


def test_every_row_has_one_worker() -> None:
    rows = [row(number % 3, 1 + number * 7 % 11) for number in range(20)]
    shares = [share_of_worker(rows, rank, 3) for rank in range(3)]
    assert sorted(sum(shares, [])) == list(range(20))


def test_a_worker_may_have_no_rows() -> None:
    assert [share_of_worker([row(0, 5)], rank, 2) for rank in range(2)] == [[0], []]
