"""One iteration, stage by stage.

    opponent ──► generators ──samples/──► trainers score ──pairs/──► trainers train ──policy/──► ledger: promoted
    (frozen)     (vLLM)                   (the weights about            (main player)      └──► benchmark on held-out rows
                                           to be trained)
Each unit is a finished file, then a ledger line; a unit that has its line is checked against its digest and not done again.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from spin.benchmark import heldout
from spin.config import ObjectiveConfig, RunConfig, SftObjective, TrainingConfig
from spin.crew import Crew
from spin.layout import RunLayout, Stage
from spin.ledger import Ledger
from spin.metrics import Reporter
from spin.model import CheckpointError, Policy, check_policy
from spin.records import HeldoutAnswer, Prompt, Sample, file_sha256, finish_file, read_rows, write_rows
from spin.workers import Sampling


@dataclass
class Run:
    """What every stage needs."""

    config: RunConfig
    layout: RunLayout
    ledger: Ledger
    reporter: Reporter
    crew: Crew
    pattern: str | None

    def finished(self, unit: str, path: Path) -> dict[str, Any] | None:
        """The facts of a finished unit, its file checked; None when it is still to do. Raises CheckpointError when the file was lost or altered."""
        facts = self.ledger.get(unit)
        if facts is None:
            return None
        if not path.exists():
            raise CheckpointError(f"{path} is in the ledger but gone; restore it, or start again with another run_dir")
        if file_sha256(path) != facts["sha256"]:
            raise CheckpointError(f"{path} was altered since it was finished; restore it, or start again with another run_dir")
        return facts


def run_iteration(run: Run, index: int, opponent: Policy) -> Policy:
    """Generate, score, train, promote; returns the promoted policy."""
    stage = run.layout.iteration(index)
    promoted = run.ledger.get(f"{stage.name}/policy")
    if promoted is not None:
        policy = Policy(str(stage.policy), promoted["digest"])
        check_policy(policy)
        if promoted["opponent"] != opponent.digest:
            raise CheckpointError(f"{stage.policy} was trained against another opponent than the one promoted before it; start again with another run_dir")
        return policy
    objective, prompts = run.config.objective, run.layout.prompts("train")
    if isinstance(objective, SftObjective):
        shards = [str(prompts)]
    else:
        generate(run, index, stage, opponent)
        shards = score(run, index, stage, opponent)
    return train(run, f"iteration {index}", stage, index, opponent, shards, objective, run.config.training)


def generate(run: Run, index: int, stage: Stage, opponent: Policy) -> None:
    """The opponent answers every training prompt, shard by shard, on whichever engine is free."""
    generation = run.config.generation
    total = run.ledger.get("data")["train"]  # type: ignore[index]
    bounds = [(first, min(total, first + generation.shard_size)) for first in range(0, total, generation.shard_size)]
    jobs = [(shard, first, last) for shard, (first, last) in enumerate(bounds) if run.finished(f"{stage.name}/samples/{shard}", stage.samples(shard)) is None]
    sampling = Sampling("train", index, generation.temperature, generation.samples_per_prompt)
    prompts = str(run.layout.prompts("train"))

    def call(actor: Any, job: tuple[int, int, int]) -> Any:
        shard, first, last = job
        return actor.generate.remote(opponent, prompts, first, last, str(stage.samples(shard)), sampling)

    _shards(run, stage, "samples", f"iteration {index} generate", lambda: run.crew.on_generators(call, jobs), len(jobs), len(bounds))


def score(run: Run, index: int, stage: Stage, opponent: Policy) -> list[str]:
    """Label and score every shard of samples; returns the paths of all shards of pairs."""
    total = run.ledger.get("data")["train"]  # type: ignore[index]
    count = -(-total // run.config.generation.shard_size)
    jobs = [shard for shard in range(count) if run.finished(f"{stage.name}/pairs/{shard}", stage.pairs(shard)) is None]
    prompts = str(run.layout.prompts("train"))

    def call(actor: Any, shard: int) -> Any:
        return actor.score.remote(opponent, prompts, str(stage.samples(shard)), str(stage.pairs(shard)), run.config.pairs)

    _shards(run, stage, "pairs", f"iteration {index} score", lambda: run.crew.on_trainers(call, jobs), len(jobs), count)
    facts = [run.ledger.get(f"{stage.name}/pairs/{shard}") or {} for shard in range(count)]
    pairs, identical = (sum(fact[key] for fact in facts) for key in ("rows", "identical"))
    if pairs == 0:
        raise RuntimeError(f"{stage.name}: all {identical} answers of the opponent equal the ground truth, so no pair carries a signal: the run has converged; add data")
    if identical > pairs:
        run.reporter.say(f"warning: {identical} of {identical + pairs} pairs had identical halves and were dropped; the opponent has nearly memorised the prompts")
    return [str(stage.pairs(shard)) for shard in range(count)]


def _shards(run: Run, stage: Stage, kind: str, label: str, results: Callable[[], Any], todo: int, count: int) -> None:
    """Drive one sharded stage: a ledger line for each finished shard, one line at the end."""
    start, rows, tokens, cut = time.perf_counter(), 0, 0, 0
    path = {"samples": stage.samples, "pairs": stage.pairs}[kind]
    numbers = {str(path(shard)): shard for shard in range(count)}
    with run.reporter.stage(label, todo, "shards") as meter:
        for facts in results():
            run.ledger.append(f"{stage.name}/{kind}/{numbers[facts.pop('out')]}", **facts)
            rows, tokens, cut = rows + facts["rows"], tokens + facts.get("tokens", 0), cut + facts.get("cut", 0)
            meter.advance(1, f"{rows:,} {kind}")
    seconds = time.perf_counter() - start
    if todo == 0:
        return
    unit = f"{stage.name}/{kind}"
    run.ledger.append(unit, seconds=round(seconds, 3))
    run.reporter.log(unit, kind=kind, rows=rows, tokens=tokens, cut=cut, seconds=round(seconds, 3))
    detail = f", {tokens / seconds:,.0f} tokens/s, {cut} cut at the limit" if tokens else ""
    run.reporter.say(f"{label:<26} {rows:>7,} {kind} in {seconds:6.1f} s{detail}")


def train(run: Run, label: str, stage: Stage, iteration: int, opponent: Policy, shards: list[str], objective: ObjectiveConfig, training: TrainingConfig) -> Policy:
    """Train the main player from the opponent's weights, export it, and promote it by its digest."""
    start, unit = time.perf_counter(), f"{stage.name}/policy"
    state = run.ledger.get(f"{stage.name}/trainer") or {"step": 0}
    resume = state["step"] if (stage.trainer / f"step-{state['step']:06d}").is_dir() else 0
    if resume:
        run.reporter.say(f"{label} train goes on after step {resume}")
    event: dict[str, Any] = {}
    first: dict[str, Any] = {}
    with run.reporter.stage(f"{label} train", 0, "steps") as meter:
        for event in run.crew.train(opponent, shards, objective, training, iteration, str(stage.policy), str(stage.trainer), resume):
            if "digest" in event:
                break
            first = first or event
            if event.pop("saved"):
                run.ledger.append(f"{stage.name}/trainer", step=event["step"])
                for old in stage.trainer.glob("step-*"):  # only after the new one is announced
                    if old.name != f"step-{event['step']:06d}":
                        shutil.rmtree(old)
            meter.advance(1, f"of {event['steps']}  loss {event['loss']:.4f}")
            if event["step"] % training.log_every == 0 or event["step"] == event["steps"]:
                run.reporter.log(unit, kind="train", **event)
            last = event
    policy = Policy(str(stage.policy), event["digest"])
    check_policy(policy)
    seconds = time.perf_counter() - start
    shutil.rmtree(stage.trainer, ignore_errors=True)
    run.ledger.append(unit, digest=policy.digest, opponent=opponent.digest, steps=last["steps"], seconds=round(seconds, 3))
    run.reporter.say(f"{label + ' train':<26} {last['steps']:>7,} steps in {seconds:6.1f} s, loss {first['loss']:.4f} → {last['loss']:.4f}")
    if last.get("rewards/chosen", 0.0) < 0:  # a log-ratio on the same rows: logps/chosen itself varies with the batch
        run.reporter.say(
            f"warning: rewards/chosen ends at {last['rewards/chosen']:.3f}: the truth got less likely than under the opponent; "
            "raise objective.beta or lower training.learning_rate"
        )
    return policy


def benchmark(run: Run, label: str, stage: Stage, iteration: int, policy: Policy, opponent: Stage | None) -> dict[str, Any]:
    """Held-out figures of a policy, and its win rate against the opponent's answers. Returns and records the figures."""
    done = run.finished(f"{stage.name}/benchmark", stage.benchmark)
    if done is not None:
        return json.loads(stage.benchmark.read_text())
    start = time.perf_counter()
    path = run.layout.prompts("heldout")
    prompts = read_rows(path, Prompt)
    jobs = [("greedy", 0.0), ("sampled", run.config.generation.temperature)]

    def call(actor: Any, job: tuple[str, float]) -> Any:
        kind, temperature = job
        return actor.generate.remote(policy, str(path), 0, len(prompts), str(stage.answers(kind)), Sampling(f"heldout {kind}", iteration, temperature))

    for _ in run.crew.on_generators(call, jobs):
        pass
    greedy, sampled = (read_rows(stage.answers(kind), Sample) for kind, _ in jobs)
    sequences = [(p.prompt_ids, p.real_ids) for p in prompts] + [(p.prompt_ids, s.token_ids) for p, s in zip(prompts, sampled, strict=True)]
    theirs = read_rows(opponent.answers("judged"), HeldoutAnswer) if opponent else []
    sequences += [(p.prompt_ids, answer.sampled_ids) for p, answer in zip(prompts, theirs, strict=False)]
    logps = ray.get(run.crew.trainers[0].logps.remote(policy, sequences))
    n = len(prompts)
    answers = heldout.judge(prompts, greedy, sampled, logps[: 2 * n], run.pattern)
    write_rows(stage.answers("judged"), HeldoutAnswer, answers)
    figures = heldout.figures(prompts, answers)
    figures["win_rate"] = heldout.win_rate(prompts, theirs, logps[:n], logps[2 * n :]) if opponent else None
    finish_file(stage.benchmark, lambda temporary: _write_json(temporary, figures))
    seconds = time.perf_counter() - start
    run.reporter.log(f"{stage.name}/benchmark", kind="benchmark", policy=stage.name, **figures)
    run.ledger.append(f"{stage.name}/benchmark", sha256=file_sha256(stage.benchmark), seconds=round(seconds, 3))
    run.reporter.say(
        f"{label + ' benchmark':<26} {n:>7,} held-out in {seconds:6.1f} s: exact match {figures['exact_match_greedy']:.3f} greedy, "
        f"{figures['exact_match_sampled']:.3f} sampled, NLL {figures['nll']:.4f}"
    )
    return figures


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")
