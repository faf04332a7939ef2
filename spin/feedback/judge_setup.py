"""Who judges the answers of a run, found and checked before the run begins."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spin.config.groups import ModelConfig
from spin.config.judge import OPPONENT, JudgeMode
from spin.config.run import RunConfig
from spin.data.chat_renderer import Renderer
from spin.data.renderer_setup import load_renderer
from spin.errors import CheckpointError, ConfigError, require
from spin.feedback.endpoint import read_key
from spin.feedback.endpoint_judge import try_endpoint
from spin.feedback.judge_template import JudgeTemplate, load_template
from spin.feedback.local_judge import LocalJudge
from spin.models.policy import Policy, check_policy, find_model, is_adapter_folder, policy_digest
from spin.run_dir.ledger import Ledger
from spin.run_dir.stage_work import JUDGED_ROWS, uses_judge

JUDGE = "judge"
"""Ledger line with the digests of the judge and of its template."""


@dataclass(frozen=True)
class JudgeSetup:
    """The judge of a run."""

    policy: Policy | None
    """Its weights; None if the opponent of each iteration or an endpoint judges."""
    template: JudgeTemplate


def resolve_judge(
    config: RunConfig, iteration_configs: Sequence[RunConfig], ledger: Ledger, renderer: Renderer
) -> JudgeSetup | None:
    """Return the judge of a run, with the digest that the run recorded; None without a judge.

    Args:
        config: Config of the run.
        iteration_configs: Config of each iteration, with its schedule applied.
        ledger: Of the run; the first launch records the judge.
        renderer: Of the policy, which judges with `judge.model=opponent`.

    Raises:
        ConfigError: The judge, its template or its labels cannot be used.
        CheckpointError: It is not the judge that the run began with.
    """
    settings = config.judge
    if not any(uses_judge(iteration) for iteration in iteration_configs):
        require(
            settings.model is None,
            f"judge.model={settings.model} judges nothing; set feedback.rows={' or '.join(JUDGED_ROWS)}, "
            "or judge.model=null",
        )
        return None
    require(
        settings.model is not None,
        f"feedback.rows={' and '.join(JUDGED_ROWS)} need a judge; set judge.model to a model folder, a Hub id, "
        "opponent, or the URL of an endpoint",
    )
    num_answers = 2
    if settings.mode is JudgeMode.scores:
        num_answers = 1
    template = load_template(settings.template_name, settings.reply_labels, settings.max_answer_chars, num_answers)

    # An endpoint is asked one question. A model must know each label as one token.
    policy = None
    digest = OPPONENT
    if settings.is_endpoint:
        try_endpoint(settings, read_key(settings), template)
        digest = f"{settings.model} {settings.name}"
    else:
        if settings.is_own_model:
            policy, renderer = find_judge(config)
            digest = policy.digest
        LocalJudge(renderer, settings)

    # A resume must go on with the same judge.
    found = {"digest": digest, "template": template.digest}
    recorded = ledger.get(JUDGE)
    if recorded is None:
        ledger.append(JUDGE, **found)
    else:
        for key, name in (("digest", "model"), ("template", "template")):
            if recorded[key] != found[key]:
                raise CheckpointError(
                    f"judge.{name}={getattr(settings, name)} was altered since the run began; "
                    "restore it, or start again with another run_dir"
                )
    return JudgeSetup(policy, template)


def find_judge(config: RunConfig) -> tuple[Policy, Renderer]:
    """Return a judge that is a model of its own, and its renderer.

    Raises:
        ConfigError: There is no such model, or it has no room for a question.
    """
    settings = config.judge
    assert settings.model is not None
    try:
        folder = find_model(settings.model)
        if is_adapter_folder(folder):
            raise ConfigError(f"model.path={settings.model} holds an adapter; expected a whole model: merge the two")
        model = ModelConfig(str(folder), chat_template=settings.chat_template)
        renderer = load_renderer(model, folder)
    except ConfigError as error:
        # The message is about the group `model`, whose checks these are.
        raise ConfigError(str(error).replace("model.", "judge.").replace("judge.path", "judge.model")) from error
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"judge.model={settings.model} is no usable model: {str(error).splitlines()[0]}") from error
    # Question, rationale and label.
    context = json.loads((folder / "config.json").read_text()).get("max_position_embeddings")
    require(
        context is None or settings.max_length <= context,
        f"judge.max_prompt_tokens={settings.max_prompt_tokens} leaves no room for a label in the context "
        f"of {context} of judge.model={settings.model}; lower it",
    )
    policy = Policy(str(folder.resolve()), policy_digest(folder))
    check_policy(policy)
    return policy, renderer


def max_engine_length(config: RunConfig) -> int:
    """Return the longest text in tokens, answer included, that the opponent's engines get."""
    longest = config.max_prompt_length + config.generation.max_tokens
    if config.judge.model == OPPONENT:
        return max(longest, config.judge.max_length)
    return longest


def load_judge(config: RunConfig, policy: Policy) -> LocalJudge:
    """Return a judge that is a model of its own, from its folder."""
    settings = config.judge
    folder = Path(policy.path)
    renderer = load_renderer(ModelConfig(policy.path, chat_template=settings.chat_template), folder)
    return LocalJudge(renderer, settings)
