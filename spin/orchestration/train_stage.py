"""One training stage as the driver sees it: start or go on, follow, survive the workers' deaths, promote."""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from spin.cluster.task_pool import WorkersLost
from spin.cluster.worker_groups import BackgroundWork
from spin.models.policy import Policy, check_policy
from spin.orchestration.context import RunContext
from spin.orchestration.interrupts import saved_on_interrupt
from spin.run_dir.files import file_sha256
from spin.run_dir.paths import Stage
from spin.run_dir.store import RunStore
from spin.training.checkpoint import prune_states, usable_states
from spin.training.job import TrainingJob


def train(
    run: RunContext, label: str, stage: Stage, job: TrainingJob, background: BackgroundWork | None = None
) -> Policy:
    """Train the main player from the opponent's weights, export it, and promote it by its digest. `beside`: what goes on meanwhile."""
    start, unit = time.perf_counter(), f"{stage.name}/policy"
    while True:
        states = known_states(run, stage, job)
        step = max(states, default=0)
        run.reporter.keep_finished(lambda row, step=step: row["unit"] != unit or row.get("step", 0) <= step)  # type: ignore[misc]
        if step:
            run.reporter.print(f"{label} train goes on after step {step}")
        try:
            first, last, outcome = _follow(run, label, stage, replace(job, resume_step=step), states, background)
            break
        except WorkersLost as lost:
            run.worker_groups.restart_workers(lost)
    if outcome["note"] and run.note is None:
        run.note = outcome["note"]
        run.reporter.print(outcome["note"])
    policy = Policy(str(stage.policy), outcome["digest"])
    run.store.fetch(stage.policy)
    check_policy(policy)
    seconds = time.perf_counter() - start
    run.ledger.append(
        unit,
        digest=policy.digest,
        opponent=job.policy.digest,
        steps=outcome["steps"],
        tokens=outcome["tokens"],
        seconds=round(seconds, 3),
    )
    run.store.delete(stage.trainer)
    losses = (
        f", loss {first['loss']:.4f} → {last['loss']:.4f}" if last else ""
    )  # none, where the last step had been saved
    run.reporter.print(f"{label + ' train':<26} {outcome['steps']:>7,} steps in {seconds:6.1f} s{losses}")
    if last.get("rewards/chosen", 0.0) < 0:  # a log-ratio on the same rows: logps/chosen itself varies with the batch
        run.reporter.print(
            f"warning: rewards/chosen ends at {last['rewards/chosen']:.3f}: the truth got less likely than under the opponent; "
            "raise objective.beta or lower training.learning_rate"
        )
    return policy


def known_states(run: RunContext, stage: Stage, job: TrainingJob) -> dict[int, dict[str, Any]]:
    """What the ledger says of each saved state that is whole and came from these rows, by step, in order. What is lost or altered is named."""
    known = (run.ledger.get(f"{stage.name}/trainer") or {}).get("states", {})
    fitting = {
        step: facts for step, facts in known.items() if facts["source"] == _source(job, facts["chunks"], run.store)
    }
    good, bad = usable_states(stage.trainer, {step: facts["digest"] for step, facts in fitting.items()}, run.store)
    for lost in bad:
        where = f"after step {good[-1]}" if good else "from the start of the stage"
        run.reporter.print(
            f"warning: the state after step {lost} in {stage.trainer} is gone or was altered; training goes on {where}"
        )
    return {step: fitting[str(step)] for step in good}


def _source(job: TrainingJob, chunks: int, store: RunStore) -> str | None:
    """What the stage learnt from when it had taken `chunks` of its rows: a state that came from anything else is of no use to it. None: that is not there."""
    paths = [Path(path) for path in (*(path for _, path in job.others), *job.pairs[:chunks])]
    for path in paths:
        store.fetch(path)
    if not all(path.exists() for path in paths):
        return None
    return hashlib.sha256(" ".join([job.policy.digest, *map(file_sha256, paths)]).encode()).hexdigest()


def _follow(
    run: RunContext,
    label: str,
    stage: Stage,
    job: TrainingJob,
    states: dict[int, dict[str, Any]],
    background: BackgroundWork | None,
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Show and log each step as it comes, and announce saved states. Returns the first and the last step's metrics, and the outcome."""
    first: dict[str, Any] = {}
    last: dict[str, Any] = {}
    tokens = 0
    with run.reporter.stage(f"{label} train", 0, "steps") as progress, saved_on_interrupt(run, job) as interrupted:
        for event in run.worker_groups.train(job, background, interrupted.is_set):
            if "digest" in event:
                return first, last, {**event, "tokens": tokens}
            tokens += int(event["tokens"])
            event["tokens_per_second"] = round(event.pop("tokens") / event.pop("seconds"), 1)
            first = first or event
            if saved := event.pop("saved", None):
                chunks = event.pop("chunks")
                states = dict(
                    [
                        *states.items(),
                        (event["step"], {"digest": saved, "source": _source(job, chunks, run.store), "chunks": chunks}),
                    ][-job.training.keep :]
                )
                run.ledger.append(f"{stage.name}/trainer", states=states)
                prune_states(stage.trainer, states, run.store)  # only after the new one is announced
            progress.advance(1, f"loss {event['loss']:.4f}", total=event["steps"] - job.resume_step)
            if event["step"] % job.training.log_every == 0 or event["step"] == event["steps"]:
                run.reporter.log(f"{stage.name}/policy", kind="train", **event)
            last = event
            if saved and interrupted.is_set():
                raise KeyboardInterrupt
    raise RuntimeError(f"{label} train ended without an outcome")
