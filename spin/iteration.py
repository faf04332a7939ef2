"""One iteration, stage by stage.

    opponent ──► generators ──samples/──► trainers score ──pairs/──► trainers train ──policy/──► ledger: promoted
    (frozen)     (vLLM)                   (the weights about            (main player)      └──► benchmark on held-out rows
                                           to be trained)
Each unit is a finished file, then a ledger line; a unit that has its line is checked against its digest and not done again.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from spin.config import fingerprint, plain
from spin.launch import LABELLED
from spin.layout import Stage
from spin.model import CheckpointError, Policy
from spin.objective_config import PreferenceObjective, Reference, SftObjective
from spin.records import Pair, Prompt, finish_file
from spin.run import Run, damage
from spin.scoring import LabelledJob, PairsJob
from spin.training import train
from spin.workers import Sampling, TrainingJob

Shards = list[tuple[type, str]]
"""Record type and path of each file of rows that a stage trains on."""


def run_iteration(run: Run, index: int, opponent: Policy, base: Policy) -> Policy:
    """Generate, label, score, train, promote; returns the promoted policy. `base` is what iteration 0 started from."""
    stage, config = run.layout.iteration(index), run.plan[index]
    later = f"{run.layout.iteration(index + 1).name}/config" in run.ledger
    promoted = run.promoted(f"{stage.name}/policy", stage.policy, opponent, later)
    if promoted is not None:
        return promoted
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

    if jobs:
        run.seat(opponent)
    _shards(run, stage, "samples", f"iteration {index} generate", lambda: run.crew.on_generators(call, jobs), len(jobs), len(bounds))
    return score(run, index, stage, opponent, reference, len(bounds))


def score(run: Run, index: int, stage: Stage, opponent: Policy, reference: Policy, count: int) -> tuple[Shards, int]:
    """Label and score `count` shards of samples, with the pairs of earlier iterations that are replayed."""
    config, prompts = run.plan[index], str(run.layout.prompts("train"))
    earlier = [i for i in range(max(0, index - config.replay), index) if f"{run.layout.iteration(i).name}/samples/0" in run.ledger]
    sources = [(run.ledger.get(f"{stage.name}/samples/{shard}") or {})["sha256"] for shard in range(count)]
    jobs = [shard for shard, source in enumerate(sources) if run.finished(f"{stage.name}/pairs/{shard}", stage.pairs(shard), source) is None]

    def call(actor: Any, shard: int) -> Any:
        replayed = [(i, str(run.layout.iteration(i).pairs(shard))) for i in earlier]
        return actor.score_pairs.remote(PairsJob(config, index, opponent, reference, prompts, str(stage.samples(shard)), replayed, str(stage.pairs(shard))))

    for i in earlier if jobs else []:
        for shard in jobs:
            path = run.layout.iteration(i).pairs(shard)
            problem = damage(path, (run.ledger.get(f"{run.layout.iteration(i).name}/pairs/{shard}") or {})["sha256"])
            if problem:  # to make it again would take its opponent, its reference and its own replay
                raise CheckpointError(f"{path}, which is replayed, {problem}; restore it, or start again with another run_dir")
    _shards(run, stage, "pairs", f"iteration {index} score", lambda: run.crew.on_trainers(call, jobs), len(jobs), count, sources)
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


def _shards(run: Run, stage: Stage, kind: str, label: str, results: Callable[[], Any], todo: int, count: int, sources: Sequence[str] = ()) -> None:
    """Drive one sharded stage: a ledger line for each finished shard, with the digest of what it came from, and one line at the end."""
    start, rows, tokens, cut = time.perf_counter(), 0, 0, 0
    dropped: Counter[str] = Counter()
    path = {"samples": stage.samples, "pairs": stage.pairs}[kind]
    numbers = {str(path(shard)): shard for shard in range(count)}
    with run.reporter.stage(label, todo, "shards") as meter:
        for facts in results():
            shard = numbers[facts.pop("out")]
            run.ledger.append(f"{stage.name}/{kind}/{shard}", **facts, **({"source": sources[shard]} if sources else {}))
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


def _write(path: Path, text: str) -> None:
    path.write_text(text)
