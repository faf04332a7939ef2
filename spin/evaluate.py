"""The benchmark of one policy: the engines answer the held-out prompts, a trainer scores, and the figures are written down."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from spin.benchmark import heldout
from spin.layout import Stage
from spin.model import Policy
from spin.packing import Group
from spin.records import HeldoutAnswer, Prompt, Sample, file_sha256, finish_file, read_rows, write_rows
from spin.run import Run
from spin.workers import Sampling


def benchmark(run: Run, label: str, stage: Stage, iteration: int, policy: Policy, opponent: Stage | None) -> dict[str, Any]:
    """Held-out figures of a policy, and its win rate against the opponent's answers. Returns and records the figures."""
    done = run.finished(f"{stage.name}/benchmark", stage.benchmark, policy.digest)
    if done is not None:
        return json.loads(stage.benchmark.read_text())
    start = time.perf_counter()
    path = run.layout.prompts("heldout")
    prompts = read_rows(path, Prompt)
    generation = run.config.generation
    jobs = [("greedy", Sampling("heldout greedy", iteration, 0.0)), ("sampled", Sampling("heldout sampled", iteration, generation.temperature, generation.top_p))]

    run.seat(policy)

    def call(actor: Any, job: tuple[str, Sampling]) -> Any:
        kind, sampling = job
        return actor.generate.remote(policy, str(path), 0, len(prompts), str(stage.answers(kind)), sampling)

    for _ in run.crew.on_generators(call, jobs):
        pass
    greedy, sampled = (read_rows(stage.answers(kind), Sample) for kind, _ in jobs)
    theirs = read_rows(opponent.answers("judged"), HeldoutAnswer) if opponent else []
    groups = [Group(p.prompt_ids, [p.real_ids, s.token_ids]) for p, s in zip(prompts, sampled, strict=True)]
    groups = [Group(g.prompt_ids, [*g.completions, a.sampled_ids]) for g, a in zip(groups, theirs, strict=True)] if opponent else groups
    logps = run.crew.logps(policy, groups)
    answers = heldout.judge(prompts, greedy, sampled, logps, run.config.data.answer_pattern)
    write_rows(stage.answers("judged"), HeldoutAnswer, answers)
    figures = heldout.figures(prompts, answers)
    figures["win_rate"] = heldout.win_rate(prompts, theirs, logps) if opponent else None
    finish_file(stage.benchmark, lambda temporary: _write_json(temporary, figures))
    seconds = time.perf_counter() - start
    run.reporter.log(f"{stage.name}/benchmark", kind="benchmark", policy=stage.name, **figures)
    run.ledger.append(f"{stage.name}/benchmark", sha256=file_sha256(stage.benchmark), source=policy.digest, seconds=round(seconds, 3))
    run.reporter.say(
        f"{label + ' benchmark':<26} {len(prompts):>7,} held-out in {seconds:6.1f} s: exact match {figures['exact_match_greedy']:.3f} greedy, "
        f"{figures['exact_match_sampled']:.3f} sampled, NLL {figures['nll']:.4f}"
    )
    return figures


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n")
