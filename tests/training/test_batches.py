"""The rows of a stage: order and groups."""

from collections.abc import Iterator

from spin.data.examples import Completion, Example
from spin.training.batches import batches, epoch_order, group_by_prompt
from spin.training.row_stream import RowStream


def pair(prompt: int, real: int, generated: int) -> Example:
    return Example(f"{prompt}", [prompt], (Completion([real], True), Completion([generated], False)))


def test_an_epoch_takes_every_row_once_in_an_order_of_its_own_and_keeps_a_prompts_rows_together() -> None:
    rows = [pair(i // 2, 100, i) for i in range(40)]
    order = epoch_order(rows, 0, 1, 0)
    assert sorted(order) == list(range(40))
    assert order != list(range(40))
    assert order == epoch_order(rows, 0, 1, 0)
    assert order != epoch_order(rows, 0, 1, 1) != epoch_order(rows, 0, 2, 1)
    assert all(a // 2 == b // 2 for a, b in zip(order[::2], order[1::2], strict=True))


def test_every_stretch_of_the_order_mixes_both_labels() -> None:
    rows = [Example(f"{i}", [i], (Completion([1], i < 10),)) for i in range(40)]  # 10 desirable, 30 not, sorted
    order = epoch_order(rows, 0, 0, 0)
    for start in range(0, 40, 4):
        assert sum(rows[i].completions[0].desirable for i in order[start : start + 4]) == 1


def test_no_prompt_and_no_completion_is_computed_twice() -> None:
    groups, places = group_by_prompt([pair(1, 7, 8), pair(2, 7, 7), pair(1, 7, 9)])
    assert [(group.prompt_ids, group.completions) for group in groups] == [([1], [[7], [8], [9]]), ([2], [[7]])]
    assert places == [(0, (0, 1)), (1, (0, 0)), (0, (0, 2))]


def test_the_first_epoch_takes_the_chunks_in_turn_as_they_arrive_and_the_next_one_mixes_them() -> None:
    arrived = []

    def chunks() -> Iterator[list[Example]]:
        for number in range(3):
            arrived.append(number)
            yield [pair(10 * number + i, 1, 2) for i in range(4)]

    rows = RowStream(chunks(), [4, 4, 4])
    steps = batches(rows, 0, 1, 2, 3)
    first = [next(steps)]
    assert arrived == [0]  # three rows are enough for a step: the next chunk is not waited for
    assert not rows.complete
    assert rows.steps(3) == 4
    first += [next(steps) for _ in range(3)]
    order = [index for indices, _ in first for index in indices]
    assert [sorted(order[at : at + 4]) for at in (0, 4, 8)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    second = list(steps)
    later = [index for indices, _ in second for index in indices]
    assert sorted(later) == list(range(12))
    assert sorted(later[:4]) != [0, 1, 2, 3]
    assert [place for _, place in first + second] == list(range(8))  # nothing was dropped: a step is a place


def test_the_schedule_goes_by_the_rows_that_there_would_be_if_none_were_dropped() -> None:
    rows = RowStream(iter([[pair(i, 1, 2) for i in range(4)], [], [pair(9, 1, 2)] * 2]), [8, 8, 8])
    steps = list(batches(rows, 0, 1, 2, 2))
    # Epoch of 24 rows in 12 places. First chunk: its 4 rows stand at 0, 2, 4, 6, the middle ones
    # of the batches at 2 and 6; third: 16 and 20, the middle is 20.
    assert [place for _, place in steps[:3]] == [1, 3, 10]
    # 6 rows at 0, 4, … 20 of the second epoch, which begins at 12: the middle ones are 4, 12, 20.
    assert [place for _, place in steps[3:]] == [14, 18, 22]
    assert rows.steps(2) == 3


def test_a_stage_without_rows_has_no_step_and_one_by_steps_goes_round_until_they_are_done() -> None:
    assert list(batches(RowStream(iter([[], []]), [4, 4]), 0, 0, None, 2)) == []
    endless = batches(RowStream.whole([pair(i, 1, 2) for i in range(3)]), 0, 0, None, 2)
    assert [len(next(endless)[0]) for _ in range(5)] == [2, 1, 2, 1, 2]
