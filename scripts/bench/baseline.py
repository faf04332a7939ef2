"""Measure the ratios of a release: the training steps of spin against those of TRL.

    python scripts/bench/baseline.py --json scripts/bench/baseline.json    some minutes
    python scripts/bench/baseline.py --size tiny --rounds 1 --json x.json  a smoke test

The file holds the machine, the versions of the packages and the ratios, and is committed with each
release, so that the next one can be compared with it. A ratio says how many times as long the other
one takes. Time is process CPU time of steps in turn, so that a busy machine changes ratios little.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from scripts.bench import policy_gradient, training
from scripts.bench.cases import SIZES, Case
from spin import __version__

PACKAGES = ("torch", "transformers", "accelerate", "trl")
"""Packages whose versions decide the figures."""

RATIO = "2:1"
"""Tokens of the prompt to tokens of the completion."""

ANSWERS = 8
"""Answers to a prompt of the GRPO step."""


def describe_machine() -> dict[str, str | int]:
    """Return processor, cores, memory and Python."""
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    return {
        "processor": model,
        "cores": os.cpu_count() or 1,
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "python": platform.python_version(),
    }


def list_versions() -> dict[str, str]:
    """Return the versions of spin and of the packages."""
    versions = {"spin": __version__}
    for package in PACKAGES:
        versions[package] = version(package)
    return versions


def measure_ratios(size: str, seeds: tuple[int, ...], rounds: int) -> dict[str, float]:
    """Return the ratios by name.

    Args:
        size: Size of the model, of SIZES.
        seeds: One draw of lengths each.
        rounds: Timed steps of each draw.
    """
    ratios = {}
    for dtype in ("float32", "bfloat16"):
        case = Case("spin", RATIO, dtype, size, "lognormal", seeds, None)
        rows = training.measure([case, replace(case, system="trl_fair")], rounds)
        training.print_rows(rows)
        ours, theirs = rows
        ratios[f"dpo {dtype}: TRL's time"] = ours["tokens_per_second"] / theirs["tokens_per_second"]
        ratios[f"dpo {dtype}: TRL's memory"] = theirs["peak_memory_bytes"] / ours["peak_memory_bytes"]
    case = Case("spin", RATIO, "float32", size, "lognormal", (), None)
    with tempfile.TemporaryDirectory() as folder:
        policy_gradient.save_model(case, folder)
        medians = policy_gradient.compare(folder, case, ANSWERS, 2, rounds)
    ratios[f"grpo {ANSWERS} answers: time without shared prompts"] = medians["packed"]
    ratios[f"grpo {ANSWERS} answers: TRL's time"] = medians["TRL"]
    return {name: round(ratio, 2) for name, ratio in ratios.items()}


def main() -> None:
    """Measure and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="m16")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    found = {
        "machine": describe_machine(),
        "versions": list_versions(),
        "ratios": measure_ratios(args.size, tuple(args.seeds), args.rounds),
    }
    args.json.write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found["ratios"], indent=2))


if __name__ == "__main__":
    main()
