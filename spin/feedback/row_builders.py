"""Row builders: classes that turn the samples of a prompt, with their rewards, into pairs.

    truth_pairs        the ground truth is chosen, each sample is rejected (SPIN); no rewards
    best_worst_pairs   the sample with the highest reward is chosen, the one with the lowest rejected

To add a builder, derive a class from RowBuilder and add it to ROW_BUILDERS. A class outside of spin
is named as `feedback.rows=module.Class`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar

from spin.config.groups import FeedbackConfig
from spin.config.run import RunConfig, import_target
from spin.data.records import Pair, Sample
from spin.errors import ConfigError
from spin.feedback.reward_sources import find_reward_class
from spin.feedback.sample_group import SampleGroup


class RowBuilder(ABC):
    """Build training rows; the log-probabilities of the reference are added later."""

    uses_rewards: ClassVar[bool] = False
    min_samples: ClassVar[int] = 1
    """Fewest samples of a prompt (`generation.samples_per_prompt`) from which rows can be built."""

    @abstractmethod
    def build(self, group: SampleGroup, rewards: list[float]) -> tuple[list[Pair], dict[str, int]]:
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


class TruthPairs(RowBuilder):
    """One pair for each sample: the ground truth is chosen, the sample is rejected."""

    def build(self, group: SampleGroup, rewards: list[float]) -> tuple[list[Pair], dict[str, int]]:
        """See RowBuilder."""
        return [make_pair(group, group.prompt.completion_ids, sample) for sample in group.samples], {}

    def count_rows(self, num_samples: int) -> int:
        """See RowBuilder."""
        return num_samples


class BestWorstPairs(RowBuilder):
    """One pair for each prompt: the sample with the highest reward against the one with the lowest.

    Of several equal rewards, the sample with the lowest index is taken. A prompt whose samples all
    have the same reward gives no pair and is counted as ``equal_rewards``.
    """

    uses_rewards = True
    min_samples = 2

    def build(self, group: SampleGroup, rewards: list[float]) -> tuple[list[Pair], dict[str, int]]:
        """See RowBuilder."""
        if min(rewards) == max(rewards):
            return [], {"equal_rewards": 1}
        # `index` finds the first, which is the sample with the lowest index.
        best = group.samples[rewards.index(max(rewards))]
        worst = group.samples[rewards.index(min(rewards))]
        return [make_pair(group, best.completion_ids, worst)], {}

    def count_rows(self, num_samples: int) -> int:
        """See RowBuilder."""
        return 1


ROW_BUILDERS: dict[str, type[RowBuilder]] = {"truth_pairs": TruthPairs, "best_worst_pairs": BestWorstPairs}
"""The builders of spin by their name in `feedback.rows`."""


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


def make_row_builder(feedback: FeedbackConfig) -> RowBuilder:
    """Return the row builder that `feedback.rows` names. Raises ConfigError when there is none."""
    assert feedback.rows is not None
    if feedback.rows in ROW_BUILDERS:
        return ROW_BUILDERS[feedback.rows]()
    # A name without a dot cannot be an import path: it is a misspelt builder.
    if "." not in feedback.rows:
        raise ConfigError(
            f"feedback.rows={feedback.rows}: expected one of {', '.join(ROW_BUILDERS)}, null, or module.Class"
        )
    builder_class = import_target("feedback.rows", feedback.rows)
    if not (isinstance(builder_class, type) and issubclass(builder_class, RowBuilder)):
        raise ConfigError(f"feedback.rows={feedback.rows}: expected a class derived from {RowBuilder.__qualname__}")
    return builder_class()


def check_feedback(config: RunConfig) -> None:
    """Raise ConfigError when the rows of an iteration cannot be built with its settings."""
    feedback = config.feedback
    if feedback.rows is None:
        return
    # Each class must exist and accept its parameters.
    builder = make_row_builder(feedback)
    names = [reward.name for reward in feedback.rewards]
    for reward in feedback.rewards:
        find_reward_class(reward, config)

    # Builder and sources must fit together.
    if builder.uses_rewards and not names:
        raise ConfigError(
            f"feedback.rows={feedback.rows} needs rewards, and feedback.rewards is empty; "
            "name a source, for example feedback.rewards=[exact_match]"
        )
    if names and not builder.uses_rewards:
        raise ConfigError(
            f"feedback.rewards=[{', '.join(names)}] is not used by feedback.rows={feedback.rows}; "
            "set rewards=[], or rows=best_worst_pairs"
        )
    num_samples = config.generation.samples_per_prompt
    if num_samples < builder.min_samples:
        raise ConfigError(
            f"generation.samples_per_prompt={num_samples}: feedback.rows={feedback.rows} needs at least "
            f"{builder.min_samples} samples of a prompt"
        )
