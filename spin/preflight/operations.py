"""Count the operations on each weight for a token of a unit of work."""

from __future__ import annotations

from collections.abc import Sequence

from spin.config.policy_gradient import has_own_critic
from spin.config.run import RunConfig
from spin.run_dir.unit import PROMOTED_KINDS, TRAINED_KINDS, Unit

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
