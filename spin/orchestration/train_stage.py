"""Drive one training stage: start or resume, log steps, survive the death of workers, promote."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from spin.cluster.recovery import WorkersLost
from spin.cluster.training_watch import BackgroundWork
from spin.models.policy import Policy, check_policy
from spin.orchestration.context import RunContext
from spin.orchestration.interrupts import saved_on_interrupt
from spin.run_dir.facts import PolicyFacts, SavedState
from spin.run_dir.files import file_sha256
from spin.run_dir.paths import Stage
from spin.run_dir.store import RunStore
from spin.training.checkpoint import prune_states, usable_states
from spin.training.job import TrainingJob


@dataclass
class TrainingLog:
    """What the driver has heard from the trainers in one attempt."""

    first: dict[str, Any] = field(default_factory=dict)
    """Metrics of the first step; empty when no step was left."""
    last: dict[str, Any] = field(default_factory=dict)
    tokens: int = 0
    outcome: dict[str, Any] = field(default_factory=dict)
    """Digest of the exported policy, number of steps, and a note on the layout."""


def train(run: RunContext, stage: Stage, job: TrainingJob, background: BackgroundWork | None = None) -> Policy:
    """Train from the opponent's weights, export the policy, and promote it by its digest.

    Args:
        run: The run.
        stage: The stage that the policy belongs to.
        job: The training stage.
        background: Work that goes on while the trainers train.

    Returns:
        The promoted policy.
    """
    start = time.perf_counter()
    unit = run.state.unit(stage, "policy")
    label = f"{_stage_label(stage)} train"

    # Train; when workers die, start them again and resume from the last saved state.
    while True:
        states = find_states(run, stage, job)
        step = max(states, default=0)
        run.reporter.keep_finished(_is_kept(unit.name, step))
        if step:
            run.reporter.print(f"{label} goes on after step {step}")
        try:
            log = _follow(run, stage, replace(job, resume_step=step), states, background)
            break
        except WorkersLost as lost:
            run.worker_groups.restart_trainers(lost)

    # Promote.
    note = log.outcome["note"]
    if note and run.note is None:
        run.note = note
        run.reporter.print(note)
    policy = Policy(str(stage.policy), log.outcome["digest"])
    run.store.fetch(stage.policy)
    check_policy(policy)
    seconds = time.perf_counter() - start
    steps = log.outcome["steps"]
    run.state.record(unit, PolicyFacts(policy.digest, job.policy.digest, steps, log.tokens, round(seconds, 3)))
    run.store.delete(stage.trainer)

    # Tell the user. There are no losses when the last step had been saved.
    text = f"{label:<26} {steps:>7,} steps in {seconds:6.1f} s"
    if log.last:
        text += f", loss {log.first['loss']:.4f} → {log.last['loss']:.4f}"
    run.reporter.print(text)
    # A log-ratio compares the same rows; logps/chosen itself varies with the batch.
    reward = log.last.get("rewards/chosen", 0.0)
    if reward < 0:
        run.reporter.print(
            f"warning: rewards/chosen ends at {reward:.3f}: the chosen completions got less likely than under the "
            "opponent; raise objective.beta or lower training.learning_rate"
        )
    return policy


def _stage_label(stage: Stage) -> str:
    """Return the name of a stage in the messages on training."""
    return "warm start" if stage.name == "start" else stage.label


def _is_kept(unit: str, step: int) -> Callable[[dict[str, Any]], bool]:
    """Return a test that drops the metrics of a unit after a step: these steps are done again."""
    return lambda row: row["unit"] != unit or row.get("step", 0) <= step


def find_states(run: RunContext, stage: Stage, job: TrainingJob) -> dict[int, SavedState]:
    """Return the saved states that are intact and came from the rows of this job, by step.

    A state that is lost or altered is named in a warning.
    """
    fitting = {}
    for step, state in run.state.saved_states(stage).items():
        if state.source == _source_digest(job, state.chunks, run.store):
            fitting[step] = state
    digests = {str(step): state.digest for step, state in fitting.items()}
    good, bad = usable_states(stage.trainer, digests, run.store)
    where = f"after step {good[-1]}" if good else "from the start of the stage"
    for lost in bad:
        run.reporter.print(
            f"warning: the state after step {lost} in {stage.trainer} is gone or was altered; training goes on {where}"
        )
    return {step: fitting[step] for step in good}


def _source_digest(job: TrainingJob, chunks: int, store: RunStore) -> str | None:
    """Return the digest of everything that was learnt from after `chunks` shards of pairs.

    It covers the opponent and all files of rows. None when one of the files is not there.
    """
    paths = [Path(path) for _, path in job.others]
    paths += [Path(path) for path in job.pairs[:chunks]]
    digests = [job.policy.digest]
    for path in paths:
        store.fetch(path)
        if not path.exists():
            return None
        digests.append(file_sha256(path))
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def _follow(
    run: RunContext, stage: Stage, job: TrainingJob, states: dict[int, SavedState], background: BackgroundWork | None
) -> TrainingLog:
    """Train once: show and log each step as it comes, and announce saved states."""
    unit = run.state.unit(stage, "policy")
    label = f"{_stage_label(stage)} train"
    log = TrainingLog()
    with run.reporter.stage(label, 0, "steps") as progress, saved_on_interrupt(run, job) as interrupted:
        for event in run.worker_groups.run_training(job, background, interrupted.is_set):
            # The last event is the outcome.
            if "digest" in event:
                log.outcome = event
                return log
            tokens = event.pop("tokens")
            log.tokens += int(tokens)
            event["tokens_per_second"] = round(tokens / event.pop("seconds"), 1)
            step = event["step"]
            saved = event.pop("saved", None)
            chunks = event.pop("chunks", 0)

            # Announce a saved state, and only then delete older ones.
            if saved:
                states = {**states, step: SavedState(saved, _source_digest(job, chunks, run.store), chunks)}
                states = dict(list(states.items())[-job.training.keep :])
                run.state.record_states(stage, states)
                prune_states(stage.trainer, states, run.store)

            log.first = log.first or event
            log.last = event
            progress.advance(1, f"loss {event['loss']:.4f}", total=event["steps"] - job.resume_step)
            if step % job.training.log_every == 0 or step == event["steps"]:
                run.reporter.log(unit.name, kind="train", **event)
            if saved and interrupted.is_set():
                raise KeyboardInterrupt
    raise RuntimeError(f"{label} ended without an outcome")
