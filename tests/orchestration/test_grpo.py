"""A real run of GRPO: many small iterations, killed while it trains, and resumed."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from spin.data.parquet import read_rows
from spin.data.records import Sample, Score
from spin.data.rollouts import Rollout
from spin.run_dir.files import file_sha256
from tests.runs import command, ledger, outcome, run

pytestmark = pytest.mark.slow
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
)


def digests(run_dir: Path) -> dict[str, str]:
    """The outcome, with the files of rewards."""
    files = run_dir.glob("iterations/*/rewards/*/*.parquet")
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


def test_a_run_killed_while_it_trains_goes_on_and_ends_with_the_same_bits(
    undisturbed_grpo: tuple[Path, str], tmp_path: Path
) -> None:
    run_dir = tmp_path / "killed"
    driver = subprocess.Popen(
        command(run_dir, *SETTINGS), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    while driver.poll() is None and not any(record["unit"] == "iterations/001/trainer" for record in ledger(run_dir)):
        time.sleep(0.01)
    assert driver.poll() is None
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    told = run(run_dir, *SETTINGS).stdout
    assert "iteration 1 train goes on after step" in told
    assert digests(run_dir) == digests(undisturbed_grpo[0])
