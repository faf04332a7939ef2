"""Row builders: classes that turn the samples of a prompt, with their rewards, into training rows.

    truth_pairs        the ground truth is chosen, each sample is rejected (SPIN); no rewards
    wrong_truth_pairs  the ground truth is chosen, each wrong sample is rejected
    right_wrong_pairs  right samples are chosen, wrong ones rejected
    best_worst_pairs   the sample with the highest reward is chosen, that with the lowest rejected
    soft_pairs         all pairs of samples, with σ(difference of rewards) as soft label
    ratings            each sample is desirable if it is right, and undesirable otherwise (KTO)
    rollouts           each sample with its reward (RLOO and GRPO)
    judged_pairs       the answer that a judge prefers is chosen, with its preference as soft label
    judged_ratings     each sample is desirable if a judge's score is high enough (KTO)
    judged_rollouts    each sample with a judge's reward, added to those of sources if there are any

A sample is right if its reward is above `feedback.threshold`. To add a builder, derive a class from
RowBuilder and add it to ROW_BUILDERS. A class outside of spin is named as
`feedback.rows=module.Class`.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

from spin.config.groups import FeedbackConfig
from spin.config.run import import_target
from spin.data.records import Rating
from spin.data.row_labels import sigmoid
from spin.errors import ConfigError
from spin.feedback.judged_pairs import JudgedPairs, JudgedRatings
from spin.feedback.rollout_builder import JudgedRollouts, Rollouts
from spin.feedback.row_builder import Built, RowBuilder, make_pair, make_rating
from spin.feedback.sample_group import SampleGroup


class TruthPairs(RowBuilder):
    """One pair for each sample: the ground truth is chosen, the sample is rejected."""

    def build(self, group: SampleGroup, rewards: list[float]) -> Built:
        """See RowBuilder."""
        return [make_pair(group, group.prompt.completion_ids, sample) for sample in group.samples], {}

    def count_rows(self, num_samples: int) -> int:
        """See RowBuilder."""
        return num_samples


class WrongTruthPairs(RowBuilder):
    """One pair for each wrong sample: the ground truth is chosen, the sample is rejected.

    Right samples are counted as ``right``.
    """

    uses_rewards = True

    def build(self, group: SampleGroup, rewards: list[float]) -> Built:
        """See RowBuilder."""
        right, wrong = self.split_samples(group, rewards)
        pairs = [make_pair(group, group.prompt.completion_ids, sample) for sample in wrong]
        if not right:
            return pairs, {}
        return pairs, {"right": len(right)}

    def count_rows(self, num_samples: int) -> int:
        """See RowBuilder."""
        return num_samples


class RightWrongPairs(RowBuilder):
    """Right samples of a prompt against wrong ones, so that each sample is in at least one pair.

    With r right and w wrong samples there are max(r, w) pairs: the i-th right sample against the
    i-th wrong one, where the shorter list begins again at its end. A prompt whose samples are all
    right or all wrong gives no pair and is counted as ``all_right`` or ``all_wrong``.
    """

    uses_rewards = True
    min_samples = 2

    def build(self, group: SampleGroup, rewards: list[float]) -> Built:
        """See RowBuilder."""
        right, wrong = self.split_samples(group, rewards)
        if not wrong:
            return [], {"all_right": 1}
        if not right:
            return [], {"all_wrong": 1}
        # Each sample is used, and none of the longer list twice.
        pairs = []
        for index in range(max(len(right), len(wrong))):
            chosen = right[index % len(right)]
            rejected = wrong[index % len(wrong)]
            pairs.append(make_pair(group, chosen.completion_ids, rejected))
        return pairs, {}

    def count_rows(self, num_samples: int) -> int:
        """See RowBuilder."""
        # Of n samples at least one is on the other side, so neither side has more than n − 1.
        return num_samples - 1


class BestWorstPairs(RowBuilder):
    """One pair for each prompt: the sample with the highest reward against the one with the lowest.

    Of several equal rewards, the sample with the lowest index is taken. A prompt whose samples all
    have the same reward gives no pair and is counted as ``equal_rewards``.
    """

    uses_rewards = True
    min_samples = 2

    def build(self, group: SampleGroup, rewards: list[float]) -> Built:
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


class SoftPairs(RowBuilder):
    """Every pair of samples, with P(better) = σ(r_i − r_j) of their rewards as soft label.

    That is what a Bradley-Terry reward model says of two answers. A pair of equal rewards is
    counted as ``equal_rewards``.
    """

    uses_rewards = True
    soft_labels = True
    min_samples = 2

    def build(self, group: SampleGroup, rewards: list[float]) -> Built:
        """See RowBuilder."""
        # Mean of P(better than k) over all answers k, itself with ½; SPPO learns from it.
        win_rates = []
        for reward in rewards:
            chances = [sigmoid(reward - other) for other in rewards]
            win_rates.append(sum(chances) / len(chances))
        pairs = []
        num_equal = 0
        for first, second in combinations(range(len(rewards)), 2):
            if rewards[first] == rewards[second]:
                num_equal += 1
                continue
            # The better answer is chosen.
            best, worst = sorted((first, second), key=lambda place: -rewards[place])
            pair = make_pair(group, group.samples[best].completion_ids, group.samples[worst])
            pair = replace(pair, chosen_win_rate=win_rates[best], rejected_win_rate=win_rates[worst])
            pairs.append(replace(pair, preference=sigmoid(rewards[best] - rewards[worst])))
        if not num_equal:
            return pairs, {}
        return pairs, {"equal_rewards": num_equal}

    def count_rows(self, num_samples: int) -> int:
        """See RowBuilder."""
        return num_samples * (num_samples - 1) // 2


class Ratings(RowBuilder):
    """One rating for each sample: desirable if it is right, undesirable if it is wrong."""

    row_type = Rating
    uses_rewards = True

    def build(self, group: SampleGroup, rewards: list[float]) -> Built:
        """See RowBuilder."""
        ratings = []
        for sample, reward in zip(group.samples, rewards, strict=True):
            ratings.append(make_rating(group, sample, reward > self.threshold))
        return ratings, {}

    def count_rows(self, num_samples: int) -> int:
        """See RowBuilder."""
        return num_samples


ROW_BUILDERS: dict[str, type[RowBuilder]] = {
    "truth_pairs": TruthPairs,
    "wrong_truth_pairs": WrongTruthPairs,
    "right_wrong_pairs": RightWrongPairs,
    "best_worst_pairs": BestWorstPairs,
    "soft_pairs": SoftPairs,
    "ratings": Ratings,
    "rollouts": Rollouts,
    "judged_pairs": JudgedPairs,
    "judged_ratings": JudgedRatings,
    "judged_rollouts": JudgedRollouts,
}
"""The builders of spin by their name in `feedback.rows`."""


def make_row_builder(feedback: FeedbackConfig) -> RowBuilder:
    """Return the row builder that `feedback.rows` names. Raises ConfigError when there is none."""
    assert feedback.rows is not None
    if feedback.rows in ROW_BUILDERS:
        return ROW_BUILDERS[feedback.rows](feedback)
    # A name without a dot cannot be an import path: it is a misspelt builder.
    if "." not in feedback.rows:
        raise ConfigError(
            f"feedback.rows={feedback.rows}: expected one of {', '.join(ROW_BUILDERS)}, null, or module.Class"
        )
    builder_class = import_target("feedback.rows", feedback.rows)
    if not (isinstance(builder_class, type) and issubclass(builder_class, RowBuilder)):
        raise ConfigError(f"feedback.rows={feedback.rows}: expected a class derived from {RowBuilder.__qualname__}")
    # A class without `build` or `count_rows` cannot be made either.
    try:
        return builder_class(feedback)
    except TypeError as error:
        raise ConfigError(f"feedback.rows={feedback.rows} cannot be made from (feedback): {error}") from error
