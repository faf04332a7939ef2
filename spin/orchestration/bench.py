"""Benchmark the policies of a finished or running run: `spin bench`.

The run is only read: no lock is taken and none of its files is written, so a running one can
continue at the same time. The results are in another folder (`to`, by default ``bench`` inside the
run directory) with the layout of a run. The same command later measures only the policies that were
promoted since. The engine starts once and loads one policy after the other; while it generates
answers for one, the trainer scores the answers of the one before.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from spin.benchmark.lm_eval import check_tasks
from spin.cluster import ray_cluster
from spin.cluster.worker_groups import WorkerGroups
from spin.config.cluster import Placement
from spin.config.load import load_config
from spin.data.renderer_setup import load_renderer
from spin.errors import ConfigError
from spin.models.policy import Policy
from spin.orchestration.bench_inputs import (
    BenchmarkTarget,
    BenchOptions,
    bench_config,
    copy_history,
    find_start,
    list_targets,
    prepare_heldout,
)
from spin.orchestration.benchmark_stage import HeldoutAnswers, generate_answers, score_answers
from spin.orchestration.context import RunContext
from spin.orchestration.engine_check import verify_engines
from spin.orchestration.lm_eval_stage import lm_eval
from spin.preflight.checks import check_verifier
from spin.preflight.claim import open_run_store
from spin.report.benchmark_files import find_damage
from spin.report.compare_runs import aggregate
from spin.report.console import Reporter
from spin.report.terminal import open_console
from spin.run_dir.ledger import Ledger
from spin.run_dir.lock import locked
from spin.run_dir.paths import RunLayout
from spin.run_dir.run_state import plan_state
from spin.run_dir.store import RunStore, open_store
from spin.wording import count_of


def bench(run_dirs: list[str], options: BenchOptions) -> None:
    """Benchmark one run or several, then print their table.

    Raises:
        ConfigError: A folder holds no run, or the options do not fit the run.
    """
    if len(run_dirs) > 1 and options.to is not None:
        raise ConfigError(
            f"to={options.to} is one folder for {len(run_dirs)} runs; leave it out, and each gets a folder bench inside"
        )
    folders = [_bench(open_store(run_dir), options) for run_dir in run_dirs]
    aggregate([str(folder) for folder in folders], open_console())


def _bench(source_store: RunStore, options: BenchOptions) -> Path:
    """Benchmark one run, and return the folder of the results."""
    started = time.perf_counter()

    # The run that is measured.
    if options.address is not None:
        # Actors on other machines have another working directory.
        source_store = replace(source_store, root=source_store.root.absolute())
    source = RunLayout(source_store.root)
    if not source.ledger.is_file() or not source.config.is_file():
        raise ConfigError(
            f"run_dir={source.root} holds no run (no config.yaml and ledger.jsonl); "
            "expected the folder that spin run was given"
        )
    known = Ledger(source.ledger, read_only=True)
    config = bench_config(load_config(source.config), options)

    # The folder of the results. The actors get one store: the one with a URL, if there is one. It
    # transfers no files outside its own folder, so it serves both folders.
    target_store = open_run_store(replace(config, run_dir=options.to or str(source.root / "bench")))
    layout = RunLayout(target_store.root)
    config = replace(config, run_dir=str(layout.root))
    if target_store.remote is not None and source_store.remote is not None:
        raise ConfigError(
            f"to={options.to}: the run is at a URL too, and one command writes to one URL; expected a local folder"
        )
    store = target_store
    if target_store.remote is None:
        store = source_store

    # Refuse what can be refused before anything is started.
    check_tasks(config.benchmark.lm_eval)
    check_verifier(config.benchmark.verifier)
    start = find_start(source, config, known, store)
    with locked(layout, store):
        # Find what is left to measure.
        ledger = Ledger(layout.ledger, store)
        reporter = Reporter(layout.metrics, layout.now)
        renderer = load_renderer(config.model, Path(start.path))
        prepare_heldout(source, layout, config, options, ledger, renderer, reporter, store)
        planned = copy_history(source, config, known, ledger)
        state = plan_state(layout, planned, [planned] * planned.iterations, ledger)
        targets = list_targets(source, layout, config, known, start)
        damaged = find_damage(state)
        for path, problem in damaged.items():
            reporter.print(f"warning: {path} {problem}; it is made again")
        todo, untested = [], []
        for target in targets:
            stage = target.stage
            made = [stage.benchmark, stage.answers("judged")]
            if not state.done(state.unit(stage, "benchmark")) or not damaged.keys().isdisjoint(made):
                todo.append(target)
            tested = all(state.done(unit) for unit in state.units(stage, "lm_eval"))
            if not tested or stage.lm_eval in damaged:
                untested.append(target)
        if not todo and not untested:
            reporter.print(
                f"{count_of(len(targets), 'policy', 'policies')} of {source.root}: all are benchmarked in {layout.root}"
            )
            return layout.root

        # Start the actors, and measure. A halved token budget is not recorded: the next bench finds
        # its own.
        with ray_cluster.started(config, layout.native_log, [start.path], reporter.print, store) as placement:
            worker_groups = WorkerGroups(config, placement, renderer, reporter.print, lambda tokens: None, store)
            worker_groups.preload(start)
            worker_groups.prepare_trainers(start, None)
            run = RunContext(config, [], layout, state, reporter, worker_groups, store)
            # Wait for the engine, so that its start does not count as time of the benchmark.
            list(worker_groups.run_on_generators(lambda actor, policy: actor.load.remote(policy), [start]))
            up = time.perf_counter()
            generated = measure_all(run, todo, start)
            seconds = time.perf_counter() - up
            for target in untested:
                lm_eval(run, target.stage, target.policy)
        if todo:
            reporter.print(
                f"{count_of(len(todo), 'policy', 'policies')} in {seconds:.1f} s, of which {generated:.1f} s "
                f"for the answers ({seconds / generated:.2f}×); started in {up - started:.1f} s, engine included; "
                f"in {layout.root}"
            )
    return layout.root


def measure_all(run: RunContext, targets: list[BenchmarkTarget], start: Policy) -> float:
    """Benchmark the policies; score the answers of each while the engine answers for the next one.

    Returns:
        Seconds of generation.
    """
    generated = 0.0
    answers: HeldoutAnswers | None = None
    with ThreadPoolExecutor(1) as background:
        scoring: Future[Any] | None = None
        for target in targets:
            # The next steps need the trainer. `result` also raises an error of the scoring.
            if scoring is not None:
                scoring.result()
            # The trainer takes part in the check of the engines, so the check comes before the
            # trainer scores the previous policy.
            verify_engines(run, target.policy)
            if answers is not None:
                scoring = background.submit(score_answers, run, answers)
                # On a shared device the engine has no memory while the trainer scores.
                if run.config.cluster.placement is Placement.colocated:
                    scoring.result()
            answers = generate_answers(run, target.stage, target.policy, start)
            generated += answers.generated
        if scoring is not None:
            scoring.result()

    # No generation is left that the last scoring could overlap with.
    if answers is not None:
        score_answers(run, answers)
    return generated
