"""Show the metrics of a run: the table at its end, benchmark.csv, the table over seeds."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from spin.benchmark.bootstrap import bootstrap_difference
from spin.benchmark.metrics import COMPARED, compute_columns
from spin.config.run import RunConfig
from spin.data.parquet import read_rows
from spin.data.records import HeldoutAnswer
from spin.errors import ConfigError
from spin.report.console import Reporter, show_table
from spin.report.metric_titles import HEADINGS
from spin.run_dir.facts import BenchmarkFacts, KindTotals
from spin.run_dir.files import write_atomically
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import RunLayout, Stage
from spin.run_dir.run_state import RunState, read_state
from spin.run_dir.store import open_store
from spin.run_dir.verification import verify_file


def benchmarked(state: RunState) -> list[tuple[Stage, dict[str, Any]]]:
    """Return the metrics of all finished benchmarks: the start, the iterations, then the baseline.

    A benchmark whose file was lost or altered is left out until it is made again.
    """
    found = []
    for stage in state.stages("benchmark"):
        digest = state.facts(state.unit(stage, "benchmark"), BenchmarkFacts).sha256
        if verify_file(stage.benchmark, digest) is None:
            found.append((stage, json.loads(stage.benchmark.read_text())))
    return found


def summary(config: RunConfig, layout: RunLayout, state: RunState, reporter: Reporter) -> None:
    """Print the table of all policies, the gain over the baseline, and where the time went."""
    measured = {stage.name: values for stage, values in benchmarked(state)}
    stages = [layout.start]
    stages += [stage for stage in state.stages("policy") if stage != layout.start]

    # The table.
    rows = []
    for stage in stages:
        values = measured.get(stage.name, {})
        intervals = values.get("intervals", {})
        row = [stage.label]
        row += [cell(values.get(name), intervals.get(name)) for name in HEADINGS]
        row += [f"{state.seconds(stage, kind) or 0.0:.1f}" for kind in ("samples", "policy")]
        rows.append(row)
    title = (
        f"EM: exact match on held-out prompts, greedy; EM T: mean of {config.benchmark.samples} samples at "
        f"temperature {config.generation.temperature:g}; NLL of the target, nats per token; win: target preferred to "
        "the opponent's answer; KL to the start, nats per answer; ±: half the 95 % interval"
    )
    show_table(reporter.console, title, ["policy", *HEADINGS.values(), "gen s", "train s"], rows)

    # The comparison with the baseline, and the best policy.
    line = compare_with_baseline(layout, state)
    if line is not None:
        reporter.print(line)
    best = state.ledger.get("best")
    if best is not None:
        label = Stage(layout.root, best["policy"]).label
        reporter.print(f"best: {label} by {best['metric']} ({best['value']:.4f}), linked as {layout.best.name}")

    # Where the time went, once the run is complete.
    total = (state.ledger.get("seconds") or {}).get("total", 0.0)
    if total:
        reporter.print(describe_time(state, stages, total))
    reporter.print(f"run directory: {layout.root}")


def describe_time(state: RunState, stages: Sequence[Stage], total: float) -> str:
    """Return one line with the seconds of generation, of training, and of everything else.

    Generation in the background lies within the seconds of training, so it is not subtracted from
    the rest.
    """
    generation, background, training = 0.0, 0.0, 0.0
    for stage in stages:
        samples = state.totals(stage, "samples") or KindTotals()
        generation += samples.seconds
        if samples.background:
            background += samples.seconds
        training += state.seconds(stage, "policy") or 0.0
    neither = total - (generation - background) - training
    within = ""
    if background:
        within = f" ({background:.0f} beside training)"
    return (
        f"wall clock {total:.0f} s: generation {generation:.0f}{within}, training {training:.0f}, "
        f"neither {neither:.0f} ({neither / total:.0%})"
    )


def cell(value: float | None, interval: list[float] | None) -> str:
    """Return a metric with half its interval: ``0.814±.034``."""
    if value is None:
        return "-"
    if not interval:
        return f"{value:.3f}"
    return f"{value:.3f}{_plus_minus((interval[1] - interval[0]) / 2)}"


def _plus_minus(value: float) -> str:
    """Return ``±.034``, without the leading zero."""
    return f"±{value:.3f}".replace("±0.", "±.")


def compare_with_baseline(layout: RunLayout, state: RunState) -> str | None:
    """Return the metrics of the last iteration minus those of the baseline, with intervals.

    None when the run has no benchmarked baseline.
    """
    stages = state.stages("benchmark")
    index = sum(stage.is_baseline for stage in stages) - 1
    ours, theirs = layout.iteration(index), layout.baseline(index)
    if index < 0 or ours not in stages:
        return None
    own = compute_columns(read_rows(ours.answers("judged"), HeldoutAnswer))
    other = compute_columns(read_rows(theirs.answers("judged"), HeldoutAnswer))
    parts = []
    for name, (value, low, high) in bootstrap_difference(own, other, COMPARED, 0).items():
        parts.append(f"{HEADINGS[name]} {value:+.3f} ({low:+.3f} to {high:+.3f})")
    return f"{ours.label} minus {theirs.label}: {', '.join(parts)}; in brackets 95 %"


def write_csv(path: Path, state: RunState) -> None:
    """Write benchmark.csv: one row a policy.

    Columns are the metrics, the ends of their intervals as ``nll_low`` and ``nll_high``, speed, and
    the results of lm-evaluation-harness as ``lm_eval/<task>/<metric>``.
    """
    rows = []
    for stage, values in benchmarked(state):
        row: dict[str, Any] = {"policy": stage.label}
        row |= {key: value for key, value in values.items() if not isinstance(value, dict)}
        for name, (low, high) in values["intervals"].items():
            row[f"{name}_low"] = low
            row[f"{name}_high"] = high
        row |= values["speed"]
        tasks = {}
        if stage.lm_eval.exists():
            tasks = json.loads(stage.lm_eval.read_text())
        for task, results in tasks.items():
            for name, value in results.items():
                row[f"lm_eval/{task}/{name}"] = value
        rows.append(row)

    # A policy without a column's value has an empty cell.
    names: dict[str, None] = {}
    for row in rows:
        names |= dict.fromkeys(row)

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="") as handle:
            writer = csv.DictWriter(handle, list(names), restval="")
            writer.writeheader()
            writer.writerows(rows)

    write_atomically(path, write)


Figures = dict[str, dict[str, Any]]
"""The metrics of the policies of one run, by label: ``start``, ``iteration 0`` and so on."""

Keys = tuple[tuple[str, str], ...]
"""Config keys with their values as JSON, sorted."""


@dataclass(frozen=True)
class RunGroup:
    """Runs whose configs differ in nothing but the seed."""

    keys: list[tuple[str, str]]
    """The keys, with values, that differ from those of other groups."""
    runs: list[Figures]
    seeds: list[str]


def aggregate(run_dirs: Sequence[str], console: Console) -> None:
    """Print one table a group of runs. Raises ConfigError when a folder holds no run."""
    for group in group_runs(run_dirs):
        runs = group.runs
        policies: dict[str, None] = {}
        for figures in runs:
            policies |= dict.fromkeys(figures)

        # One row a policy: its metrics, or their mean over the seeds.
        rows = []
        for policy in policies:
            values = [figures[policy] for figures in runs if policy in figures]
            row = [policy]
            for name in HEADINGS:
                if len(runs) > 1:
                    row.append(spread([value[name] for value in values]))
                else:
                    row.append(cell(values[0][name], values[0]["intervals"].get(name)))
            rows.append([*row, str(len(values))])

        # The title says what sets the group apart.
        shown = ", ".join(f"{key}={value}" for key, value in group.keys)
        if not shown and len(run_dirs) > 1:
            shown = str(Path(run_dirs[0]).parent)
        elif not shown:
            shown = run_dirs[0]
        seeds = ", ".join(group.seeds)
        meaning = f"seed {seeds}, ± half the 95 % interval"
        if len(runs) > 1:
            meaning = f"mean ± standard deviation over seeds {seeds}"
        show_table(console, f"{shown}: {meaning}", ["policy", *HEADINGS.values(), "seeds"], rows)
        line = against_baseline(runs)
        if line is not None:
            console.print(line, markup=False)


def group_runs(run_dirs: Sequence[str]) -> list[RunGroup]:
    """Return the runs in groups of equal configs but for the seed.

    Raises ConfigError when a folder holds no run.
    """
    groups: dict[Keys, RunGroup] = {}
    for run_dir in run_dirs:
        layout = RunLayout(open_store(run_dir).root)
        ledger = Ledger(layout.ledger, read_only=True)
        facts = ledger.get("run") or ledger.get("bench")
        if facts is None:
            raise ConfigError(f"run_dir={run_dir} holds no run; expected the folder that spin run was given")
        others = dict(facts["keys"])
        seed = others.pop("seed")
        keys = tuple(sorted(others.items()))
        group = groups.setdefault(keys, RunGroup(list(keys), [], []))
        group.seeds.append(seed)
        measured = benchmarked(read_state(layout, ledger))
        group.runs.append({stage.label: values for stage, values in measured})

    # Keys that all groups share say nothing.
    shared = set.intersection(*(set(keys) for keys in groups)) if groups else set()
    for group in groups.values():
        group.keys[:] = [pair for pair in group.keys if pair not in shared]
    return list(groups.values())


def spread(values: Sequence[float | None]) -> str:
    """Return mean and standard deviation (n - 1), ``0.814±.034``; one value has no deviation."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean = f"{statistics.mean(known):.3f}"
    if len(known) == 1:
        return mean
    return mean + _plus_minus(statistics.stdev(known))


def against_baseline(runs: Sequence[Figures]) -> str | None:
    """Return the last iteration minus the baseline, over the seeds; None without a baseline."""
    last = -1
    while all(f"iteration {last + 1}" in figures and f"baseline {last + 1}" in figures for figures in runs):
        last += 1
    if last < 0:
        return None
    ours, theirs = f"iteration {last}", f"baseline {last}"
    parts = []
    for name in COMPARED:
        differences = [figures[ours][name] - figures[theirs][name] for figures in runs]
        parts.append(f"{HEADINGS[name]} {spread(differences)}")
    return f"{ours} minus {theirs}: {', '.join(parts)}"
