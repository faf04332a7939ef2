"""Check before any compute what would make a run fail later. Nothing is started."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

from spin.benchmark.lm_eval import check_tasks
from spin.cluster.placement import plan_placement
from spin.config.run import RunConfig, import_target
from spin.data.chat_renderer import Renderer
from spin.errors import ConfigError
from spin.feedback.feedback_checks import check_feedback, check_replay, check_start_answers, describe_verifier
from spin.feedback.policy_gradient_checks import check_pretraining
from spin.feedback.reward_function import check_function
from spin.models.policy import check_adapter, check_policy
from spin.models.reward_export import find_pad_id
from spin.models.stage_policy import find_adapter_folder, make_stage_policy
from spin.objectives.registry import make_objective
from spin.preflight.adapter_check import check_peft, count_reward_trained, count_trained
from spin.preflight.hardware import count_gpus
from spin.preflight.starting_model import check_model, check_other_models
from spin.report.console import Reporter
from spin.report.trackers import check_trackers
from spin.run_dir.facts import PolicyFacts
from spin.run_dir.files import existing_folder
from spin.run_dir.paths import RunLayout
from spin.run_dir.run_state import RunState
from spin.run_dir.store import RunStore
from spin.run_dir.unit import PROMOTED_KINDS

PROCESS_BYTES = 400 << 20
"""Memory of an engine or a training worker besides any weights; measured: 0.5 and more GiB."""


def check_launch(config: RunConfig, iteration_configs: list[RunConfig], model: Path, reporter: Reporter) -> Renderer:
    """Check workers, trackers, tasks, the user's own code, and the model in the folder `model`.

    Prints what the user's own functions returned for made-up rows, and notes on the chat template
    and on reward sources.

    Returns:
        The renderer of the model's prompts.

    Raises:
        ConfigError: One of them cannot be used.
    """
    check_placement(config)
    check_trackers(config.tracking)
    check_tasks(config.benchmark.lm_eval)
    # The user's own code is imported here, so that an error is not found hours later.
    tried = check_verifier(config.benchmark.verifier)
    for iteration_config in iteration_configs:
        tried += make_objective(iteration_config.objective).check_user_code()
        tried += check_feedback(iteration_config)
    check_pretraining(iteration_configs)
    check_replay(iteration_configs)
    check_start_answers(iteration_configs)
    # The model, with notes on its chat template.
    renderer = check_model(config, model)
    check_other_models(config)
    if config.adapter.enabled:
        check_peft()
        count_trained(config, model)
    if config.reward_model.is_trained:
        check_reward_training(config, model, renderer)
        count_reward_trained(config, model)
    # Iterations may share a function.
    for line in dict.fromkeys(tried):
        reporter.print(f"tried: {line}")
    for note in [*describe_verifier(iteration_configs), *renderer.notes]:
        reporter.print(f"note: {note}")
    return renderer


def check_verifier(target: str | None) -> list[str]:
    """Call the function `benchmark.verifier`, and return a line on what it returned.

    Raises ConfigError when it is no function of three texts.
    """
    if target is None:
        return []
    function = import_target("benchmark.verifier", target)
    if not callable(function):
        raise ConfigError(f"benchmark.verifier={target}: expected a function f(prompt, answer, truth)")
    return [check_function("benchmark.verifier", target, function, {})]


def check_reward_training(config: RunConfig, model: Path, renderer: Renderer) -> None:
    """Raise ConfigError when no reward model can be made of the model in the folder `model`."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    # A model whose code is its own is checked when it is loaded.
    model_config = AutoConfig.from_pretrained(model, trust_remote_code=config.model.trust_remote_code)
    known = type(model_config) in AutoModelForSequenceClassification._model_mapping
    if not known and not config.model.trust_remote_code:
        raise ConfigError(
            f"reward_model.data_path={config.reward_model.data_path}, refresh={config.reward_model.refresh.name}: "
            f"transformers has no class for sequence classification of {model_config.model_type}; set them to null and "
            "never, or take another model.path"
        )
    find_pad_id(renderer.tokenizer, renderer.stop_ids)
    context = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    longest = config.reward_model.training.max_length
    if context is not None and longest > context:
        raise ConfigError(
            f"reward_model.training.max_length={longest} exceeds the model's context of {context}; lower it"
        )


def check_promoted(state: RunState, store: RunStore) -> None:
    """Check the policies that later work was made with, since they cannot be made again.

    Raises CheckpointError when one was lost or altered.
    """
    for unit in state.plan:
        if unit.kind not in PROMOTED_KINDS or not state.done(unit) or not state.used_later(unit):
            continue
        facts = state.facts(unit, PolicyFacts)
        if facts.dropped:
            continue
        policy = make_stage_policy(unit.stage, facts)
        store.fetch(unit.path)
        check_policy(policy)
        if facts.adapter:
            store.fetch(find_adapter_folder(unit.stage, facts))
            check_adapter(policy)


def check_placement(config: RunConfig) -> None:
    """Check that engines and trainers fit on this machine, or on the GPUs that the config names.

    Not checked here: a cluster that is joined (`cluster.address`). Raises ConfigError.
    """
    cluster = config.cluster
    if cluster.address is not None and cluster.assume is None:
        return
    # What is not configured is what this machine has.
    cpus = cluster.cpus or os.cpu_count() or 1
    plan_placement(config, [{"CPU": float(cpus), "GPU": float(count_gpus(config))}])
    # Other machines have another memory.
    if cluster.assume is not None:
        return
    # On CPUs any number of processes can share a core, but each has torch in memory.
    engines, workers = config.generation.replicas, config.training.workers
    needed = (engines + workers) * PROCESS_BYTES
    memory = psutil.virtual_memory().total
    if needed > memory:
        raise ConfigError(
            f"generation.replicas={engines} and training.workers={workers} start {engines + workers} processes of at "
            f"least {PROCESS_BYTES / 2**30:.1f} GiB; this machine has {memory / 2**30:.1f} GiB; lower one of the two"
        )


def check_writable(layout: RunLayout) -> None:
    """Raise ConfigError when the run directory could not be made or written."""
    folder = existing_folder(layout.root)
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"run_dir={layout.root} cannot be written; choose another")
