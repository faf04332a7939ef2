"""A real run of GRPO and then PPO: small iterations, killed while it trains, and resumed."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from safetensors import safe_open

from spin.data.parquet import read_rows
from spin.data.records import Sample, Score
from spin.data.rollouts import Rollout
from spin.models.policy import policy_digest
from spin.run_dir.files import file_sha256
from tests.runs import command, ledger, outcome, run

pytestmark = pytest.mark.slow
PPO = "[objective=ppo,objective.critic=shared,objective.critic_learning_rate=3e-3]"
SETTINGS = (
    "objective=grpo",
    "feedback=verifier",
    "feedback.rows=rollouts",
    "feedback.rewards=[{_target_: tests.feedback.samples.TextLength, parameters: {most: 6}}]",
    "generation.samples_per_prompt=4",
    "generation.prompts_per_iteration=40",
    "generation.shard_size=24",
    "training.batch_size=16",
    "training.epochs=2",
    "training.checkpoint_every=3",
    "benchmark.every=2",
    "iterations=4",
    f"schedule={{2:{PPO},3:{PPO}}}",
)


def digests(run_dir: Path) -> dict[str, str]:
    """The outcome, with the files of rewards and of critics."""
    files = [*run_dir.glob("iterations/*/rewards/*/*.parquet"), *run_dir.glob("iterations/*/critic/*")]
    return outcome(run_dir) | {str(path.relative_to(run_dir)): file_sha256(path) for path in files}


@pytest.fixture(scope="module")
def undisturbed_grpo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An undisturbed run, and what it printed."""
    run_dir = tmp_path_factory.mktemp("grpo") / "run"
    return run_dir, run(run_dir, *SETTINGS).stdout


def test_each_row_is_a_sample_with_its_reward_and_the_log_probabilities_of_opponent_and_start(
    undisturbed_grpo: tuple[Path, str],
) -> None:
    run_dir, told = undisturbed_grpo
    facts = {record["unit"]: record for record in ledger(run_dir)}
    prompts = []
    for iteration in (0, 1):
        folder = run_dir / f"iterations/{iteration:03d}"
        for shard in range(2):
            name = f"shard-{shard:05d}.parquet"
            samples = {
                (sample.prompt_id, sample.sample_index): sample
                for sample in read_rows(folder / "samples" / name, Sample)
            }
            prompts += [prompt_id for prompt_id, index in samples if index == 0]
            rewards = {
                (score.prompt_id, score.sample_index): score.reward
                for score in read_rows(folder / "rewards/TextLength" / name, Score)
            }
            rows = read_rows(folder / "pairs" / name, Rollout)
            for row in rows:
                key = (row.prompt_id, row.sample_index)
                sample = samples[key]
                assert row.completion_ids == sample.completion_ids
                assert row.reward == rewards[key] - (sample.finish_reason == "length")
                assert sum(row.old_logps) == pytest.approx(sample.logp, abs=1e-3 * len(row.completion_ids))
                # In iteration 0 the opponent is the start.
                assert (row.base_logps == row.old_logps) == (iteration == 0)
            dropped = facts[f"iterations/{iteration:03d}/pairs/{shard}"]["dropped"]
            assert len(rows) + dropped.get("equal_rewards", 0) == len(samples)
    # 96 prompts in slices of 40.
    assert prompts == list(range(80))
    assert "of the truths" in told
    assert "KL to the start" in told
    assert not (run_dir / "iterations/000/benchmark.json").exists()


def test_the_head_of_ppo_begins_with_zeros_and_is_promoted_beside_a_plain_language_model(
    undisturbed_grpo: tuple[Path, str],
) -> None:
    run_dir, _ = undisturbed_grpo
    facts = {record["unit"]: record for record in ledger(run_dir)}
    for iteration in (2, 3):
        folder = run_dir / f"iterations/{iteration:03d}"
        [first, *_] = read_rows(folder / "pairs/shard-00000.parquet", Rollout)
        assert any(first.values) == (iteration == 3)
        assert [path.name for path in (folder / "critic").iterdir()] == ["value_head.safetensors"]
        assert facts[f"iterations/{iteration:03d}/policy"]["critic"] == policy_digest(folder / "critic")
        with safe_open(folder / "policy/model.safetensors", "pt") as file:
            assert not [name for name in file.keys() if "value" in name or "score" in name]  # noqa: SIM118
    assert not (run_dir / "iterations/001/critic").exists()


def test_a_run_killed_while_it_trains_goes_on_and_ends_with_the_same_bits(
    undisturbed_grpo: tuple[Path, str], tmp_path: Path
) -> None:
    run_dir = tmp_path / "killed"
    driver = subprocess.Popen(
        command(run_dir, *SETTINGS), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    while driver.poll() is None and not any(record["unit"] == "iterations/003/trainer" for record in ledger(run_dir)):
        time.sleep(0.01)
    assert driver.poll() is None
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    told = run(run_dir, *SETTINGS).stdout
    assert "iteration 3 train goes on after step" in told
    assert digests(run_dir) == digests(undisturbed_grpo[0])
