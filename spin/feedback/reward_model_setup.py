"""The reward model that a run was given, found and checked before the run begins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from spin.config.reward_model import Backend, Center, Refresh
from spin.config.run import RunConfig
from spin.data.chat_renderer import Renderer
from spin.errors import CheckpointError, ConfigError, require
from spin.models.policy import Policy, find_model, policy_digest
from spin.models.reward_export import RewardFacts, read_reward_facts
from spin.run_dir.ledger import Ledger

GIVEN_REWARD_MODEL = "given_reward_model"
"""Ledger line with the digest of the reward model that the run was given."""


def resolve_reward_model(
    config: RunConfig, iteration_configs: Sequence[RunConfig], ledger: Ledger, renderer: Renderer
) -> Policy | None:
    """Return the reward model at `reward_model.path`, with the digest that the run recorded.

    Args:
        config: Config of the run.
        iteration_configs: Config of each iteration, with its schedule applied.
        ledger: Of the run; the first launch records the reward model.
        renderer: Of the policy, whose token ids the reward model reads.

    Returns:
        The reward model; None if the run was given none.

    Raises:
        ConfigError: The model cannot be used, nothing uses it, or it is missing.
        CheckpointError: It is not the one that the run began with.
    """
    path, refresh = config.reward_model.path, config.reward_model.refresh
    used = any(iteration.feedback.uses_reward_model for iteration in iteration_configs)
    require(
        used or refresh is Refresh.never,
        "reward_model.refresh=every trains a model that scores nothing; set feedback=reward_model, or refresh=never",
    )
    require(
        used or config.reward_model.backend is Backend.trainer,
        "reward_model.backend=vllm starts an engine that scores nothing; set feedback=reward_model, or backend=trainer",
    )
    if path is None:
        require(
            not used or config.reward_model.data_path is not None or refresh is Refresh.every,
            "feedback.rewards=[reward_model] needs a reward model; set reward_model.path to one that exists, "
            "reward_model.data_path to ranked answers to train one on, or reward_model.refresh=every",
        )
        return None
    require(used, f"reward_model.path={path} scores nothing; set feedback=reward_model, or reward_model.path=null")
    folder = find_model(path, "reward_model.path")
    check_reward_model(folder, path, renderer, config.model.trust_remote_code)
    facts = read_reward_facts(folder)
    check_center(config, iteration_configs, facts)
    model = Policy(str(folder.resolve()), policy_digest(folder))

    # A resume must go on with the same model.
    recorded = ledger.get(GIVEN_REWARD_MODEL)
    if recorded is None:
        ledger.append(GIVEN_REWARD_MODEL, digest=model.digest)
    elif recorded["digest"] != model.digest:
        raise CheckpointError(
            f"reward_model.path={path} was altered since the run began; restore it, or start again with another run_dir"
        )
    return model


def check_center(config: RunConfig, iteration_configs: Sequence[RunConfig], facts: RewardFacts) -> None:
    """Raise ConfigError when rewards are compared with a mean of truths that is not known.

    Args:
        config: Config of the run.
        iteration_configs: Config of each iteration.
        facts: Those of the given model; `spin reward` writes them.
    """
    if config.reward_model.center is not Center.truths or facts != RewardFacts():
        return
    for iteration in iteration_configs:
        require(
            iteration.feedback.rows != "ratings",
            f"feedback.rows=ratings with reward_model.center=truths: reward_model.path={config.reward_model.path} has "
            "no reward.json with the mean reward of the ground truths; set reward_model.center=batch, or none with a "
            "feedback.threshold",
        )


def check_reward_model(folder: Path, path: str, renderer: Renderer, trust_remote_code: bool) -> None:
    """Raise ConfigError when a folder is no reward model for the answers of the policy.

    Args:
        folder: The model.
        path: As the config has it, for messages.
        renderer: Of the policy.
        trust_remote_code: Run Python code from the model's folder.
    """
    from transformers import AutoConfig, AutoTokenizer

    try:
        model_config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"reward_model.path={path} is no usable model: {reason}") from error
    # Without this check a policy would get a head of zeros, and every reward would be 0.
    classes = model_config.architectures or ["no class"]
    require(
        classes[0].endswith("ForSequenceClassification") and model_config.num_labels == 1,
        f"reward_model.path={path} is {classes[0]} with {model_config.num_labels} labels; expected a model for "
        "sequence classification with one label, such as spin reward makes",
    )
    # The model reads the token ids of the policy's prompts and answers.
    require(
        tokenizer.get_vocab() == renderer.tokenizer.get_vocab(),
        f"reward_model.path={path} has another vocabulary than model.path; expected a reward model made from the "
        "same tokenizer",
    )
