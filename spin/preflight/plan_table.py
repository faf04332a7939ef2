"""Print the plan of a run on GPUs that are not here, for `cluster.assume`."""

from __future__ import annotations

from pathlib import Path

from spin.config.run import RunConfig
from spin.preflight.estimate import Estimate
from spin.preflight.expected_seconds import mean_seconds
from spin.preflight.gpu_plan import (
    KINDS,
    TrainingPlan,
    advise,
    count_used_gpus,
    make_training_plan,
    plan_stages,
)
from spin.preflight.make_estimate import assume_sets, estimate_sizes
from spin.report.console import Reporter
from spin.report.formatting import format_bytes, format_duration
from spin.report.terminal import show_table
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import RunLayout

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
"""Files of which a model folder with a tokenizer has at least one."""


def has_tokenizer(model: Path) -> bool:
    """Return whether a model folder holds a tokenizer."""
    return any((model / name).exists() for name in TOKENIZER_FILES)


def plan_without_data(
    config: RunConfig, iteration_configs: list[RunConfig], model: Path, ledger: Ledger, reporter: Reporter
) -> None:
    """Print the plan of a run whose data cannot be read, because the model has no tokenizer.

    Args:
        config: Config of the run.
        iteration_configs: Config of each iteration.
        model: Folder of the model.
        ledger: An empty one, or that of the run.
        reporter: Prints.
    """
    layout = RunLayout(Path(config.run_dir))
    rows, tokens = assume_sets(config)
    estimate = estimate_sizes(config, iteration_configs, layout, ledger, model, rows, tokens)
    show_plan(estimate, make_training_plan(estimate, model), reporter)
    reporter.print(
        f"model.path={config.model.path} has no tokenizer, so the data were not read: seconds are those of "
        f"{rows['train']:,} prompts and answers of the longest lengths, and the model was not checked; put the "
        "tokenizer's files beside config.json for the seconds of your data"
    )


def show_plan(estimate: Estimate, plan: TrainingPlan, reporter: Reporter) -> None:
    """Print the stages of an iteration as a table, and a line on each part that does not fit.

    Args:
        estimate: The estimate of the run on the assumed GPUs.
        plan: Its training.
        reporter: Prints.
    """
    device = estimate.device
    seconds = mean_seconds(estimate)
    # Columns of kinds that no stage has would be empty.
    stages = plan_stages(estimate, plan)
    kinds = [kind for kind in KINDS if any(stage.parts.get(kind) for stage in stages)]
    rows = []
    for stage in stages:
        row = [stage.stage, f"{stage.tokens:,}"]
        for kind in kinds:
            text = "-"
            if stage.parts.get(kind):
                text = format_bytes(stage.parts[kind])
            row.append(text)
        row.append(format_bytes(stage.total))
        duration = "-"
        if seconds.get(stage.stage):
            duration = format_duration(seconds[stage.stage])
        row += [duration, f"{estimate.find_mfu(stage.stage):.1%}"]
        rows.append(row)
    legend = (
        f"plan for {device.count} {device.name} of {format_bytes(device.memory)}: an iteration, and the memory of one "
        f"GPU ({estimate.weights / 1e6:,.1f} M weights)"
    )
    columns = ["stage", "tokens a pass", *kinds, "at one time", "an iteration", "MFU"]
    show_table(reporter.console, legend, columns, rows)
    reporter.print(
        "MFU: assumed for score and train, as measured with 0.5B on one H100 (docs/performance.md); for generate it "
        "follows from the memory's bandwidth; a prompt counts once for each completion"
    )
    in_step, in_pass = plan.traffic()
    if in_pass:
        gathered = f"{format_bytes(in_step)} in a step and " if in_step else ""
        reporter.print(
            f"the traffic between GPUs, {gathered}{format_bytes(in_pass)} in each pass on each GPU, is not in the "
            "seconds of train"
        )
    used = count_used_gpus(estimate)
    if used < device.count:
        reporter.print(
            f"{used} of {device.count} GPUs are used; raise generation.replicas and training.workers to use all"
        )
    for line in advise(estimate, plan) or ["every stage fits on these GPUs, by this arithmetic"]:
        reporter.print(line)
