"""`spin check`: do what `spin run` does before it starts anything, and print what the run takes.

Nothing is written in the run directory: data are prepared in a temporary folder.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from spin.cluster.ray_folder import process_folder
from spin.config.run import RunConfig
from spin.feedback.judge_setup import JUDGE, resolve_judge
from spin.feedback.policy_gradient_checks import describe_updates
from spin.feedback.reward_model_setup import resolve_reward_model
from spin.preflight.checks import check_launch, check_placement, check_promoted, check_writable
from spin.preflight.claim import check_claim, is_refused_launch, open_run_store
from spin.preflight.estimate import Estimate
from spin.preflight.gpu_plan import make_training_plan
from spin.preflight.judge_estimate import describe_judge_work
from spin.preflight.make_estimate import estimate_run
from spin.preflight.plan_table import has_tokenizer, plan_without_data, show_plan
from spin.preflight.prepare_data import prepare_data
from spin.preflight.row_preview import preview_rows
from spin.preflight.speed_probe import probe_speed
from spin.preflight.starting_model import locate_model, resolve_model
from spin.report.console import Reporter
from spin.report.formatting import format_duration
from spin.report.terminal import show_table
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import RunLayout
from spin.run_dir.run_state import plan_state
from spin.run_dir.store import RunStore


def check_run(config: RunConfig, iteration_configs: list[RunConfig]) -> None:
    """Check a run and print its estimate. Raises what `spin run` would raise before it starts."""
    store = open_run_store(config)
    layout = RunLayout(store.root)
    with TemporaryDirectory(dir=process_folder()) as folder:
        scratch_store = RunStore(Path(folder))
        scratch = RunLayout(scratch_store.root)
        reporter = Reporter(scratch.metrics, scratch.now)

        # The run directory; files of a refused launch do not count, the next one deletes them.
        ledger = Ledger(layout.ledger, store, read_only=True)
        begun = "data" in ledger
        check_writable(layout)
        if not is_refused_launch(layout, store, ledger):
            check_claim(config, iteration_configs, store, ledger)
        if not begun:
            ledger = Ledger(scratch.ledger)

        # The model, and what the run has made of it.
        if begun:
            model = Path(resolve_model(config, store, ledger).path)
            check_promoted(plan_state(layout, config, iteration_configs, ledger), store)
        else:
            model = locate_model(config, scratch_store)
        if config.cluster.assume is not None and not has_tokenizer(model):
            check_placement(config)
            plan_without_data(config, iteration_configs, model, ledger, reporter)
            return
        with reporter.waiting("checking the model and the settings"):
            renderer = check_launch(config, iteration_configs, model, reporter)
        # The ledger of a run is not written here; it holds the judge of a run that has one.
        judge_ledger = Ledger(scratch.ledger)
        if JUDGE in ledger:
            judge_ledger = ledger
        judge = resolve_judge(config, iteration_configs, judge_ledger, renderer)
        resolve_reward_model(config, iteration_configs, Ledger(scratch.ledger), renderer)

        # The data: those of the run directory, if all of them are there.
        names = (ledger.get("data") or {"sha256": {}})["sha256"]
        prepared = layout
        if not begun or not all(layout.prompts(name).exists() for name in names):
            prepared = scratch
            with reporter.waiting("reading the data"):
                prepare_data(config, iteration_configs, scratch_store, Ledger(scratch.ledger), reporter, renderer)
        preview = preview_rows(iteration_configs[0], prepared, renderer)
        estimate = estimate_run(config, iteration_configs, layout, ledger, model, prepared)
        if estimate.seconds and estimate.device.name == "CPU" and config.cluster.address is None:
            with reporter.waiting("measuring the speed of this machine"):
                estimate = replace(estimate, probe=probe_speed(config, model, prepared, estimate.weights))
        plan = None
        if estimate.device.name != "CPU":
            plan = make_training_plan(estimate, model)
        lines = estimate.lines()
        lines += describe_updates(iteration_configs, estimate.set_rows["train"])
        if judge is not None:
            lines += describe_judge_work(estimate.state, iteration_configs, judge.template, prepared)
    for line in preview:
        reporter.print(line)
    if estimate.probe is not None:
        reporter.print(estimate.probe.describe())
    show_seconds(estimate, reporter)
    for line in lines:
        reporter.print(line)
    if plan is not None:
        show_plan(estimate, plan, reporter)
    # The disk of other machines is another one.
    if config.cluster.assume is not None:
        reporter.print("the plan says nothing about this machine; leave cluster.assume out to check that")
        return
    estimate.check_disk()
    verb = "starts"
    if begun:
        verb = "continues"
    reporter.print(
        f"{layout.root}: all that can be checked before the start is in order; "
        f"spin run with the same arguments {verb} it"
    )


def show_seconds(estimate: Estimate, reporter: Reporter) -> None:
    """Print the seconds of each stage as a table."""
    # Without reward sources or a judge, their columns would be empty.
    columns = ["generate", "reward", "judge", "score", "train", "benchmark"]
    for name in ("reward", "judge"):
        if not any(seconds[name] for seconds in estimate.seconds.values()):
            columns.remove(name)
    rows = []
    for label, seconds in estimate.seconds.items():
        row = [label]
        for name in columns:
            text = "-"
            if seconds[name]:
                text = format_duration(seconds[name])
            row.append(text)
        rows.append(row)
    if rows:
        show_table(reporter.console, "", ["still to do", *columns], rows)
