"""Build the rows of policy gradients: each sample with its reward."""

from __future__ import annotations

from spin.config.groups import FeedbackConfig
from spin.config.objective_base import ObjectiveConfig
from spin.config.policy_gradient import GroupObjective
from spin.config.rollouts import RolloutsConfig
from spin.data.records import Sample
from spin.data.rollouts import Rollout
from spin.feedback.row_builder import Built, RowBuilder
from spin.feedback.sample_group import SampleGroup


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
