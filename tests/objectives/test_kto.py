"""KTO's mismatched completions and the statistics of its step."""

import pytest
import torch

from spin.config.objective import KtoObjective, KtoPairObjective
from spin.data.examples import Completion, Example
from spin.objectives.kto import KtoLoss, KtoPairLoss, choose_mismatched


def pair(prompt: int, chosen: int, rejected: int) -> Example:
    return Example(f"{prompt}", [prompt], (Completion([chosen], True), Completion([rejected], False)))


def test_a_mismatched_completion_comes_from_the_next_row_with_another_prompt() -> None:
    rows = [pair(1, 10, 11), pair(1, 10, 12), pair(2, 20, 21), pair(3, 30, 31), pair(1, 10, 13)]
    others = choose_mismatched(rows)
    assert [other.prompt_ids for other in others] == [[1], [1], [2], [3], [1]]
    assert [other.completions[0].ids for other in others] == [
        [20],
        [20],
        [30],
        [10],
        [20],
    ]  # the last looks past the first two: they share its prompt


def test_rows_of_one_prompt_have_no_mismatch() -> None:
    assert [other.completions for other in choose_mismatched([pair(1, 10, 11), pair(1, 10, 12)])] == [(), ()]


def test_prepared_rows_carry_the_mismatched_completions_with_the_reference() -> None:
    rows = [pair(1, 10, 11), pair(2, 20, 21)]
    kto = KtoLoss(KtoObjective())
    prepared = kto.prepare_rows(rows, lambda asked: [row.with_reference([-1.0, -2.0]) for row in asked])
    assert [row.completions for row in prepared] == [row.completions for row in rows]
    assert [completion.ids for completion in prepared[0].mismatched] == [[20], [21]]
    assert [completion.reference_logp for completion in prepared[0].mismatched] == [-1.0, -2.0]
    assert [row.prompt_ids for row in kto.statistics_rows(prepared)] == [[1], [2]]
    assert kto.statistics_rows(kto.prepare_rows(rows[:1], lambda asked: asked)) == []


def test_the_baseline_is_a_mean_that_is_at_least_0() -> None:
    # Three desirable completions with a sum of 6, one undesirable with −2.
    sums = torch.tensor([[6.0, 3.0], [-2.0, 1.0]], dtype=torch.float64)
    assert KtoLoss(KtoObjective()).reduce_statistics(sums).item() == pytest.approx(4 / 4)
    assert KtoLoss(KtoObjective()).reduce_statistics(-sums).item() == 0
    assert KtoLoss(KtoObjective()).reduce_statistics(0 * sums).item() == 0
    assert KtoPairLoss(KtoPairObjective()).reduce_statistics(sums).tolist() == [2.0, 0.0]
