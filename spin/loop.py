"""The run: launch checks, the starting policy, the iterations, the table at the end."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from spin import cluster
from spin.config import RunConfig
from spin.crew import Budget, Crew
from spin.errors import ConfigError, one_line
from spin.evaluate import benchmark
from spin.iteration import Shards, run_iteration
from spin.launch import claim, launch_checks, locked, prepare_data, start_model
from spin.layout import RunLayout
from spin.metrics import Reporter
from spin.model import Policy
from spin.objective_config import SftObjective
from spin.records import Prompt
from spin.run import Run
from spin.summary import summary
from spin.training import train
from spin.workers import TrainingJob


def run_loop(config: RunConfig, plan: list[RunConfig]) -> None:
    """Run, or continue, what `config` describes; `plan` holds the config of each iteration. Raises ConfigError for what the user can mend, before any compute."""
    started = time.perf_counter()
    layout = RunLayout(Path(config.run_dir))
    with locked(layout):
        ledger = claim(config, plan, layout)
        reporter = Reporter(layout.metrics, layout.now)
        reporter.keep_finished(lambda row: row["unit"] in ledger or row["unit"].replace("/policy", "/trainer") in ledger)
        last = layout.iteration(config.iterations - 1)
        if f"{last.name}/policy" in ledger and (not config.benchmark.enabled or f"{last.name}/benchmark" in ledger):
            reporter.say(f"the run is complete: {config.iterations} iterations in {layout.root}; raise iterations to go on")
            summary(config, layout, ledger, reporter)
            return
        with kept(layout.error):
            model = start_model(config, layout, ledger)
            renderer = launch_checks(config, plan, layout, ledger, model)
            prepare_data(config, plan, layout, ledger, reporter, renderer)
            ledger.append("session", iterations=config.iterations)
            with cluster.started(config, layout.native_log) as shares:
                signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C; set after Ray, which installs its own
                crew = Crew(config, shares, renderer.stop_ids, reporter.say, lambda tokens: ledger.append("micro_batch", tokens=tokens, automatic=False))
                run = Run(config, plan, layout, ledger, reporter, crew)
                reporter.say(f"up in {time.perf_counter() - started:.1f} s; run directory {layout.root}")
                iterate(run, model)
        layout.error.unlink(missing_ok=True)
        ledger.append("seconds", total=round(time.perf_counter() - started + (ledger.get("seconds") or {"total": 0})["total"], 3))
        summary(config, layout, ledger, reporter)


@contextmanager
def kept(path: Path) -> Iterator[None]:
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
        raise


def iterate(run: Run, model: Policy) -> None:
    """The starting policy and every iteration, each benchmarked."""
    config, layout = run.config, run.layout
    run.crew.warm(model)
    known = run.ledger.get("micro_batch")
    budget = run.crew.ready(model, Budget(known["tokens"], known.get("automatic", True)) if known else None)
    if known is None:
        run.ledger.append("micro_batch", tokens=budget.tokens, automatic=budget.automatic)
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
    stage = run.layout.start
    if not run.config.warmup.enabled:
        return model
    later = f"{run.layout.iteration(0).name}/config" in run.ledger
    promoted = run.promoted("start/policy", stage.policy, model, later)
    if promoted is not None:
        return promoted
    rows: Shards = [(Prompt, str(run.layout.prompts("warmup")))]
    job = TrainingJob(model, model, rows, SftObjective(), run.config.warmup.training, -1, str(stage.policy), str(stage.trainer))
    return train(run, "warm start", stage, job)
