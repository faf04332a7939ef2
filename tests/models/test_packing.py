"""Packed sequences worked out by hand, and micro-batches."""

import random

import pytest

from spin.models.packing import Group, micro_batches, one_by_one, pack, token_cost
from spin.models.token_budget import auto_token_budget, bytes_per_token


def test_the_prompt_stands_once_and_positions_restart_behind_it() -> None:
    packed = pack([Group([5, 6, 7], [[1, 2, 3], [4]]), Group([8], [[9, 9]])])
    assert packed.input_ids.tolist() == [5, 6, 7, 1, 2, 8, 9]  # the last token of a completion predicts nothing
    assert packed.position_ids.tolist() == [0, 1, 2, 3, 4, 0, 1]
    assert packed.kept.tolist() == [2, 3, 4, 5, 6]
    assert packed.labels.tolist() == [1, 2, 3, 4, 9, 9]
    assert packed.kept[packed.predictors].tolist() == [2, 3, 4, 2, 5, 6]
    assert packed.owners.tolist() == [0, 0, 0, 1, 2, 2]
    assert packed.completions == 3
    assert [(span.start, span.prompt, span.fed, span.end) for span in packed.spans] == [
        (0, 3, (2, 0), 5),
        (5, 1, (1,), 7),
    ]


def test_plain_packing_repeats_the_prompt() -> None:
    groups = one_by_one([Group([5, 6], [[1, 2], [3, 4]])])
    assert pack(groups).input_ids.tolist() == [5, 6, 1, 5, 6, 3]
    assert [group.completions for group in groups] == [[[1, 2]], [[3, 4]]]


@pytest.mark.parametrize(("prompt", "completions"), [([], [[1]]), ([1], []), ([1], [[2], []])])
def test_an_empty_part_is_refused(prompt: list[int], completions: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="expected at least one token"):
        Group(prompt, completions)


def some_groups() -> list[Group]:
    rng = random.Random(0)
    return [
        Group([1] * rng.randint(1, 60), [[2] * rng.randint(1, 40) for _ in range(rng.randint(1, 3))]) for _ in range(50)
    ]


@pytest.mark.parametrize("layout", ["shared", "packed", "padded"])
def test_micro_batches_hold_each_group_once_within_the_budget(layout: str) -> None:
    groups = some_groups()
    batches = micro_batches(groups, 150, layout)
    assert sorted(index for batch in batches for index in batch) == list(range(50))
    assert batches == micro_batches(groups, 150, layout)
    for batch in batches:
        rows = sum(len(groups[i].completions) for i in batch)
        cost = (
            rows * max(groups[i].longest for i in batch)
            if layout == "padded"
            else sum(token_cost(groups[i], layout) for i in batch)
        )
        assert cost <= 150 or len(batch) == 1


def test_micro_batches_of_the_packed_layouts_are_full() -> None:
    groups = some_groups()
    total = sum(token_cost(group, "shared") for group in groups)
    assert len(micro_batches(groups, 400)) <= total / 400 * 1.1 + 1


def test_a_group_above_the_budget_stands_alone() -> None:
    groups = [Group([1] * 4, [[2] * 4]), Group([1] * 90, [[2] * 20]), Group([1] * 5, [[2] * 5])]
    assert micro_batches(groups, 20) == [[1], [2, 0]]


def test_the_cost_counts_the_prompt_once_or_for_each_completion() -> None:
    group = Group([1] * 10, [[2] * 3, [2] * 4])
    assert (token_cost(group, "shared"), token_cost(group, "packed")) == (17, 27)


def test_a_budget_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least 1"):
        micro_batches(some_groups(), 0)


def test_the_automatic_budget_follows_memory_and_shape_and_is_capped_on_a_cpu() -> None:
    from transformers import LlamaConfig

    small = LlamaConfig(hidden_size=64, intermediate_size=128, num_hidden_layers=2)
    large = LlamaConfig(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32)
    assert auto_token_budget(small, "cpu", 4, 8 << 30) == 2048
    assert auto_token_budget(large, "cpu", 4, 8 << 30) < auto_token_budget(large, "cpu", 2, 8 << 30) < 2048
    assert auto_token_budget(large, "cpu", 4, 8 << 30, checkpointing=True) > auto_token_budget(large, "cpu", 4, 8 << 30)
    assert auto_token_budget(large, "cpu", 4, 0) == 256
    # On a GPU: 6 GiB for the head, then 80 % of the rest, at 2.1 or 1.4 times the bytes of a token.
    token = bytes_per_token(small, 2)
    free = (6 << 30) + 100_000_000
    assert auto_token_budget(small, "cuda", 2, free) == int(80_000_000 / (2.1 * token))
    assert auto_token_budget(small, "cuda", 2, free, compiled=True) == int(80_000_000 / (1.4 * token))


def test_the_last_token_can_be_fed_and_its_place_is_known() -> None:
    packed = pack([Group([5, 6, 7], [[1, 2, 3], [4]]), Group([8], [[9, 9]])], feed_last=True)
    assert packed.input_ids.tolist() == [5, 6, 7, 1, 2, 3, 4, 8, 9, 9]
    assert packed.position_ids.tolist() == [0, 1, 2, 3, 4, 5, 3, 0, 1, 2]
    assert packed.input_ids[packed.kept].tolist() == [7, 1, 2, 3, 4, 8, 9, 9]
    # What predicts a token is as before: the token in front of it.
    assert packed.input_ids[packed.kept[packed.predictors]].tolist() == [7, 1, 2, 7, 8, 9]
    assert packed.input_ids[packed.kept[packed.ends]].tolist() == [3, 4, 9]
