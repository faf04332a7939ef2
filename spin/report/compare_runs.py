"""Compare several runs in one table: mean and deviation over seeds, and gain over the baseline."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from spin.benchmark.metrics import COMPARED
from spin.errors import ConfigError
from spin.report.benchmark_files import describe_damage, read_benchmarks
from spin.report.judge_table import TITLE, make_judge_table
from spin.report.metric_titles import HEADINGS, explain_headings
from spin.report.row_counts import list_judgements
from spin.report.run_folders import open_runs
from spin.report.tables import cell, format_deviation
from spin.report.terminal import print_line, show_table
from spin.run_dir.judge_statistics import sum_judge_statistics
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import RunLayout
from spin.run_dir.run_state import read_state

PolicyMetrics = dict[str, dict[str, Any]]
"""The metrics of the policies of one run, by label: ``start``, ``iteration 0`` and so on."""

Keys = tuple[tuple[str, str], ...]
"""Config keys with their values as JSON, sorted."""


@dataclass(frozen=True)
class RunGroup:
    """Runs whose configs differ in nothing but the seed."""

    keys: list[tuple[str, str]]
    """The keys, with values, that differ from those of other groups."""
    runs: list[PolicyMetrics]
    seeds: list[str]
    folders: list[Path] = field(default_factory=list)
    """The run directories, in the order of the runs."""
    judged: dict[str, list[dict[str, Any] | None]] = field(default_factory=dict)
    """The judge's statistics of each shard of all runs, by the label of the iteration."""
    warnings: list[str] = field(default_factory=list)
    """One line for each file that is left out, because it was lost or altered."""


def aggregate(run_dirs: Sequence[str], console: Console) -> None:
    """Print one table for each group of runs.

    Args:
        run_dirs: Run directories; a folder of runs stands for the runs in it.
        console: The terminal.

    Raises:
        ConfigError: A folder holds no run.
    """
    groups = group_runs(run_dirs)
    print_line(console, explain_headings())
    for group in groups:
        # The policies that any run has: runs may have different numbers of iterations.
        runs = group.runs
        policies: dict[str, None] = {}
        for run in runs:
            policies |= dict.fromkeys(run)

        # One row a policy: its metrics, or their mean over the seeds.
        rows = []
        for policy in policies:
            values = [run[policy] for run in runs if policy in run]
            row = [policy]
            for name in HEADINGS:
                if len(runs) > 1:
                    row.append(spread([value.get(name) for value in values]))
                else:
                    row.append(cell(values[0].get(name), values[0].get("intervals", {}).get(name)))
            rows.append([*row, str(len(values))])

        # The title says what sets the group apart.
        shown = ", ".join(f"{key}={value}" for key, value in group.keys)
        # In a comparison, that is the method, and the folder is named after it.
        methods = {folder.parent for folder in group.folders}
        if len(methods) == 1 and all(folder.name.startswith("seed-") for folder in group.folders):
            shown = str(methods.pop())
        if not shown and len(run_dirs) > 1:
            shown = str(Path(run_dirs[0]).parent)
        elif not shown:
            shown = run_dirs[0]
        title = f"{shown}: {describe_spread(group.seeds)}"
        show_table(console, title, ["policy", *HEADINGS.values(), "runs"], rows)
        judge = {label: sum_judge_statistics(shards) for label, shards in group.judged.items()}
        judged = make_judge_table(judge)
        if judged is not None:
            show_table(console, f"the judge, {TITLE}", judged.columns, judged.rows)
        line = compare_with_baselines(runs)
        if line is not None:
            print_line(console, line)
        for warning in group.warnings:
            print_line(console, warning)


def group_runs(run_dirs: Sequence[str]) -> list[RunGroup]:
    """Return the runs in groups of equal configs but for the seed.

    Raises ConfigError when a folder holds no run.
    """
    # Group the runs by their config without the seed.
    groups: dict[Keys, RunGroup] = {}
    for store in open_runs(run_dirs):
        layout = RunLayout(store.root)
        ledger = Ledger(layout.ledger, read_only=True)
        facts = ledger.get("run") or ledger.get("bench")
        if facts is None:
            raise ConfigError(
                f"run_dir={store.root} holds no run; expected the folder that spin run was given, or that of a sweep"
            )
        others = dict(facts["keys"])
        seed = others.pop("seed")
        keys = tuple(sorted(others.items()))
        group = groups.setdefault(keys, RunGroup(list(keys), [], []))
        group.seeds.append(seed)
        group.folders.append(store.root)
        state = read_state(layout, ledger)
        for stage in state.stages("judgements"):
            group.judged.setdefault(stage.label, []).extend(list_judgements(state, stage))
        group.runs.append({stage.label: values for stage, values in read_benchmarks(state)})
        group.warnings.extend(describe_damage(state))

    # The title of a table shows only the keys in which the groups differ.
    shared: set[tuple[str, str]] = set()
    if groups:
        shared = set.intersection(*map(set, groups))
    for group in groups.values():
        group.keys[:] = [pair for pair in group.keys if pair not in shared]
    return list(groups.values())


def describe_spread(seeds: Sequence[str]) -> str:
    """Return what ± means in the table of the runs with these seeds."""
    if len(seeds) == 1:
        return f"seed {seeds[0]}, ± half the 95 % interval"
    distinct = sorted(set(seeds), key=int)
    listed = ", ".join(distinct)
    # Runs of one seed differ in their rounding alone, or not at all.
    if len(distinct) < len(seeds):
        return f"mean ± standard deviation over {len(seeds)} runs, of which some have the same seed ({listed})"
    return f"mean ± standard deviation over seeds {listed}"


def spread(values: Sequence[float | None]) -> str:
    """Return mean and standard deviation (n - 1), ``0.814±.034``; one value has no deviation."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean = f"{statistics.mean(known):.3f}"
    if len(known) == 1:
        return mean
    return mean + format_deviation(statistics.stdev(known))


def compare_with_baselines(runs: Sequence[PolicyMetrics]) -> str | None:
    """Return the last iteration minus the baseline, over the seeds; None without a baseline."""
    # The last iteration that all runs have, with its baseline.
    common = set.intersection(*map(set, runs))
    last = -1
    while {f"iteration {last + 1}", f"baseline {last + 1}"} <= common:
        last += 1
    if last < 0:
        return None
    ours, theirs = f"iteration {last}", f"baseline {last}"

    # The difference of each metric in each run, then its mean and deviation.
    parts = []
    for name in COMPARED:
        differences = [run[ours][name] - run[theirs][name] for run in runs]
        parts.append(f"{HEADINGS[name]} {spread(differences)}")
    return f"{ours} minus {theirs}: {', '.join(parts)}"
