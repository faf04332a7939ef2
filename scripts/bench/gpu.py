"""Measure everything that a GPU decides, in about 8 minutes.

    python scripts/bench/gpu.py --json gpu.json                          all parts
    python scripts/bench/gpu.py --parts training --sizes 0.5B            one part, one size
    python scripts/bench/gpu.py --parts training --sizes tiny --pairs 8  a smoke test on a CPU

    device       rate of a large bfloat16 product and of a copy
    run          runs with engine and trainer colocated on the GPU: the built-in model, and a random
                 model of 0.5B; seconds by stage
    training     optimizer steps of spin's Trainer, and of TRL's DPOTrainer on the same pairs
    generation   shards in the queue of spin's engine, against one call of vLLM with all prompts

Each measurement has a process and a time limit of its own. One that fails is recorded with the end
of its output, and the others go on. Processes import and load side by side, but a lock lets one at
a time use the GPU. Weights are random, because speed does not depend on them.

MFU (model FLOP utilisation) is the number of operations that a step needs, divided by its time and
by 989 TFLOP/s. A step needs 6 operations for each weight and token; each prompt counts once, and
the head at completion tokens only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from scripts.bench.gpu_cases import SIZES, find_device, read_clock, save_model  # noqa: E402

PARTS = ("device", "run", "training", "generation")
SYSTEMS = ("spin", "spin-compiled", "trl-best", "trl-default")
MARK = "RESULT "
"""Begins the line with which a process gives its result."""


def measure_device() -> dict[str, Any]:
    """Return name, versions, and the rates of a large product and of a large copy."""
    import torch
    import transformers

    found: dict[str, Any] = {"torch": torch.__version__, "transformers": transformers.__version__}
    if find_device() == "cpu":
        return found | {"name": "CPU"}
    a = torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda")
    source = torch.empty(2 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    products, copies = [], []
    for _ in range(10):
        began = read_clock()
        a @ a
        products.append(read_clock() - began)
        began = read_clock()
        target.copy_(source)
        copies.append(read_clock() - began)
    return found | {
        "name": torch.cuda.get_device_name(),
        "product_tflops": 2 * 8192**3 / min(products) / 1e12,
        "copy_tb_per_second": 2 * len(source) / min(copies) / 1e12,
    }


def run_child(words: list[str], limit: float) -> dict[str, Any]:
    """Run a measurement in a process of its own, and return its result or how it failed."""
    began = time.monotonic()
    try:
        environment = {**os.environ, "PYTHONPATH": make_path()}
        if find_device() == "cpu":
            # More threads of vLLM wait for each other in busy loops, as in `prepare_cpu_engine`.
            environment["OMP_NUM_THREADS"] = "1"
        done = subprocess.run(words, capture_output=True, text=True, timeout=limit, cwd=ROOT, env=environment)
        output, code = done.stdout + done.stderr, done.returncode
    except subprocess.TimeoutExpired as error:
        output, code = f"{text_of(error.stdout)}{text_of(error.stderr)}", -1
    seconds = round(time.monotonic() - began, 1)
    for line in output.splitlines():
        if line.startswith(MARK):
            return json.loads(line.removeprefix(MARK)) | {"wall_seconds": seconds}
    return {"failed": code, "output": output[-6000:], "wall_seconds": seconds}


def text_of(output: bytes | str | None) -> str:
    """Return what a process wrote before its time limit."""
    if isinstance(output, bytes):
        return output.decode(errors="replace")
    return output or ""


def make_path() -> str:
    """Return PYTHONPATH with this repository first."""
    return os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])


def run_loop(settings: list[str], limit: float, folder: Path) -> dict[str, Any]:
    """Run the loop colocated; return the seconds of its units and the end of its output."""
    words = [sys.executable, "-c", "from spin.cli.main import main; main()", "run", "cluster.placement=colocated"]
    found = run_child([*words, f"run_dir={folder}", *settings], limit)
    ledger = folder / "ledger.jsonl"
    units = {}
    if ledger.exists():
        for line in ledger.read_text().splitlines():
            record = json.loads(line)
            if "seconds" in record:
                units[record["unit"]] = record["seconds"]
    return {"exit_code": found["failed"], "wall_seconds": found["wall_seconds"], "units": units} | {
        "output": found["output"]
    }


def run_tiny_model(folder: Path) -> dict[str, Any]:
    """Run two iterations of the quickstart on less data, in bfloat16."""
    settings = ["experiment=quickstart", "model.dtype=bfloat16", "iterations=2", "baseline=null"]
    settings += ["warmup.limit=1600", "data.limit=320", "data.eval_limit=100", "benchmark.samples=2"]
    return run_loop(settings, 160, folder / "run-tiny")


def run_half_billion(folder: Path, model: Path) -> dict[str, Any]:
    """Run two iterations of a random model of 0.5B in bfloat16 on the built-in data."""
    settings = [
        f"model.path={model}",
        "model.dtype=bfloat16",
        "data.path=builtin:letters",
        "data.limit=512",
        "data.eval_path=builtin:letters",
        "data.eval_split=test",
        "data.eval_limit=64",
        "benchmark.samples=1",
        "iterations=2",
        "generation.max_tokens=128",
        "training.learning_rate=1e-6",
    ]
    return run_loop(settings, 300, folder / "run-0.5B")


def main() -> None:
    """Run the parts, and write the results after each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--runs", nargs="+", choices=["tiny", "0.5B"], default=["tiny", "0.5B"])
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=["0.5B", "1.5B"])
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--pairs", type=int, default=64, help="pairs of an optimizer step")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"))
    parser.add_argument("--rounds", type=int, default=1, help="rounds of generation, each with other lengths")
    parser.add_argument("--profiles", type=Path, help="write the slowest kernels of spin's step to this folder")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(MARK + json.dumps(run_part(args.child)), flush=True)
        return

    results: dict[str, Any] = {}
    this = [sys.executable, str(Path(__file__).resolve()), "--child"]

    def keep(name: str, result: dict[str, Any]) -> None:
        results[name] = result
        args.json.write_text(json.dumps(results, indent=1))
        print(name, json.dumps({key: value for key, value in result.items() if key != "output"}), flush=True)
        if "failed" in result:
            print(result["output"][-1500:], flush=True)

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if "device" in args.parts:
            keep("device", run_child([*this, "device"], 60))
        if "run" in args.parts and "tiny" in args.runs:
            keep("run tiny", run_tiny_model(folder))
        models = {}
        for size in args.sizes:
            models[size] = folder / size
            save_model(size, models[size])
        if "run" in args.parts and "0.5B" in args.runs:
            keep("run 0.5B", run_half_billion(folder, models["0.5B"]))
        if "training" in args.parts:
            measure_training(args, this, models, folder / "lock", keep)
        if "generation" in args.parts:
            for size in args.sizes:
                words = [*this, "generation", size, str(models[size]), str(args.rounds)]
                keep(f"generation {size}", run_child(words, 300 * args.rounds))


def measure_training(args: Any, this: list[str], models: dict[str, Path], lock: Path, keep: Any) -> None:
    """Run all systems of a size side by side; the lock orders their use of the GPU."""
    from concurrent.futures import ThreadPoolExecutor, as_completed

    for size in args.sizes:
        with ThreadPoolExecutor(len(args.systems)) as pool:
            jobs = {}
            for system in args.systems:
                profile = ""
                if args.profiles and system.startswith("spin"):
                    args.profiles.mkdir(exist_ok=True)
                    profile = str(args.profiles / f"{system}-{size}.txt")
                words = [*this, "training", system, size, str(models[size]), str(lock), str(args.pairs), profile or "-"]
                jobs[pool.submit(run_child, words, 240)] = system
            for job in as_completed(jobs):
                keep(f"training {size} {jobs[job]}", job.result())


def run_part(words: list[str]) -> dict[str, Any]:
    """Run one measurement in this process."""
    part, *arguments = words
    if part == "device":
        return measure_device()
    if part == "generation":
        from scripts.bench.gpu_generation import time_generation

        size, folder, rounds = arguments
        return time_generation(size, folder, int(rounds))
    from scripts.bench.gpu_training import time_training

    system, size, folder, lock, pairs, profile = arguments
    return time_training(system, size, folder, lock, int(pairs), profile.removeprefix("-"))


if __name__ == "__main__":
    main()
