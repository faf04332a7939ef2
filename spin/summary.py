"""What a run prints when it is complete."""

from __future__ import annotations

import json
from typing import Any

from spin.config import RunConfig
from spin.layout import RunLayout
from spin.ledger import Ledger
from spin.metrics import Reporter


def summary(config: RunConfig, layout: RunLayout, ledger: Ledger, reporter: Reporter) -> None:
    """The table of the start and every iteration, and where the time went."""
    stages = [layout.start, *(layout.iteration(index) for index in range(config.iterations))]

    def seconds(unit: str) -> float:
        return float((ledger.get(unit) or {}).get("seconds", 0.0))

    rows, spent = [], {"samples": 0.0, "pairs": 0.0, "policy": 0.0, "benchmark": 0.0}
    for stage in stages:
        figures: dict[str, Any] = json.loads(stage.benchmark.read_text()) if f"{stage.name}/benchmark" in ledger else {}
        times = {kind: seconds(f"{stage.name}/{kind}") for kind in spent}
        spent = {kind: spent[kind] + times[kind] for kind in spent}
        shown = [figures.get(key) for key in ("exact_match_greedy", "exact_match_sampled", "nll", "win_rate")]
        name = "start" if stage.name == "start" else f"iteration {int(stage.folder.name)}"
        shown_times = (times["samples"], times["policy"], times["pairs"] + times["benchmark"])
        rows.append([name, *("-" if v is None else f"{v:.3f}" for v in shown), *(f"{t:.1f}" for t in shown_times)])
    columns = ["policy", "EM", "EM T", "NLL", "win", "gen s", "train s", "other s"]
    title = (
        f"EM: exact match on held-out prompts, greedy; EM T: sampled at temperature {config.generation.temperature:g}; "
        "NLL of the truth, nats a token; win: truth preferred to the opponent's answer"
    )
    reporter.table(title, columns, rows)
    total = (ledger.get("seconds") or {"total": 0.0})["total"]
    if total:
        neither = total - spent["samples"] - spent["policy"]
        reporter.say(f"wall clock {total:.0f} s: generation {spent['samples']:.0f}, training {spent['policy']:.0f}, neither {neither:.0f} ({neither / total:.0%})")
    reporter.say(f"run directory: {layout.root}")
