"""Reward sources: classes that give each sample of a prompt a reward.

    samples/0 ──► exact_match ──► rewards/exact_match/0 ──┐ weighted sum
            └───► your class  ──► rewards/your_class/0  ──┴─► row builder ──► pairs/0

To add a source, write a class and add it to REWARD_SOURCES. A class or function outside of spin is
named by `_target_` in `feedback.rewards`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Protocol

from spin.config.groups import REWARD_MODEL, RewardConfig
from spin.config.run import RunConfig, import_target
from spin.data.answer_matching import is_right
from spin.errors import ConfigError, require
from spin.feedback.reward_function import FunctionReward, check_function
from spin.feedback.sample_group import SampleGroup
from spin.models.packing import Group


class RewardSource(Protocol):
    """Score samples in batches; made once in each worker as ``cls(config, **parameters)``."""

    def score(self, groups: list[SampleGroup]) -> list[list[float]]:
        """Return one finite reward for each sample of each group, in the same order.

        The result must depend on nothing but the groups and the settings, so that a resumed run
        gets the same rewards.
        """


class ExactMatch:
    """Reward 1 for the answer of the ground truth (`data.answer_pattern`), 0 for any other."""

    def __init__(self, config: RunConfig) -> None:
        self._pattern = config.data.answer_pattern

    def score(self, groups: list[SampleGroup]) -> list[list[float]]:
        """See RewardSource."""
        rewards = []
        for group in groups:
            rewards.append([float(is_right(group.prompt, sample, self._pattern)) for sample in group.samples])
        return rewards


class ModelReward:
    """The reward model of the run; what 0 means is told by `reward_model.center`."""

    def __init__(self, score_groups: Callable[[list[Group]], list[list[float]]]) -> None:
        """Take a function that scores groups with the model, which a training worker holds."""
        self._score_groups = score_groups

    def score(self, groups: list[SampleGroup]) -> list[list[float]]:
        """See RewardSource."""
        to_score = []
        for group in groups:
            completions = [sample.completion_ids for sample in group.samples]
            to_score.append(Group(group.prompt.prompt_ids, completions))
        return self._score_groups(to_score)


REWARD_SOURCES: dict[str, type[Any]] = {"exact_match": ExactMatch, REWARD_MODEL: ModelReward}
"""The sources of spin by their name in `feedback.rewards`."""


def find_reward_target(reward: RewardConfig) -> Any:
    """Return the class or the function of a reward source.

    Raises:
        ConfigError: There is no such source, or it cannot be imported.
    """
    if reward._target_ is not None:
        return import_target("feedback.rewards: _target_", reward._target_)
    if reward.name in REWARD_SOURCES:
        return REWARD_SOURCES[reward.name]
    raise ConfigError(
        f"feedback.rewards: no source {reward.name}; expected one of {', '.join(REWARD_SOURCES)}, "
        "or _target_ with a class or function of your own"
    )


def check_reward_source(reward: RewardConfig, config: RunConfig) -> list[str]:
    """Check a reward source without making it, which may load a model.

    Returns:
        What a function returned for made-up texts, as lines.

    Raises:
        ConfigError: There is no such source, it does not take the parameters, or it is a function
            that fails for made-up texts.
    """
    # The training worker makes this source, with the model that it holds.
    if reward.name == REWARD_MODEL and reward._target_ is None:
        require(not reward.parameters, f"feedback.rewards: {REWARD_MODEL} takes no parameters, got {reward.parameters}")
        return []
    # A function is cheap to call, a class may be expensive to make.
    target = find_reward_target(reward)
    if inspect.isfunction(target):
        assert reward._target_ is not None
        return [check_function("feedback.rewards", reward._target_, target, reward.parameters)]
    if not callable(getattr(target, "score", None)):
        raise ConfigError(
            f"feedback.rewards: _target_={reward._target_}: expected a function, or a class with a method score"
        )
    try:
        inspect.signature(target).bind(config, **reward.parameters)
    except TypeError as error:
        raise ConfigError(
            f"feedback.rewards: {reward.name} cannot be made from (config, **{reward.parameters}): {error}"
        ) from error
    return []


class RewardSourceCache:
    """The reward sources of one worker: each is made once, as long as the config stays the same."""

    def __init__(self) -> None:
        self._made: dict[str, tuple[RunConfig, RewardConfig, RewardSource]] = {}

    def get(self, reward: RewardConfig, config: RunConfig) -> RewardSource:
        """Return the source of an entry of `feedback.rewards`."""
        # A schedule may change the parameters, and a source may read any key of the config.
        known = self._made.get(reward.name)
        if known is not None and known[:2] == (config, reward):
            return known[2]
        target = find_reward_target(reward)
        source: RewardSource
        # A function is called for each sample, a class once for a shard.
        if inspect.isfunction(target):
            source = FunctionReward(reward.name, target, reward.parameters)
        else:
            source = target(config, **reward.parameters)
        self._made[reward.name] = (config, reward, source)
        return source
