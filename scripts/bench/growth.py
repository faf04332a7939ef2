"""Measure what grows with the number of prompts and of shards, in small real runs.

    python scripts/bench/growth.py --json growth.json

Each run is one iteration of the built-in model with answers of 8 tokens. For each number of
prompts: the driver's peak memory (its own process: imports, data, loop), seconds of data
preparation, and seconds of generation, scoring and training for 1,000 prompts.

Then the same prompts in one shard and in 64. Compared is the driver's own time as a share of the
wall clock of the loop: CPU time of its process after the start, and waiting for the ledger to reach
the disk.

Not measured: the effect of row length and model size; the workers' memory, which benchmark.json
has. Results are in docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "experiment=quickstart",
    "iterations=1",
    "baseline=null",
    "warmup.enabled=false",
    "benchmark.enabled=false",
    "generation.max_tokens=8",
    "training.max_length=72",
    "training.batch_size=128",
    "training.checkpoint_every=0",
]
DRIVER = """
import atexit, json, os, sys, time
from spin.cluster.environment import prepare_ray
prepare_ray(None)  # before Ray is imported
from spin.cli.main import main
from spin.orchestration import orchestrator
from spin.run_dir import ledger

seen = {"ledger_seconds": 0.0, "ledger_lines": 0}

def timed(function, name):
    def call(*args, **kwargs):
        wall, own = time.perf_counter(), time.process_time()
        try:
            return function(*args, **kwargs)
        finally:
            seen[name + "_seconds"] = seen.get(name + "_seconds", 0.0) + time.perf_counter() - wall
            seen[name + "_cpu_seconds"] = seen.get(name + "_cpu_seconds", 0.0) + time.process_time() - own
            seen[name + "_calls"] = seen.get(name + "_calls", 0) + 1
    return call

def leave():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM"):  # peak resident memory, KiB
            seen["peak_mib"] = int(line.split()[1]) / 1024
    json.dump(seen, open(os.environ["SPIN_GROWTH"], "w"))

ledger.Ledger.append = timed(ledger.Ledger.append, "ledger")
orchestrator.iterate = timed(orchestrator.iterate, "loop")
orchestrator.prepare_data = timed(orchestrator.prepare_data, "data")
atexit.register(leave)
main()
"""
"""Program that is `spin run` with clocks around ledger, loop and data preparation."""


def write_rows(path: Path, count: int, seed: int) -> None:
    """Write `count` distinct rows of prompt and completion."""
    chance, words = random.Random(seed), dict[str, None]()
    while len(words) < count:
        words["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=7))] = None
    path.write_text(
        "".join(json.dumps({"prompt": f"Sort: {word}", "completion": "".join(sorted(word))}) + "\n" for word in words)
    )


def measure(folder: Path, prompts: int, shard_size: int) -> dict[str, Any]:
    """Run once and return its figures. Raise RuntimeError with the end of the output on failure."""
    train, held, run_dir, found = (
        folder / f"{prompts}-{shard_size}-{name}" for name in ("train.jsonl", "held.jsonl", "run", "seen.json")
    )
    write_rows(train, prompts, 0)
    write_rows(held, 20, 1)
    words = [
        *SMALL,
        f"run_dir={run_dir}",
        f"data.path={train}",
        f"data.eval_path={held}",
        "data.limit=null",
        f"generation.shard_size={shard_size}",
    ]
    environment = {**os.environ, "SPIN_GROWTH": str(found), "PYTHONPATH": os.environ.get("PYTHONPATH", str(ROOT))}
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, "run", *words], capture_output=True, text=True, env=environment
    )
    if done.returncode:
        raise RuntimeError(f"{prompts} prompts in shards of {shard_size}: {(done.stdout + done.stderr)[-2000:]}")
    lines = [json.loads(line) for line in (run_dir / "ledger.jsonl").read_text().splitlines()]
    last = {line["unit"]: line for line in lines}
    seconds = {kind: last[f"iterations/000/{kind}"]["seconds"] for kind in ("samples", "pairs", "policy")}
    seen = json.loads(found.read_text())
    own = seen["loop_cpu_seconds"] + seen["ledger_seconds"] - seen["ledger_cpu_seconds"]
    return {
        "prompts": prompts,
        "shards": math.ceil(prompts / shard_size),
        "peak_mib": round(seen["peak_mib"], 1),
        "data_seconds": round(seen["data_seconds"], 2),
        **{f"{kind}_seconds": value for kind, value in seconds.items()},
        "seconds_per_thousand": round(1000 * sum(seconds.values()) / prompts, 2),
        "loop_seconds": round(seen["loop_seconds"], 2),
        "ledger_lines": seen["ledger_calls"],
        "ledger_seconds": round(seen["ledger_seconds"], 3),
        "driver_seconds": round(own, 2),
        "driver_share": round(own / seen["loop_seconds"], 4),
    }


def main() -> None:
    """Measure all cases, print and write their figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, nargs="+", default=[1000, 4000, 16000])
    parser.add_argument(
        "--shards",
        type=int,
        nargs="*",
        default=[1, 64],
        help="numbers of shards for the second number of prompts, or for the only one",
    )
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    rows = []
    same = arguments.prompts[min(1, len(arguments.prompts) - 1)]
    cases = [(prompts, 250) for prompts in arguments.prompts] + [
        (same, math.ceil(same / shards)) for shards in arguments.shards
    ]
    with tempfile.TemporaryDirectory() as folder:
        for prompts, shard_size in cases:
            rows.append(measure(Path(folder), prompts, shard_size))
            print("  ".join(f"{name} {value:,}" for name, value in rows[-1].items()), flush=True)
            arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
