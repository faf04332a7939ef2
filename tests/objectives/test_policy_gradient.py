"""RLOO and GRPO: numbers worked out by hand, and losses and gradients against TRL's."""

import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from spin.config.objective_base import ObjectiveConfig
from spin.config.policy_gradient import Aggregate, GrpoObjective, Ratio, RlooObjective
from spin.data.examples import Example, from_rollout
from spin.data.rollouts import Rollout
from spin.models.token_logps import TokenLogps
from spin.objectives.advantages import (
    compare_with_group,
    estimate_advantages,
    penalise_divergence,
    spread_reward,
    subtract_others_mean,
    sum_log_ratios,
    whiten,
)
from spin.objectives.completion_logps import Member
from spin.objectives.objective import LossOutput, StepBatch
from spin.objectives.policy_gradient_losses import clip_policy_gradient, clip_value_loss, estimate_kl
from spin.objectives.registry import make_objective

POLICY = [[-1.0, -0.5, -2.0], [-0.7, -1.2]]
OLD = [[-1.2, -0.5, -1.5], [-0.7, -0.9]]
BASE = [[-1.1, -0.6, -1.9], [-0.5, -1.0]]
ADVANTAGES = [0.5, -0.25]


def make_rollout(
    index: int, old: list[float], base: list[float], advantage: float, reward: float = 0.0, finish: str = "stop"
) -> Rollout:
    completion = [10 * index + token for token in range(len(old))]
    return Rollout(
        7,
        index,
        0,
        [1, 2],
        completion,
        finish,
        reward,
        sum(old),
        old_logps=list(old),
        base_logps=list(base),
        advantages=[advantage] * len(old),
    )


def make_rows(with_base: bool = True) -> list[Example]:
    rows = []
    for index, (old, base, advantage) in enumerate(zip(OLD, BASE, ADVANTAGES, strict=True)):
        rows.append(from_rollout(make_rollout(index, old, base if with_base else [], advantage)))
    return rows


def compute(
    config: ObjectiveConfig, rows: list[Example], tokens: Tensor, owners: list[int], places: list[int]
) -> tuple[StepBatch, LossOutput]:
    objective = make_objective(config)
    batch = StepBatch(rows, objective)
    logps = TokenLogps(tokens, torch.tensor(owners), max(owners) + 1)
    members = [Member(row, (place,)) for row, place in zip(rows, places, strict=True)]
    return batch, objective.compute_loss(batch, logps, members, None)


def compute_hand_loss(config: ObjectiveConfig) -> float:
    tokens = torch.tensor(POLICY[0] + POLICY[1], dtype=torch.float64)
    _, output = compute(config, make_rows(), tokens, [0, 0, 0, 1, 1], [0, 1])
    return float(output.loss)


@pytest.mark.parametrize(
    ("aggregate", "plain", "with_kl"),
    [("sequence", -0.121378, -0.120060), ("token", -0.190653, -0.189500), ("constant", -0.158878, -0.157917)],
)
def test_grpo_of_two_answers_by_hand(aggregate: str, plain: float, with_kl: float) -> None:
    for kl_weight, expected in ((0.0, plain), (0.1, with_kl)):
        config = GrpoObjective(aggregate=Aggregate[aggregate], constant=3, kl_weight=kl_weight)
        assert compute_hand_loss(config) == pytest.approx(expected, abs=1e-6)


def test_rloo_of_two_answers_by_hand() -> None:
    # ρ = e^(−3.5 + 3.2) and e^(−1.9 + 1.6): both 0.740818, of which the second is clipped to 0.8
    # because its advantage is negative: (−0.5·0.740818 + 0.25·0.8) / 2 = −0.085205.
    assert compute_hand_loss(RlooObjective()) == pytest.approx(-0.085205, abs=1e-6)


def test_the_upper_limit_of_the_ratio_is_one_of_its_own() -> None:
    ratios = torch.tensor([1.25, 1.25, 0.7, 0.7], dtype=torch.float64)
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    losses, clipped = clip_policy_gradient(ratios, advantages, *GrpoObjective(clip=0.2).clip_range)
    assert losses.tolist() == pytest.approx([-1.2, 1.25, -0.7, 0.8])
    assert clipped.tolist() == [True, False, False, True]
    losses, clipped = clip_policy_gradient(ratios, advantages, *GrpoObjective(clip=0.2, clip_high=0.28).clip_range)
    assert losses.tolist() == pytest.approx([-1.25, 1.25, -0.7, 0.8])
    assert clipped.tolist() == [False, False, False, True]


def test_the_clipped_loss_of_three_tokens_by_hand() -> None:
    log_ratios = torch.tensor([-0.8 + 1.0, 0.0, -2.5 + 2.0], dtype=torch.float64)
    advantages = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    losses, clipped = clip_policy_gradient(log_ratios.exp(), advantages, 0.8, 1.2)
    assert losses.tolist() == pytest.approx([-0.6, 1.0, -1.213061], abs=1e-6)
    assert float(losses.mean()) == pytest.approx(-0.271020, abs=1e-6)
    assert float(clipped.double().mean()) == pytest.approx(1 / 3)


def test_the_estimate_of_the_kl_divergence_by_hand() -> None:
    # d = log q − log p is −0.2, 0 and 0.3.
    values = estimate_kl(torch.tensor([-1.0, -0.5, -2.0]).double(), torch.tensor([-1.2, -0.5, -1.7]).double())
    assert values.tolist() == pytest.approx([0.018731, 0.0, 0.049859], abs=1e-6)


def test_advantages_of_four_answers_by_hand() -> None:
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    signs = [1, -1, -1, 1]
    assert subtract_others_mean(rewards).tolist() == pytest.approx([sign * 2 / 3 for sign in signs])
    normalised = compare_with_group(rewards, normalise=True)
    assert normalised.tolist() == pytest.approx([sign * 0.865875 for sign in signs], abs=1e-6)
    assert compare_with_group(rewards, normalise=False).tolist() == [sign * 0.5 for sign in signs]


def test_the_divergence_from_the_base_lowers_the_reward() -> None:
    # Σ log π_old − Σ log π_base is −3.2 + 3.6 = 0.4 and −1.6 + 1.5 = −0.1.
    ratios = sum_log_ratios(OLD, BASE)
    assert ratios.tolist() == pytest.approx([0.4, -0.1])
    assert penalise_divergence(torch.tensor([1.0, 0.0]).double(), ratios, 0.5).tolist() == pytest.approx([0.8, 0.05])


def test_equal_answers_are_computed_once_and_count_as_often_as_there_are_rows() -> None:
    config = GrpoObjective(kl_weight=0.0, aggregate=Aggregate.sequence)
    twice = make_rows(with_base=False)[:1] * 2
    tokens = torch.tensor(POLICY[0], dtype=torch.float64, requires_grad=True)
    _, output = compute(config, twice, tokens, [0, 0, 0], [0, 0])
    [gradient] = torch.autograd.grad(output.loss, tokens)
    _, once = compute(config, twice[:1], tokens, [0, 0, 0], [0])
    [expected] = torch.autograd.grad(once.loss, tokens)
    assert float(output.loss.detach()) == pytest.approx(float(once.loss.detach()))
    torch.testing.assert_close(gradient, expected)
    assert gradient.abs().max() > 0


def test_the_figures_of_a_step_by_hand() -> None:
    rows = [
        from_rollout(make_rollout(0, OLD[0], BASE[0], 0.5, reward=1.0)),
        from_rollout(make_rollout(1, OLD[1], BASE[1], -0.25, reward=-1.0, finish="length")),
    ]
    tokens = torch.tensor(POLICY[0] + POLICY[1], dtype=torch.float64)
    batch, output = compute(GrpoObjective(), rows, tokens, [0, 0, 0, 1, 1], [0, 1])
    figures = batch.objective.name_metrics(batch, output.metric_sums, None)
    assert figures["loss"] == pytest.approx(float(output.loss))
    assert figures["reward"] == 0.0
    assert figures["answer_tokens"] == 2.5
    assert figures["truncated"] == 0.5
    assert figures["tokens"] == (2 + 3) + (2 + 2)
    assert figures["entropy"] == pytest.approx((1.0 + 0.5 + 2.0 + 0.7 + 1.2) / 5)
    # Ratios e^0.2, 1, e^−0.5 with A > 0 and 1, e^−0.3 with A < 0: the first and the last are cut.
    assert figures["clip_fraction"] == pytest.approx(2 / 5)
    ratios = [0.2, 0.0, -0.5, 0.0, -0.3]
    assert figures["kl_to_opponent"] == pytest.approx(sum(math.exp(d) - d - 1 for d in ratios) / 5)
    differences = [-0.1, -0.1, 0.1, 0.2, 0.2]
    assert figures["kl_to_base"] == pytest.approx(sum(math.exp(d) - d - 1 for d in differences) / 5)


def test_training_ends_once_the_policy_is_too_far_from_the_opponent() -> None:
    objective = make_objective(GrpoObjective(target_kl=0.02))
    assert not objective.should_stop({"kl_to_opponent": 0.02, "clip_fraction": 0.3})
    assert objective.should_stop({"kl_to_opponent": 0.021, "clip_fraction": 0.0})
    assert objective.should_stop({"kl_to_opponent": 0.0, "clip_fraction": 0.31})
    assert not make_objective(GrpoObjective()).should_stop({"kl_to_opponent": 9.0, "clip_fraction": 1.0})


class Draw:
    """Random log-probabilities of six answers of 1 to 8 tokens under policy, opponent and base."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.lengths = torch.randint(1, 9, (6,), generator=generator).tolist()
        self.mask = torch.zeros(6, 8, dtype=torch.long)
        for row, length in enumerate(self.lengths):
            self.mask[row, :length] = 1

        def draw() -> Tensor:
            return torch.randn(6, 8, dtype=torch.float64, generator=generator)

        self.policy = (-2 + draw()).requires_grad_()
        self.old = self.policy.detach() + 0.3 * draw()
        self.base = self.policy.detach() + 0.3 * draw()
        self.advantages = torch.randn(6, dtype=torch.float64, generator=generator)

    def compute(self, config: ObjectiveConfig) -> Tensor:
        rows = []
        for row, length in enumerate(self.lengths):
            old, base = self.old[row, :length].tolist(), self.base[row, :length].tolist()
            rows.append(from_rollout(make_rollout(row, old, base, float(self.advantages[row]))))
        owners = [row for row, length in enumerate(self.lengths) for _ in range(length)]
        _, output = compute(config, rows, self.policy[self.mask.bool()], owners, list(range(6)))
        return output.loss

    def gradient(self, loss: Tensor) -> Tensor:
        [gradient] = torch.autograd.grad(loss, self.policy)
        return gradient


def compute_trls(draw: Draw, name: str, **settings: object) -> Tensor:
    """The loss of TRL's trainer, whose model is replaced by the drawn log-probabilities."""
    from trl import GRPOTrainer, RLOOTrainer

    trainer = {"grpo": GRPOTrainer, "rloo": RLOOTrainer}[name]
    model = torch.nn.Linear(1, 1).train()
    values = {
        "model": model,
        "accelerator": Accelerator(cpu=True),
        "aux_loss_enabled": False,
        "top_entropy_quantile": 1.0,
        "importance_sampling_level": "token",
        "beta": 0.0,
        "loss_type": "grpo",
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "off_policy_mask_threshold": None,
        "use_vllm": False,
        "vllm_importance_sampling_correction": False,
        "current_gradient_accumulation_steps": 1,
        "max_completion_length": 8,
        "_entropy_bonus_enabled": False,
        "use_adaptive_entropy": False,
        "_metrics": defaultdict(lambda: defaultdict(list)),
        "args": SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1),
        "_get_per_token_logps_and_entropies": lambda *_, **__: (draw.policy, torch.zeros_like(draw.policy), None),
    } | settings
    inputs = {
        "prompt_ids": torch.ones(6, 2, dtype=torch.long),
        "prompt_mask": torch.ones(6, 2, dtype=torch.long),
        "completion_ids": draw.mask,
        "completion_mask": draw.mask,
        "advantages": draw.advantages,
        "old_per_token_logps": draw.old,
        "old_logps": (draw.old * draw.mask).sum(1),
        "ref_per_token_logps": draw.base,
        "num_items_in_batch": draw.mask.sum(),
    }
    return trainer._compute_loss(SimpleNamespace(**values), model, inputs)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kl_weight", [0.0, 0.1])
@pytest.mark.parametrize("ratio", ["token", "sequence_mean"])
@pytest.mark.parametrize(
    ("aggregate", "loss_type"),
    [("sequence", "grpo"), ("token", "bnpo"), ("token", "dapo"), ("constant", "dr_grpo")],
)
def test_loss_and_gradient_of_grpo_are_trls(
    aggregate: str, loss_type: str, ratio: str, kl_weight: float, seed: int
) -> None:
    draw = Draw(seed)
    config = GrpoObjective(
        aggregate=Aggregate[aggregate], ratio=Ratio[ratio], kl_weight=kl_weight, constant=8, clip_high=0.28
    )
    level = {"token": "token", "sequence_mean": "sequence"}[ratio]
    theirs = compute_trls(
        draw, "grpo", loss_type=loss_type, importance_sampling_level=level, beta=kl_weight, epsilon_high=0.28
    )
    mine = draw.compute(config)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)
    gradient = draw.gradient(mine)
    assert gradient.abs().max() > 0
    torch.testing.assert_close(gradient, draw.gradient(theirs), rtol=0, atol=1e-10)


@pytest.mark.parametrize("seed", [0, 1])
def test_loss_and_gradient_of_rloo_are_trls(seed: int) -> None:
    draw = Draw(seed)
    mine, theirs = draw.compute(RlooObjective()), compute_trls(draw, "rloo")
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)
    gradient = draw.gradient(mine)
    assert gradient.abs().max() > 0
    torch.testing.assert_close(gradient, draw.gradient(theirs), rtol=0, atol=1e-10)


def test_the_reward_of_an_answer_is_at_its_last_token_after_the_divergence_of_each_token() -> None:
    old, base = torch.tensor([-1.0, -0.5, -2.0]).double(), torch.tensor([-1.2, -0.5, -1.7]).double()
    assert spread_reward(1.0, old, base, 0.1).tolist() == pytest.approx([-0.02, 0.0, 1.03])
    assert spread_reward(1.0, old, None, 0.1).tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    ("lam", "expected"), [(0.95, [0.424325, 0.7835, 0.93]), (1.0, [0.51, 0.83, 0.93])]
)  # the first as verl's compute_gae_advantage_return
def test_advantages_from_a_critic_by_hand(lam: float, expected: list[float]) -> None:
    rewards, values = torch.tensor([-0.02, 0.0, 1.03]).double(), torch.tensor([0.5, 0.2, 0.1]).double()
    advantages = estimate_advantages(rewards, values, 1.0, lam)
    assert advantages.tolist() == pytest.approx(expected, abs=1e-6)
    if lam == 0.95:
        assert (advantages + values).tolist() == pytest.approx([0.924325, 0.9835, 1.03], abs=1e-6)
        whitened = whiten(advantages, advantages.mean(), advantages.var())
        assert whitened.tolist() == pytest.approx([-1.107995, 0.272467, 0.835529], abs=1e-6)
        # At the first step V is V_old: ½ mean A².
        losses = clip_value_loss(values, values, advantages + values, 0.2)
        assert float(losses.mean()) == pytest.approx(0.276471, abs=1e-6)


def test_a_discount_by_hand() -> None:
    # δ = (0 + 0.5·2 − 1, 1 − 2) = (0, −1); A = (0 + 0.5·0.5·(−1), −1).
    advantages = estimate_advantages(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0]), 0.5, 0.5)
    assert advantages.tolist() == [-0.25, -1.0]


def test_the_clipped_loss_of_the_critic_by_hand() -> None:
    values, old = torch.tensor([0.9, 0.1, 0.1]).double(), torch.tensor([0.5, 0.2, 0.1]).double()
    losses = clip_value_loss(values, old, torch.tensor([1.0, 0.5, 0.0]).double(), 0.2)
    assert float(losses.mean()) == pytest.approx(0.043333, abs=1e-6)  # as verl's compute_value_loss
