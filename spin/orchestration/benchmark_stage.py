"""The benchmark of one policy: the engines answer the held-out prompts, a trainer scores, and the figures are written down.

Two halves, `ask` and `conclude`, so that `spin bench` can let the engine answer for one policy while the answers of the one before are scored.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spin.benchmark import metrics
from spin.config.benchmark import LmEvalConfig
from spin.config.run import to_plain
from spin.data.parquet import read_rows, write_rows
from spin.data.records import HeldoutAnswer, Prompt, Sample
from spin.generation.engine import Sampling
from spin.models.packing import Group
from spin.models.policy import Policy
from spin.orchestration.context import RunContext, verify_file
from spin.report.tables import write_csv
from spin.run_dir.files import file_sha256, write_json
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import Stage


@dataclass
class HeldoutAnswers:
    """A policy whose answers are there."""

    stage: Stage
    opponent: Stage | None
    prompts: list[Prompt]
    greedy: list[Sample]
    sampled: list[list[Sample]]
    policy: Policy
    start: Policy
    started: float
    generated: float
    """Seconds that the answers took."""


def benchmark(
    run: RunContext, stage: Stage, iteration: int, policy: Policy, start: Policy, opponent: Stage | None
) -> dict[str, Any]:
    """Held-out figures of a policy, against its start and the answers of the policy before it. Returns and records them."""
    facts = run.finished(f"{stage.name}/benchmark", stage.benchmark, policy.digest)
    if facts is not None:
        answers = stage.answers("judged")  # what the next win rate is measured against
        problem = verify_file(answers, facts["judged"], run.store)
        if problem is None:
            return json.loads(stage.benchmark.read_text())
        run.reporter.print(f"warning: {answers} {problem}; it is made again")
    return score_answers(run, generate_answers(run, stage, iteration, policy, start, opponent))


def generate_answers(
    run: RunContext, stage: Stage, iteration: int, policy: Policy, start: Policy, opponent: Stage | None
) -> HeldoutAnswers:
    """Let the engines answer the held-out prompts."""
    started = time.perf_counter()
    run.verify_engines(policy)
    path = run.layout.prompts("heldout")
    prompts = read_rows(path, Prompt)
    generation, samples = run.config.generation, run.config.benchmark.samples
    jobs = {
        "greedy": Sampling("heldout greedy", iteration, 0.0),
        "sampled": Sampling("heldout sampled", iteration, generation.temperature, generation.top_p, samples),
    }

    def call(actor: Any, kind: str) -> Any:
        return actor.generate.remote(policy, str(path), 0, len(prompts), str(stage.answers(kind)), jobs[kind])

    with run.reporter.stage(f"{stage.label} benchmark", len(jobs), "sets of answers") as progress:
        for _ in run.worker_groups.on_generators(call, list(jobs)):
            progress.advance(1)
    generated = time.perf_counter() - started
    for kind in jobs:
        run.store.fetch(stage.answers(kind))
    greedy, flat = (read_rows(stage.answers(kind), Sample) for kind in jobs)
    sampled = [flat[at : at + samples] for at in range(0, len(flat), samples)]
    return HeldoutAnswers(stage, opponent, prompts, greedy, sampled, policy, start, started, generated)


def score_answers(run: RunContext, asked: HeldoutAnswers) -> dict[str, Any]:
    """Score and judge the answers, write the figures and their intervals, and announce them."""
    stage, seed, prompts, policy = asked.stage, run.config.seed, asked.prompts, asked.policy
    theirs = read_rows(asked.opponent.answers("judged"), HeldoutAnswer) if asked.opponent else None
    own = [[sample.token_ids for sample in samples] for samples in asked.sampled]
    other = [[answer.sampled_ids] for answer in theirs] if theirs else [[] for _ in prompts]
    start_logps = scored(run, asked.start, prompts, own) if asked.start.digest != policy.digest else None
    # The policy last: the next iteration scores with it, and the trainer then holds it already.
    logps = scored(
        run, policy, prompts, [[p.real_ids, *ids, *more] for p, ids, more in zip(prompts, own, other, strict=True)]
    )
    answers = metrics.judge(
        prompts, asked.greedy, asked.sampled, logps, start_logps, theirs, run.config.data.answer_pattern
    )
    judged = write_rows(stage.answers("judged"), HeldoutAnswer, answers)
    run.store.publish(stage.answers("judged"))
    values = metrics.figures(answers, theirs, seed)
    seconds = time.perf_counter() - asked.started
    values["speed"] = speed(run.ledger, stage, seconds, asked.generated) | run.worker_groups.memory()
    write_json(stage.benchmark, values)
    run.store.publish(stage.benchmark)
    run.reporter.log(
        f"{stage.name}/benchmark",
        kind="benchmark",
        policy=stage.name,
        **{key: value for key, value in values.items() if not isinstance(value, dict)},
    )
    run.ledger.append(
        f"{stage.name}/benchmark",
        sha256=file_sha256(stage.benchmark),
        judged=judged,
        source=policy.digest,
        seconds=round(seconds, 3),
    )
    write_csv(run.layout, run.ledger)
    run.store.publish(run.layout.table)
    run.reporter.print(
        f"{stage.label + ' benchmark':<26} {len(answers):>7,} held-out in {seconds:6.1f} s: exact match {values['exact_match_greedy']:.3f} greedy, "
        f"{values['exact_match_sampled']:.3f} sampled, NLL {values['nll']:.4f}"
    )
    for line in warnings(stage, values):
        run.reporter.print(line)
    return values


def scored(
    run: RunContext, policy: Policy, prompts: Sequence[Prompt], completions: Sequence[list[list[int]]]
) -> list[list[float]]:
    """Log-probabilities of each prompt's completions under a policy; one that comes twice is scored once."""
    distinct = [list(dict.fromkeys(map(tuple, own))) for own in completions]
    rows = run.worker_groups.logps(
        policy,
        [Group(prompt.prompt_ids, [list(ids) for ids in own]) for prompt, own in zip(prompts, distinct, strict=True)],
    )
    return [
        [row[places.index(tuple(ids))] for ids in own]
        for row, places, own in zip(rows, distinct, completions, strict=True)
    ]


def lm_eval(run: RunContext, stage: Stage, policy: Policy) -> None:
    """The tasks of lm-evaluation-harness, where the config names some, on an engine of the run; done again when other tasks are asked for."""
    config = run.config.benchmark.lm_eval
    if (
        not config.tasks
        or harness_done(config, stage, run.ledger)
        and run.finished(f"{stage.name}/lm_eval", stage.lm_eval, policy.digest)
    ):
        return
    started, unit = time.perf_counter(), f"{stage.name}/lm_eval"
    run.verify_engines(policy)
    with run.reporter.stage(f"{stage.label} lm_eval", 1, "sets of tasks") as progress:
        asked = replace(
            config, include_path=config.include_path and str(Path(config.include_path).absolute())
        )  # the engine may be on another node
        [(_, found)] = run.worker_groups.on_generators(
            lambda actor, asked: actor.lm_eval.remote(policy, asked), [asked]
        )
        progress.advance(1)
    seconds, cut = time.perf_counter() - started, found.pop("cut_prompts")
    write_json(stage.lm_eval, found)
    run.store.publish(stage.lm_eval)
    run.reporter.log(unit, kind="lm_eval", **found)
    run.ledger.append(
        unit,
        sha256=file_sha256(stage.lm_eval),
        source=policy.digest,
        settings=to_plain(config),
        seconds=round(seconds, 3),
    )
    write_csv(run.layout, run.ledger)
    run.store.publish(run.layout.table)
    shown = [f"{task} {next(iter(metrics.values())):.3f}" for task, metrics in found.items() if metrics]
    run.reporter.print(f"{stage.label + ' lm_eval':<26} {len(found):>7,} tasks in {seconds:6.1f} s: {', '.join(shown)}")
    if cut:
        run.reporter.print(
            f"warning: {cut} prompts of lm_eval lost their beginning: they exceed training.max_length or generation.max_prompt_tokens with the answer"
        )


def harness_done(config: LmEvalConfig, stage: Stage, ledger: Ledger) -> bool:
    """Whether what the harness found for a policy is what `config` asks for."""
    facts = ledger.get(f"{stage.name}/lm_eval")
    return facts is not None and facts["settings"] == to_plain(config)


def warnings(stage: Stage, values: dict[str, Any]) -> list[str]:
    """What got worse than the policy before, beyond the interval of the paired difference."""
    found = []
    for name in metrics.COMPARED:
        change, interval = values.get(f"{name}_change"), values["intervals"].get(f"{name}_change")
        if change is not None and metrics.worse(change, interval, name):
            found.append(f"{name} {change:+.4f} (95 % {interval[0]:+.4f} to {interval[1]:+.4f})")
    return [f"warning: {stage.label} is worse than the policy before it: {', '.join(found)}"] if found else []


def speed(ledger: Ledger, stage: Stage, seconds: float, generated: float) -> dict[str, Any]:
    """Seconds of each stage, tokens a second where the stage was, and the share that neither generated nor trained."""
    samples, policy = (ledger.get(f"{stage.name}/{kind}") or {"seconds": 0.0} for kind in ("samples", "policy"))
    spent = {
        "seconds_generate": samples["seconds"],
        "seconds_score": (ledger.get(f"{stage.name}/pairs") or {"seconds": 0.0})["seconds"],
        "seconds_train": policy["seconds"],
        "seconds_benchmark": round(seconds, 3),
        "seconds_benchmark_generate": round(generated, 3),
    }
    before = {} if samples.get("beside") else spent  # within the seconds of training
    busy = before.get("seconds_generate", 0.0) + spent["seconds_train"] + spent["seconds_benchmark_generate"]
    total = (
        before.get("seconds_generate", 0.0)
        + before.get("seconds_score", 0.0)
        + spent["seconds_train"]
        + spent["seconds_benchmark"]
    )
    rates = {
        f"{name}_tokens_per_second": round(facts["tokens"] / facts["seconds"], 1)
        for name, facts in (("generation", samples), ("training", policy))
        if facts.get("tokens")
    }
    return {**spent, "neither": round(1 - busy / total, 4), **rates}
