"""Run a whole run: launch checks, the starting policy, iterations, the baseline, the table."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

from spin.benchmark.best_policy import deciding_metric, publish_best
from spin.benchmark.stop_rule import should_stop
from spin.cluster import ray_cluster
from spin.cluster.recovery import TokenBudget
from spin.cluster.worker_groups import WorkerGroups
from spin.config.reward_model import Backend
from spin.config.run import RunConfig
from spin.feedback.judge_setup import resolve_judge
from spin.feedback.policy_gradient_checks import describe_updates
from spin.feedback.reward_model_setup import resolve_reward_model
from spin.models.policy import Policy
from spin.orchestration.baseline import run_baseline
from spin.orchestration.context import RunContext
from spin.orchestration.error_file import record_error
from spin.orchestration.finished_run import count_complete, history
from spin.orchestration.iteration import run_iteration
from spin.orchestration.measurement import measure
from spin.orchestration.reward_stage import make_reward_model
from spin.orchestration.warm_start import make_start
from spin.preflight.checks import check_launch, check_promoted
from spin.preflight.claim import claim, end_launch, open_run_store
from spin.preflight.expected_seconds import record_expected
from spin.preflight.judge_estimate import describe_judge_work
from spin.preflight.make_estimate import estimate_run
from spin.preflight.prepare_data import prepare_data
from spin.preflight.row_preview import preview_rows
from spin.preflight.starting_model import resolve_model
from spin.report.console import Reporter
from spin.report.tables import summary
from spin.report.trackers import Trackers
from spin.run_dir.launch_seconds import record_seconds, timed_launch
from spin.run_dir.lock import locked
from spin.run_dir.paths import RunLayout
from spin.run_dir.recorded_config import record_session
from spin.run_dir.run_state import plan_state
from spin.run_dir.store import RunStore
from spin.run_dir.unit import PROMOTED_KINDS


def run_loop(
    config: RunConfig, iteration_configs: list[RunConfig], started: float, until_reward_model: bool = False
) -> None:
    """Start or continue a run.

    Args:
        config: Config of the run.
        iteration_configs: The config of each iteration, with its schedule applied.
        started: Time at which the wall clock of this launch begins, by `time.perf_counter`.
        until_reward_model: Whether to stop once the reward model is trained and measured. No engine
            is started for that.

    Raises:
        ConfigError: The config, the data or the run directory cannot be used. The error is found
            before any actor is started.
    """
    store = open_run_store(config)
    layout = RunLayout(store.root)

    # Take the run directory.
    with locked(layout, store):
        ledger = claim(config, iteration_configs, store)
        reporter = Reporter(layout.metrics, layout.now)
        if store.remote is not None:
            reporter.print(f"local copy of {store.remote.url}: {store.root}")
        # Remove the metrics of units that will be done again. A policy in training has a line only
        # for its saved states; the training stage removes what comes after the last of them.
        reporter.metrics_log.keep_finished(lambda row: row["unit"] in ledger or _trainer_name(row["unit"]) in ledger)

        # If the run is complete, only print its table again.
        done = count_complete(config, iteration_configs, store, ledger)
        if done:
            publish_best(layout, ledger, store)
            further = "iterations" if done == config.iterations else "stop.patience"
            reporter.print(f"the run is complete (iterations: {done}) in {layout.root}; raise {further} to go on")
            summary(config, layout, plan_state(layout, config, iteration_configs, ledger), reporter)
            return

        with record_error(layout.error, store):
            # Find all errors of the user before anything is started.
            with reporter.waiting("checking the model and the settings"):
                model = resolve_model(config, store, ledger)
                check_promoted(plan_state(layout, config, iteration_configs, ledger), store)
                renderer = check_launch(config, iteration_configs, Path(model.path), reporter)
            judge = resolve_judge(config, iteration_configs, ledger, renderer)
            reward_model = resolve_reward_model(config, iteration_configs, ledger, renderer)
            with reporter.waiting("reading the data"):
                prepared = prepare_data(config, iteration_configs, store, ledger, reporter, renderer)
            expected = estimate_run(config, iteration_configs, layout, ledger, Path(model.path), layout)
            expected.check_disk()

            # Record the data: from here on the config is fixed. Without this line, the next launch
            # takes all files for those of a refused launch and deletes them.
            if prepared is not None:
                for line in preview_rows(iteration_configs[0], layout, renderer, until_reward_model):
                    reporter.print(line)
                ledger.append("data", **prepared)
                end_launch(layout, store)
            lines = expected.lines() + describe_updates(iteration_configs, expected.set_rows["train"])
            if judge is not None:
                lines += describe_judge_work(expected.state, iteration_configs, judge.template, layout)
            for line in lines:
                reporter.print(line)
            record_session(ledger, config)
            record_expected(ledger, expected)
            state = plan_state(layout, config, iteration_configs, ledger)

            # Start Ray and the actors, then run all stages.
            needed = [model.path]
            if judge is not None and judge.policy is not None:
                needed.append(judge.policy.path)
            if reward_model is not None:
                needed.append(reward_model.path)
            cluster_config = config
            if until_reward_model:
                cluster_config = leave_out_engines(config)
            with ExitStack() as ended_last:
                ended_last.enter_context(timed_launch(ledger, started))
                with reporter.waiting("starting Ray"):
                    cluster = ray_cluster.started(cluster_config, layout.native_log, needed, reporter.print, store)
                    placement = ended_last.enter_context(cluster)
                worker_groups = WorkerGroups(
                    cluster_config,
                    placement,
                    renderer,
                    reporter.print,
                    lambda tokens: ledger.append("micro_batch", tokens=tokens, automatic=False),
                    store,
                )
                parts = (layout, state, reporter, worker_groups, store, judge, reward_model)
                run = RunContext(config, iteration_configs, *parts)
                if config.adapter.keeps_base:
                    run.adapter_base = model.base
                reporter.print(f"started in {time.perf_counter() - started:.1f} s; run directory {layout.root}")
                with tracked(config, store, reporter), run.trainer_work.ended():
                    iterate(run, model, until_reward_model)

        publish_best(layout, ledger, store)
        store.delete(layout.error)
        store.delete(layout.ray_logs)
        record_seconds(ledger)
        if until_reward_model:
            reporter.print(f"reward model: {layout.reward_model.reward_model}")
        else:
            summary(config, layout, state, reporter)


def leave_out_engines(config: RunConfig) -> RunConfig:
    """Return the config of a cluster that only trains: no engine is placed or started."""
    # Not with `replace`: 0 is outside of the range that a user may give.
    generation = copy(config.generation)
    generation.replicas = 0
    reward_model = replace(config.reward_model, backend=Backend.trainer)
    return replace(config, generation=generation, reward_model=reward_model)


def _trainer_name(unit: str) -> str:
    """Return the name of the ledger line with the saved states of a unit in training."""
    stage, _, kind = unit.rpartition("/")
    if kind in PROMOTED_KINDS:
        return f"{stage}/trainer"
    return unit


@contextmanager
def tracked(config: RunConfig, store: RunStore, reporter: Reporter) -> Iterator[None]:
    """Send the logged metrics to the trackers that the config names, as well as to the log.

    Their local files are published after each benchmark and at the end.
    """
    if not config.tracking:
        yield
        return
    # The rows of earlier sessions tell the step at which the curves continue.
    folder = RunLayout(store.root).tracking
    trackers = Trackers(config, folder, reporter.metrics_log.rows())

    def log(row: dict[str, Any]) -> None:
        trackers.log(row)
        if row["kind"] == "benchmark":
            store.publish(folder)

    reporter.metrics_log.sinks.append(log)
    try:
        yield
    finally:
        # Trackers buffer: without this, an interrupted run loses its last metrics.
        trackers.finish()
        store.publish(folder)


def iterate(run: RunContext, model: Policy, until_reward_model: bool = False) -> None:
    """Make and measure the starting policy, the iterations, then the baseline.

    Args:
        run: The run, with its actors started.
        model: The model that the run was given.
        until_reward_model: Whether to stop once the reward model is trained and measured.
    """
    config, layout = run.config, run.layout

    # Prepare the workers. The token budget of a forward pass is found once and kept for a resume,
    # because it decides how sums are rounded.
    run.worker_groups.preload(model)
    known = run.ledger.get("micro_batch")
    budget = None
    if known is not None:
        budget = TokenBudget(known["tokens"], known.get("automatic", True))
    with run.reporter.waiting("starting the training workers; the engines (vLLM) load beside them"):
        budget = run.worker_groups.prepare_trainers(model, budget, run.trains_own_critic)
    if known is None:
        run.ledger.append("micro_batch", tokens=budget.tokens, automatic=budget.automatic)

    # The starting policy, and the reward model that begins with its weights.
    base = make_start(run, model)
    run.reward_model = make_reward_model(run, base) or run.reward_model
    if until_reward_model:
        return
    measure(run, layout.start, base, base)

    # The iterations, until the stop rule ends them.
    policy = base
    done = config.iterations
    for index in range(config.iterations):
        policy = run_iteration(run, index, policy, base)
        measure(run, layout.iteration(index), policy, base)
        if index + 1 == config.iterations:
            break
        # The metrics of the start and of the iterations up to this one. On a resume there may be
        # later ones, but the rule must decide as it did then.
        measured = [values for stage, values in history(run.state) if stage.index <= index]
        if should_stop(config, measured):
            run.reporter.print(
                f"stopped after iteration {index}: {deciding_metric(config)} has not improved "
                f"(stop.patience={config.stop.patience})"
            )
            # Record the number of iterations, for commands that read the plan from the ledger.
            done = index + 1
            record_session(run.ledger, replace(config, iterations=done))
            break

    # The baseline: fine-tuning from the same start, one stage for each iteration.
    if config.baseline is None:
        return
    policy = base
    for index in range(done):
        policy = run_baseline(run, index, policy)
        measure(run, layout.baseline(index), policy, base)
