"""The honest baseline: continued supervised training from the start that self-play had, for as many optimizer steps and on the same prompts."""

from __future__ import annotations

from spin.model import Policy
from spin.objective_config import SftObjective
from spin.records import Prompt
from spin.run import Run
from spin.training import train
from spin.workers import TrainingJob


def run_baseline(run: Run, index: int, policy: Policy) -> Policy:
    """Train on from `policy` as long as iteration `index` did, with its learning rate and batch size; returns what was promoted.

    All training prompts are seen in their turn, those too whose pairs the iteration dropped.
    """
    stage = run.layout.baseline(index)
    later = f"{run.layout.baseline(index + 1).name}/policy" in run.ledger
    promoted = run.promoted(f"{stage.name}/policy", stage.policy, policy, later)
    if promoted is not None:
        return promoted
    steps = (run.ledger.get(f"{run.layout.iteration(index).name}/policy") or {})["steps"]
    rows: list[tuple[type, str]] = [(Prompt, str(run.layout.prompts("train")))]
    training = run.plan[index].training
    return train(
        run,
        stage.label,
        stage,
        TrainingJob(
            policy,
            policy,
            [],
            rows,
            [],
            SftObjective(),
            training,
            index,
            str(stage.policy),
            str(stage.trainer),
            steps=steps,
        ),
    )
