"""Check before a run begins that the settings of an iteration fit a policy gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence

from spin.config.judge import Contestants, JudgeMode
from spin.config.policy_gradient import GroupObjective, PolicyGradientObjective
from spin.config.run import RunConfig
from spin.errors import require

MAX_UPDATES = 64
"""Optimizer steps on the answers of one opponent above which a run warns. InstructGPT takes 8,
arXiv 2403.17031 up to 32; the more, the less the opponent is the policy."""


def describe_updates(iteration_configs: Sequence[RunConfig], num_prompts: int) -> list[str]:
    """Return a warning if an iteration of a policy gradient takes many optimizer steps.

    Args:
        iteration_configs: Config of each iteration.
        num_prompts: Prompts of the training set.
    """
    for index, config in enumerate(iteration_configs):
        if not isinstance(config.objective, PolicyGradientObjective):
            continue
        training, generation = config.training, config.generation
        prompts = min(num_prompts, generation.prompts_per_iteration or num_prompts)
        answers = prompts * generation.samples_per_prompt
        updates = training.steps or math.ceil(answers / training.batch_size) * training.epochs
        if updates > MAX_UPDATES:
            return [
                f"warning: iteration {index}: objective={config.objective.name} takes {updates:,} optimizer steps on "
                f"{answers:,} answers of one opponent, and above {MAX_UPDATES} the policy may move far from it; lower "
                "generation.prompts_per_iteration and raise iterations, or raise training.batch_size"
            ]
    return []


def check_pretraining(iteration_configs: Sequence[RunConfig]) -> None:
    """Raise ConfigError when rows of `data.ptx` are named and no iteration trains on them."""
    rows = iteration_configs[0].data.ptx
    named = f"path={rows.path}"
    if rows.path is None:
        named = f"limit={rows.limit}"
    weights = [getattr(config.objective, "ptx_weight", 0.0) for config in iteration_configs]
    require(
        not rows.has_own_rows or any(weight > 0 for weight in weights),
        f"data.ptx.{named} is not used: it needs objective=ppo with objective.ptx_weight above 0; set it to null",
    )


def check_policy_gradient(config: RunConfig) -> None:
    """Raise ConfigError when a setting contradicts a policy gradient on the opponent's answers."""
    name = config.objective.name
    generation, feedback = config.generation, config.feedback
    require(
        feedback.rows is not None,
        f"objective={name} learns from answers of the opponent, and feedback.rows=null samples none; "
        "take feedback.rows=rollouts",
    )
    require(
        feedback.path is None,
        f"feedback.path={feedback.path}: objective={name} cannot use labelled rows, since the opponent did not "
        "sample them; set feedback.path=null",
    )
    # The trainer computes probabilities at temperature 1, over the whole vocabulary.
    require(
        generation.temperature == 1 and generation.top_p == 1,
        f"generation.temperature={generation.temperature:g} and top_p={generation.top_p:g} with objective={name}: "
        "the answers would come from another distribution than the one that is trained; set both to 1",
    )
    require(
        config.replay == 0,
        f"replay={config.replay}: objective={name} takes answers of the opponent alone, "
        "and those of earlier iterations come from other policies; set replay=0",
    )
    # A row that is left out would change the mean that the others are compared with.
    require(
        not config.pairs.drop_cut,
        f"pairs.drop_cut=true: objective={name} needs all answers to a prompt; set it to false, "
        "feedback.rollouts.missing_eos lowers the reward of truncated answers",
    )
    # A judge that compares needs two answers.
    compares_samples = (
        feedback.rows == "judged_rollouts"
        and config.judge.mode is JudgeMode.pairs
        and feedback.judged.contestants is Contestants.samples
    )
    require(
        not compares_samples or generation.samples_per_prompt >= 2,
        f"generation.samples_per_prompt={generation.samples_per_prompt} with feedback.rows=judged_rollouts: nothing to "
        "compare; expected at least 2, or judge.mode=scores, or feedback.judged.contestants=truth_and_samples",
    )
    if isinstance(config.objective, GroupObjective):
        num_samples = generation.samples_per_prompt
        require(
            num_samples >= 2,
            f"generation.samples_per_prompt={num_samples}: objective={name} compares the answers to a prompt with "
            "each other; expected at least 2",
        )
