"""Kill processes of a small real run at random and compare the result with an undisturbed run.

    python scripts/chaos.py --kills 30 --seed 7 --json chaos.json
    python scripts/chaos.py --kills 30 --run ppo     small iterations of PPO; also grpo, ppo_shared
    python scripts/chaos.py --kills 10 --run reward --victims driver trainer

A victim (the driver, a generation actor, a training worker, Ray's raylet or GCS) gets SIGKILL at a
random time. A driver that has ended is started again with the same command. When a run completes
before all kills are used, the next run begins in a folder of its own.

With `--run reward` the run is a `spin reward`, and every kill falls into the training or the
measurement of the reward model.

Prints and writes: time and victim of each kill, how many rows were lost or doubled, whether the
weights and the figures of a reward model are bit-identical, and how many processes outlived their
driver.

Faults of the disk are not covered here; see tests/run_dir/test_remote.py.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from scripts.chaos_driver import RUNS, VICTIMS, Driver
from spin.data.parquet import read_rows
from spin.data.records import Pair, Prompt, Ranking, Sample, Score
from spin.data.rollouts import Rollout
from spin.models.policy import policy_digest
from spin.run_dir.files import file_sha256

MEASURE_SECONDS = 3.0
"""Time after the training of a reward model in which kills hit its measurement."""


def rows(run_dir: Path) -> Counter[str]:
    """Count every prompt, ranking, sample, reward and training row, by its folder and content."""
    counted: Counter[str] = Counter()
    for kind, pattern in (
        (Prompt, "prompts/[!r]*.parquet"),
        (Ranking, "prompts/rankings*.parquet"),
        (Sample, "iterations/*/samples/*.parquet"),
        (Score, "iterations/*/rewards/*/*.parquet"),
        (Pair, "iterations/*/pairs/*.parquet"),
    ):
        for path in sorted(run_dir.glob(pattern)):
            # Policy gradients have other rows in the place of pairs.
            found = kind
            if kind is Pair and "advantages" in pq.read_schema(path).names:
                found = Rollout
            counted.update(f"{path.parent.relative_to(run_dir)} {row!r}" for row in read_rows(path, found))
    return counted


def weights(run_dir: Path) -> dict[str, str]:
    """Return the digests of all promoted models, and of figures of reward models, by path.

    Files are read; of policies that `keep.policies` deleted, the ledger has the digests.
    """
    digests = {}
    for line in (run_dir / "ledger.jsonl").read_text().splitlines():
        facts = json.loads(line)
        if facts["unit"].endswith("/policy"):
            digests[f"{facts['unit']} (ledger)"] = f"{facts['digest']} {facts['critic']}"
    for name in ("policy", "critic"):
        for path in sorted(run_dir.glob(f"**/{name}")):
            digests[str(path.relative_to(run_dir))] = policy_digest(path)
    for path in sorted(run_dir.glob("reward_model/**/evaluation.json")):
        digests[str(path.parent.relative_to(run_dir))] = policy_digest(path.parent / "model")
        digests[str(path.relative_to(run_dir))] = file_sha256(path)
    return digests


def last_unit(run_dir: Path) -> str:
    """Return the unit of the last complete line of the ledger."""
    ledger = run_dir / "ledger.jsonl"
    if not ledger.exists():
        return "nothing"
    lines = ledger.read_bytes().splitlines(keepends=True)
    for line in reversed(lines):
        if line.endswith(b"\n"):
            return json.loads(line)["unit"]
    return "nothing"


def finish(run_dir: Path, log: Path, overrides: Sequence[str], verb: str) -> float:
    """Run undisturbed to the end. Raise RuntimeError if the run fails.

    Returns:
        The seconds of the run; with `reward`, those of the reward model.
    """
    driver = Driver(run_dir, log, overrides, verb)
    driver.wait_for_stage()
    start = time.monotonic()
    if driver.process.wait() != 0:
        raise RuntimeError(f"an undisturbed run failed:\n{log.read_text()[-2000:]}")
    if verb == "reward":
        [unit] = [line for line in read_ledger(run_dir) if line["unit"] == "reward_model/reward_model"]
        return float(unit["seconds"]) + MEASURE_SECONDS
    return time.monotonic() - start


def read_ledger(run_dir: Path) -> list[dict[str, Any]]:
    """Return the lines of the ledger of a finished run."""
    return [json.loads(line) for line in (run_dir / "ledger.jsonl").read_text().splitlines()]


def outlived(driver: Driver, run_dir: Path) -> int:
    """Return the number of processes that outlived their driver, and print their names."""
    left = driver.orphans()
    if left:
        print(f"      {run_dir.name}  orphans: {', '.join(left)}", flush=True)
    return len(left)


def torment(
    run_dir: Path,
    log: Path,
    kills: int,
    longest: float,
    victims: list[str],
    overrides: list[str],
    chance: random.Random,
    table: list[dict[str, Any]],
    verb: str,
) -> dict[str, int]:
    """Run to the end with up to `kills` kills.

    Return the numbers of kills, of orphans, and of drivers that ended with an error of their own.
    """
    done = 0
    orphans = 0
    driver_failures = 0
    failures = 0  # ends in a row without a kill
    driver = Driver(run_dir, log, overrides, verb)
    while True:
        delay = None
        if done < kills:
            delay = chance.uniform(0, longest)
            driver.wait_for_stage()
        try:
            code: int | None = driver.process.wait(delay)
        except subprocess.TimeoutExpired:
            code = None
        if code == 0:
            orphans += outlived(driver, run_dir)
            return {"kills": done, "orphans": orphans, "driver_failures": driver_failures}
        if code is None:
            victim = chance.choice(victims)
            unit = last_unit(run_dir)
            if not driver.kill(victim):
                continue
            done += 1
            failures = 0
            table.append(
                {
                    "kill": len(table) + 1,
                    "run": run_dir.name,
                    "victim": victim,
                    "after": unit,
                    "seconds": round(delay or 0.0, 2),
                }
            )
            print(f"{len(table):>4}  {run_dir.name}  {victim:<10} {delay:5.1f} s on, after {unit}", flush=True)
            if victim != "driver":
                continue
        else:  # the driver gave up; the same command continues the run
            line = log.read_text().strip().splitlines()[-1]
            print(f"      {run_dir.name}  the driver ended with {code}: {line}", flush=True)
            failures += 1
            driver_failures += 1
            if failures > 1:
                raise RuntimeError(f"{run_dir} does not continue although nothing was killed: {line}")
        orphans += outlived(driver, run_dir)
        driver = Driver(run_dir, log, overrides, verb)


def main() -> None:
    """Run the experiment. Exit with 1 if a row or a weight differs or a process is left over."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--victims", nargs="+", choices=list(VICTIMS), default=["driver", "generator", "trainer"])
    parser.add_argument("--run", choices=list(RUNS), default="quickstart")
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--overrides",
        nargs="*",
        default=[],
        help="overrides of the disturbed runs only, for example cluster.placement=split",
    )
    parser.add_argument("--dir", type=Path, help="keep the runs here instead of in a temporary folder")
    arguments = parser.parse_args()
    settings = RUNS[arguments.run]
    # Only the reward model of a run, or the whole run.
    verb = "run"
    if arguments.run == "reward":
        verb = "reward"
    with tempfile.TemporaryDirectory(prefix="spin-chaos-") as temporary:
        root = arguments.dir or Path(temporary)
        root.mkdir(parents=True, exist_ok=True)
        seconds = finish(root / "undisturbed", root / "undisturbed.log", settings, verb)
        print(f"undisturbed: {seconds:.0f} s", flush=True)
        expected, expected_weights = rows(root / "undisturbed"), weights(root / "undisturbed")
        chance, table = random.Random(arguments.seed), list[dict[str, Any]]()
        result = {
            "kills": 0,
            "driver_failures": 0,
            "rows_lost": 0,
            "rows_doubled": 0,
            "weights_identical": True,
            "orphans": 0,
        }
        number = 0
        while result["kills"] < arguments.kills:
            run_dir = root / f"run-{number:02d}"
            log, left = root / f"run-{number:02d}.log", arguments.kills - result["kills"]
            overrides = [*settings, *arguments.overrides]
            counts = torment(run_dir, log, left, seconds, arguments.victims, overrides, chance, table, verb)
            found = rows(run_dir)
            for name, count in counts.items():
                result[name] += count
            result["rows_lost"] += (expected - found).total()
            result["rows_doubled"] += (found - expected).total()
            result["weights_identical"] &= weights(run_dir) == expected_weights
            number += 1
        print(json.dumps(result))
        if arguments.json:
            arguments.json.write_text(
                json.dumps(
                    {**result, "runs": number, "seconds_undisturbed": round(seconds, 1), "table": table}, indent=2
                )
                + "\n"
            )
    if result["rows_lost"] or result["rows_doubled"] or result["orphans"] or not result["weights_identical"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
