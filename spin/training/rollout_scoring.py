"""Score answers with rewards token by token, and compute their advantages.

rollouts ──► log π_old, log π_base of each token ──► advantages of the answers to a prompt
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from spin.config.objective_base import ObjectiveConfig
from spin.config.policy_gradient import GrpoObjective, PpoObjective, RlooObjective
from spin.config.training import TrainingConfig
from spin.data.examples import from_rollout
from spin.data.rollouts import Rollout
from spin.models.packing import Group
from spin.models.policy import Policy
from spin.models.scalar_head import Head
from spin.objectives.advantages import (
    compare_with_group,
    estimate_advantages,
    penalise_divergence,
    spread_reward,
    subtract_others_mean,
    sum_log_ratios,
)
from spin.run_dir.rollout_statistics import RolloutStatistics
from spin.training.batches import group_by_prompt

if TYPE_CHECKING:
    from spin.training.policy_scorer import PolicyScorer


def score_rollouts(
    trainer: PolicyScorer,
    opponent: Policy,
    base: Policy | None,
    critic: Policy | None,
    rows: Sequence[Rollout],
    training: TrainingConfig,
    critic_is_head: bool = False,
) -> list[Rollout]:
    """Return rows with the log-probabilities of the opponent and, if given, of the base.

    Each distinct answer to a prompt is scored once, and the answers share their prompt. A critic
    gives the values; one that is a head on the opponent does so in the opponent's own pass.
    """
    groups, places = group_by_prompt([from_rollout(row) for row in rows])
    # The opponent comes last: training begins with it, and then it need not be loaded again.
    values = base_logps = None
    if critic is not None and not critic_is_head:
        values = trainer.score_tokens(critic, groups, training, Head.value)
    if base is not None and base.digest != opponent.digest:
        base_logps = trainer.score_tokens(base, groups, training)
    if critic is not None and critic_is_head:
        old_logps, values = score_with_values(trainer, opponent, critic, groups, training)
    else:
        old_logps = trainer.score_tokens(opponent, groups, training)
    # In iteration 0 the opponent is the base.
    if base is not None and base_logps is None:
        base_logps = old_logps

    scored = []
    for row, (group, (place,)) in zip(rows, places, strict=True):
        row = replace(row, old_logps=old_logps[group][place])
        if base_logps is not None:
            row = replace(row, base_logps=base_logps[group][place])
        if values is not None:
            row = replace(row, values=values[group][place])
        scored.append(row)
    return scored


def score_with_values(
    trainer: PolicyScorer, policy: Policy, critic_head: Policy, groups: Sequence[Group], training: TrainingConfig
) -> tuple[list[list[list[float]]], list[list[list[float]]]]:
    """Return the log-probability of each token, and its value by a head on the policy.

    Both come from the same forward passes.
    """
    logps: list[list[list[float]]] = [[] for _ in groups]
    values: list[list[list[float]]] = [[] for _ in groups]
    for indices, found in trainer.compute(policy, groups, training, Head.language, critic_head):
        tokens, states = iter(found.lists()), iter(found.as_values().lists())
        for index in indices:
            logps[index] = [next(tokens) for _ in groups[index].completions]
            values[index] = [next(states) for _ in groups[index].completions]
    return logps, values


def add_advantages(rows: Sequence[Rollout], objective: ObjectiveConfig) -> list[Rollout]:
    """Return scored rows with their advantages.

    With PPO each row is compared with the critic's values, else with the other rows of its prompt.

    Args:
        rows: Scored rows; all answers to a prompt are among them.
        objective: PPO, RLOO or GRPO.
    """
    if isinstance(objective, PpoObjective):
        return [compare_with_critic(row, objective) for row in rows]
    rows_of: dict[int, list[Rollout]] = {}
    for row in rows:
        rows_of.setdefault(row.prompt_id, []).append(row)
    advantages_of = {prompt_id: compute_advantages(group, objective) for prompt_id, group in rows_of.items()}

    # The rows keep their order; those of a prompt take its advantages in turn.
    remaining = {prompt_id: iter(advantages.tolist()) for prompt_id, advantages in advantages_of.items()}
    finished = []
    for row in rows:
        advantage = next(remaining[row.prompt_id])
        finished.append(replace(row, advantages=[advantage] * len(row.completion_ids)))
    return finished


def compare_with_critic(row: Rollout, objective: PpoObjective) -> Rollout:
    """Return a row with the advantage of each token and the return that the critic learns."""
    base_logps = None
    if row.base_logps:
        base_logps = torch.tensor(row.base_logps, dtype=torch.float64)
    old_logps = torch.tensor(row.old_logps, dtype=torch.float64)
    values = torch.tensor(row.values, dtype=torch.float64)
    rewards = spread_reward(row.reward, old_logps, base_logps, objective.kl_weight)
    advantages = estimate_advantages(rewards, values, objective.gamma, objective.lam)
    return replace(row, advantages=advantages.tolist(), returns=(advantages + values).tolist())


def compute_advantages(group: Sequence[Rollout], objective: ObjectiveConfig) -> Tensor:
    """Return the advantage of each answer to one prompt. Shape (answers,), float64."""
    rewards = torch.tensor([row.reward for row in group], dtype=torch.float64)
    if isinstance(objective, GrpoObjective):
        return compare_with_group(rewards, objective.normalise)
    assert isinstance(objective, RlooObjective)
    if objective.needs_base:
        log_ratios = sum_log_ratios([row.old_logps for row in group], [row.base_logps for row in group])
        rewards = penalise_divergence(rewards, log_ratios, objective.kl_weight)
    return subtract_others_mean(rewards)


def measure_rollouts(rows: Sequence[Rollout]) -> dict[str, Any] | None:
    """Return the fields of `RolloutStatistics` over scored rows; None without rows."""
    if not rows:
        return None
    statistics = RolloutStatistics()
    for row in rows:
        statistics.add(row.old_logps, row.base_logps, row.finish_reason == "length")
    return asdict(statistics)
