"""Train the baseline: continued supervised fine-tuning, as many steps as the iterations took."""

from __future__ import annotations

from spin.models.policy import Policy
from spin.orchestration.context import RunContext
from spin.orchestration.finetune_stage import finetune
from spin.run_dir.facts import PolicyFacts


def run_baseline(run: RunContext, index: int, policy: Policy) -> Policy:
    """Fine-tune `policy` for as many steps as iteration `index` took, with its training settings.

    All training prompts are used, also those whose pairs the iteration dropped.

    Returns:
        The promoted policy.
    """
    stage = run.layout.baseline(index)
    promoted = run.promoted(stage, policy)
    if promoted is not None:
        return promoted
    # Steps, not epochs: the number of rows of an iteration depends on what it dropped.
    iteration_unit = run.state.unit(run.layout.iteration(index), "policy")
    steps = run.state.facts(iteration_unit, PolicyFacts).steps
    return finetune(run, stage, policy, "train", run.iteration_configs[index].training, steps)
