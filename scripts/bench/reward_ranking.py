"""Compare a reward model that learns from rankings with one that learns from their pairs, shuffled.

    python scripts/bench/reward_ranking.py --seeds 11 12 13 --to reward_ranking.json

    ranking        all pairs of a prompt in one step: InstructGPT, arXiv 2203.02155, section 3.5
    pairs          the same pairs as rows of their own, shuffled: equal epochs and equal steps, and
                   three times the tokens, since each of four answers is in three pairs
    pairs-tokens   the same with a third of the epochs: equal tokens and equal steps

Each is a `spin reward` on the rankings of `builtin:letters-ranked`; the three runs of a seed begin
with the same policy. Printed: accuracy over pairs on held-out and on trained rankings, with the
mean over seeds; the difference of the two shows how far a model overfits.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from itertools import combinations
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from spin.data import builtin

ROOT = Path(__file__).resolve().parents[2]

EPOCHS = 3
PROMPTS_A_STEP = 32
PAIRS = 6
"""Pairs of four answers."""
ARMS = ("ranking", "pairs", "pairs-tokens")
MEASURED = 500
"""Trained rankings that are measured, as many as held-out ones."""


def spin(command: str, *overrides: str) -> None:
    """Run one spin command; raises CalledProcessError when it fails."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = [sys.executable, "-c", "from spin.cli.main import main; main()", command, *overrides]
    subprocess.run(arguments, check=True, env=environment, stdout=sys.stderr)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def split_row(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the pairs of a ranking as rows of their own."""
    pairs = []
    for first, second in combinations(range(len(row["responses"])), 2):
        better, worse = first, second
        if row["ranks"][first] > row["ranks"][second]:
            better, worse = second, first
        pairs.append({"prompt": row["prompt"], "chosen": row["responses"][better], "rejected": row["responses"][worse]})
    return pairs


def write_data(folder: Path, num_prompts: int) -> None:
    """Write the rankings with four answers of the first prompts, and the same as pairs."""
    rankings = []
    pairs = []
    for row in builtin.rows("letters-ranked", "train"):
        if len(row["responses"]) == 4 and len(rankings) < num_prompts:
            rankings.append(row)
            pairs += split_row(row)
    write_rows(folder / "rankings.jsonl", rankings)
    write_rows(folder / "pairs.jsonl", pairs)


def describe_arm(arm: str, folder: Path) -> list[str]:
    """Return the overrides of an arm: its rows, and how many of them make a step."""
    data = folder / "pairs.jsonl"
    epochs, batch_size = EPOCHS, PROMPTS_A_STEP * PAIRS
    if arm == "ranking":
        data = folder / "rankings.jsonl"
        batch_size = PROMPTS_A_STEP
    elif arm == "pairs-tokens":
        epochs, batch_size = EPOCHS // 3, PROMPTS_A_STEP * PAIRS // 3
    training = "reward_model.training"
    return [f"reward_model.data_path={data}", f"{training}.epochs={epochs}", f"{training}.batch_size={batch_size}"]


def measure_arm(arm: str, seed: int, folder: Path) -> dict[str, float]:
    """Train one reward model, and return its accuracies with the interval of the held-out one."""
    run_dir = folder / f"{arm}-{seed}"
    # The first run of a seed trains the policy that all of them begin with.
    start = ["warmup.limit=2000"]
    if arm != ARMS[0]:
        policy = folder / f"{ARMS[0]}-{seed}" / "start" / "policy"
        start = ["warmup.enabled=false", f"model.path={policy}"]
    recipe = ["experiment=reward_model", f"run_dir={run_dir}", f"seed={seed}"]
    spin("reward", *recipe, *describe_arm(arm, folder), *start)
    heldout = json.loads((run_dir / "reward_model" / "evaluation.json").read_text())
    model, figures = run_dir / "reward_model" / "model", run_dir / "trained.json"
    spin("reward-bench", f"model={model}", f"data={folder / 'rankings.jsonl'}", f"limit={MEASURED}", f"to={figures}")
    trained = json.loads(figures.read_text())
    low, high = heldout["intervals"]["accuracy"]
    found = {"heldout": heldout["accuracy"], "low": low, "high": high, "trained": trained["accuracy"]}
    found |= {"nll": heldout["nll"], "best_of_k": heldout["best_of_k"]}
    print(f"seed {seed}, {arm}: {json.dumps(found)}", flush=True)
    return found


def main() -> None:
    """Train all arms on all seeds, and print the means."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[11, 12, 13])
    parser.add_argument("--prompts", type=int, default=2000, help="rankings to train on")
    parser.add_argument("--to", type=Path, help="JSON file of the figures")
    args = parser.parse_args()
    figures: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    with tempfile.TemporaryDirectory() as temporary:
        write_data(Path(temporary), args.prompts)
        for seed in args.seeds:
            for arm in ARMS:
                figures[arm].append(measure_arm(arm, seed, Path(temporary)))
    for arm, found in figures.items():
        heldout = statistics.mean(seed["heldout"] for seed in found)
        trained = statistics.mean(seed["trained"] for seed in found)
        nll = statistics.mean(seed["nll"] for seed in found)
        gap = trained - heldout
        print(f"{arm}: held-out {heldout:.4f}, trained {trained:.4f}, difference {gap:.4f}, NLL {nll:.4f}")
    if args.to is not None:
        args.to.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
