"""Check before a run begins that the settings of `feedback` fit together."""

from __future__ import annotations

from collections.abc import Sequence

from spin.config.groups import REWARD_MODEL
from spin.config.judge import Contestants, JudgedPairChoice, JudgeMode
from spin.config.objective import PsipoObjective
from spin.config.objective_base import Need, RowType
from spin.config.policy_gradient import PolicyGradientObjective
from spin.config.reward_model import BY_JUDGE
from spin.config.run import RunConfig
from spin.data.records import Rating
from spin.data.rollouts import Rollout
from spin.errors import ConfigError
from spin.feedback.policy_gradient_checks import check_policy_gradient
from spin.feedback.reward_sources import check_reward_source
from spin.feedback.row_builders import RowBuilder, make_row_builder
from spin.objectives.psi import is_antisymmetric, make_psi
from spin.run_dir.stage_work import generates_samples, refreshes_reward_model


def check_feedback(config: RunConfig) -> list[str]:
    """Check that the rows of an iteration can be built with its settings.

    Returns:
        Lines on what the user's own reward functions returned for made-up texts.

    Raises:
        ConfigError: They cannot.
    """
    feedback = config.feedback
    if isinstance(config.objective, PolicyGradientObjective):
        check_policy_gradient(config)
    if feedback.rows is None:
        return []
    # Each class or function must exist and accept its parameters.
    builder = make_row_builder(feedback)
    names = [reward.name for reward in feedback.rewards]
    tried = []
    for reward in feedback.rewards:
        tried += check_reward_source(reward, config)

    # Builder and sources must fit together. A judge's rewards are enough without sources.
    if builder.uses_rewards and not builder.uses_judgements and not names:
        raise ConfigError(
            f"feedback.rows={feedback.rows} needs rewards, and feedback.rewards is empty; "
            "name a source, for example feedback.rewards=[exact_match]"
        )
    if names and not builder.uses_rewards:
        raise ConfigError(
            f"feedback.rewards=[{', '.join(names)}] is not used by feedback.rows={feedback.rows}; "
            "set rewards=[], or rows=right_wrong_pairs"
        )
    if builder.needs_scores and config.judge.mode is not JudgeMode.scores:
        raise ConfigError(
            f"feedback.rows={feedback.rows} needs scores of single answers, found judge.mode={config.judge.mode.name}; "
            "set judge.mode=scores"
        )
    if refreshes_reward_model(config):
        _check_refresh(config)
    elif 0 in [reward.weight for reward in feedback.rewards]:
        raise ConfigError(
            "feedback.rewards: a source with weight=0 is for reward_model.refresh=every; remove it, or set its weight"
        )
    _check_objective(config, builder)
    _check_psi_of_judgements(config, builder)

    # Enough samples for a row.
    num_samples = config.generation.samples_per_prompt
    if num_samples < builder.min_samples:
        raise ConfigError(
            f"generation.samples_per_prompt={num_samples}: feedback.rows={feedback.rows} needs at least "
            f"{builder.min_samples} samples of a prompt"
        )
    return tried


def _check_refresh(config: RunConfig) -> None:
    """Raise ConfigError when a reward model cannot be trained again on the samples of the run."""
    # Check the source that ranks the samples.
    settings = config.reward_model
    sources = [reward.name for reward in config.feedback.rewards if reward.name != REWARD_MODEL]
    if settings.refresh_by == BY_JUDGE and config.judge.model is None:
        raise ConfigError(
            "reward_model.refresh_by=judge needs a judge; set judge.model, or take a source of feedback.rewards"
        )
    if settings.refresh_by != BY_JUDGE and settings.refresh_by not in sources:
        raise ConfigError(
            f"reward_model.refresh_by={settings.refresh_by}: expected judge, or one of the other sources of "
            f"feedback.rewards ({', '.join(sources) or 'none'}); a source with weight=0 only ranks"
        )
    if all(reward.weight == 0 for reward in config.feedback.rewards):
        raise ConfigError("feedback.rewards: all weights are 0, so all rewards are; set that of reward_model to 1")

    # Two answers to compare, and not more than the model may learn from.
    num_answers = config.generation.samples_per_prompt
    if settings.refresh_by == BY_JUDGE and config.feedback.judged.contestants is Contestants.truth_and_samples:
        num_answers += 1
    if not 2 <= num_answers <= settings.max_responses:
        raise ConfigError(
            f"reward_model.refresh=every ranks {num_answers} answers of a prompt; expected 2 to "
            f"reward_model.max_responses={settings.max_responses}: change generation.samples_per_prompt"
        )


def _check_objective(config: RunConfig, builder: RowBuilder) -> None:
    """Raise ConfigError when the objective cannot use the rows of the builder."""
    # A rating has one completion; only losses of single completions can use it. Fine-tuning builds
    # no rows.
    if builder.row_type is Rating and config.objective.row_type is RowType.pair:
        raise ConfigError(
            f"feedback.rows={config.feedback.rows} builds ratings, "
            f"which objective={config.objective.name} cannot use; take objective=kto"
        )
    # Only policy gradients learn from rewards themselves, and they learn from nothing else.
    needs_rollouts = config.objective.row_type is RowType.rollout
    if needs_rollouts and builder.row_type is not Rollout:
        raise ConfigError(
            f"objective={config.objective.name} learns from rewards of single answers, "
            f"and feedback.rows={config.feedback.rows} builds other rows; take feedback.rows=rollouts or "
            "judged_rollouts"
        )
    if builder.row_type is Rollout and not needs_rollouts:
        raise ConfigError(
            f"feedback.rows={config.feedback.rows} builds answers with rewards, "
            f"which objective={config.objective.name} cannot use; take objective=grpo, rloo or ppo"
        )
    # Ψ of a hard label is as large as the clamp allows, which is no preference that anybody gave.
    objective = config.objective
    soft_labels = builder.soft_labels and config.judge.mode is JudgeMode.pairs
    if isinstance(objective, PsipoObjective) and objective.psi != "identity" and not soft_labels:
        raise ConfigError(
            f"objective.psi={objective.psi} needs soft preferences, and the pairs of "
            f"feedback.rows={config.feedback.rows} have hard labels; take objective.psi=identity"
        )


def _check_psi_of_judgements(config: RunConfig, builder: RowBuilder) -> None:
    """Raise ConfigError when Ψ needs comparisons that the judge is not asked for."""
    objective = config.objective
    if not (isinstance(objective, PsipoObjective) and builder.uses_judgements):
        return
    if is_antisymmetric(make_psi(objective.psi, objective.clamp)):
        return
    judged = config.feedback.judged
    num_answers = config.generation.samples_per_prompt + 2 - builder.min_samples
    if num_answers < 3 or judged.pairs is JudgedPairChoice.truth:
        raise ConfigError(
            f"objective.psi={objective.psi} needs comparisons of at least 3 answers of a prompt with each other, found "
            f"{num_answers} answers and feedback.judged.pairs={judged.pairs.name}; "
            "raise generation.samples_per_prompt, and take pairs=all, best_worst or best_rest"
        )


def describe_verifier(iteration_configs: Sequence[RunConfig]) -> list[str]:
    """Return notes for the user on how answers are found to be right."""
    for config in iteration_configs:
        names = [reward.name for reward in config.feedback.rewards]
        if "exact_match" in names and config.data.answer_pattern is None:
            return ["exact_match compares whole texts, since data.answer_pattern is null"]
    return []


def check_start_answers(iteration_configs: Sequence[RunConfig]) -> None:
    """Raise ConfigError when an objective needs answers of iteration 0, and it samples none."""
    for index, config in enumerate(iteration_configs):
        needed = generates_samples(config) and Need.start_answers in config.objective.needs
        if needed and not generates_samples(iteration_configs[0]):
            raise ConfigError(
                f"iteration {index}: objective={config.objective.name} needs the answers that iteration 0 samples, "
                "and it samples none; schedule another objective, or feedback.rows=truth_pairs for iteration 0"
            )


def check_replay(iteration_configs: Sequence[RunConfig]) -> None:
    """Raise ConfigError when an iteration would replay rows of another type than its own."""
    # A file of rows has one type, and replayed rows are added to the files of their iteration.
    row_types = []
    for config in iteration_configs:
        row_type = None
        if generates_samples(config):
            row_type = make_row_builder(config.feedback).row_type
        row_types.append(row_type)
    for index, config in enumerate(iteration_configs):
        for earlier in range(max(0, index - config.replay), index):
            if row_types[index] and row_types[earlier] and row_types[index] is not row_types[earlier]:
                raise ConfigError(
                    f"iteration {index}: replay={config.replay} takes the rows of iteration {earlier}, which are of "
                    f"another type (feedback.rows={iteration_configs[earlier].feedback.rows} there, "
                    f"{config.feedback.rows} here); schedule replay=0 for iteration {index}"
                )
