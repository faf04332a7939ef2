"""One iteration, stage by stage.

    opponent ──► generators ──samples/──► trainers score ──pairs/──► trainers train ──policy/──► ledger: promoted
    (frozen)     (vLLM)                   (the weights about            (main player)      └──► benchmark on held-out rows
                                           to be trained)
Each unit is a finished file, then a ledger line; a unit that has its line is checked against its digest and not done again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from omegaconf import OmegaConf

from spin.config.groups import Placement
from spin.config.objective import PreferenceObjective, Reference, SftObjective
from spin.config.run import fingerprint, to_plain
from spin.data.records import Prompt
from spin.models.policy import Policy
from spin.orchestration.context import RunContext
from spin.orchestration.self_play import OverlappedSelfPlay, SelfPlay
from spin.orchestration.train_stage import train
from spin.preflight.prepare import LABELLED_SETS
from spin.run_dir.files import write_text
from spin.run_dir.paths import Stage
from spin.training.job import TrainingJob
from spin.training.reference import LabelledJob

Sets = list[tuple[type, str]]
"""Record type and path of each set of rows that is there before the iteration."""


def run_iteration(run: RunContext, index: int, opponent: Policy, base: Policy) -> Policy:
    """Generate, label, score, train, promote; returns the promoted policy. `base` is what iteration 0 started from."""
    stage, config = run.layout.iteration(index), run.iteration_configs[index]
    later = f"{run.layout.iteration(index + 1).name}/config" in run.ledger
    promoted = run.promoted(f"{stage.name}/policy", stage.policy, opponent, later)
    if promoted is not None:
        return promoted
    if f"{stage.name}/config" not in run.ledger:
        write_text(stage.config, OmegaConf.to_yaml(OmegaConf.create(to_plain(config))))
        run.store.publish(stage.config)
        run.ledger.append(f"{stage.name}/config", keys=fingerprint(config))
    objective = config.objective
    reference = (
        base if isinstance(objective, PreferenceObjective) and objective.reference is Reference.base else opponent
    )
    if isinstance(objective, SftObjective):
        return train(
            run,
            f"iteration {index}",
            stage,
            training_job(run, index, opponent, reference, [(Prompt, str(run.layout.prompts("train")))]),
        )
    others, rows = score_labelled(run, index, stage, reference) if config.feedback.path else ([], 0)
    if not config.feedback._target_:
        return train(run, f"iteration {index}", stage, training_job(run, index, opponent, reference, others))
    play = SelfPlay(run, index, stage, opponent, reference)
    if config.cluster.placement is Placement.split:
        overlap = OverlappedSelfPlay(play, rows)
        job = replace(
            training_job(run, index, opponent, reference, others),
            pairs=play.paths,
            sizes=play.sizes,
            queue=overlap.queue,
        )
        return train(run, f"iteration {index}", stage, job, overlap)
    play.in_turn()
    play.check_rows(rows)
    return train(
        run,
        f"iteration {index}",
        stage,
        replace(training_job(run, index, opponent, reference, others), pairs=play.paths, sizes=play.sizes),
    )


def training_job(run: RunContext, index: int, opponent: Policy, reference: Policy, others: Sets) -> TrainingJob:
    """The training stage of an iteration, on rows that are there from its start."""
    config, stage = run.iteration_configs[index], run.layout.iteration(index)
    return TrainingJob(
        opponent,
        reference,
        [],
        others,
        [],
        config.objective,
        config.training,
        index,
        str(stage.policy),
        str(stage.trainer),
    )


def score_labelled(run: RunContext, index: int, stage: Stage, reference: Policy) -> tuple[Sets, int]:
    """Score the labelled sets under this iteration's reference. Returns them and how many rows they hold."""
    label, config = f"iteration {index} score", run.iteration_configs[index]
    sets = [(name, kind) for name, kind in LABELLED_SETS.items() if run.ledger.get("data").get(name)]  # type: ignore[union-attr]
    jobs = [
        (name, kind) for name, kind in sets if run.finished(f"{stage.name}/pairs/{name}", stage.labelled(name)) is None
    ]

    def call(actor: Any, job: tuple[str, type]) -> Any:
        name, kind = job
        return actor.score_labelled.remote(
            LabelledJob(config, reference, kind, str(run.layout.prompts(name)), str(stage.labelled(name)))
        )

    for (name, _), facts in run.worker_groups.on_trainers(call, jobs):
        del facts["out"]
        run.ledger.append(f"{stage.name}/pairs/{name}", **facts)
        run.reporter.print(f"{label:<26} {facts['rows']:>7,} {name} in {facts['seconds']:6.1f} s")
    return [(kind, str(stage.labelled(name))) for name, kind in sets], sum(
        (run.ledger.get(f"{stage.name}/pairs/{name}") or {})["rows"] for name, _ in sets
    )


def run_baseline(run: RunContext, index: int, policy: Policy) -> Policy:
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
    training = run.iteration_configs[index].training
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
