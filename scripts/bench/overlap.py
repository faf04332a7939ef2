"""What cluster.placement=split saves: one iteration with generation and training one after the other, then at the same time.

    python scripts/bench/overlap.py --json overlap.json

Both are real runs of the tiny model from the same untrained start, on the same shards, with one thread for the engine and one for the trainer; they give the
same weights, which is checked. `generation` and `training` are the seconds of these stages in the run where they had the machine to themselves, `wall` is that
of the iteration where they went on together, `startup` the part of it before the trainer had its first shard, and `ratio` = (wall - startup) ÷ the longer
of the two. Scoring goes on in a process of its own: on two cores it takes turns with the engine, which is why training should be the longer part, as it is
in the paper (4.3 h against 1.5 h, of two epochs as here).
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

SETTINGS = [
    *("experiment=quickstart", "iterations=1", "baseline=null", "benchmark.enabled=false", "data.eval_limit=20"),
    *("data.limit=6000", "training.epochs=2", "warmup.limit=32", "warmup.training.epochs=1"),
]


def measure(run_dir: Path, placement: str, overrides: list[str]) -> None:
    """One run. Raises RuntimeError with its output when it fails."""
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
    """The figures of a sequential and a split run. Raises RuntimeError when their weights differ."""
    policies = [policy_digest(run_dir / "iterations" / "000" / "policy") for run_dir in (alone, together)]
    if policies[0] != policies[1]:
        raise RuntimeError(f"{alone} and {together} ended with other weights")
    ledger = Ledger(alone / "ledger.jsonl", read_only=True)
    generation, scoring, training = (
        ledger.get(f"iterations/000/{unit}")["seconds"] for unit in ("samples", "pairs", "policy")
    )  # type: ignore[index]
    spans = [span for span in collect(together, "split").spans if span.policy == "iteration 0"]
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
    """Both runs, the figures, and the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--dir", type=Path, help="where the runs are kept; a temporary folder otherwise")
    parser.add_argument("overrides", nargs="*", help="settings of both runs: data.limit=2000")
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
