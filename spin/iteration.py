"""One iteration, stage by stage.

    opponent ──► generators ──samples/──► trainers score ──pairs/──► trainers train ──policy/──► ledger: promoted
    (frozen)     (vLLM)                   (the weights about            (main player)      └──► benchmark on held-out rows
                                           to be trained)
Each unit is a finished file, then a ledger line; a unit that has its line is checked against its digest and not done again.
"""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from spin.config import RunConfig, fingerprint, plain
from spin.crew import Crew
from spin.launch import LABELLED
from spin.layout import RunLayout, Stage
from spin.ledger import Ledger
from spin.metrics import Reporter
from spin.model import CheckpointError, Policy, check_policy
from spin.objective_config import PreferenceObjective, Reference, SftObjective
from spin.records import Pair, Prompt, file_sha256, finish_file
from spin.scoring import LabelledJob, PairsJob
from spin.workers import Sampling, TrainingJob

Shards = list[tuple[type, str]]
"""Record type and path of each file of rows that a stage trains on."""


@dataclass
class Run:
    """What every stage needs."""

    config: RunConfig
    plan: list[RunConfig]
    """The config of each iteration, its schedule applied."""
    layout: RunLayout
    ledger: Ledger
    reporter: Reporter
    crew: Crew
    note: str | None = None
    """The layout that training fell back to, once it was said."""

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


def run_iteration(run: Run, index: int, opponent: Policy, base: Policy) -> Policy:
    """Generate, label, score, train, promote; returns the promoted policy. `base` is what iteration 0 started from."""
    stage, config = run.layout.iteration(index), run.plan[index]
    if (policy := promoted(run, stage, opponent)) is not None:
        return policy
    if f"{stage.name}/config" not in run.ledger:
        finish_file(stage.config, lambda temporary: _write(temporary, OmegaConf.to_yaml(OmegaConf.create(plain(config)))))
        run.ledger.append(f"{stage.name}/config", keys=fingerprint(config))
    objective = config.objective
    reference = base if isinstance(objective, PreferenceObjective) and objective.reference is Reference.base else opponent
    if isinstance(objective, SftObjective):
        shards: Shards = [(Prompt, str(run.layout.prompts("train")))]
    else:
        shards, rows = self_play(run, index, stage, opponent, reference) if config.feedback._target_ else ([], 0)
        if config.feedback.path:
            labelled, more = score_labelled(run, index, stage, reference)
            shards, rows = shards + labelled, rows + more
        if rows == 0:
            raise RuntimeError(f"{stage.name}: no pair is left to learn from (see the counts above): the run has converged, or the pairs.drop_* settings drop everything")
    job = TrainingJob(opponent, reference, shards, objective, config.training, index, str(stage.policy), str(stage.trainer))
    return train(run, f"iteration {index}", stage, job)


def promoted(run: Run, stage: Stage, opponent: Policy) -> Policy | None:
    """The policy of a stage that is done; None when it is not. Raises CheckpointError when it did not start from `opponent`, or was altered."""
    facts = run.ledger.get(f"{stage.name}/policy")
    if facts is None:
        return None
    policy = Policy(str(stage.policy), facts["digest"])
    check_policy(policy)
    if facts["opponent"] != opponent.digest:
        raise CheckpointError(f"{stage.policy} was trained from another policy than the one promoted before it; start again with another run_dir")
    return policy


def self_play(run: Run, index: int, stage: Stage, opponent: Policy, reference: Policy) -> tuple[Shards, int]:
    """The opponent answers every training prompt, shard by shard, on whichever engine is free; then each shard is labelled and scored.

    Returns the shards of pairs and how many rows they hold.
    """
    generation = run.plan[index].generation
    total = run.ledger.get("data")["train"]  # type: ignore[index]
    bounds = [(first, min(total, first + generation.shard_size)) for first in range(0, total, generation.shard_size)]
    jobs = [(shard, first, last) for shard, (first, last) in enumerate(bounds) if run.finished(f"{stage.name}/samples/{shard}", stage.samples(shard)) is None]
    sampling = Sampling("train", index, generation.temperature, generation.top_p, generation.samples_per_prompt)
    prompts = str(run.layout.prompts("train"))

    def call(actor: Any, job: tuple[int, int, int]) -> Any:
        shard, first, last = job
        return actor.generate.remote(opponent, prompts, first, last, str(stage.samples(shard)), sampling)

    _shards(run, stage, "samples", f"iteration {index} generate", lambda: run.crew.on_generators(call, jobs), len(jobs), len(bounds))
    return score(run, index, stage, opponent, reference, len(bounds))


def score(run: Run, index: int, stage: Stage, opponent: Policy, reference: Policy, count: int) -> tuple[Shards, int]:
    """Label and score `count` shards of samples, with the pairs of earlier iterations that are replayed."""
    config, prompts = run.plan[index], str(run.layout.prompts("train"))
    earlier = [i for i in range(max(0, index - config.replay), index) if f"{run.layout.iteration(i).name}/samples/0" in run.ledger]
    jobs = [shard for shard in range(count) if run.finished(f"{stage.name}/pairs/{shard}", stage.pairs(shard)) is None]

    def call(actor: Any, shard: int) -> Any:
        replayed = [(i, str(run.layout.iteration(i).pairs(shard))) for i in earlier]
        return actor.score_pairs.remote(PairsJob(config, index, opponent, reference, prompts, str(stage.samples(shard)), replayed, str(stage.pairs(shard))))

    for i in earlier if jobs else []:
        for shard in jobs:
            run.finished(f"{run.layout.iteration(i).name}/pairs/{shard}", run.layout.iteration(i).pairs(shard))
    _shards(run, stage, "pairs", f"iteration {index} score", lambda: run.crew.on_trainers(call, jobs), len(jobs), count)
    facts = [run.ledger.get(f"{stage.name}/pairs/{shard}") or {} for shard in range(count)]
    dropped = sum((Counter(fact["dropped"]) for fact in facts), Counter[str]())
    own = sum(fact["rows"] - fact["replayed"] for fact in facts)
    if dropped["identical"] > own:
        run.reporter.say(
            f"warning: {dropped['identical']} of {dropped.total() + own} pairs had identical halves and were dropped; the opponent has nearly memorised the prompts"
        )
    return [(Pair, str(stage.pairs(shard))) for shard in range(count)], sum(fact["rows"] for fact in facts)


def score_labelled(run: Run, index: int, stage: Stage, reference: Policy) -> tuple[Shards, int]:
    """Score the labelled sets under this iteration's reference. Returns as `self_play`."""
    label, config = f"iteration {index} score", run.plan[index]
    sets = [(name, kind) for name, kind in LABELLED.items() if run.ledger.get("data").get(name)]  # type: ignore[union-attr]
    jobs = [(name, kind) for name, kind in sets if run.finished(f"{stage.name}/pairs/{name}", stage.labelled(name)) is None]

    def call(actor: Any, job: tuple[str, type]) -> Any:
        name, kind = job
        return actor.score_labelled.remote(LabelledJob(config, reference, kind, str(run.layout.prompts(name)), str(stage.labelled(name))))

    for facts in run.crew.on_trainers(call, jobs):
        name = Path(facts.pop("out")).stem
        run.ledger.append(f"{stage.name}/pairs/{name}", **facts)
        run.reporter.say(f"{label:<26} {facts['rows']:>7,} {name} in {facts['seconds']:6.1f} s")
    return [(kind, str(stage.labelled(name))) for name, kind in sets], sum((run.ledger.get(f"{stage.name}/pairs/{name}") or {})["rows"] for name, _ in sets)


def _shards(run: Run, stage: Stage, kind: str, label: str, results: Callable[[], Any], todo: int, count: int) -> None:
    """Drive one sharded stage: a ledger line for each finished shard, one line at the end."""
    start, rows, tokens, cut = time.perf_counter(), 0, 0, 0
    dropped: Counter[str] = Counter()
    path = {"samples": stage.samples, "pairs": stage.pairs}[kind]
    numbers = {str(path(shard)): shard for shard in range(count)}
    with run.reporter.stage(label, todo, "shards") as meter:
        for facts in results():
            run.ledger.append(f"{stage.name}/{kind}/{numbers[facts.pop('out')]}", **facts)
            rows, tokens, cut = rows + facts["rows"], tokens + facts.get("tokens", 0), cut + facts.get("cut", 0)
            dropped.update(facts.get("dropped", {}))
            meter.advance(1, f"{rows:,} {kind}")
    seconds = time.perf_counter() - start
    if todo == 0:
        return
    unit = f"{stage.name}/{kind}"
    run.ledger.append(unit, tokens=tokens, seconds=round(seconds, 3))
    run.reporter.log(unit, kind=kind, rows=rows, tokens=tokens, cut=cut, dropped=dict(dropped), seconds=round(seconds, 3))
    detail = f", {tokens / seconds:,.0f} tokens/s, {cut} cut at the limit" if tokens else ""
    detail += "; dropped: " + ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items())) if dropped else ""
    run.reporter.say(f"{label:<26} {rows:>7,} {kind} in {seconds:6.1f} s{detail}")


def train(run: Run, label: str, stage: Stage, job: TrainingJob) -> Policy:
    """Train the main player from the opponent's weights, export it, and promote it by its digest."""
    start, unit = time.perf_counter(), f"{stage.name}/policy"
    state = run.ledger.get(f"{stage.name}/trainer") or {"step": 0}
    if (stage.trainer / f"step-{state['step']:06d}").is_dir():
        job = replace(job, resume_step=state["step"])
        run.reporter.say(f"{label} train goes on after step {job.resume_step}")
    event: dict[str, Any] = {}
    tokens = 0
    first: dict[str, Any] = {}
    with run.reporter.stage(f"{label} train", 0, "steps") as meter:
        before = time.perf_counter()
        for event in run.crew.train(job):
            if "digest" in event:
                break
            now = time.perf_counter()
            tokens += event["tokens"]
            event["tokens_per_second"] = round(event.pop("tokens") / (now - before), 1)
            before = now
            first = first or event
            if event.pop("saved"):
                run.ledger.append(f"{stage.name}/trainer", step=event["step"])
                for old in stage.trainer.glob("step-*"):  # only after the new one is announced
                    if old.name != f"step-{event['step']:06d}":
                        shutil.rmtree(old)
            meter.advance(1, f"loss {event['loss']:.4f}", total=event["steps"] - job.resume_step)
            if event["step"] % job.training.log_every == 0 or event["step"] == event["steps"]:
                run.reporter.log(unit, kind="train", **event)
            last = event
    if event["note"] and run.note is None:
        run.note = event["note"]
        run.reporter.say(event["note"])
    policy = Policy(str(stage.policy), event["digest"])
    check_policy(policy)
    seconds = time.perf_counter() - start
    shutil.rmtree(stage.trainer, ignore_errors=True)
    run.ledger.append(unit, digest=policy.digest, opponent=job.policy.digest, steps=last["steps"], tokens=int(tokens), seconds=round(seconds, 3))
    run.reporter.say(f"{label + ' train':<26} {last['steps']:>7,} steps in {seconds:6.1f} s, loss {first['loss']:.4f} → {last['loss']:.4f}")
    if last.get("rewards/chosen", 0.0) < 0:  # a log-ratio on the same rows: logps/chosen itself varies with the batch
        run.reporter.say(
            f"warning: rewards/chosen ends at {last['rewards/chosen']:.3f}: the truth got less likely than under the opponent; "
            "raise objective.beta or lower training.learning_rate"
        )
    return policy


def _write(path: Path, text: str) -> None:
    path.write_text(text)
