"""The loss of reward models, with values worked out by hand, against TRL, and its invariances."""

import itertools
import math
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from spin.config.reward_model import BradleyTerryObjective, Ties
from spin.data.examples import from_ranking
from spin.data.records import Ranking
from spin.models.token_logps import TokenLogps
from spin.objectives.completion_logps import Member
from spin.objectives.objective import StepBatch
from spin.objectives.registry import make_objective


def ranking(ranks: list[float], preference: float = 1.0, margin: float = 0.0) -> Ranking:
    completions = [[10 + place] for place in range(len(ranks))]
    return Ranking(0, [1], completions, ranks, preference, margin, None)


def compute(rows: list[Ranking], rewards: list[float], **settings: Any) -> tuple[float, list[float], dict[str, Any]]:
    """Loss, gradient by reward and metrics of a step over rankings; rewards stand row by row."""
    objective = make_objective(BradleyTerryObjective(**settings))
    examples = [from_ranking(row) for row in rows]
    batch = StepBatch(examples, objective)
    members = []
    first = 0
    for example in examples:
        members.append(Member(example, tuple(range(first, first + len(example.completions)))))
        first += len(example.completions)
    values = torch.tensor(rewards, dtype=torch.float64, requires_grad=True)
    output = objective.compute_loss(batch, TokenLogps(values, torch.arange(first), first), members, None)
    output.loss.backward()
    assert values.grad is not None
    metrics = objective.name_metrics(batch, output.metric_sums, None)
    return output.loss.item(), values.grad.tolist(), metrics


def test_three_ranked_answers_give_the_mean_over_their_three_pairs() -> None:
    # softplus(-0.5) = 0.474077, softplus(-1.5) = 0.201413, softplus(-1) = 0.313262
    loss, gradient, metrics = compute([ranking([0, 1, 2])], [1.0, 0.5, -0.5])
    assert loss == pytest.approx(0.329584, abs=1e-6)
    assert gradient == pytest.approx([-0.186655, 0.036200, 0.150456], abs=1e-6)
    assert metrics["rewards/accuracies"] == 1
    assert metrics["rewards/margins"] == pytest.approx((0.5 + 1.5 + 1.0) / 3)
    assert metrics["rewards/mean"] == pytest.approx(1 / 3)
    # The prompt of one token is counted with each of the three answers of one token.
    assert metrics["tokens"] == 6


def test_a_tie_is_left_out_or_counts_as_half_a_preference() -> None:
    # Dropped: (0.474077 + 0.201413) / 2. Half: the pair of gap 1 costs 0.313262 + 1/2.
    assert compute([ranking([0, 1, 1])], [1.0, 0.5, -0.5])[0] == pytest.approx(0.337745, abs=1e-6)
    assert compute([ranking([0, 1, 1])], [1.0, 0.5, -0.5], ties=Ties.half)[0] == pytest.approx(0.496251, abs=1e-6)


def test_centring_adds_the_squared_sums_of_the_pairs() -> None:
    # 0.01 · (1.5² + 0.5² + 0²) / 3
    plain = compute([ranking([0, 1, 2])], [1.0, 0.5, -0.5])[0]
    centred = compute([ranking([0, 1, 2])], [1.0, 0.5, -0.5], center_coefficient=0.01)[0]
    assert centred - plain == pytest.approx(0.008333, abs=1e-6)


def test_a_soft_pair_mixes_both_orders() -> None:
    # 0.8 · 0.474077 + 0.2 · 0.974077
    assert compute([ranking([0, 1], preference=0.8)], [0.5, 0.0])[0] == pytest.approx(0.574077, abs=1e-6)
    assert compute([ranking([1, 0], preference=0.8)], [0.0, 0.5])[0] == pytest.approx(0.574077, abs=1e-6)


def test_a_margin_is_subtracted_from_the_gap_of_the_better_answer() -> None:
    # softplus(-(1 - 0.5)) for both orders of the answers
    assert compute([ranking([0, 1], margin=0.5)], [1.0, 0.0])[0] == pytest.approx(0.474077, abs=1e-6)
    assert compute([ranking([1, 0], margin=0.5)], [0.0, 1.0])[0] == pytest.approx(0.474077, abs=1e-6)


def test_a_batch_is_the_mean_over_prompts_however_many_answers_they_have() -> None:
    pair = compute([ranking([0, 1])], [0.5, 0.0])[0]
    triple = compute([ranking([0, 1, 2])], [1.0, 0.5, -0.5])[0]
    both = compute([ranking([0, 1]), ranking([0, 1, 2])], [0.5, 0.0, 1.0, 0.5, -0.5])[0]
    assert both == pytest.approx((pair + triple) / 2)


def test_equal_rewards_cost_ln_2() -> None:
    loss, _, metrics = compute([ranking([0, 1, 2, 3])], [0.0] * 4)
    assert loss == pytest.approx(math.log(2))
    assert metrics["rewards/accuracies"] == 0


def test_without_centring_a_constant_added_to_all_rewards_changes_nothing() -> None:
    rewards = [0.3, -1.2, 0.8, 0.1]
    loss, gradient, _ = compute([ranking([0, 2, 1, 3])], rewards)
    moved, moved_gradient, _ = compute([ranking([0, 2, 1, 3])], [reward + 5 for reward in rewards])
    assert moved == pytest.approx(loss)
    assert moved_gradient == pytest.approx(gradient)
    assert sum(gradient) == pytest.approx(0)


def test_nine_answers_equal_a_double_loop_over_their_pairs() -> None:
    generator = torch.Generator().manual_seed(3)
    rewards = torch.randn(9, dtype=torch.float64, generator=generator).tolist()
    ranks = torch.randint(0, 5, (9,), generator=generator).tolist()
    total, count = 0.0, 0
    for i, j in itertools.permutations(range(9), 2):
        if ranks[i] < ranks[j]:
            total += math.log1p(math.exp(-(rewards[i] - rewards[j]))) + 0.01 * (rewards[i] + rewards[j]) ** 2
            count += 1
    found = compute([ranking([float(rank) for rank in ranks])], rewards, center_coefficient=0.01)[0]
    assert found == pytest.approx(total / count)


def test_equal_completions_are_no_pair() -> None:
    row = Ranking(0, [1], [[10], [10], [11]], [0.0, 1.0, 2.0], 1.0, 0.0, None)
    pairs = [(pair.first, pair.second) for pair in from_ranking(row).ranked_pairs]
    assert pairs == [(0, 2), (1, 2)]


def trl_loss(chosen: Tensor, rejected: Tensor, margins: list[float] | None, coefficient: float) -> Tensor:
    """TRL's loss of a batch whose model gives these rewards."""
    from accelerate import Accelerator
    from trl import RewardTrainer

    logits = torch.cat([chosen, rejected]).unsqueeze(1)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        accelerator=Accelerator(cpu=True),
        args=SimpleNamespace(center_rewards_coefficient=coefficient),
        _metrics={"train": {}, "eval": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
    )
    inputs: dict[str, Any] = {"attention_mask": torch.ones(len(logits), 1)}
    if margins is not None:
        inputs["margin"] = torch.tensor(margins, dtype=logits.dtype)
    loss = RewardTrainer.compute_loss(trainer, lambda **_: SimpleNamespace(logits=logits), inputs)
    assert isinstance(loss, Tensor)
    return loss


@pytest.mark.parametrize(
    ("chosen", "rejected", "margins", "coefficient"),
    [
        ([1.2, 0.3], [0.4, 0.9], None, 0.01),
        ([1.2, 0.3], [0.4, 0.9], None, 0.0),
        ([0.1, -2.0, 3.0], [0.4, 0.9, 2.5], [0.5, 1.0, 0.0], 0.1),
    ],
)
def test_two_answers_have_the_loss_and_gradient_of_trl(
    chosen: list[float], rejected: list[float], margins: list[float] | None, coefficient: float
) -> None:
    theirs = [torch.tensor(values, dtype=torch.float64, requires_grad=True) for values in (chosen, rejected)]
    expected = trl_loss(*theirs, margins, coefficient)
    expected.backward()
    rows = []
    rewards = []
    expected_gradient = []
    for index in range(len(chosen)):
        margin = 0.0 if margins is None else margins[index]
        rows.append(ranking([0, 1], margin=margin))
        rewards += [chosen[index], rejected[index]]
        for values in theirs:
            assert values.grad is not None
            expected_gradient.append(values.grad[index].item())
    loss, gradient, _ = compute(rows, rewards, center_coefficient=coefficient)
    assert loss == pytest.approx(expected.item(), abs=1e-14)
    assert gradient == pytest.approx(expected_gradient, abs=1e-14)
    if coefficient == 0.01:
        assert loss == pytest.approx(0.724294308, abs=1e-9)
