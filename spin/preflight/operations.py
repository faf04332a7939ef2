"""The work of each kind of unit, and the operations on each weight for a token of it."""

from __future__ import annotations

from collections.abc import Sequence

from spin.config.policy_gradient import has_own_critic
from spin.config.run import RunConfig
from spin.data.records import Pair, Rating
from spin.data.rollouts import Rollout
from spin.run_dir.unit import LABELLED_KINDS, PROMOTED_KINDS, TRAINED_KINDS, Unit

COMPLETIONS: dict[type, int] = {Pair: 2, Rating: 1, Rollout: 1}
"""Completions of a row of each type."""

WORK = {
    "samples": "generate",
    "rewards": "reward",
    "judgements": "judge",
    "pairs": "score",
    "policy": "train",
    "reward_model": "train",
    "benchmark": "benchmark",
    "evaluation": "benchmark",
}
WORK |= dict.fromkeys(LABELLED_KINDS, "score")
"""The work that makes each kind of unit; the time of other kinds is not estimated."""

FORWARD, BACKWARD = 2, 4
"""Operations per weight and token of a pass."""


def count_operations(unit: Unit, iteration_configs: Sequence[RunConfig], checkpointing: bool) -> int:
    """Return the operations per weight and token of a unit.

    Args:
        unit: The unit.
        iteration_configs: Config of each iteration.
        checkpointing: Whether the forward pass is repeated in the backward pass.
    """
    models = 1
    # Outside of iterations, and for a baseline and a reward model, there is one model.
    is_rows = unit.kind in TRAINED_KINDS
    if unit.stage.index >= 0 and not unit.stage.is_baseline and (is_rows or unit.kind == "policy"):
        objective = iteration_configs[unit.stage.index].objective
        if has_own_critic(objective):
            models += 1
        # Some objectives score under two policies, but in iteration 0 the opponent is the base.
        if is_rows and unit.stage.index > 0 and objective.needs_base:
            models += 1
    if unit.kind not in PROMOTED_KINDS:
        return models * FORWARD
    operations = FORWARD + BACKWARD
    if checkpointing:
        operations += FORWARD
    return models * operations


def count_rewards(units: Sequence[Unit], iteration_configs: Sequence[RunConfig]) -> int:
    """Return the number of rewards that units are to give, over all sources."""
    count = 0
    for unit in units:
        if unit.kind == "rewards":
            count += len(unit.prompts) * iteration_configs[unit.stage.index].generation.samples_per_prompt
    return count
