"""Run one iteration: generate, score, train, promote.

opponent ──► generators ──samples/──► trainers score ──pairs/──► trainers train ──policy/──► ledger
(frozen)     (vLLM)                   (the reference)            (main player)          └► benchmark

The file of each unit is finished first, then its line is added to the ledger. On a resume, a unit
with a line is checked against the digest in it, and is not made again if it is intact.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from omegaconf import OmegaConf

from spin.config.groups import Placement
from spin.config.objective import PreferenceObjective, Reference, SftObjective
from spin.config.run import fingerprint, to_plain
from spin.config.training import TrainingConfig
from spin.data.records import Prompt
from spin.models.policy import Policy
from spin.orchestration.context import RunContext
from spin.orchestration.overlapped_self_play import OverlappedSelfPlay
from spin.orchestration.self_play import SelfPlay
from spin.orchestration.train_stage import train
from spin.preflight.prepare import LABELLED_SETS
from spin.run_dir.facts import FileFacts, PolicyFacts, read_facts
from spin.run_dir.files import write_text
from spin.run_dir.paths import Stage
from spin.run_dir.plan import LABELLED_KINDS, Unit, generates_samples
from spin.training.job import TrainingJob
from spin.training.reference import LabelledJob

RowFiles = list[tuple[type, str]]
"""Record type and path of each file of rows that is complete before training begins."""


def run_iteration(run: RunContext, index: int, opponent: Policy, base: Policy) -> Policy:
    """Run one iteration, unless its policy is promoted already.

    Args:
        run: The run.
        index: Number of the iteration.
        opponent: The policy of the iteration before.
        base: The policy that iteration 0 started from.

    Returns:
        The promoted policy.
    """
    stage = run.layout.iteration(index)
    config = run.iteration_configs[index]
    promoted = run.promoted(stage, opponent)
    if promoted is not None:
        return promoted

    # Record the config: from here on the settings of this iteration are fixed, and a resume with
    # others is refused.
    config_unit = run.state.unit(stage, "config")
    if not run.state.done(config_unit):
        write_text(stage.config, OmegaConf.to_yaml(OmegaConf.create(to_plain(config))))
        run.store.publish(stage.config)
        run.ledger.append(config_unit.name, keys=fingerprint(config))

    # Describe the training stage. The reference is the opponent, as in SPIN; a preference objective
    # may take the policy that iteration 0 started from.
    objective = config.objective
    reference = opponent
    if isinstance(objective, PreferenceObjective) and objective.reference is Reference.base:
        reference = base
    paths = (str(stage.policy), str(stage.trainer))
    job = TrainingJob(opponent, reference, objective, config.training, config.seed, index, *paths)

    # Fine-tuning reads the prepared prompts; all other objectives read scored rows.
    if isinstance(objective, SftObjective):
        return train(run, stage, replace(job, others=[(Prompt, str(run.layout.prompts("train")))]))
    files, num_rows = score_labelled(run, stage, reference)
    job = replace(job, others=files)
    if not generates_samples(config):
        return train(run, stage, job)

    # Self-play: make all shards before training or, with the split placement, during it.
    play = SelfPlay(run, stage, opponent, reference)
    job = replace(job, pairs=play.paths, sizes=play.sizes)
    if config.cluster.placement is Placement.split:
        overlapped = OverlappedSelfPlay(play, num_rows)
        return train(run, stage, replace(job, queue=overlapped.queue), overlapped)
    play.run_in_turn()
    play.check_rows(num_rows)
    return train(run, stage, job)


def score_labelled(run: RunContext, stage: Stage, reference: Policy) -> tuple[RowFiles, int]:
    """Score the labelled sets of an iteration under its reference.

    Returns:
        The files with the scored rows, and the number of rows in all of them.
    """
    # Find what is left to score.
    config = run.iteration_configs[stage.index]
    units = []
    for kind in LABELLED_KINDS:
        units += run.state.units(stage, kind)
    todo = [unit for unit in units if not run.finished(unit)]

    def call(actor: Any, unit: Unit) -> Any:
        row_type = LABELLED_SETS[unit.kind]
        job = LabelledJob(config, reference, row_type, str(run.layout.prompts(unit.kind)), str(unit.path))
        return actor.score_labelled.remote(job)

    # Score, and record each set as soon as it is finished.
    for unit, result in run.worker_groups.run_on_trainers(call, todo):
        facts = read_facts(result, FileFacts)
        run.state.record(unit, facts)
        label = f"{stage.label} score"
        run.reporter.print(f"{label:<26} {facts.rows:>7,} {unit.kind} in {facts.seconds:6.1f} s")

    # List all sets, also those that an earlier session scored.
    files: RowFiles = []
    num_rows = 0
    for unit in units:
        files.append((LABELLED_SETS[unit.kind], str(unit.path)))
        num_rows += run.state.facts(unit, FileFacts).rows
    return files, num_rows


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
        steps: Number of optimizer steps; None means `training.epochs`.

    Returns:
        The promoted policy.
    """
    # Fine-tuning has no reference; the field takes the policy itself.
    files: RowFiles = [(Prompt, str(run.layout.prompts(rows)))]
    paths = (str(stage.policy), str(stage.trainer))
    job = TrainingJob(
        policy, policy, SftObjective(), training, run.config.seed, stage.index, *paths, steps=steps, others=files
    )
    return train(run, stage, job)
