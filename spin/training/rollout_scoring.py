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
from spin.config.policy_gradient import GrpoObjective, RlooObjective
from spin.config.training import TrainingConfig
from spin.data.records import from_rollout
from spin.data.rollouts import Rollout
from spin.models.policy import Policy
from spin.objectives.advantages import (
    compare_with_group,
    penalise_divergence,
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
    rows: Sequence[Rollout],
    training: TrainingConfig,
) -> list[Rollout]:
    """Return rows with the log-probabilities of the opponent and, if given, of the base.

    Each distinct answer to a prompt is scored once, and the answers share their prompt.
    """
    groups, places = group_by_prompt([from_rollout(row) for row in rows])
    old_logps = trainer.score_tokens(opponent, groups, training)
    # In iteration 0 the opponent is the base.
    base_logps = old_logps
    if base is not None and base.digest != opponent.digest:
        base_logps = trainer.score_tokens(base, groups, training)

    scored = []
    for row, (group, (place,)) in zip(rows, places, strict=True):
        row = replace(row, old_logps=old_logps[group][place])
        if base is not None:
            row = replace(row, base_logps=base_logps[group][place])
        scored.append(row)
    return scored


def add_advantages(rows: Sequence[Rollout], objective: ObjectiveConfig) -> list[Rollout]:
    """Return scored rows with their advantages; the rows of a prompt are compared with each other.

    Args:
        rows: Scored rows; all answers to a prompt are among them.
        objective: RLOO or GRPO.
    """
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
