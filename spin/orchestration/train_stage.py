"""Run one training stage: start or resume it, log its steps, restart dead workers, promote."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from spin.cluster.recovery import WorkersLost
from spin.cluster.training_watch import BackgroundWork
from spin.models.policy import Policy, check_adapter, check_policy
from spin.orchestration.context import RunContext
from spin.orchestration.save_on_interrupt import saved_on_interrupt
from spin.run_dir.facts import PolicyFacts, SavedState
from spin.run_dir.files import file_sha256
from spin.run_dir.paths import Stage
from spin.run_dir.store import RunStore
from spin.training.checkpoint import prune_states, usable_states
from spin.training.job import TrainingJob


@dataclass
class TrainingLog:
    """Reports of the trainers in one attempt."""

    first: dict[str, Any] = field(default_factory=dict)
    """Metrics of the first step; empty when a resume had no step left to do."""
    last: dict[str, Any] = field(default_factory=dict)
    """Metrics of the last step."""
    tokens: int = 0
    """Tokens of all steps of this attempt."""
    outcome: dict[str, Any] = field(default_factory=dict)
    """Digest of the exported policy, number of steps, and a note on the layout."""


def train(run: RunContext, stage: Stage, job: TrainingJob, background: BackgroundWork | None = None) -> Policy:
    """Train from the opponent's weights, export the policy, and promote it by its digest.

    Args:
        run: The run.
        stage: The stage that the policy belongs to.
        job: The rows, the settings and the starting policy.
        background: Work to advance while the trainers train.

    Returns:
        The promoted policy.
    """
    start = time.perf_counter()
    unit = run.state.unit(stage, stage.promoted_kind)
    label = f"{_stage_label(stage)} train"

    # Train; when workers die, start them again and resume from the last saved state.
    while True:
        states = find_states(run, stage, job)
        step = max(states, default=0)
        # The steps after the saved one are done again, so their metrics are removed from the log.
        run.reporter.metrics_log.keep_finished(_is_kept(unit.name, step))
        if step:
            run.reporter.print(f"{label} goes on after step {step}")
        try:
            log = _follow(run, stage, replace(job, resume_step=step), states, background)
            break
        except WorkersLost as lost:
            run.worker_groups.restart_trainers(lost)

    # Promote: the policy counts once its digest is in the ledger. Check the files before that, and
    # delete the saved states after it: until then a resume needs them.
    note = log.outcome["note"]
    if note and run.note is None:
        run.note = note
        run.reporter.print(note)
    digest, adapter = log.outcome["digest"], log.outcome["adapter"]
    seconds = time.perf_counter() - start
    steps = log.outcome["steps"]
    facts = PolicyFacts(
        digest, job.policy.digest, steps, log.tokens, round(seconds, 3), critic=log.outcome.get("critic", "")
    )
    if adapter:
        facts = replace(facts, adapter=adapter, base=job.policy.base.digest)
    policy = run.make_policy(stage, facts)
    run.fetch_policy(stage, facts)
    check_policy(policy)
    check_adapter(policy)
    run.state.record(unit, facts)
    run.store.delete(stage.trainer)

    # Print a line for the user. It has no losses if no step was left to do.
    text = f"{steps:>7,} steps in {seconds:6.1f} s"
    if log.last:
        text += f", loss {log.first['loss']:.4f} → {log.last['loss']:.4f}"
    if "skipped" in log.last:
        text += f"; {log.last['skipped']:,} steps skipped, since the policy moved too far (objective.target_kl)"
    run.reporter.print_stage(label, text)

    # Warn by the reward, not by logps/chosen: the reward compares two policies on the same rows,
    # while logps/chosen changes from batch to batch.
    reward = log.last.get("rewards/chosen", 0.0)
    if reward < 0:
        advice = "lower training.learning_rate"
        if hasattr(job.objective, "beta"):
            advice = f"raise objective.beta or {advice}"
        run.reporter.print(
            f"warning: rewards/chosen ends at {reward:.3f}: the chosen completions got less likely than under the "
            f"opponent; {advice}"
        )
    return policy


def _stage_label(stage: Stage) -> str:
    """Return the name of a stage in the messages on training."""
    return "warm start" if stage.name == "start" else stage.label


def _is_kept(unit: str, step: int) -> Callable[[dict[str, Any]], bool]:
    """Return a test of a row of metrics: False for the steps of a unit after `step`."""
    return lambda row: row["unit"] != unit or row.get("step", 0) <= step


def find_states(run: RunContext, stage: Stage, job: TrainingJob) -> dict[int, SavedState]:
    """Return the saved states by step that are intact and were made from the rows of this job.

    A warning names each state that was lost or altered.
    """
    # States from other rows are left out without a warning: if a shard was lost and made again, its
    # own warning has been printed.
    fitting = {}
    for step, state in run.state.saved_states(stage).items():
        if state.source == _source_digest(job, state.chunks, run.store):
            fitting[step] = state

    # Of the others, read the files and compare their digests.
    digests = {str(step): state.digest for step, state in fitting.items()}
    good, bad = usable_states(stage.trainer, digests, run.store)
    where = f"after step {good[-1]}" if good else "from the start of the stage"
    for lost in bad:
        run.reporter.print(
            f"warning: the state after step {lost} in {stage.trainer} is gone or was altered; training goes on {where}"
        )
    return {step: fitting[step] for step in good}


def _source_digest(job: TrainingJob, chunks: int, store: RunStore) -> str | None:
    """Return the digest of everything that a state depends on after `chunks` shards of pairs.

    It covers the opponent, the other files of rows, and the shards that the trainer had read. None
    if a file is missing.
    """
    # Shards that the trainer had not read yet may be made again without harm to the state.
    paths = [Path(path) for _, path in job.others]
    paths += [Path(path) for path in job.shards[:chunks]]
    digests = [job.policy.digest]
    if job.critic is not None:
        digests.append(job.critic.digest)
    for path in paths:
        store.fetch(path)
        if not path.exists():
            return None
        digests.append(file_sha256(path))
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def _follow(
    run: RunContext, stage: Stage, job: TrainingJob, states: dict[int, SavedState], background: BackgroundWork | None
) -> TrainingLog:
    """Make one attempt to train: log and show each step as it comes, and record saved states.

    Raises:
        WorkersLost: A worker died; the caller tries again from the last saved state.
        KeyboardInterrupt: The user interrupted the run, and the state is saved.
    """
    unit = run.state.unit(stage, stage.promoted_kind)
    label = f"{_stage_label(stage)} train"
    log = TrainingLog()
    note = "loading the policy"
    if job.training.compile_layers:
        note += ", compiling its layers"
    with run.reporter.stage(label, 0, "steps", note) as progress, saved_on_interrupt(run, job) as interrupted:
        for event in run.worker_groups.run_training(job, background, interrupted.is_set):
            # The last event is the outcome. Only it has the digest of a policy.
            if "digest" in event:
                log.outcome = event
                return log

            # Take out what is not a metric.
            tokens = event.pop("tokens")
            log.tokens += int(tokens)
            event["tokens_per_second"] = round(tokens / event.pop("seconds"), 1)
            step = event["step"]
            saved = event.pop("saved", None)
            chunks = event.pop("chunks", 0)

            # Record a new state before older ones are deleted: after a crash in between, the ledger
            # still names a state that exists.
            if saved:
                states = {**states, step: SavedState(saved, _source_digest(job, chunks, run.store), chunks)}
                states = dict(list(states.items())[-job.training.keep :])
                run.state.record_states(stage, states)
                prune_states(stage.trainer, states, run.store)

            # Log the step. The last one is always logged, because it shows the result.
            log.first = log.first or event
            log.last = event
            progress.advance(1, f"loss {event['loss']:.4f}", total=event["steps"] - job.resume_step)
            if step % job.training.log_every == 0 or step == event["steps"] or "skipped" in event:
                run.reporter.metrics_log.append(unit.name, kind="train", **event)
            # The user has interrupted the run, and this state was saved for it.
            if saved and interrupted.is_set():
                raise KeyboardInterrupt
    raise RuntimeError(f"{label} ended without an outcome")
