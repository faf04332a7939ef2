"""The run: launch checks, the starting policy, the iterations, the table at the end."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

from spin import cluster
from spin.config import RunConfig
from spin.crew import Crew
from spin.iteration import Run, Shards, benchmark, run_iteration, train
from spin.launch import claim, launch_checks, locked, prepare_data, start_model
from spin.layout import RunLayout
from spin.ledger import Ledger
from spin.metrics import Reporter
from spin.model import Policy, check_policy
from spin.objective_config import SftObjective
from spin.records import Prompt
from spin.workers import TrainingJob


def run_loop(config: RunConfig, plan: list[RunConfig]) -> None:
    """Run, or continue, what `config` describes; `plan` holds the config of each iteration. Raises ConfigError for what the user can mend, before any compute."""
    started = time.perf_counter()
    layout = RunLayout(Path(config.run_dir))
    with locked(layout):
        ledger = claim(config, plan, layout)
        reporter = Reporter(layout.metrics)
        reporter.keep_finished(lambda row: row["unit"] in ledger or row.get("step", 1) <= saved_step(ledger, row["unit"]))
        last = layout.iteration(config.iterations - 1)
        if f"{last.name}/policy" in ledger and (not config.benchmark.enabled or f"{last.name}/benchmark" in ledger):
            reporter.say(f"the run is complete: {config.iterations} iterations in {layout.root}; raise iterations to go on")
            summary(config, layout, ledger, reporter)
            return
        model = start_model(config, layout, ledger)
        renderer = launch_checks(config, plan, layout, ledger, model)
        prepare_data(config, plan, layout, ledger, reporter, renderer)
        with cluster.started(config, layout.native_log) as shares:
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C; set after Ray, which installs its own
            crew = Crew(config, shares, renderer.stop_ids)
            run = Run(config, plan, layout, ledger, reporter, crew)
            reporter.say(f"up in {time.perf_counter() - started:.1f} s; run directory {layout.root}")
            iterate(run, model)
        ledger.append("seconds", total=round(time.perf_counter() - started + (ledger.get("seconds") or {"total": 0})["total"], 3))
        summary(config, layout, ledger, reporter)


def saved_step(ledger: Ledger, unit: str) -> int:
    """The optimizer step from which an unfinished training stage goes on; 0 from its start."""
    return (ledger.get(unit.replace("/policy", "/trainer")) or {"step": 0})["step"]


def iterate(run: Run, model: Policy) -> None:
    """The starting policy and every iteration, each benchmarked."""
    config, layout = run.config, run.layout
    run.crew.warm(model)
    known = run.ledger.get("micro_batch")
    tokens = run.crew.ready(model, known["tokens"] if known else None)
    if known is None:
        run.ledger.append("micro_batch", tokens=tokens)
    policy = base = start_policy(run, model)
    if config.benchmark.enabled:
        benchmark(run, "start", layout.start, -1, policy, None)
    for index in range(config.iterations):
        policy = run_iteration(run, index, policy, base)
        if config.benchmark.enabled:
            before = layout.iteration(index - 1) if index else layout.start
            benchmark(run, f"iteration {index}", layout.iteration(index), index, policy, before)


def start_policy(run: Run, model: Policy) -> Policy:
    """The model itself, or what the warm-up makes of it."""
    facts, stage = run.ledger.get("start/policy"), run.layout.start
    if not run.config.warmup.enabled:
        return model
    if facts is None:
        rows: Shards = [(Prompt, str(run.layout.prompts("warmup")))]
        job = TrainingJob(model, model, rows, SftObjective(), run.config.warmup.training, -1, str(stage.policy), str(stage.trainer))
        return train(run, "warm start", stage, job)
    policy = Policy(str(stage.policy), facts["digest"])
    check_policy(policy)
    return policy


def summary(config: RunConfig, layout: RunLayout, ledger: Ledger, reporter: Reporter) -> None:
    """The table of the start and every iteration, and where the time went."""
    stages = [layout.start, *(layout.iteration(index) for index in range(config.iterations))]

    def seconds(unit: str) -> float:
        return float((ledger.get(unit) or {}).get("seconds", 0.0))

    rows, spent = [], {"samples": 0.0, "pairs": 0.0, "policy": 0.0, "benchmark": 0.0}
    for stage in stages:
        figures: dict[str, Any] = json.loads(stage.benchmark.read_text()) if f"{stage.name}/benchmark" in ledger else {}
        times = {kind: seconds(f"{stage.name}/{kind}") for kind in spent}
        spent = {kind: spent[kind] + times[kind] for kind in spent}
        shown = [figures.get(key) for key in ("exact_match_greedy", "exact_match_sampled", "nll", "win_rate")]
        name = "start" if stage.name == "start" else f"iteration {int(stage.folder.name)}"
        shown_times = (times["samples"], times["policy"], times["pairs"] + times["benchmark"])
        rows.append([name, *("-" if v is None else f"{v:.3f}" for v in shown), *(f"{t:.1f}" for t in shown_times)])
    columns = ["policy", "EM", "EM T", "NLL", "win", "gen s", "train s", "other s"]
    title = (
        f"EM: exact match on held-out prompts, greedy; EM T: sampled at temperature {config.generation.temperature:g}; "
        "NLL of the truth, nats a token; win: truth preferred to the opponent's answer"
    )
    reporter.table(title, columns, rows)
    total = (ledger.get("seconds") or {"total": 0.0})["total"]
    if total:
        neither = total - spent["samples"] - spent["policy"]
        reporter.say(f"wall clock {total:.0f} s: generation {spent['samples']:.0f}, training {spent['policy']:.0f}, neither {neither:.0f} ({neither / total:.0%})")
    reporter.say(f"run directory: {layout.root}")


def _write(path: Path, text: str) -> None:
    path.write_text(text)
