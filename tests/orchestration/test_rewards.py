"""Real runs whose pairs are built by reward: killed, resumed and overlapped."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from spin.data.parquet import read_rows
from spin.data.records import Pair, Rating, Sample, Score
from spin.run_dir.files import file_sha256
from tests.runs import command, ledger, outcome, run

pytestmark = pytest.mark.slow
SETTINGS = (
    "feedback.rows=best_worst_pairs",
    "feedback.rewards=[exact_match,{_target_: tests.feedback.samples.TextLength, parameters: {most: 2}, weight: 0.1}]",
    "generation.samples_per_prompt=4",
)


def digests(run_dir: Path) -> dict[str, str]:
    """The outcome, with the files of rewards."""
    files = run_dir.glob("iterations/*/rewards/*/*.parquet")
    return outcome(run_dir) | {str(path.relative_to(run_dir)): file_sha256(path) for path in files}


def kill_after(run_dir: Path, unit: str, *more: str) -> None:
    """Kill a run with all its processes once the ledger names a unit."""
    driver = subprocess.Popen(
        command(run_dir, *SETTINGS, *more),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while driver.poll() is None and not any(record["unit"] == unit for record in ledger(run_dir)):
        time.sleep(0.01)
    assert driver.poll() is None
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()


@pytest.fixture(scope="module")
def rewarded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """An undisturbed run with two reward sources, and what it printed."""
    run_dir = tmp_path_factory.mktemp("rewards") / "run"
    return run_dir, run(run_dir, *SETTINGS).stdout


def test_each_pair_has_the_samples_with_the_highest_and_the_lowest_sum_of_the_recorded_rewards(
    rewarded: tuple[Path, str],
) -> None:
    run_dir, told = rewarded
    facts = {record["unit"]: record for record in ledger(run_dir)}
    for iteration in ("iterations/000", "iterations/001"):
        for shard in range(3):
            name = f"shard-{shard:05d}.parquet"
            samples = {
                (s.prompt_id, s.sample_index): s for s in read_rows(run_dir / iteration / "samples" / name, Sample)
            }
            sums = dict.fromkeys(samples, 0.0)
            for source, weight in (("exact_match", 1.0), ("TextLength", 0.1)):
                path = run_dir / iteration / "rewards" / source / name
                for score in read_rows(path, Score):
                    sums[score.prompt_id, score.sample_index] += weight * score.reward
                recorded = facts[f"{iteration}/rewards/{source}/{shard}"]
                assert (recorded["sha256"], recorded["rows"]) == (file_sha256(path), len(samples))
                assert recorded["source"] == facts[f"{iteration}/samples/{shard}"]["sha256"]
            pairs = read_rows(run_dir / iteration / "pairs" / name, Pair)
            for pair in pairs:
                own = [sums[pair.prompt_id, index] for index in range(4)]
                assert samples[pair.prompt_id, own.index(max(own))].completion_ids == pair.chosen_ids
                assert own.index(min(own)) == pair.sample_index
                assert samples[pair.prompt_id, pair.sample_index].completion_ids == pair.rejected_ids
            recorded = facts[f"{iteration}/pairs/{shard}"]
            equal = [p for p in {p for p, _ in sums} if len({sums[p, index] for index in range(4)}) == 1]
            assert recorded["dropped"].get("equal_rewards", 0) == len(equal)
            assert len(pairs) + sum(recorded["dropped"].values()) == len(samples) / 4
    assert "iteration 0 reward" in told
    assert ", mean exact_match 0" in told


def test_a_run_killed_after_the_rewards_of_its_first_shard_goes_on_and_ends_with_the_same_bits(
    rewarded: tuple[Path, str], tmp_path: Path
) -> None:
    run_dir = tmp_path / "killed"
    kill_after(run_dir, "iterations/000/rewards/exact_match/0")
    assert "iterations/000/pairs/2" not in {record["unit"] for record in ledger(run_dir)}
    run(run_dir, *SETTINGS)
    assert digests(run_dir) == digests(rewarded[0])
    units = [record["unit"] for record in ledger(run_dir)]
    shards = [unit for unit in units if unit.split("/")[-1].isdigit()]
    assert len(shards) == len(set(shards)) == 2 * 4 * 3  # samples, two kinds of rewards and pairs of three shards


def test_rewards_beside_training_are_those_of_one_kind_after_the_other(
    rewarded: tuple[Path, str], tmp_path: Path
) -> None:
    run_dir = tmp_path / "split"
    split = "cluster.placement=split"
    kill_after(run_dir, "iterations/000/rewards/TextLength/0", split)
    run(run_dir, *SETTINGS, split)
    assert digests(run_dir) == digests(rewarded[0])
    facts = {record["unit"]: record for record in ledger(run_dir)}
    assert facts["iterations/001/rewards"]["beside"]


def test_an_iteration_of_spin_is_followed_by_one_of_kto_on_the_ratings_of_a_verifier(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    verifier = "{_target_: tests.feedback.samples.has_length_of_truth, parameters: {tolerance: 2}}"
    changes = f"feedback=verifier,feedback.rows=ratings,'feedback.rewards=[{verifier}]',objective=kto"
    told = run(run_dir, f"schedule={{1:[{changes},generation.samples_per_prompt=2]}}").stdout
    # Iteration 0 has the pairs of SPIN, iteration 1 a rating of each sample.
    assert len(read_rows(run_dir / "iterations/000/pairs/shard-00000.parquet", Pair)) > 0
    assert not (run_dir / "iterations/000/rewards").exists()
    facts = {record["unit"]: record for record in ledger(run_dir)}
    num_ratings = 0
    for shard in range(3):
        name = f"shard-{shard:05d}.parquet"
        folder = run_dir / "iterations/001"
        scores = read_rows(folder / "rewards/has_length_of_truth" / name, Score)
        ratings = read_rows(folder / "pairs" / name, Rating)
        assert [rating.desirable for rating in ratings] == [score.reward == 1.0 for score in scores]
        samples = read_rows(folder / "samples" / name, Sample)
        assert [rating.completion_ids for rating in ratings] == [sample.completion_ids for sample in samples]
        # The reference of kto is the start, not the opponent that sampled.
        assert all(rating.reference_logp < 0 and rating.sampler_logp < 0 for rating in ratings)
        recorded = facts[f"iterations/001/pairs/{shard}"]["rewards"]
        assert recorded["prompts"] == len(samples) / 2
        assert recorded["mean_sum"] == pytest.approx(sum(score.reward for score in scores) / 2)
        num_ratings += len(ratings)
    assert num_ratings == 192
    assert "192 ratings in" in told
    assert "iteration 1 reward" in told
