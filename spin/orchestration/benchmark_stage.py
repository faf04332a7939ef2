"""Benchmark one policy: engines answer held-out prompts, a trainer scores, metrics are written.

There are two functions, `generate_answers` and `score_answers`, so that the engine can generate
again while the trainer scores: the training samples of the next iteration, and in `spin bench` the
answers of the next policy.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from spin.benchmark.bootstrap import is_worse
from spin.benchmark.heldout_answers import judge_answers
from spin.benchmark.metrics import COMPARED, compute_metrics
from spin.benchmark.verifier import make_verifier
from spin.data.parquet import read_rows, write_rows
from spin.data.records import HeldoutAnswer, Prompt, Sample
from spin.generation.requests import Sampling
from spin.models.packing import Group
from spin.models.policy import Policy
from spin.orchestration.context import RunContext
from spin.orchestration.engine_check import verify_engines
from spin.orchestration.stage_speed import measure_speed
from spin.report.benchmark_csv import write_csv
from spin.run_dir.facts import BenchmarkFacts
from spin.run_dir.files import file_sha256, write_json
from spin.run_dir.paths import Stage


@dataclass
class HeldoutAnswers:
    """The answers of a policy to the held-out prompts."""

    stage: Stage
    prompts: list[Prompt]
    greedy: list[Sample]
    sampled: list[list[Sample]]
    """`benchmark.samples` answers for each prompt."""
    policy: Policy
    start: Policy
    started: float
    """Time at which the benchmark began, by `time.perf_counter`."""
    generated: float
    """Seconds of generation, the check of the engines included."""


def is_measured(run: RunContext, stage: Stage) -> bool:
    """Return True if the benchmark of a stage is done and its files are intact."""
    unit = run.state.unit(stage, "benchmark")
    if not run.finished(unit):
        return False
    # The win rate of the next policy needs the scored answers, so they must be intact too.
    answers = stage.answers("judged")
    problem = run.check_file(answers, run.state.facts(unit, BenchmarkFacts).judged)
    if problem is not None:
        run.reporter.print(f"warning: {answers} {problem}; it is made again")
    return problem is None


def generate_answers(run: RunContext, stage: Stage, policy: Policy, start: Policy) -> HeldoutAnswers:
    """Let the engines answer the held-out prompts.

    Args:
        run: The run.
        stage: The stage of the policy.
        policy: The policy.
        start: The policy that iteration 0 started from; the KL divergence is measured against it.
    """
    started = time.perf_counter()
    verify_engines(run, policy)

    # One greedy answer for each prompt, and samples with the settings that the training uses.
    path = run.layout.prompts("heldout")
    prompts = read_rows(path, Prompt)
    generation = run.config.generation
    num_samples = run.config.benchmark.samples
    settings = (generation.temperature, generation.top_p, num_samples)
    jobs = {
        "greedy": Sampling("heldout greedy", stage.index, 0.0, with_logps=False),
        "sampled": Sampling("heldout sampled", stage.index, *settings, with_logps=False),
    }

    def call(actor: Any, kind: str) -> Any:
        return actor.generate.remote(policy, str(path), 0, len(prompts), str(stage.answers(kind)), jobs[kind])

    with run.reporter.stage(f"{stage.label} benchmark", len(jobs), "sets of answers") as progress:
        for _ in run.worker_groups.run_on_generators(call, list(jobs)):
            progress.advance(1)
    generated = time.perf_counter() - started

    # The engines may have written on another machine.
    for kind in jobs:
        run.store.fetch(stage.answers(kind))
    greedy = read_rows(stage.answers("greedy"), Sample)
    flat = read_rows(stage.answers("sampled"), Sample)
    sampled = [flat[first : first + num_samples] for first in range(0, len(flat), num_samples)]
    return HeldoutAnswers(stage, prompts, greedy, sampled, policy, start, started, generated)


def score_answers(run: RunContext, answers: HeldoutAnswers) -> None:
    """Score and judge the answers, write the metrics and their intervals, and announce them."""
    stage, policy, prompts = answers.stage, answers.policy, answers.prompts
    unit = run.state.unit(stage, "benchmark")

    # Read the answers of the policy before this one, if there is one, for the win rate.
    previous = None
    previous_ids: list[list[list[int]]] = [[] for _ in prompts]
    before = run.state.sources(unit, "benchmark")
    if before:
        previous = read_rows(before[0].stage.answers("judged"), HeldoutAnswer)
        previous_ids = [[answer.sampled_ids] for answer in previous]

    # Score under the start for the KL divergence, then under the policy. The policy comes last: the
    # next iteration scores with it, and then the trainer need not load it again.
    sampled_ids = []
    scored_ids = []
    for prompt, samples, other_ids in zip(prompts, answers.sampled, previous_ids, strict=True):
        own_ids = [sample.completion_ids for sample in samples]
        sampled_ids.append(own_ids)
        scored_ids.append([prompt.completion_ids, *own_ids, *other_ids])
    start_logps = None
    with run.reporter.waiting(f"{stage.label} benchmark: scoring the answers"):
        if answers.start.digest != policy.digest:
            start_logps = score_completions(run, answers.start, prompts, sampled_ids)
        logps = score_completions(run, policy, prompts, scored_ids)

    # Write the scored answers first, then the metrics that are computed from them.
    is_right = make_verifier(run.config)
    judged = judge_answers(prompts, answers.greedy, answers.sampled, logps, start_logps, previous, is_right)
    judged_digest = write_rows(stage.answers("judged"), HeldoutAnswer, judged)
    run.store.publish(stage.answers("judged"))
    values = compute_metrics(judged, previous, run.config.seed)
    seconds = time.perf_counter() - answers.started
    values["speed"] = measure_speed(run.state, stage, seconds, answers.generated) | run.worker_groups.measure_memory()
    write_json(stage.benchmark, values)
    run.store.publish(stage.benchmark)

    # Log and record. Intervals and speed stay in benchmark.json. The ledger line comes after the
    # files that it names, and before the table, which is made from the ledger.
    logged = {key: value for key, value in values.items() if not isinstance(value, dict)}
    run.reporter.metrics_log.append(unit.name, kind="benchmark", policy=stage.name, **logged)
    digest = file_sha256(stage.benchmark)
    run.state.record(unit, BenchmarkFacts(digest, policy.digest, len(judged), round(seconds, 3), judged_digest))
    write_table(run)
    label = f"{stage.label} benchmark"
    run.reporter.print_stage(
        label,
        f"{len(judged):>7,} held-out in {seconds:6.1f} s: "
        f"exact match {values['exact_match_greedy']:.3f} greedy, {values['exact_match_sampled']:.3f} sampled, "
        f"NLL {values['nll']:.4f}",
    )
    warning = describe_losses(stage, values)
    if warning is not None:
        run.reporter.print(warning)


def write_table(run: RunContext) -> None:
    """Write benchmark.csv again, with the row of the policy that was measured last."""
    write_csv(run.layout.table, run.state)
    run.store.publish(run.layout.table)


def score_completions(
    run: RunContext, policy: Policy, prompts: Sequence[Prompt], completions: Sequence[list[list[int]]]
) -> list[list[float]]:
    """Return the log-probability of each completion of each prompt.

    Args:
        run: The run.
        policy: The policy to score with.
        prompts: The prompts.
        completions: For each prompt, the token ids of its completions.

    Returns:
        For each prompt, one log-probability per completion, in nats.
    """
    # Score equal completions of a prompt once: samples at a low temperature often repeat.
    groups = []
    positions = []
    for prompt, own in zip(prompts, completions, strict=True):
        distinct: dict[tuple[int, ...], int] = {}
        for ids in own:
            distinct.setdefault(tuple(ids), len(distinct))
        groups.append(Group(prompt.prompt_ids, [list(ids) for ids in distinct]))
        positions.append([distinct[tuple(ids)] for ids in own])

    # Give each completion its log-probability, the repeated ones too.
    rows = run.worker_groups.score_completions(policy, groups)
    logps = []
    for row, own_positions in zip(rows, positions, strict=True):
        logps.append([row[position] for position in own_positions])
    return logps


def describe_losses(stage: Stage, values: dict[str, Any]) -> str | None:
    """Return a warning that names the metrics that got worse; None if there are none.

    A metric got worse if the whole 95 % interval of its change lies on the worse side of 0.
    """
    worse = []
    for name in COMPARED:
        change = values.get(f"{name}_change")
        interval = values["intervals"].get(f"{name}_change")
        if change is not None and is_worse(interval, name):
            worse.append(f"{name} {change:+.4f} (95 % {interval[0]:+.4f} to {interval[1]:+.4f})")
    if not worse:
        return None
    return f"warning: {stage.label} is worse than the policy before it: {', '.join(worse)}"
