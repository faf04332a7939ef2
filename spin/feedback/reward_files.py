"""The rewards of one shard of samples as a file: written by one source, summed over all sources."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spin.config.groups import RewardConfig
from spin.config.reward_model import Center
from spin.config.run import RunConfig
from spin.data.parquet import read_rows, write_rows
from spin.data.records import Score
from spin.feedback.reward_sources import RewardSource
from spin.feedback.sample_group import TRUTH_INDEX, SampleGroup, make_truth_group, read_sample_groups
from spin.models.policy import Policy


@dataclass(frozen=True)
class RewardsJob:
    """One shard of samples to be scored by one reward source."""

    config: RunConfig
    iteration: int
    reward: RewardConfig
    prompts: str
    samples: str
    out: str
    with_truths: bool = False
    """Whether the ground truths are scored too, with the sample index −1."""
    model: Policy | None = None
    """The reward model, if it is the source."""

    @property
    def is_centered_on_batch(self) -> bool:
        """Return whether the mean reward of the samples of the shard is subtracted."""
        return self.model is not None and self.config.reward_model.center is Center.batch


def write_rewards(source: RewardSource, job: RewardsJob) -> dict[str, Any]:
    """Score one shard of samples and write its rewards; returns the facts of the ledger line.

    Raises:
        RuntimeError: The source returned another number of rewards, or one that is not finite.
    """
    # Score the whole shard at once, so that a source can work in batches.
    start = time.perf_counter()
    groups = read_sample_groups(Path(job.prompts), Path(job.samples), job.iteration)
    rewards = source.score(groups)

    # Check the rewards before anything is written.
    if len(rewards) != len(groups):
        raise RuntimeError(
            f"reward source {job.reward.name} returned {len(rewards)} lists for {len(groups)} prompts; "
            "expected one list for each"
        )
    scores = []
    for group, group_rewards in zip(groups, rewards, strict=True):
        scores += _check_rewards(job.reward.name, group, group_rewards)

    # The truths' rewards show whether answers gain reward beyond what good answers have.
    truth_scores = []
    if job.with_truths:
        truths = [make_truth_group(group) for group in groups]
        for group, group_rewards in zip(truths, source.score(truths), strict=True):
            truth_scores += _check_rewards(job.reward.name, group, group_rewards)

    # A shard is the batch: what it holds is fixed, so a resumed run subtracts the same mean.
    if job.is_centered_on_batch:
        mean = sum(score.reward for score in scores) / len(scores)
        scores = [replace(score, reward=score.reward - mean) for score in scores]
        truth_scores = [replace(score, reward=score.reward - mean) for score in truth_scores]
    return {
        "out": job.out,
        "sha256": write_rows(Path(job.out), Score, [*scores, *truth_scores]),
        "rows": len(scores),
        "mean": sum(score.reward for score in scores) / len(scores),
        "seconds": time.perf_counter() - start,
    }


def _check_rewards(name: str, group: SampleGroup, rewards: list[float]) -> list[Score]:
    """Return the rewards of one prompt as records; raises RuntimeError when they are unusable."""
    # Name prompt and sample, so that the author of a source can repeat the call.
    prompt_id = group.prompt.prompt_id
    if len(rewards) != len(group.samples):
        raise RuntimeError(
            f"reward source {name} returned {len(rewards)} rewards for the {len(group.samples)} samples "
            f"of prompt {prompt_id}; expected one for each"
        )
    scores = []
    for sample, reward in zip(group.samples, rewards, strict=True):
        if not math.isfinite(reward):
            raise RuntimeError(
                f"reward source {name} returned {reward} for prompt {prompt_id}, sample {sample.sample_index}; "
                "expected a finite number"
            )
        scores.append(Score(prompt_id, sample.sample_index, float(reward)))
    return scores


@dataclass(frozen=True)
class SummedRewards:
    """The weighted sum of all sources' rewards for one prompt."""

    samples: list[float]
    """In the order of the samples."""
    truth: float | None
    """Of the ground truth; None if it was not scored."""


def sum_rewards(sources: list[RewardConfig], paths: list[str], groups: list[SampleGroup]) -> list[SummedRewards]:
    """Return the weighted sums of all sources' rewards for each group.

    Args:
        sources: The reward sources, in the order in which they are summed.
        paths: The file with the rewards of each source.
        groups: The samples. Without sources, all rewards are 0.
    """
    # Sum in the order of the sources, so that rounding is always the same.
    sums: dict[tuple[int, int], float] = {}
    for source, path in zip(sources, paths, strict=True):
        for score in read_rows(Path(path), Score):
            key = (score.prompt_id, score.sample_index)
            sums[key] = sums.get(key, 0.0) + source.weight * score.reward

    # Return the sums in the order of the samples.
    totals = []
    for group in groups:
        prompt_id = group.prompt.prompt_id
        if sources:
            samples = [sums[prompt_id, sample.sample_index] for sample in group.samples]
            totals.append(SummedRewards(samples, sums.get((prompt_id, TRUTH_INDEX))))
        else:
            totals.append(SummedRewards([0.0] * len(group.samples), None))
    return totals
