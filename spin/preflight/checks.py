"""Before the first minute of compute: the run directory is claimed, the model found, everything checked that can be, the data prepared."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory

from spin.benchmark.lm_eval import check_tasks
from spin.cluster.placement import plan_placement
from spin.config.run import RunConfig
from spin.data import builtin
from spin.data.chat import Renderer, load_renderer
from spin.errors import ConfigError
from spin.feedback.row_builders import check_feedback
from spin.models.policy import Policy, check_policy, find_model, policy_digest
from spin.objectives.objective import Objective
from spin.preflight.claim import check_claim, is_refused_launch, open_run_store
from spin.preflight.estimate import Estimate, estimate_run
from spin.preflight.hardware import list_gpus
from spin.preflight.prepare import prepare_data
from spin.report.console import Reporter, format_duration, show_table
from spin.report.trackers import check_trackers
from spin.run_dir.facts import PolicyFacts
from spin.run_dir.files import existing_folder, write_folder_atomically
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import RunLayout
from spin.run_dir.run_state import plan_state
from spin.run_dir.store import RunStore


def start_model(config: RunConfig, store: RunStore, ledger: Ledger) -> Policy:
    """The model as found or made on the spot, by its digest; the same one on every resume."""
    facts = ledger.get("model")
    folder = model_folder(config, store, made=facts is not None)
    if facts is None:
        facts = {"digest": policy_digest(folder)}
        ledger.append("model", **facts)
    policy = Policy(str(folder.resolve()), facts["digest"])
    store.fetch(Path(policy.path))
    check_policy(policy)
    return policy


def model_folder(config: RunConfig, store: RunStore, made: bool = False) -> Path:
    """Where the model lies; the built-in one is written first, unless it is `made`. Raises ConfigError when there is none."""
    if config.model.path == builtin.BUILTIN_MODEL:
        folder = RunLayout(store.root).model
        if not made:
            write_folder_atomically(folder, lambda temporary: builtin.write_tiny_model(temporary, config.seed))
            store.publish(folder)
        return folder
    if config.model.path.startswith("builtin:"):
        raise ConfigError(f"model.path={config.model.path}: the only built-in model is {builtin.BUILTIN_MODEL}")
    return find_model(config.model.path)


def check_promoted(config: RunConfig, iteration_configs: list[RunConfig], store: RunStore, ledger: Ledger) -> None:
    """Check the policies that later work was made with: they cannot be made again.

    Raises CheckpointError when one was lost or altered.
    """
    state = plan_state(RunLayout(store.root), config, iteration_configs, ledger)
    for unit in state.plan:
        if unit.kind == "policy" and state.done(unit) and state.used_later(unit):
            store.fetch(unit.path)
            check_policy(Policy(str(unit.path), state.facts(unit, PolicyFacts).digest))


def launch_checks(config: RunConfig, iteration_configs: list[RunConfig], folder: Path) -> Renderer:
    """Everything about the model in `folder` that can be known before it is loaded."""
    from transformers import AutoConfig, AutoTokenizer

    for iteration in iteration_configs:
        Objective(iteration.objective)  # what is the user's own is imported here, not an hour later
        check_feedback(iteration)
    try:
        facts = AutoConfig.from_pretrained(folder, trust_remote_code=config.model.trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=config.model.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        leave = "; model.trust_remote_code=true runs it, if you trust it" if "trust_remote_code" in str(error) else ""
        raise ConfigError(
            f"model.path={config.model.path} is no usable model: {str(error).splitlines()[0]}{leave}"
        ) from error
    longest = config.max_prompt_length + config.generation.max_tokens
    context = getattr(facts, "max_position_embeddings", None)
    if context is not None and longest > context:
        raise ConfigError(
            f"prompts of {config.max_prompt_length} and answers of {config.generation.max_tokens} tokens exceed the model's context of {context}; "
            "lower generation.max_prompt_tokens or generation.max_tokens"
        )
    if config.generation.max_tokens >= longest or config.max_prompt_length < 1:
        raise ConfigError(
            f"training.max_length={config.training.max_length} leaves no room for a prompt; raise it or lower generation.max_tokens"
        )
    return load_renderer(config.model, folder, tokenizer)


def check(config: RunConfig, iteration_configs: list[RunConfig]) -> None:
    """Print what is found. Raises what `spin run` would raise before it starts."""
    store = open_run_store(config)
    layout = RunLayout(store.root)
    with TemporaryDirectory(prefix="spin-check-") as folder:
        scratch_store = RunStore(Path(folder))
        scratch = RunLayout(scratch_store.root)
        reporter = Reporter(scratch.metrics, scratch.now)
        ledger = Ledger(layout.ledger, store, read_only=True)
        begun = "data" in ledger
        check_writable(layout)
        if not is_refused_launch(layout, store, ledger):
            check_claim(config, iteration_configs, store, ledger)
        if not begun:
            ledger = Ledger(scratch.ledger)
        if begun:
            model = Path(start_model(config, store, ledger).path)
            check_promoted(config, iteration_configs, store, ledger)
        else:
            model = model_folder(config, scratch_store)
        check_places(config)
        check_trackers(config.tracking)
        check_tasks(config.benchmark.lm_eval)
        renderer = launch_checks(config, iteration_configs, model)
        for note in renderer.notes:
            reporter.print(f"note: {note}")
        there = begun and all(layout.prompts(name).exists() for name in (ledger.get("data") or {})["sha256"])
        prepared = layout if there else scratch
        if not there:
            prepare_data(config, iteration_configs, scratch_store, Ledger(scratch.ledger), reporter, renderer)
        found = estimate_run(config, iteration_configs, layout, ledger, model, prepared)
    show_estimate(found, reporter)
    found.check_disk()
    reporter.print(
        f"{layout.root}: all that can be checked before the start is in order; spin run with the same words {'continues' if begun else 'starts'} it"
    )


def check_places(config: RunConfig) -> None:
    """Raise ConfigError when engines and trainers do not fit on this machine, or on the GPUs that the config says it has. A cluster that is joined is not asked."""
    if config.cluster.address is None:
        found = {
            "CPU": float(config.cluster.cpus or os.cpu_count() or 1),
            "GPU": float(len(list_gpus()) if config.cluster.gpus is None else config.cluster.gpus),
        }
        plan_placement(config, [found])


def check_writable(layout: RunLayout) -> None:
    """Raise ConfigError when the run directory could not be made or written."""
    folder = existing_folder(layout.root)
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"run_dir={layout.root} cannot be written; choose another")


def show_estimate(estimate: Estimate, reporter: Reporter) -> None:
    """Print the seconds of each stage as a table, then the lines of the estimate."""
    columns = ["generate", "reward", "score", "train", "benchmark"]
    if not any(seconds["reward"] for seconds in estimate.seconds.values()):
        columns.remove("reward")
    rows = []
    for label, seconds in estimate.seconds.items():
        durations = [format_duration(seconds[name]) if seconds[name] else "-" for name in columns]
        rows.append([label, *durations])
    if rows:
        show_table(reporter.console, "", ["still to do", *columns], rows)
    for line in estimate.lines():
        reporter.print(line)
