"""The rows of a stage: order, groups, and KTO's mismatched completions."""

from spin.examples import Example, Half, epoch_order, merge, mismatched


def pair(prompt: int, real: int, generated: int) -> Example:
    return Example(f"{prompt}", [prompt], (Half([real], True), Half([generated], False)))


def test_an_epoch_takes_every_row_once_in_an_order_of_its_own_and_keeps_a_prompts_rows_together() -> None:
    rows = [pair(i // 2, 100, i) for i in range(40)]
    order = epoch_order(rows, 0, 1, 0)
    assert sorted(order) == list(range(40))
    assert order != list(range(40))
    assert order == epoch_order(rows, 0, 1, 0)
    assert order != epoch_order(rows, 0, 1, 1) != epoch_order(rows, 0, 2, 1)
    assert all(a // 2 == b // 2 for a, b in zip(order[::2], order[1::2], strict=True))


def test_every_stretch_of_the_order_mixes_both_labels() -> None:
    rows = [Example(f"{i}", [i], (Half([1], i < 10),)) for i in range(40)]  # 10 desirable, 30 not, sorted
    order = epoch_order(rows, 0, 0, 0)
    for start in range(0, 40, 4):
        assert sum(rows[i].halves[0].desirable for i in order[start : start + 4]) == 1


def test_no_prompt_and_no_completion_is_computed_twice() -> None:
    groups, places = merge([pair(1, 7, 8), pair(2, 7, 7), pair(1, 7, 9)])
    assert [(group.prompt_ids, group.completions) for group in groups] == [([1], [[7], [8], [9]]), ([2], [[7]])]
    assert places == [(0, (0, 1)), (1, (0, 0)), (0, (0, 2))]


def test_a_mismatched_completion_comes_from_the_next_row_with_another_prompt() -> None:
    rows = [pair(1, 10, 11), pair(1, 10, 12), pair(2, 20, 21), pair(3, 30, 31), pair(1, 10, 13)]
    others = mismatched(rows)
    assert [other.prompt_ids for other in others] == [[1], [1], [2], [3], [1]]
    assert [other.halves[0].ids for other in others] == [[20], [20], [30], [10], [20]]  # the last looks past the first two: they share its prompt


def test_rows_of_one_prompt_have_no_mismatch() -> None:
    assert [other.halves for other in mismatched([pair(1, 10, 11), pair(1, 10, 12)])] == [(), ()]
