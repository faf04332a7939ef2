"""What grows with the prompts and what with the shards: small real runs, one iteration of the built-in model each, answers of 8 tokens.

    python scripts/bench/growth.py --json growth.json

For each number of prompts: the driver's peak memory (its own process: imports, data, loop), seconds of data preparation, and seconds of generation, scoring
and training for a thousand prompts. Then the same prompts in one shard and in 64: the driver's own time, that is the CPU time of its process after the
start plus the time it waits for the ledger to reach the disk, as a share of the wall clock of the loop.

Measured on two busy cores, wall clock: 605, 611 and 611 MiB for 1k, 4k and 16k prompts; 0.2, 0.8 and 3.0 s of preparation; 8.9, 9.7 and 9.1 s a thousand. 4k prompts
in 1 shard and in 64: 0.37 and 0.75 s of the driver's own in a loop of 54 and 61 s (0.7 and 1.2 %), so that 63 more shards of 62 prompts cost it 0.4 s (0.6 %), half of
that in the ledger; 16k in 64 shards: 0.9 %.

Not here: what grows with the length of the rows or with the model; the workers' memory, which benchmark.json has.
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
    seen["peak_mib"] = int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024
    json.dump(seen, open(os.environ["SPIN_GROWTH"], "w"))

ledger.Ledger.append = timed(ledger.Ledger.append, "ledger")
orchestrator.iterate = timed(orchestrator.iterate, "loop")
orchestrator.prepare_data = timed(orchestrator.prepare_data, "data")
atexit.register(leave)
main()
"""
"""`spin run`, with clocks around the ledger, the loop and the data preparation."""


def write_rows(path: Path, count: int, seed: int) -> None:
    """`count` distinct rows of prompt and completion."""
    chance, words = random.Random(seed), dict[str, None]()
    while len(words) < count:
        words["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=7))] = None
    path.write_text(
        "".join(json.dumps({"prompt": f"Sort: {word}", "completion": "".join(sorted(word))}) + "\n" for word in words)
    )


def measure(folder: Path, prompts: int, shard_size: int) -> dict[str, Any]:
    """One run. Raises RuntimeError with the end of its output when it fails."""
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
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, nargs="+", default=[1000, 4000, 16000])
    parser.add_argument(
        "--shards", type=int, nargs="*", default=[1, 64], help="of the second number of prompts, or of the only one"
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
