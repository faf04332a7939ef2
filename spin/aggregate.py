"""Several runs in one table: runs that differ in nothing but the seed are one group, with mean and standard deviation over its seeds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from spin.benchmark.figures import COMPARED
from spin.errors import ConfigError
from spin.layout import RunLayout, run_root
from spin.ledger import Ledger
from spin.metrics import show_table
from spin.summary import SHOWN, benchmarked, cell

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
        layout = RunLayout(run_root(run_dir))
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
