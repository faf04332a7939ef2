"""The base class of row builders, and the unscored rows that they make."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from spin.config.groups import FeedbackConfig
from spin.config.objective_base import ObjectiveConfig
from spin.data.records import Pair, Rating, Sample, TrainingRow
from spin.feedback.reward_files import SummedRewards
from spin.feedback.sample_group import SampleGroup

Built = tuple[Sequence[TrainingRow], dict[str, int]]
"""The rows of a prompt, and the number of rows that could not be built by reason."""


class RowBuilder(ABC):
    """Build training rows; the log-probabilities of the reference are added later."""

    row_type: ClassVar[type[TrainingRow]] = Pair
    """Record type of the rows: Pair, Rating or Rollout."""
    uses_rewards: ClassVar[bool] = False
    soft_labels: ClassVar[bool] = False
    """Whether the pairs have a `preference` between 0 and 1 from a judge."""
    uses_judgements: ClassVar[bool] = False
    """Whether a judge compares or scores the answers first."""
    needs_scores: ClassVar[bool] = False
    """Whether the judge must score the answers (`judge.mode=scores`)."""
    min_samples: int = 1
    """Fewest samples of a prompt (`generation.samples_per_prompt`) from which rows can be built."""

    def __init__(self, feedback: FeedbackConfig) -> None:
        self.threshold = feedback.threshold
        """Reward above which a sample is right."""

    def use_objective(self, objective: ObjectiveConfig) -> None:  # noqa: B027
        """Take the settings of the objective that decide what its rows hold."""

    def combine_rewards(self, group: SampleGroup, rewards: SummedRewards) -> SummedRewards | None:
        """Return what `build` takes: the rewards of the sources, and what the builder adds to them.

        None if the rewards of the prompt are not known, because a judge failed.
        """
        return rewards

    @abstractmethod
    def build(self, group: SampleGroup, rewards: list[float]) -> Built:
        """Build the rows of one prompt.

        Args:
            group: The prompt with its samples.
            rewards: The weighted sum of the sources' rewards for each sample; 0 without sources.

        Returns:
            The rows, and the number of rows that could not be built by reason.
        """

    @abstractmethod
    def count_rows(self, num_samples: int) -> int:
        """Return the most rows that `build` returns for a prompt with so many samples."""

    def split_samples(self, group: SampleGroup, rewards: list[float]) -> tuple[list[Sample], list[Sample]]:
        """Return the right samples of a prompt and its wrong ones, in the order of their index."""
        right: list[Sample] = []
        wrong: list[Sample] = []
        for sample, reward in zip(group.samples, rewards, strict=True):
            if reward > self.threshold:
                right.append(sample)
            else:
                wrong.append(sample)
        return right, wrong


def make_pair(group: SampleGroup, chosen_ids: list[int], rejected: Sample) -> Pair:
    """Return a pair that the reference has not scored yet."""
    # NaN until the training worker has scored the pair under the reference.
    return Pair(
        prompt_id=group.prompt.prompt_id,
        sample_index=rejected.sample_index,
        source="self-play",
        iteration=group.iteration,
        prompt_ids=group.prompt.prompt_ids,
        chosen_ids=chosen_ids,
        rejected_ids=rejected.completion_ids,
        reference_chosen_logp=math.nan,
        reference_rejected_logp=math.nan,
        sampler_rejected_logp=rejected.logp,
    )


def make_rating(group: SampleGroup, sample: Sample, desirable: bool) -> Rating:
    """Return a rating of a sample that the reference has not scored yet."""
    return Rating(
        prompt_id=group.prompt.prompt_id,
        sample_index=sample.sample_index,
        iteration=group.iteration,
        prompt_ids=group.prompt.prompt_ids,
        completion_ids=sample.completion_ids,
        desirable=desirable,
        reference_logp=math.nan,
        sampler_logp=sample.logp,
    )
