"""A real run that trains its reward model again in every iteration, scored by vLLM, and a kill."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from spin.data.parquet import read_rows
from spin.data.records import Ranking
from spin.models.policy import policy_digest
from tests.runs import command, ledger, outcome, run

pytestmark = pytest.mark.slow
SETTINGS = (
    "iterations=2",
    "data.limit=48",
    "feedback.rows=soft_pairs",
    "feedback.rewards=[reward_model, {name: length, weight: 0, parameters: {most: 20}, "
    "_target_: tests.feedback.samples.TextLength}]",
    "feedback.threshold=0.0",
    "generation.samples_per_prompt=4",
    "objective=dpo",
    "benchmark.enabled=false",
    "reward_model.refresh=every",
    "reward_model.refresh_by=length",
    "reward_model.backend=vllm",
    "reward_model.center=batch",
    "reward_model.training.batch_size=8",
    "reward_model.training.learning_rate=1e-3",
    "reward_model.training.max_length=96",
    "reward_model.training.checkpoint_every=2",
)


def results(run_dir: Path) -> dict[str, str]:
    """The outcome, with the reward models and their figures."""
    found = outcome(run_dir)
    for index in ("000", "001"):
        stage = run_dir / "reward_model" / index
        found[f"model {index}"] = policy_digest(stage / "model")
        found[f"figures {index}"] = (stage / "evaluation.json").read_text()
    return found


def test_each_iteration_trains_a_reward_model_on_its_samples_and_a_killed_run_ends_with_the_same_bits(
    tmp_path: Path,
) -> None:
    done, killed = tmp_path / "done", tmp_path / "killed"
    told = run(done, *SETTINGS).stdout
    assert "reward_model.backend=vllm: 8 rewards differ from the trainer's by up to" in told
    assert "reward model 1 measure" in told
    # The second model learns from the samples of both iterations.
    rows = [json.loads(line) for line in (done / "metrics.jsonl").read_text().splitlines()]
    counts = []
    for index in ("000", "001"):
        ranked = read_rows(done / "reward_model" / index / "rankings.parquet", Ranking)
        counts.append(len(ranked))
        losses = [row["loss"] for row in rows if row["unit"] == f"reward_model/{index}/reward_model"]
        assert losses[0] == pytest.approx(0.693147, abs=1e-6)
        assert len(losses) == -(-sum(counts) // 8)

    # Killed while the second one is in training.
    driver = subprocess.Popen(
        command(killed, *SETTINGS), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    state = "reward_model/001/trainer"
    while driver.poll() is None and not any(record["unit"] == state for record in ledger(killed)):
        time.sleep(0.01)
    assert driver.poll() is None
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    assert "reward model 1 train goes on after step" in run(killed, *SETTINGS).stdout
    assert results(killed) == results(done)
