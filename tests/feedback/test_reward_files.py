"""Rewards of a shard as files: one per source, then their weighted sum."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from spin.config.groups import RewardConfig
from spin.config.reward_model import Center, RewardModelConfig
from spin.data.parquet import read_rows, write_rows
from spin.data.records import Prompt, Sample, Score
from spin.feedback.reward_files import RewardsJob, SummedRewards, sum_rewards, write_rewards
from spin.feedback.reward_sources import ExactMatch
from spin.feedback.sample_group import SampleGroup, read_sample_groups
from spin.models.policy import Policy
from spin.run_dir.files import file_sha256
from tests.feedback.samples import TextLength, make_config, make_prompt, make_sample

LENGTH = RewardConfig("length", weight=-0.25)
EXACT = RewardConfig("exact_match", weight=2.0)


def write_shard(folder: Path) -> RewardsJob:
    """Prompts 0 to 3, and a shard with two samples of each of the prompts 1 and 2."""
    write_rows(folder / "prompts.parquet", Prompt, [make_prompt(prompt_id) for prompt_id in range(4)])
    samples = [make_sample(1, 0, "4"), make_sample(1, 1, "5"), make_sample(2, 0, "6"), make_sample(2, 1, "4")]
    write_rows(folder / "samples.parquet", Sample, samples)
    paths = [str(folder / f"{name}.parquet") for name in ("prompts", "samples", "rewards")]
    return RewardsJob(make_config(), 2, EXACT, *paths)


class Returns:
    """A source that returns what it is told."""

    def __init__(self, rewards: list[list[float]]) -> None:
        self.rewards = rewards

    def score(self, groups: list[SampleGroup]) -> list[list[float]]:
        return self.rewards


def test_the_file_has_a_row_for_each_sample_and_the_facts_have_digest_rows_and_mean(tmp_path: Path) -> None:
    job = write_shard(tmp_path)
    facts = write_rewards(ExactMatch(job.config), job)
    rows = [(score.prompt_id, score.sample_index, score.reward) for score in read_rows(Path(job.out), Score)]
    assert rows == [(1, 0, 1.0), (1, 1, 0.0), (2, 0, 0.0), (2, 1, 1.0)]
    assert (facts["rows"], facts["mean"], facts["sha256"]) == (4, 0.5, file_sha256(Path(job.out)))


def test_rewards_are_summed_with_the_weights_of_their_sources(tmp_path: Path) -> None:
    job = write_shard(tmp_path)
    groups = read_sample_groups(Path(job.prompts), Path(job.samples), 2)
    assert [[sample.text for sample in group.samples] for group in groups] == [["4", "5"], ["6", "4"]]
    write_rewards(ExactMatch(job.config), job)
    length = str(tmp_path / "length.parquet")
    write_rows(Path(length), Score, [Score(2, 1, 8.0), Score(2, 0, 2.0), Score(1, 1, 4.0), Score(1, 0, 0.0)])
    # 2 × exact match − length / 4, whatever the order of the rows
    sums = sum_rewards([EXACT, LENGTH], [job.out, length], groups)
    assert [summed.samples for summed in sums] == [[2.0, -1.0], [-0.5, 0.0]]
    assert [summed.samples for summed in sum_rewards([], [], groups)] == [[0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([[1.0, 2.0]], "exact_match returned 1 lists for 2 prompts; expected one list for each"),
        ([[1.0, 2.0], [3.0]], "exact_match returned 1 rewards for the 2 samples of prompt 2; expected one for each"),
        ([[1.0, math.nan], [3.0, 4.0]], "exact_match returned nan for prompt 1, sample 1; expected a finite number"),
        ([[1.0, 2.0], [math.inf, 4.0]], "exact_match returned inf for prompt 2, sample 0; expected a finite number"),
    ],
)
def test_rewards_that_cannot_be_used_are_refused_and_no_file_is_written(
    tmp_path: Path, rewards: list[list[float]], message: str
) -> None:
    job = write_shard(tmp_path)
    with pytest.raises(RuntimeError, match=message):
        write_rewards(Returns(rewards), job)
    assert not Path(job.out).exists()


def test_the_truths_are_scored_too_if_asked_and_change_no_figure_of_the_samples(tmp_path: Path) -> None:
    job = replace(write_shard(tmp_path), with_truths=True)
    # Each sample has 1 character, each truth 7.
    facts = write_rewards(TextLength(job.config, most=9), job)
    rows = [(score.prompt_id, score.sample_index, score.reward) for score in read_rows(Path(job.out), Score)]
    assert rows[3:] == [(2, 1, 1.0), (1, -1, 7.0), (2, -1, 7.0)]
    assert (facts["rows"], facts["mean"]) == (4, 1.0)
    groups = read_sample_groups(Path(job.prompts), Path(job.samples), 2)
    sums = sum_rewards([EXACT], [job.out], groups)
    assert sums == [SummedRewards([2.0, 2.0], 14.0)] * 2


def test_the_mean_reward_of_the_samples_of_a_shard_is_subtracted_from_samples_and_truths(tmp_path: Path) -> None:
    job = write_shard(tmp_path)
    model = Policy("reward", "ab")
    centered = replace(job.config, reward_model=RewardModelConfig(path="reward", center=Center.batch))
    job = replace(job, config=centered, with_truths=True, model=model)

    class Rewards:
        def score(self, groups: list[SampleGroup]) -> list[list[float]]:
            if len(groups[0].samples) == 1:
                return [[5.0] for _ in groups]
            return [[1.0, 2.0], [3.0, 6.0]]

    write_rewards(Rewards(), job)
    rows = [score.reward for score in read_rows(Path(job.out), Score)]
    # The mean of the four samples is 3.
    assert rows == [-2.0, -1.0, 0.0, 3.0, 2.0, 2.0]
