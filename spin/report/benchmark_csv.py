"""Write benchmark.csv: one row of metrics for each policy that was measured."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from spin.report.benchmark_files import read_benchmarks, read_lm_eval
from spin.run_dir.files import write_atomically
from spin.run_dir.run_state import RunState


def write_csv(path: Path, state: RunState) -> None:
    """Write benchmark.csv: one row a policy.

    Columns are the metrics, the ends of their intervals as ``nll_low`` and ``nll_high``, speed, and
    the results of lm-evaluation-harness as ``lm_eval/<task>/<metric>``.
    """
    rows = []
    for stage, values in read_benchmarks(state):
        # The metrics. Intervals and speed are dicts of their own in benchmark.json.
        row: dict[str, Any] = {"policy": stage.label}
        for key, value in values.items():
            if not isinstance(value, dict):
                row[key] = value
        for name, (low, high) in values["intervals"].items():
            row[f"{name}_low"] = low
            row[f"{name}_high"] = high
        row |= values["speed"]
        # The results of lm-evaluation-harness, if it was run on this policy.
        for task, results in read_lm_eval(state, stage).items():
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
