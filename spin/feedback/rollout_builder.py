"""Build the rows of policy gradients: each sample with its reward."""

from __future__ import annotations

import math
from collections.abc import Sequence

from spin.config.groups import FeedbackConfig
from spin.config.judge import OnFailure
from spin.config.objective_base import ObjectiveConfig
from spin.config.policy_gradient import GroupObjective
from spin.config.rollouts import RolloutsConfig
from spin.data.records import Sample
from spin.data.rollouts import Rollout
from spin.feedback.judge_comparison import list_contestants, make_preference_matrix
from spin.feedback.reward_files import SummedRewards
from spin.feedback.row_builder import Built, RowBuilder
from spin.feedback.sample_group import TRUTH_INDEX, SampleGroup


class Rollouts(RowBuilder):
    """One row for each sample, with its reward.

    With `objective.drop_equal`, a prompt whose samples all have the same reward gives no row, and
    its samples are counted as ``equal_rewards``.
    """

    row_type = Rollout
    uses_rewards = True

    def __init__(self, feedback: FeedbackConfig) -> None:
        super().__init__(feedback)
        self._config = feedback.rollouts
        self._drop_equal = False
        self._has_sources = bool(feedback.rewards)

    def use_objective(self, objective: ObjectiveConfig) -> None:
        """Take `objective.drop_equal`."""
        if isinstance(objective, GroupObjective):
            self._drop_equal = objective.drop_equal

    def build(self, group: SampleGroup, rewards: list[float]) -> Built:
        """See RowBuilder."""
        adjusted = []
        for sample, reward in zip(group.samples, rewards, strict=True):
            adjusted.append(adjust_reward(self._config, sample, reward))
        if self._drop_equal and min(adjusted) == max(adjusted):
            return [], {"equal_rewards": len(adjusted)}
        rows = [make_rollout(group, sample, reward) for sample, reward in zip(group.samples, adjusted, strict=True)]
        return rows, {}

    def count_rows(self, num_samples: int) -> int:
        """See RowBuilder."""
        return num_samples


class JudgedRollouts(Rollouts):
    """One row for each sample, with a judge's reward added to the rewards of sources.

    A judge that scores answers gives its score, −1 to 1. A judge that compares them gives the mean
    probability that the sample is better than another answer to the prompt, 0 to 1.
    """

    uses_judgements = True

    def __init__(self, feedback: FeedbackConfig) -> None:
        super().__init__(feedback)
        self._judged = feedback.judged

    def combine_rewards(self, group: SampleGroup, rewards: SummedRewards) -> SummedRewards | None:
        """See RowBuilder. None if the judge failed for one sample: the group is incomplete."""
        judged = self._find_judge_rewards(group)
        weight = self._config.judge_weight
        samples = []
        for sample, reward in zip(group.samples, rewards.samples, strict=True):
            judge_reward = judged[sample.sample_index]
            if math.isnan(judge_reward):
                return None
            samples.append(reward + weight * judge_reward)
        # The truth is compared with the same sum, if the judge and the sources know all of it.
        truth = None
        judge_truth = judged.get(TRUTH_INDEX, math.nan)
        if not math.isnan(judge_truth) and (rewards.truth is not None or not self._has_sources):
            truth = (rewards.truth or 0.0) + weight * judge_truth
        return SummedRewards(samples, truth)

    def _find_judge_rewards(self, group: SampleGroup) -> dict[int, float]:
        """Return the judge's reward of each answer by its index; NaN where the judge failed."""
        answers = list_contestants(group, self._judged.contestants)
        if group.scores:
            undecided = 0.0
            found = {score.sample_index: score.score for score in group.scores if score.failure is None}
        else:
            undecided = 0.5
            found = find_win_rates(answers, make_preference_matrix(answers, group.judgements))
        if self._judged.on_failure is not OnFailure.half:
            undecided = math.nan
        return {answer: found.get(answer, undecided) for answer in answers}


def find_win_rates(answers: Sequence[int], matrix: Sequence[Sequence[float]]) -> dict[int, float]:
    """Return mean_{k≠i} P(i is better than k) of each answer that was compared, by its index.

    Args:
        answers: Indices of the answers, in the order of rows and columns.
        matrix: P(row is better than column); NaN where there was no comparison, or it failed.
    """
    win_rates = {}
    for row, answer in enumerate(answers):
        known = [value for column, value in enumerate(matrix[row]) if column != row and not math.isnan(value)]
        if known:
            win_rates[answer] = sum(known) / len(known)
    return win_rates


def adjust_reward(config: RolloutsConfig, sample: Sample, reward: float) -> float:
    """Return a reward limited to ±`reward_clip`, less the penalty if the sample was truncated."""
    if config.reward_clip is not None:
        reward = max(-config.reward_clip, min(config.reward_clip, reward))
    if sample.finish_reason == "length":
        reward -= config.missing_eos
    return reward


def make_rollout(group: SampleGroup, sample: Sample, reward: float) -> Rollout:
    """Return a row that the opponent has not scored yet."""
    return Rollout(
        prompt_id=group.prompt.prompt_id,
        sample_index=sample.sample_index,
        iteration=group.iteration,
        prompt_ids=group.prompt.prompt_ids,
        completion_ids=sample.completion_ids,
        finish_reason=sample.finish_reason,
        reward=reward,
        sampler_logp=sample.logp,
    )
