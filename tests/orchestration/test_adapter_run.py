"""Real runs with adapters: merged for the engine, or served on an engine that keeps its base.

Real vLLM, Ray and training. Each way is run once undisturbed, and once killed and resumed.
"""

import json
import math
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from spin.data.parquet import read_rows
from spin.data.records import Sample
from spin.models.adapter_folder import AdapterFolder, write_merged
from spin.models.policy import policy_digest
from tests.runs import command, ledger, outcome, run

pytestmark = pytest.mark.slow
SETTINGS = (
    "adapter=lora",
    "adapter.rank=8",
    "warmup.training.learning_rate=1e-2",
    "training.learning_rate=3e-3",
    "training.batch_size=8",
    "training.checkpoint_every=2",
    "data.limit=64",
)
SERVE = ("merged", "adapter")
STAGES = ("start", "iterations/000", "iterations/001")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An undisturbed run of each way of serving."""
    folder = tmp_path_factory.mktemp("adapters")
    for serve in SERVE:
        run(folder / serve, *SETTINGS, f"adapter.serve={serve}")
    return {serve: folder / serve for serve in SERVE}


def adapter_folder(run_dir: Path, stage: str) -> Path:
    """The PEFT folder of a stage: beside a merged policy, or the policy itself."""
    beside = run_dir / stage / "adapter"
    if beside.exists():
        return beside
    return run_dir / stage / "policy"


def digests(run_dir: Path) -> dict[str, str]:
    """The outcome of a run, with its adapters by digest."""
    base = policy_digest(run_dir / "model")
    return outcome(run_dir) | {stage: policy_digest(adapter_folder(run_dir, stage), base) for stage in STAGES}


def read_samples(run_dir: Path, iteration: str) -> list[Sample]:
    files = sorted((run_dir / "iterations" / iteration / "samples").glob("*.parquet"))
    return [sample for file in files for sample in read_rows(file, Sample)]


@pytest.mark.parametrize("serve", SERVE)
def test_the_opponent_is_the_adapter_promoted_last_and_the_base_keeps_its_digest(
    runs: dict[str, Path], serve: str
) -> None:
    run_dir = runs[serve]
    facts = {record["unit"]: record for record in ledger(run_dir)}
    base = policy_digest(run_dir / "model")
    assert facts["model"]["digest"] == base
    policies = [facts[f"{stage}/policy"] for stage in STAGES]
    for before, after in zip(policies, policies[1:], strict=False):
        assert after["opponent"] == before["digest"]
    assert len({policy["adapter"] for policy in policies}) == 3
    for stage, policy in zip(STAGES, policies, strict=True):
        assert policy["base"] == base
        assert policy["adapter"] == policy_digest(adapter_folder(run_dir, stage), base)
        # An adapter that is served is the policy; a merged policy has its adapter beside it.
        assert (policy["adapter"] == policy["digest"]) == (serve == "adapter")


def test_a_merged_policy_is_its_adapter_added_to_the_base(runs: dict[str, Path], tmp_path: Path) -> None:
    run_dir = runs["merged"]
    source = AdapterFolder(run_dir / "iterations/001/adapter", run_dir / "model")
    write_merged(source, tmp_path / "merged", trust_remote_code=False, dtype="float32")
    expected = load_file(tmp_path / "merged" / "model.safetensors")
    found = load_file(run_dir / "iterations/001/policy" / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(weight, expected[name]) for name, weight in found.items())


@pytest.mark.parametrize("serve", SERVE)
def test_each_iteration_begins_at_ln_2_and_the_engine_agrees_with_the_trainer(
    runs: dict[str, Path], serve: str
) -> None:
    lines = (runs[serve] / "metrics.jsonl").read_text().splitlines()
    steps = [row for row in map(json.loads, lines) if row["kind"] == "train" and row["unit"].startswith("iterations")]
    first = [row["loss"] for row in steps if row["step"] == 1]
    assert first == pytest.approx([math.log(2)] * 2, abs=1e-4)
    # The adapter learns: a base that was served in its place would leave the loss where it was.
    assert min(row["loss"] for row in steps) < math.log(2) - 1e-3
    shards = [record for record in ledger(runs[serve]) if "/pairs/" in record["unit"]]
    assert len(shards) == 4
    assert all(shard["engine_gap"] < 1e-4 for shard in shards)


def test_both_ways_of_serving_give_the_same_samples_within_the_rounding_of_the_engine(runs: dict[str, Path]) -> None:
    merged, served = (read_samples(runs[serve], "000") for serve in SERVE)
    assert len(merged) == len(served) == 64
    same = [(a, b) for a, b in zip(merged, served, strict=True) if a.completion_ids == b.completion_ids]
    # A token may change where two probabilities are equal to the last bits.
    assert len(same) >= 62
    for a, b in same:
        assert a.logp == pytest.approx(b.logp, abs=1e-4 * len(a.completion_ids))


@pytest.mark.parametrize(
    ("serve", "unit", "told"),
    [
        ("merged", "iterations/001/trainer", "iteration 1 train goes on after step"),
        ("adapter", "iterations/001/samples/0", ""),
    ],
)
def test_a_run_killed_in_training_or_between_shards_ends_with_the_same_bits(
    runs: dict[str, Path], tmp_path: Path, serve: str, unit: str, told: str
) -> None:
    run_dir = tmp_path / "killed"
    settings = [*SETTINGS, f"adapter.serve={serve}"]
    silent = subprocess.DEVNULL
    driver = subprocess.Popen(command(run_dir, *settings), stdout=silent, stderr=silent, start_new_session=True)
    while driver.poll() is None and not any(record["unit"] == unit for record in ledger(run_dir)):
        time.sleep(0.01)
    assert driver.poll() is None
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    assert "iterations/001/policy" not in [record["unit"] for record in ledger(run_dir)]
    assert told in run(run_dir, *settings).stdout
    assert digests(run_dir) == digests(runs[serve])
