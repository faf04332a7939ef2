"""The figures of a run as a person reads them: the table at its end, and benchmark.csv."""

from __future__ import annotations

import csv
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from spin.benchmark import metrics
from spin.benchmark.metrics import COMPARED
from spin.config.run import RunConfig
from spin.data.parquet import read_rows
from spin.data.records import HeldoutAnswer
from spin.errors import ConfigError
from spin.report.console import Reporter, show_table
from spin.run_dir.files import file_sha256, write_atomically
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import RunLayout, Stage
from spin.run_dir.store import open_store

SHOWN = {
    "exact_match_greedy": "EM",
    "exact_match_sampled": "EM T",
    "nll": "NLL",
    "win_rate": "win",
    "kl_to_start": "KL",
}
"""The figures of the table, and their columns."""


def stages(layout: RunLayout, ledger: Ledger, kind: str) -> list[Stage]:
    """The start, the iterations and the baseline's stages that have a finished unit of this kind, in their order."""
    found = [layout.start]
    for chain in (layout.iteration, layout.baseline):
        index = 0
        while f"{chain(index).name}/{kind}" in ledger:
            found.append(chain(index))
            index += 1
    return [stage for stage in found if f"{stage.name}/{kind}" in ledger]


def benchmarked(layout: RunLayout, ledger: Ledger) -> list[tuple[Stage, dict[str, Any]]]:
    """The finished benchmarks of a run: start, iterations, baseline. One whose file is no longer what was finished is left out until it is made again."""
    found = [
        (stage, (ledger.get(f"{stage.name}/benchmark") or {})["sha256"])
        for stage in stages(layout, ledger, "benchmark")
    ]
    return [
        (stage, json.loads(stage.benchmark.read_text()))
        for stage, sha256 in found
        if stage.benchmark.exists() and file_sha256(stage.benchmark) == sha256
    ]


def summary(config: RunConfig, layout: RunLayout, ledger: Ledger, reporter: Reporter) -> None:
    """The table of the start, every iteration and the baseline, what self-play added to it, and where the time went."""
    measured = {stage.name: values for stage, values in benchmarked(layout, ledger)}
    shown = [layout.start, *(stage for stage in stages(layout, ledger, "policy") if stage.name != "start")]

    def seconds(stage: Stage, kind: str) -> float:
        return float((ledger.get(f"{stage.name}/{kind}") or {}).get("seconds", 0.0))

    rows = []
    for stage in shown:
        values = measured.get(stage.name, {})
        cells = [cell(values.get(name), values.get("intervals", {}).get(name)) for name in SHOWN]
        rows.append([stage.label, *cells, *(f"{seconds(stage, kind):.1f}" for kind in ("samples", "policy"))])
    title = (
        f"EM: exact match on held-out prompts, greedy; EM T: mean of {config.benchmark.samples} samples at temperature {config.generation.temperature:g}; "
        "NLL of the truth, nats a token; win: truth preferred to the opponent's answer; KL to the start, nats an answer; ±: half the 95 % interval"
    )
    show_table(reporter.console, title, ["policy", *SHOWN.values(), "gen s", "train s"], rows)
    for line in compared(layout, ledger):
        reporter.print(line)
    if top := ledger.get("best"):
        reporter.print(
            f"best: {Stage(layout.root, top['policy']).label} by {top['metric']} ({top['value']:.4f}), linked as {layout.best.name}"
        )
    total = (ledger.get("seconds") or {"total": 0.0})["total"]
    if total:
        spent = {kind: sum(seconds(stage, kind) for stage in shown) for kind in ("samples", "policy")}
        beside = sum(
            seconds(stage, "samples") for stage in shown if (ledger.get(f"{stage.name}/samples") or {}).get("beside")
        )
        neither = total - spent["samples"] + beside - spent["policy"]
        within = f" ({beside:.0f} beside training)" if beside else ""
        reporter.print(
            f"wall clock {total:.0f} s: generation {spent['samples']:.0f}{within}, training {spent['policy']:.0f}, neither {neither:.0f} ({neither / total:.0%})"
        )
    reporter.print(f"run directory: {layout.root}")


def cell(value: float | None, interval: list[float] | None) -> str:
    """A figure with half its interval: ``0.814±.034``."""
    if value is None:
        return "-"
    half = f"±{(interval[1] - interval[0]) / 2:.3f}".replace("±0.", "±.") if interval else ""
    return f"{value:.3f}{half}"


def compared(layout: RunLayout, ledger: Ledger) -> list[str]:
    """What self-play added to the baseline after as many steps, with the intervals of the paired difference."""
    names = {stage.name for stage in stages(layout, ledger, "benchmark")}
    index = sum(name.startswith("baseline/") for name in names) - 1
    ours, theirs = layout.iteration(index), layout.baseline(index)
    if index < 0 or ours.name not in names:
        return []
    own, other = (metrics.columns(read_rows(stage.answers("judged"), HeldoutAnswer)) for stage in (ours, theirs))
    found = metrics.difference(own, other, metrics.COMPARED, 0)
    parts = [f"{SHOWN[name]} {value:+.3f} ({low:+.3f} to {high:+.3f})" for name, (value, low, high) in found.items()]
    return [f"{ours.label} minus {theirs.label}: {', '.join(parts)}; in brackets 95 %"]


def write_csv(layout: RunLayout, ledger: Ledger) -> None:
    """One row a policy: the figures, the ends of their intervals as ``nll_low`` and ``nll_high``, speed, and what lm-evaluation-harness found."""
    rows = []
    for stage, values in benchmarked(layout, ledger):
        flat = {key: value for key, value in values.items() if not isinstance(value, dict)}
        ends = {
            f"{name}_{end}": value
            for name, interval in values["intervals"].items()
            for end, value in zip(("low", "high"), interval, strict=True)
        }
        tasks = (
            json.loads(stage.lm_eval.read_text())
            if f"{stage.name}/lm_eval" in ledger and stage.lm_eval.exists()
            else {}
        )
        harness = {
            f"lm_eval/{task}/{name}": value for task, metrics in tasks.items() for name, value in metrics.items()
        }
        rows.append({"policy": stage.label, **flat, **ends, **values["speed"], **harness})
    names = list(dict.fromkeys(name for row in rows for name in row))

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="") as handle:
            writer = csv.DictWriter(handle, names, restval="")
            writer.writeheader()
            writer.writerows(rows)

    write_atomically(layout.table, write)


Figures = dict[str, dict[str, Any]]
"""Of one run: by policy, ``start`` and so on, its figures."""


def aggregate(run_dirs: Sequence[str], console: Console) -> None:
    """Print one table a group of runs. Raises ConfigError where a folder holds no run."""
    for keys, runs in groups(run_dirs):
        shown = ", ".join(f"{key}={value}" for key, value in keys) or str(
            Path(run_dirs[0]).parent if len(run_dirs) > 1 else run_dirs[0]
        )
        rows = []
        for policy in dict.fromkeys(policy for _, figures in runs for policy in figures):
            values = [figures[policy] for _, figures in runs if policy in figures]
            cells = [
                spread([value[name] for value in values])
                if len(runs) > 1
                else cell(values[0][name], values[0]["intervals"].get(name))
                for name in SHOWN
            ]
            rows.append([policy, *cells, str(len(values))])
        seeds = ", ".join(seed for seed, _ in runs)
        what = (
            f"mean ± standard deviation over seeds {seeds}"
            if len(runs) > 1
            else f"seed {seeds}, ± half the 95 % interval"
        )
        show_table(console, f"{shown}: {what}", ["policy", *SHOWN.values(), "seeds"], rows)
        if (line := against_baseline([figures for _, figures in runs])) is not None:
            console.print(line, markup=False)


def groups(run_dirs: Sequence[str]) -> list[tuple[list[tuple[str, str]], list[tuple[str, Figures]]]]:
    """For each group: the keys that set it apart from the others, with their values, and its runs, each a seed and its figures."""
    found: dict[tuple[tuple[str, str], ...], list[tuple[str, Figures]]] = {}
    for run_dir in run_dirs:
        layout = RunLayout(open_store(run_dir).root)
        ledger = Ledger(layout.ledger, read_only=True)
        facts = ledger.get("run") or ledger.get("bench")
        if facts is None:
            raise ConfigError(f"run_dir={run_dir} holds no run; expected the folder that spin run was given")
        keys = tuple(sorted((key, value) for key, value in facts["keys"].items() if key != "seed"))
        found.setdefault(keys, []).append(
            (facts["keys"]["seed"], {stage.label: values for stage, values in benchmarked(layout, ledger)})
        )
    shared = set.intersection(*(set(keys) for keys in found)) if found else set()
    return [([pair for pair in keys if pair not in shared], runs) for keys, runs in found.items()]


def spread(values: Sequence[float | None]) -> str:
    """Mean and standard deviation (n − 1), ``0.814±.034``; the deviation only of two and more."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    deviation = f"±{statistics.stdev(known):.3f}".replace("±0.", "±.") if len(known) > 1 else ""
    return f"{statistics.mean(known):.3f}{deviation}"


def against_baseline(runs: Sequence[Figures]) -> str | None:
    """The last iteration minus the baseline after as many steps, seed by seed; None without a baseline."""
    last = -1
    while all({f"iteration {last + 1}", f"baseline {last + 1}"} <= set(figures) for figures in runs):
        last += 1
    if last < 0:
        return None
    ours, theirs = f"iteration {last}", f"baseline {last}"
    parts = [
        f"{SHOWN[name]} {spread([figures[ours][name] - figures[theirs][name] for figures in runs])}"
        for name in COMPARED
    ]
    return f"{ours} minus {theirs}: {', '.join(parts)}"
