"""Fine-tune a policy on the target completions of a prepared set: the warm-up and the baseline."""

from __future__ import annotations

from spin.config.objective import SftObjective
from spin.config.training import TrainingConfig
from spin.data.records import Prompt
from spin.models.policy import Policy
from spin.orchestration.context import RunContext
from spin.orchestration.labelled_stage import RowFiles
from spin.orchestration.train_stage import train
from spin.run_dir.paths import Stage
from spin.training.job import TrainingJob


def finetune(
    run: RunContext, stage: Stage, policy: Policy, rows: str, training: TrainingConfig, steps: int | None = None
) -> Policy:
    """Fine-tune a policy on the target completions of a prepared set, and promote it.

    Args:
        run: The run.
        stage: The start or a stage of the baseline.
        policy: The policy to start from.
        rows: Name of the prepared set.
        training: Settings of the trainer.
        steps: Number of optimizer steps; None means those that `training` names.

    Returns:
        The promoted policy.
    """
    # Fine-tuning has no reference; the field takes the policy itself.
    files: RowFiles = [(Prompt, str(run.layout.prompts(rows)))]
    paths = (str(stage.policy), str(stage.adapter), str(stage.trainer))
    job = TrainingJob(
        policy, policy, SftObjective(), training, run.config.seed, stage.index, *paths, steps=steps, others=files
    )
    return train(run, stage, job)
