"""A real run that trains a reward model, labels answers with it, and survives a kill in between."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from spin.data.parquet import read_rows
from spin.data.records import Pair, Score
from spin.models.policy import policy_digest
from spin.models.reward_export import read_reward_facts
from tests.runs import command, ledger, outcome, run

pytestmark = pytest.mark.slow
LABELLED = (
    "iterations=1",
    "data.limit=32",
    "feedback=reward_model",
    "generation.samples_per_prompt=3",
    "objective=dpo",
    "benchmark.enabled=false",
)
SETTINGS = (
    *LABELLED,
    "reward_model.data_path=builtin:letters-ranked",
    "reward_model.limit=96",
    "reward_model.eval_path=builtin:letters-ranked",
    "reward_model.eval_limit=20",
    "reward_model.training.batch_size=8",
    "reward_model.training.learning_rate=1e-3",
    "reward_model.training.max_length=96",
    "reward_model.training.checkpoint_every=3",
)
STAGE = "reward_model/reward_model"


def figures(run_dir: Path) -> dict[str, str]:
    """The outcome, with the reward model and its figures."""
    model = run_dir / "reward_model" / "model"
    evaluation = (run_dir / "reward_model" / "evaluation.json").read_text()
    return outcome(run_dir) | {"model": policy_digest(model), "evaluation": evaluation}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An undisturbed run, and what it printed."""
    run_dir = tmp_path_factory.mktemp("reward") / "run"
    return run_dir, run(run_dir, *SETTINGS).stdout


def test_the_reward_model_is_trained_measured_and_labels_every_pair_of_samples(done: tuple[Path, str]) -> None:
    run_dir, told = done
    assert "reward model train" in told
    assert "reward model measure" in told
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["unit"] == STAGE]
    assert losses[0] == pytest.approx(0.693147, abs=1e-6)
    assert read_reward_facts(run_dir / "reward_model" / "model").bias != 0
    # σ of the recorded rewards is the label of each pair.
    rewards = {}
    for path in run_dir.glob("iterations/000/rewards/reward_model/*.parquet"):
        for score in read_rows(path, Score):
            rewards[score.prompt_id, score.sample_index] = score.reward
    assert len(rewards) == 3 * 32
    pairs = [pair for path in run_dir.glob("iterations/000/pairs/*.parquet") for pair in read_rows(path, Pair)]
    assert pairs
    for pair in pairs:
        assert 0.5 < pair.preference < 1
        assert pair.chosen_win_rate > pair.rejected_win_rate


def test_a_run_killed_in_the_reward_stage_ends_with_the_same_bits(done: tuple[Path, str], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    driver = subprocess.Popen(
        command(run_dir, *SETTINGS), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    while driver.poll() is None and not any(record["unit"] == "reward_model/trainer" for record in ledger(run_dir)):
        time.sleep(0.01)
    assert driver.poll() is None
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    assert not any(record["unit"] == STAGE for record in ledger(run_dir))
    assert "reward model train goes on after step" in run(run_dir, *SETTINGS).stdout
    assert figures(run_dir) == figures(done[0])


def test_a_given_reward_model_labels_and_trains_as_in_the_run_that_trained_it(
    done: tuple[Path, str], tmp_path: Path
) -> None:
    given = f"reward_model.path={done[0] / 'reward_model' / 'model'}"
    run(tmp_path, *LABELLED, given, "warmup.enabled=false", f"model.path={done[0] / 'start' / 'policy'}")
    ours, theirs = outcome(tmp_path), outcome(done[0])
    names = [name for name in ours if name.startswith("iterations")]
    assert any("pairs" in name for name in names)
    assert "iterations/000/policy" in names
    assert {name: ours[name] for name in names} == {name: theirs[name] for name in names}
    [recorded] = [record for record in ledger(tmp_path) if record["unit"] == "given_reward_model"]
    assert recorded["digest"] == policy_digest(done[0] / "reward_model" / "model")
