"""`spin check`: everything that `spin run` checks before its first minute of compute, and the estimate; nothing is started and the run directory stays as it is."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

from spin.benchmark.harness import check_tasks
from spin.config import RunConfig
from spin.devices import gpus
from spin.errors import ConfigError
from spin.estimate import Estimate, estimate
from spin.launch import check_claim, check_promoted, launch_checks, layout_of, model_folder, prepare_data, start_model
from spin.layout import RunLayout
from spin.ledger import Ledger
from spin.metrics import Reporter, show_table
from spin.pace import span
from spin.places import demand_of
from spin.tracking import check_trackers


def check(config: RunConfig, plan: list[RunConfig]) -> None:
    """Print what is found. Raises what `spin run` would raise before it starts."""
    layout = layout_of(config)
    with TemporaryDirectory(prefix="spin-check-") as folder:
        scratch = RunLayout(Path(folder))
        reporter = Reporter(scratch.metrics, scratch.now)
        ledger = Ledger(layout.ledger, read_only=True)
        begun = "data" in ledger
        if not begun:  # nothing, or a launch that was refused: it binds nobody
            ledger = Ledger(scratch.ledger)
        check_writable(layout)
        if begun or not layout.ledger.exists():
            check_claim(config, plan, layout, ledger)
        if begun:
            model = Path(start_model(config, layout, ledger).path)
            check_promoted(config, layout, ledger)
        else:
            model = model_folder(config, scratch)
        check_places(config)
        check_trackers(config.tracking)
        check_tasks(config.benchmark.lm_eval)
        renderer = launch_checks(config, plan, model)
        there = begun and all(layout.prompts(name).exists() for name in (ledger.get("data") or {})["sha256"])
        prepared = layout if there else scratch
        if not there:
            prepare_data(config, plan, scratch, Ledger(scratch.ledger), reporter, renderer)
        found = estimate(config, plan, layout, ledger, model, prepared)
    show(found, reporter)
    found.check_disk()
    reporter.say(
        f"{layout.root}: all that can be checked before the start is in order; spin run with the same words {'continues' if begun else 'starts'} it"
    )


def check_places(config: RunConfig) -> None:
    """Raise ConfigError when engines and trainers do not fit on this machine, or on the GPUs that the config says it has. A cluster that is joined is not asked."""
    if config.cluster.address is None:
        found = {
            "CPU": float(config.cluster.cpus or os.cpu_count() or 1),
            "GPU": float(len(gpus()) if config.cluster.gpus is None else config.cluster.gpus),
        }
        demand_of(config, [found])


def check_writable(layout: RunLayout) -> None:
    """Raise ConfigError when the run directory could not be made or written."""
    there = next(path for path in (layout.root.absolute(), *layout.root.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"run_dir={layout.root} cannot be written; choose another")


def show(found: Estimate, reporter: Reporter) -> None:
    """The seconds of each stage as a table, then the estimate's lines."""
    columns = ["still to do", "generate", "score", "train", "benchmark"]
    rows = [
        [s.label, *(span(value) if value else "-" for value in (s.generation, s.scoring, s.training, s.benchmark))]
        for s in found.stages
        if s.total()
    ]
    if rows:
        show_table(reporter.console, "", columns, rows)
    for line in found.lines():
        reporter.say(line)
