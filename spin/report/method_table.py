"""One table of several methods: metrics over seeds, differences to the first, and the cost."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from spin.benchmark.metrics import COMPARED
from spin.errors import ConfigError
from spin.report.benchmark_files import read_benchmarks
from spin.report.metric_titles import HEADINGS, explain_headings
from spin.report.tables import format_deviation
from spin.report.terminal import print_line, show_table
from spin.run_dir.facts import KindTotals, PolicyFacts
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import RunLayout
from spin.run_dir.run_state import read_state

SHOWN = ("exact_match_greedy", "exact_match_sampled", "nll", "kl_to_start")
"""Metrics of the table."""

T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""97.5 % quantiles of Student's t distribution with 1, 2, … degrees of freedom."""


@dataclass(frozen=True)
class RunOutcome:
    """What a run has reached and what it took."""

    start: dict[str, float]
    """Metrics of the start policy."""
    last: dict[str, float]
    """Metrics of the policy of the last iteration."""
    steps: int
    """Optimizer steps of all iterations."""
    generated: int
    """Tokens of all samples that were trained on."""
    seconds: dict[str, float]
    """Seconds by kind of work, over all iterations."""


def read_outcome(run_dir: Path) -> RunOutcome:
    """Read a finished run. Raises ConfigError when it was not benchmarked."""
    layout = RunLayout(run_dir)
    state = read_state(layout, Ledger(layout.ledger, read_only=True))
    measured = {stage.name: values for stage, values in read_benchmarks(state)}
    iterations = [stage for stage in state.stages("policy") if stage.index >= 0 and not stage.is_baseline]
    last = iterations[-1].name
    if layout.start.name not in measured or last not in measured:
        raise ConfigError(f"{run_dir} has no benchmark of its start and its last iteration; set benchmark.enabled=true")
    steps, generated = 0, 0
    seconds: dict[str, float] = {"samples": 0.0, "policy": 0.0}
    for stage in iterations:
        steps += state.facts(state.unit(stage, "policy"), PolicyFacts).steps
        generated += (state.totals(stage, "samples") or KindTotals()).tokens
        for kind in seconds:
            seconds[kind] += state.seconds(stage, kind) or 0.0
    return RunOutcome(measured[layout.start.name], measured[last], steps, generated, seconds)


def mean_with_interval(values: Sequence[float]) -> str:
    """Return mean and half of its 95 % interval by Student's t, ``0.814±.034``.

    Args:
        values: One value for each seed, at most ten; a single one has no interval.
    """
    mean = f"{statistics.mean(values):.3f}"
    if len(values) == 1:
        return mean
    half = T_QUANTILES[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values))
    return mean + format_deviation(half)


def show_methods(runs: Mapping[str, Sequence[Path]], console: Console) -> None:
    """Print the table of the methods, and the differences to the first of them.

    Args:
        runs: The run directories of each method, one for each seed, in the order of the seeds.
        console: Where to print.
    """
    outcomes = {method: [read_outcome(run_dir) for run_dir in run_dirs] for method, run_dirs in runs.items()}
    first = next(iter(outcomes))

    # The start policies are those of the first method.
    rows = [["start", *[mean_with_interval([run.start[name] for run in outcomes[first]]) for name in SHOWN]]]
    rows[0] += ["-"] * 4
    for method, method_runs in outcomes.items():
        row = [method]
        for name in SHOWN:
            row.append(mean_with_interval([run.last[name] for run in method_runs]))
        # What a run took, on average.
        row.append(f"{statistics.mean(run.steps for run in method_runs):,.0f}")
        row.append(f"{statistics.mean(run.generated for run in method_runs):,.0f}")
        for kind in ("samples", "policy"):
            row.append(f"{statistics.mean(run.seconds[kind] for run in method_runs):.1f}")
        rows.append(row)
    number = len(outcomes[first])
    seeds = "one seed"
    if number > 1:
        seeds = f"mean over {number} seeds ± half the 95 % interval (Student's t)"
    print_line(console, explain_headings(names=SHOWN))
    title = (
        f"last iteration of each method, {seeds}; steps: optimizer steps; tokens: generated to learn from; "
        "gen s, train s: seconds of generation and training"
    )
    columns = ["method", *[HEADINGS[name] for name in SHOWN], "steps", "tokens", "gen s", "train s"]
    show_table(console, title, columns, rows)

    # The runs of a seed have the same start, so differences are taken seed by seed.
    for method, method_runs in outcomes.items():
        if method == first:
            continue
        parts = []
        for name in COMPARED:
            pairs = zip(method_runs, outcomes[first], strict=True)
            differences = [ours.last[name] - theirs.last[name] for ours, theirs in pairs]
            parts.append(f"{HEADINGS[name]} {mean_with_interval(differences)}")
        print_line(console, f"{method} minus {first}: {', '.join(parts)}")
