"""The run: launch checks, the starting policy, the iterations, the table at the end."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from spin.benchmark.lm_eval import check_tasks
from spin.benchmark.stop_rule import metric, record_best, stopped
from spin.cluster import ray_cluster
from spin.cluster.worker_groups import Budget, WorkerGroups
from spin.config.objective import SftObjective
from spin.config.run import RunConfig
from spin.data.records import Prompt
from spin.errors import ConfigError, one_line
from spin.models.policy import Policy
from spin.orchestration.benchmark_stage import benchmark, harness_done, lm_eval
from spin.orchestration.context import RunContext
from spin.orchestration.interrupts import heed_interrupt, interrupt, unraisable
from spin.orchestration.iteration import Sets, run_baseline, run_iteration
from spin.orchestration.train_stage import train
from spin.preflight.checks import check_promoted, launch_checks, start_model
from spin.preflight.claim import claim, locked, open_run_store
from spin.preflight.estimate import estimate
from spin.preflight.prepare import prepare_data
from spin.report.console import Reporter
from spin.report.model_card import write_card
from spin.report.tables import benchmarked, summary
from spin.report.trackers import Trackers, check_trackers
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import RunLayout, Stage
from spin.run_dir.store import RunStore
from spin.training.job import TrainingJob


def run_loop(config: RunConfig, iteration_configs: list[RunConfig]) -> None:
    """Run, or continue, what `config` describes; `plan` holds the config of each iteration. Raises ConfigError for what the user can mend, before any compute."""
    started = time.perf_counter()
    store = open_run_store(config)
    layout = RunLayout(store.root)
    signal.signal(signal.SIGINT, interrupt)
    sys.unraisablehook = unraisable
    with locked(layout, store):
        ledger = claim(config, iteration_configs, store)
        reporter = Reporter(layout.metrics, layout.now)
        if store.remote is not None:
            reporter.print(f"{store.remote.url} is worked on in {store.root}")
        reporter.keep_finished(
            lambda row: row["unit"] in ledger or row["unit"].replace("/policy", "/trainer") in ledger
        )
        if done := complete(config, layout, ledger):
            further = "iterations" if done == config.iterations else "stop.patience"
            reporter.print(f"the run is complete: {done} iterations in {layout.root}; raise {further} to go on")
            summary(config, layout, ledger, reporter)
            return
        with record_error(layout.error, store):
            model = start_model(config, store, ledger)
            check_promoted(config, store, ledger)
            check_trackers(config.tracking)
            check_tasks(config.benchmark.lm_eval)
            renderer = launch_checks(config, iteration_configs, Path(model.path))
            prepared = prepare_data(config, iteration_configs, store, ledger, reporter, renderer)
            expected = estimate(config, iteration_configs, layout, ledger, Path(model.path), layout)
            expected.check_disk()
            if prepared is not None:
                ledger.append("data", **prepared)  # from here on the config binds
            for line in expected.lines():
                reporter.print(line)
            begin_session(config, ledger, config.iterations)
            with ray_cluster.started(config, layout.native_log, [model.path], reporter.print, store) as places:
                signal.signal(signal.SIGTERM, interrupt)  # as Ctrl-C; set after Ray, which installs its own
                heed_interrupt()
                worker_groups = WorkerGroups(
                    config,
                    places,
                    renderer.stop_ids,
                    reporter.print,
                    lambda tokens: ledger.append("micro_batch", tokens=tokens, automatic=False),
                    store,
                )
                run = RunContext(config, iteration_configs, layout, ledger, reporter, worker_groups, store)
                reporter.print(f"up in {time.perf_counter() - started:.1f} s; run directory {layout.root}")
                with tracked(config, layout, reporter):
                    iterate(run, model)
        store.delete(layout.error)
        ledger.append(
            "seconds", total=round(time.perf_counter() - started + (ledger.get("seconds") or {"total": 0})["total"], 3)
        )
        summary(config, layout, ledger, reporter)


@contextmanager
def tracked(config: RunConfig, layout: RunLayout, reporter: Reporter) -> Iterator[None]:
    """Send what is logged to the trackers of the config too."""
    trackers = Trackers(config, layout.tracking, reporter.rows()) if config.tracking else None
    if trackers is None:
        yield
        return
    reporter.sinks.append(trackers.log)
    try:
        yield
    finally:
        trackers.finish()


def begin_session(config: RunConfig, ledger: Ledger, iterations: int) -> None:
    """Note what is in force from here on, for `spin status`: a resume may change it."""
    ledger.append(
        "session", iterations=iterations, benchmark=config.benchmark.enabled, baseline=config.baseline is not None
    )


def complete(config: RunConfig, layout: RunLayout, ledger: Ledger) -> int:
    """How many iterations the run has when nothing is left to do; 0 when something is."""
    promoted = sum(f"{layout.iteration(index).name}/policy" in ledger for index in range(config.iterations))
    wanted = [
        layout.start,
        *(
            chain(i)
            for chain in ((layout.iteration, layout.baseline) if config.baseline else (layout.iteration,))
            for i in range(promoted)
        ),
    ]
    units = [f"{stage.name}/policy" for stage in wanted[1:]] + (
        [f"{stage.name}/benchmark" for stage in wanted] if config.benchmark.enabled else []
    )
    tasks = config.benchmark.lm_eval
    if (
        not all(unit in ledger for unit in units)
        or tasks.tasks
        and not all(harness_done(tasks, stage, ledger) for stage in wanted)
    ):
        return 0
    return (
        promoted
        if promoted == config.iterations or stopped(config, [values for _, values in history(layout, ledger, promoted)])
        else 0
    )


def history(layout: RunLayout, ledger: Ledger, iterations: int) -> list[tuple[Stage, dict[str, Any]]]:
    """The figures of the start and of the first iterations."""
    return [(stage, values) for stage, values in benchmarked(layout, ledger) if not stage.name.startswith("baseline/")][
        : iterations + 1
    ]


@contextmanager
def record_error(path: Path, store: RunStore) -> Iterator[None]:
    """Leave what ends the run in `path`, for `spin status`; a launch that is refused leaves nothing."""
    try:
        yield
    except ConfigError:
        raise
    except BaseException as error:
        text = "interrupted" if isinstance(error, KeyboardInterrupt) else one_line(error)
        record = {"time": datetime.now().isoformat(sep=" ", timespec="seconds"), "error": text}
        with suppress(OSError):  # on a full disk the error itself is what matters
            path.write_text(json.dumps(record))
            store.publish(path)
        raise


def iterate(run: RunContext, model: Policy) -> None:
    """The starting policy, every iteration until the stop rule, then the baseline; each is benchmarked."""
    config, layout = run.config, run.layout
    run.worker_groups.preload(model)
    known = run.ledger.get("micro_batch")
    budget = run.worker_groups.ready(model, Budget(known["tokens"], known.get("automatic", True)) if known else None)
    if known is None:
        run.ledger.append("micro_batch", tokens=budget.tokens, automatic=budget.automatic)
    policy = base = start_policy(run, model)
    measure(run, layout.start, -1, policy, base, None)
    index = 0
    for index in range(config.iterations):
        policy = run_iteration(run, index, policy, base)
        measure(
            run, layout.iteration(index), index, policy, base, layout.iteration(index - 1) if index else layout.start
        )
        if index + 1 < config.iterations and stopped(
            config, [values for _, values in history(layout, run.ledger, index + 1)]
        ):
            run.reporter.print(
                f"stopped after iteration {index}: {metric(config)} has not improved for {config.stop.patience} iterations (stop.patience)"
            )
            begin_session(config, run.ledger, index + 1)
            break
    trained = base
    for stage_index in range(index + 1) if config.baseline else ():
        trained = run_baseline(run, stage_index, trained)
        measure(
            run,
            layout.baseline(stage_index),
            stage_index,
            trained,
            base,
            layout.baseline(stage_index - 1) if stage_index else layout.start,
        )


def measure(run: RunContext, stage: Stage, index: int, policy: Policy, base: Policy, before: Stage | None) -> None:
    """Benchmark a policy, see whether it is the best, and write its card."""
    heed_interrupt()
    figures = None
    if run.config.benchmark.enabled:
        figures = benchmark(run, stage, index, policy, base, before)
        lm_eval(run, stage, policy)
        if not stage.name.startswith("baseline/"):
            record_best(
                run.config,
                run.layout,
                run.ledger,
                history(run.layout, run.ledger, run.config.iterations),
                Path(base.path),
            )
    if (facts := run.ledger.get(f"{stage.name}/policy")) is not None:  # a start that was given is somebody else's model
        write_card(
            stage,
            run.iteration_configs[index] if index >= 0 else run.config,
            facts["digest"],
            facts["opponent"],
            figures,
            run.store,
        )


def start_policy(run: RunContext, model: Policy) -> Policy:
    """The model itself, or what the warm-up makes of it."""
    stage = run.layout.start
    if not run.config.warmup.enabled:
        return model
    promoted = run.promoted(
        "start/policy", stage.policy, model, later=f"{run.layout.iteration(0).name}/config" in run.ledger
    )
    if promoted is not None:
        return promoted
    rows: Sets = [(Prompt, str(run.layout.prompts("warmup")))]
    job = TrainingJob(
        model,
        model,
        [],
        rows,
        [],
        SftObjective(),
        run.config.warmup.training,
        -1,
        str(stage.policy),
        str(stage.trainer),
    )
    return train(run, "warm start", stage, job)
