"""Run the tasks of lm-evaluation-harness on one policy, with an engine of the run."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from spin.config.run import to_plain
from spin.models.policy import Policy
from spin.orchestration.benchmark_stage import write_table
from spin.orchestration.context import RunContext
from spin.orchestration.engine_check import verify_engines
from spin.run_dir.facts import LmEvalFacts
from spin.run_dir.files import file_sha256, write_json
from spin.run_dir.paths import Stage


def lm_eval(run: RunContext, stage: Stage, policy: Policy) -> None:
    """Run the tasks of lm-evaluation-harness, unless that is done with the same settings."""
    units = run.state.units(stage, "lm_eval")
    if not units or run.finished(units[0]):
        return
    [unit] = units

    # Run all tasks on one engine: the harness works through them one after the other.
    started = time.perf_counter()
    verify_engines(run, policy)
    config = run.config.benchmark.lm_eval
    job = config
    if config.include_path:
        # The engine may have another working directory.
        job = replace(config, include_path=str(Path(config.include_path).absolute()))
    with run.reporter.stage(f"{stage.label} lm_eval", 1, "sets of tasks") as progress:
        results = run.worker_groups.run_on_generators(lambda actor, job: actor.lm_eval.remote(policy, job), [job])
        [(_, tasks)] = results
        progress.advance(1)
    seconds = time.perf_counter() - started
    truncated = tasks.pop("truncated_prompts")

    # Write the file, then its ledger line. The line holds the settings of the config, without the
    # absolute path: a resume compares the two.
    write_json(stage.lm_eval, tasks)
    run.store.publish(stage.lm_eval)
    run.reporter.metrics_log.append(unit.name, kind="lm_eval", **tasks)
    digest = file_sha256(stage.lm_eval)
    run.state.record(unit, LmEvalFacts(digest, policy.digest, len(tasks), round(seconds, 3), to_plain(config)))
    write_table(run)

    # Show the first metric of each task.
    shown = []
    for task, values in tasks.items():
        if values:
            shown.append(f"{task} {next(iter(values.values())):.3f}")
    label = f"{stage.label} lm_eval"
    run.reporter.print_stage(label, f"{len(tasks):>7,} tasks in {seconds:6.1f} s: {', '.join(shown)}")
    if truncated:
        run.reporter.print(
            f"warning: {truncated} prompts of lm_eval were cut at their beginning: "
            "with the answer they exceed training.max_length or generation.max_prompt_tokens"
        )
