"""Make the policy that iteration 0 starts from: the given model, or the result of the warm-up."""

from __future__ import annotations

from spin.models.policy import Policy
from spin.orchestration.context import RunContext
from spin.orchestration.finetune_stage import finetune


def make_start(run: RunContext, model: Policy) -> Policy:
    """Return the starting policy: the model itself, or the result of the warm-up."""
    if not run.config.warmup.enabled:
        return model
    stage = run.layout.start
    promoted = run.promoted(stage, model)
    if promoted is not None:
        return promoted
    return finetune(run, stage, model, "warmup", run.config.warmup.training)
