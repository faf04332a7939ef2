"""PPO's advantages and losses against verl's, and the recorded figures computed again.

verl is no requirement, and these tests are skipped without it. To run them:

    pip install --no-deps --target verl_only verl==0.9.1 tensordict pyvers codetiming orjson
    rm -r verl_only/tests verl_only/scripts
    PYTHONPATH=.:verl_only python -m pytest tests/objectives/test_verl.py
"""

from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor

from spin.objectives.advantages import (
    compare_with_group,
    estimate_advantages,
    spread_reward,
    subtract_others_mean,
    whiten,
)
from spin.objectives.policy_gradient_losses import clip_policy_gradient, clip_value_loss, estimate_kl

NO_DUAL_CLIP = 1e6
"""Value of verl's clip_ratio_c with which its second limit has no effect."""


@pytest.fixture(scope="module")
def verl() -> ModuleType:
    """The algorithms of verl."""
    pytest.importorskip("verl", reason="verl is not installed")
    from verl.trainer.ppo import core_algos

    return core_algos


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


class Draw:
    """Random rewards, values and log-probabilities of five answers of 1 to 7 tokens."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.lengths = torch.randint(1, 8, (5,), generator=generator).tolist()
        self.mask = torch.zeros(5, 7, dtype=torch.float64)
        for index, length in enumerate(self.lengths):
            self.mask[index, :length] = 1

        def draw() -> Tensor:
            return torch.randn(5, 7, dtype=torch.float64, generator=generator)

        self.rewards = draw() * self.mask
        self.values = draw() * self.mask
        self.policy = -2 + draw()
        self.old = self.policy + 0.3 * draw()

    def join(self, rows: Tensor) -> Tensor:
        """The places that are no padding, answer by answer."""
        return rows[self.mask.bool()]


def test_the_recorded_figures_are_verls(verl: ModuleType) -> None:
    old, base = row(-1.0, -0.5, -2.0), row(-1.2, -0.5, -1.7)
    mask = torch.ones_like(old)
    assert verl.kl_penalty(old, base, "kl").tolist() == [pytest.approx([0.2, 0.0, -0.3])]
    assert verl.kl_penalty(old, base, "low_var_kl").tolist() == [pytest.approx([0.018731, 0.0, 0.049859], abs=1e-6)]

    whitened, returns = verl.compute_gae_advantage_return(
        row(-0.02, 0.0, 1.03), row(0.5, 0.2, 0.1), mask, torch.tensor(1.0), torch.tensor(0.95)
    )
    assert whitened.tolist() == [pytest.approx([-1.107995, 0.272467, 0.835529], abs=1e-6)]
    assert returns.tolist() == [pytest.approx([0.924325, 0.9835, 1.03], abs=1e-6)]

    loss, clipped, _, _ = verl.compute_policy_loss(
        old, row(-0.8, -0.5, -2.5), row(0.5, -1.0, 2.0), mask, cliprange=0.2, clip_ratio_c=NO_DUAL_CLIP
    )
    assert float(loss) == pytest.approx(-0.271020, abs=1e-6)
    assert float(clipped) == pytest.approx(1 / 3, abs=1e-6)
    loss, _ = verl.compute_value_loss(row(0.9, 0.1, 0.1), row(1.0, 0.5, 0.0), row(0.5, 0.2, 0.1), mask, 0.2)
    assert float(loss) == pytest.approx(0.043333, abs=1e-6)

    # Four answers of one token to one prompt. verl adds 1e-6 to the standard deviation.
    rewards = torch.tensor([[1.0], [0.0], [0.0], [1.0]], dtype=torch.float64)
    group = np.zeros(4, dtype=int)
    advantages, _ = verl.compute_rloo_outcome_advantage(rewards, torch.ones_like(rewards), group)
    assert advantages.flatten().tolist() == pytest.approx([0.666667, -0.666667, -0.666667, 0.666667], abs=1e-6)
    advantages, _ = verl.compute_grpo_outcome_advantage(rewards, torch.ones_like(rewards), group)
    assert advantages.flatten().tolist() == pytest.approx([0.866024, -0.866024, -0.866024, 0.866024], abs=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5)])
def test_advantages_and_returns_of_random_answers_are_verls(
    verl: ModuleType, gamma: float, lam: float, seed: int
) -> None:
    draw = Draw(seed)
    whitened, returns = verl.compute_gae_advantage_return(
        draw.rewards, draw.values, draw.mask, torch.tensor(gamma), torch.tensor(lam)
    )
    mine = []
    for rewards, values, length in zip(draw.rewards, draw.values, draw.lengths, strict=True):
        mine.append(estimate_advantages(rewards[:length], values[:length], gamma, lam))
    advantages = torch.cat(mine)
    torch.testing.assert_close(advantages + draw.join(draw.values), draw.join(returns), rtol=0, atol=1e-6)
    found = whiten(advantages, advantages.mean(), advantages.var())
    torch.testing.assert_close(found, draw.join(whitened), rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_loss_and_gradient_of_the_policy_are_verls(verl: ModuleType, seed: int) -> None:
    draw = Draw(seed)
    policy = draw.policy.clone().requires_grad_()
    theirs, clip_fraction, _, _ = verl.compute_policy_loss(
        draw.old, policy, draw.values, draw.mask, cliprange=0.2, cliprange_high=0.28, clip_ratio_c=NO_DUAL_CLIP
    )
    ratios = draw.join((policy - draw.old).exp())
    losses, clipped = clip_policy_gradient(ratios, draw.join(draw.values), 0.8, 1.28)
    assert 0 < float(clip_fraction) < 1
    assert float(clipped.double().mean()) == pytest.approx(float(clip_fraction), abs=1e-6)
    torch.testing.assert_close(losses.mean(), theirs, rtol=0, atol=1e-6)
    [gradient], [expected] = torch.autograd.grad(losses.mean(), policy), torch.autograd.grad(theirs, policy)
    assert gradient.abs().max() > 0
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_loss_and_gradient_of_the_critic_are_verls(verl: ModuleType, seed: int) -> None:
    draw = Draw(seed)
    values = (draw.values + 0.3 * draw.old).requires_grad_()
    theirs, _ = verl.compute_value_loss(values, draw.rewards, draw.values, draw.mask, 0.2)
    losses = clip_value_loss(draw.join(values), draw.join(draw.values), draw.join(draw.rewards), 0.2)
    torch.testing.assert_close(losses.mean(), theirs, rtol=0, atol=1e-6)
    [gradient], [expected] = torch.autograd.grad(losses.mean(), values), torch.autograd.grad(theirs, values)
    assert gradient.abs().max() > 0
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_divergence_and_the_advantages_of_a_group_are_verls(verl: ModuleType, seed: int) -> None:
    draw = Draw(seed)
    theirs = draw.join(verl.kl_penalty(draw.policy, draw.old, "low_var_kl"))
    torch.testing.assert_close(draw.join(estimate_kl(draw.policy, draw.old)), theirs, rtol=0, atol=1e-6)
    rewards = draw.rewards.sum(1)
    group = np.zeros(5, dtype=int)
    theirs, _ = verl.compute_rloo_outcome_advantage(draw.rewards, draw.mask, group)
    torch.testing.assert_close(subtract_others_mean(rewards), theirs[:, 0], rtol=0, atol=1e-6)
    theirs, _ = verl.compute_grpo_outcome_advantage(draw.rewards, draw.mask, group, norm_adv_by_std_in_grpo=False)
    torch.testing.assert_close(compare_with_group(rewards, normalise=False), theirs[:, 0], rtol=0, atol=1e-6)
    # The sum over the tokens of r_t = −κ (log π_old − log π_base), without a reward, is that of k1.
    divergence = verl.kl_penalty(draw.old, draw.policy, "kl")[0]
    penalties = spread_reward(0.0, draw.old[0], draw.policy[0], 0.1)
    torch.testing.assert_close(penalties, -0.1 * divergence, rtol=0, atol=1e-6)
