"""What the config of an iteration asks for: samples, a judge, another reward model."""

from __future__ import annotations

from spin.config.objective import SftObjective
from spin.config.reward_model import BY_JUDGE, Refresh
from spin.config.run import RunConfig
from spin.run_dir.paths import RunLayout, Stage
from spin.run_dir.unit import kind_name

JUDGED_ROWS = ("judged_pairs", "judged_ratings", "judged_rollouts")
"""Values of `feedback.rows` with which a judge judges the samples."""


def generates_samples(config: RunConfig) -> bool:
    """Return True when an iteration with this config generates samples and makes pairs of them."""
    # Fine-tuning learns from the target completions alone.
    return config.feedback.rows is not None and not isinstance(config.objective, SftObjective)


def uses_judge(config: RunConfig) -> bool:
    """Return True when a judge judges the samples of an iteration with this config."""
    ranks_by_judge = refreshes_reward_model(config) and config.reward_model.refresh_by == BY_JUDGE
    return labels_by_judge(config) or ranks_by_judge


def labels_by_judge(config: RunConfig) -> bool:
    """Return True when the rows of an iteration are built from a judge's judgements."""
    return generates_samples(config) and config.feedback.rows in JUDGED_ROWS


def refreshes_reward_model(config: RunConfig) -> bool:
    """Return True when an iteration with this config trains its reward model again."""
    wanted = config.reward_model.refresh is Refresh.every
    return wanted and generates_samples(config) and config.feedback.uses_reward_model


def name_reward_model(config: RunConfig, stage: Stage) -> str | None:
    """Return the unit of the reward model that scores the samples of an iteration.

    Returns:
        The name; None if the run trains no such model.
    """
    if refreshes_reward_model(config):
        return kind_name(RunLayout(stage.root).refreshed_reward_model(stage.index), "reward_model")
    if config.reward_model.data_path is not None:
        return "reward_model/reward_model"
    return None
