"""Measure what cluster.placement=split saves in one iteration.

    python scripts/bench/overlap.py --json overlap.json

Two real runs of the tiny model from the same untrained start, on the same shards, with one thread
for the engine and one for the trainer: `sequential` and `split`. Both must give the same weights.

    generation, training   seconds of these stages in the sequential run
    wall                   seconds of the iteration in the split run
    startup                the part of `wall` before the trainer has its first shard
    ratio                  (wall - startup) ÷ the longer of generation and training

Scoring runs in a process of its own. On two cores it competes with the engine, so training should
be the longer part, as in the paper (4.3 h against 1.5 h, two epochs as here).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from spin.models.policy import policy_digest
from spin.report.run_report import collect
from spin.run_dir.ledger import Ledger
from spin.run_dir.store import RunStore

SETTINGS = [
    *("experiment=quickstart", "iterations=1", "baseline=null", "benchmark.enabled=false", "data.eval_limit=20"),
    *("data.limit=6000", "training.epochs=2", "warmup.limit=32", "warmup.training.epochs=1"),
]


def measure(run_dir: Path, placement: str, overrides: list[str]) -> None:
    """Run once. Raise RuntimeError with the output on failure."""
    command = [
        sys.executable,
        "-c",
        "from spin.cli.main import main; main()",
        "run",
        *SETTINGS,
        f"run_dir={run_dir}",
        f"cluster.placement={placement}",
        *overrides,
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")


def compare(alone: Path, together: Path) -> dict[str, Any]:
    """Return the figures of a sequential and a split run.

    Raises RuntimeError if their weights differ.
    """
    policies = [policy_digest(run_dir / "iterations" / "000" / "policy") for run_dir in (alone, together)]
    if policies[0] != policies[1]:
        raise RuntimeError(f"{alone} and {together} have different weights")
    ledger = Ledger(alone / "ledger.jsonl", read_only=True)
    seconds = {}
    for kind in ("samples", "pairs", "policy"):
        record = ledger.get(f"iterations/000/{kind}")
        if record is None:
            raise RuntimeError(f"{alone} has not finished iterations/000/{kind}")
        seconds[kind] = record["seconds"]
    generation, scoring, training = seconds.values()
    spans = [span for span in collect(RunStore(together), "split").spans if span.policy == "iteration 0"]
    wall = max(span.end for span in spans) - min(span.start for span in spans)
    rows = [json.loads(line) for line in (together / "metrics.jsonl").read_text().splitlines()]
    first = next(row for row in rows if row["unit"] == "iterations/000/policy")
    startup = max(0.0, first["time"] - min(span.start for span in spans))
    longer = max(generation, training)
    return {
        "wall": round(wall, 2),
        "generation": generation,
        "scoring": scoring,
        "training": training,
        "startup": round(startup, 2),
        "one_after_the_other": round(generation + scoring + training, 2),
        "ratio": round((wall - startup) / longer, 3),
        "ratio_with_startup": round(wall / longer, 3),
    }


def main() -> None:
    """Do both runs, print the figures and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--dir", type=Path, help="keep the runs here instead of in a temporary folder")
    parser.add_argument("overrides", nargs="*", help="overrides of both runs, for example data.limit=2000")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="spin-overlap-") as temporary:
        root = arguments.dir or Path(temporary)
        for placement in ("sequential", "split"):
            measure(root / placement, placement, arguments.overrides)
        found = compare(root / "sequential", root / "split")
    print(json.dumps(found))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
