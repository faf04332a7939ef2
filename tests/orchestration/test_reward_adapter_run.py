"""A real `spin reward` with an adapter, killed inside the stage and continued: the same bits."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from spin.models.policy import policy_digest
from tests.runs import command, ledger

pytestmark = pytest.mark.slow
SETTINGS = (
    "adapter=lora",
    "adapter.rank=8",
    "warmup.enabled=false",
    "data.limit=32",
    "reward_model.data_path=builtin:letters-ranked",
    "reward_model.limit=96",
    "reward_model.eval_path=builtin:letters-ranked",
    "reward_model.eval_limit=20",
    "reward_model.training.batch_size=8",
    "reward_model.training.learning_rate=1e-2",
    "reward_model.training.max_length=96",
    "reward_model.training.checkpoint_every=3",
)
STAGE = "reward_model/reward_model"


def reward_command(run_dir: Path) -> list[str]:
    words = command(run_dir, *SETTINGS)
    return ["reward" if word == "run" else word for word in words]


def figures(run_dir: Path) -> dict[str, str]:
    """The model by digest, and what was measured of it."""
    model = run_dir / "reward_model" / "model"
    return {"model": policy_digest(model), "evaluation": (run_dir / "reward_model" / "evaluation.json").read_text()}


def test_a_reward_stage_with_an_adapter_that_was_killed_ends_with_the_same_bits(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = subprocess.run(reward_command(whole), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr

    silent = subprocess.DEVNULL
    driver = subprocess.Popen(reward_command(killed), stdout=silent, stderr=silent, start_new_session=True)
    while driver.poll() is None and not any(record["unit"] == "reward_model/trainer" for record in ledger(killed)):
        time.sleep(0.01)
    assert driver.poll() is None
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    assert not any(record["unit"] == STAGE for record in ledger(killed))
    done = subprocess.run(reward_command(killed), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert "reward model train goes on after step" in done.stdout
    assert figures(killed) == figures(whole)

    # A whole model, in which the targets have moved; embedding and norms were frozen.
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["unit"] == STAGE and row["kind"] == "train"]
    assert losses[0] == pytest.approx(0.693147, abs=1e-6)
    folder = whole / "reward_model" / "model"
    _, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    start, model = load_file(whole / "model" / "model.safetensors"), load_file(folder / "model.safetensors")
    moved = {name.rsplit(".", 2)[-2] for name in model if name in start and not model[name].equal(start[name])}
    assert moved == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert "LoRA on all-linear, rank 8" in (folder / "README.md").read_text()
