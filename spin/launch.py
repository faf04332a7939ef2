"""Before the first minute of compute: the run directory is claimed, the model found, everything checked that can be, the data prepared."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from spin import builtin
from spin.chat import Renderer, make_renderer
from spin.config import RunConfig, fingerprint, imported, plain
from spin.criterion import Criterion
from spin.data import Report, load_labelled, prepare, stream_prompts
from spin.errors import ConfigError
from spin.layout import RunLayout, run_root
from spin.ledger import Ledger
from spin.metrics import Reporter
from spin.model import CheckpointError, Policy, check_policy, find_model, policy_digest
from spin.records import (
    Pair,
    Prompt,
    Rating,
    count_rows,
    file_sha256,
    finish_file,
    finish_folder,
    stream_rows,
    unfinished,
    write_rows,
)
from spin.storage import attached, drop, is_url, keep, names_in

LABELLED = {"labelled-pairs": Pair, "ratings": Rating}
"""The labelled sets of a run, and their records."""


def layout_of(config: RunConfig) -> RunLayout:
    """The run directory, by its absolute path where the actors of other machines are told of it; of a URL the local folder, to which this process is attached."""
    if is_url(config.run_dir):
        return RunLayout(run_root(config.run_dir))
    return RunLayout(Path(config.run_dir) if config.cluster.address is None else Path(config.run_dir).absolute())


@contextmanager
def locked(layout: RunLayout) -> Iterator[None]:
    """Hold the run directory. The lock is the kernel's: it goes with the process, however that dies."""
    try:
        layout.root.mkdir(parents=True, exist_ok=True)
        handle = layout.lock.open("a+")
    except OSError as error:
        raise ConfigError(f"run_dir={layout.root} cannot be written ({error.strerror}); choose another") from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            handle.seek(0)
            raise ConfigError(
                f"run_dir={layout.root} is in use by another spin run (pid {handle.read()}); wait for it, or choose another run_dir"
            ) from error
        handle.truncate(0)
        handle.write(str(os.getpid()))  # for the one who is refused, and for `spin status`
        handle.flush()
        remote = attached()
        if remote is None or remote.root != layout.root:
            yield
            return
        with remote.locked():
            remote.synchronise()
            yield


def claim(config: RunConfig, plan: list[RunConfig], layout: RunLayout) -> Ledger:
    """Write the config once, or check that this is the run's. Raises ConfigError naming the keys that changed."""
    ledger = Ledger(layout.ledger)
    if (
        "run" in ledger and "data" not in ledger
    ):  # a launch that was refused: nothing was begun, so its config binds nobody
        for path in (
            layout.model,
            layout.prompts("train").parent,
            layout.metrics,
            layout.error,
            layout.now,
            layout.config,
        ):
            for made in (path, unfinished(path)):
                drop(made)
        drop(layout.ledger)  # last: as long as it is there, a launch that dies in between is done over
        ledger = Ledger(layout.ledger)
    check_claim(config, plan, layout, ledger)
    if "run" not in ledger or not layout.config.exists():
        write_config(config, layout)
    if "run" not in ledger:
        ledger.append("run", keys=fingerprint(config))
    return ledger


def check_claim(config: RunConfig, plan: list[RunConfig], layout: RunLayout, ledger: Ledger) -> None:
    """Raise ConfigError when the run directory holds something else, or a run with another config, naming the keys that changed."""
    known = ledger.get("run")
    if known is None:
        mine = {layout.lock.name, layout.config.name, unfinished(layout.config).name}
        names = names_in(layout.root)
        if strangers := sorted(set(names) - mine):
            raise ConfigError(
                f"run_dir={config.run_dir} is no run (no ledger) and not empty ({', '.join(strangers[:3])}); choose another, or empty it"
            )
        return
    changed = _changed(fingerprint(config), known["keys"])
    for index, iteration in enumerate(plan if not changed else []):
        begun = ledger.get(f"{layout.iteration(index).name}/config")
        changed += (
            [f"iteration {index}: {key}" for key in _changed(fingerprint(iteration), begun["keys"])] if begun else []
        )
    if changed:
        raise ConfigError(
            f"run_dir={layout.root} holds a run with another config: {', '.join(changed)}; put these back to continue it, or choose another run_dir"
        )


def write_config(config: RunConfig, layout: RunLayout) -> None:
    """The resolved config, for people and for `spin status`; the run itself goes by the ledger."""
    text = OmegaConf.to_yaml(OmegaConf.create(plain(config)))
    finish_file(layout.config, lambda temporary: _write(temporary, text))


def _changed(now: dict[str, str], then: dict[str, str]) -> list[str]:
    return [
        f"{key}={now.get(key)} (was {then.get(key)})" for key in sorted(now | then) if now.get(key) != then.get(key)
    ]


def start_model(config: RunConfig, layout: RunLayout, ledger: Ledger) -> Policy:
    """The model as found or made on the spot, by its digest; the same one on every resume."""
    facts = ledger.get("model")
    folder = model_folder(config, layout, made=facts is not None)
    if facts is None:
        facts = {"digest": policy_digest(folder)}
        ledger.append("model", **facts)
    policy = Policy(str(folder.resolve()), facts["digest"])
    check_policy(policy)
    return policy


def model_folder(config: RunConfig, layout: RunLayout, made: bool = False) -> Path:
    """Where the model lies; the built-in one is written first, unless it is `made`. Raises ConfigError when there is none."""
    if config.model.path == builtin.BUILTIN_MODEL:
        if not made:
            finish_folder(layout.model, lambda temporary: builtin.write_tiny_model(temporary, config.seed))
        return layout.model
    if config.model.path.startswith("builtin:"):
        raise ConfigError(f"model.path={config.model.path}: the only built-in model is {builtin.BUILTIN_MODEL}")
    return find_model(config.model.path)


def check_promoted(config: RunConfig, layout: RunLayout, ledger: Ledger) -> None:
    """Raise CheckpointError when a policy that later work was made with was lost or altered: nothing can make the same one again."""
    numbers = range(config.iterations + 1)
    chains = ([layout.start, *map(layout.iteration, numbers)], [*map(layout.baseline, numbers)])
    for stage, after in (pair for chain in chains for pair in pairwise(chain)):
        facts = ledger.get(f"{stage.name}/policy")
        if facts is not None and (f"{after.name}/config" in ledger or f"{after.name}/policy" in ledger):
            check_policy(Policy(str(stage.policy), facts["digest"]))


def launch_checks(config: RunConfig, plan: list[RunConfig], folder: Path) -> Renderer:
    """Everything about the model in `folder` that can be known before it is loaded."""
    from transformers import AutoConfig, AutoTokenizer

    for iteration in plan:
        Criterion(iteration.objective)  # what is the user's own is imported here, not an hour later
        if iteration.feedback._target_ is not None:
            imported("feedback._target_", iteration.feedback._target_)
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
    return renderer_of(config, folder, tokenizer)


def renderer_of(config: RunConfig, folder: Path, tokenizer: Any = None) -> Renderer:
    """How a model's prompts are rendered and its answers end; `tokenizer`: the folder's, where it is loaded already."""
    from transformers import AutoTokenizer

    tokenizer = tokenizer or AutoTokenizer.from_pretrained(folder, trust_remote_code=config.model.trust_remote_code)
    generation = folder / "generation_config.json"
    stops = json.loads(generation.read_text()).get("eos_token_id") if generation.exists() else None
    return make_renderer(
        tokenizer, config.model.chat_template, stops if isinstance(stops, list) else [] if stops is None else [stops]
    )


def prepare_data(
    config: RunConfig, plan: list[RunConfig], layout: RunLayout, ledger: Ledger, reporter: Reporter, renderer: Renderer
) -> dict[str, Any] | None:
    """Write the prepared sets once; on a resume, make again those that were lost or altered. Raises CheckpointError when they come out as others.

    Returns what the ledger is to say of them when the run begins, as ``data``; None on a resume: it is said already.
    """
    facts = ledger.get("data")
    damaged = (
        {
            name: digest
            for name, digest in facts["sha256"].items()
            if not layout.prompts(name).exists() or file_sha256(layout.prompts(name)) != digest
        }
        if facts
        else {}
    )
    if facts and not damaged:
        return None
    limits = (config.max_prompt_length, config.generation.max_tokens)
    prepared = prepare(config.data, renderer, *limits, config.seed)
    sets: dict[str, Iterable[Any]] = {"train": prepared.train, "heldout": prepared.heldout}
    reports = prepared.reports
    held = {tuple(prompt.prompt_ids) for prompt in prepared.heldout}
    if config.warmup.enabled:
        if config.warmup.path is None:  # the first of those that were written just before
            sets["warmup"] = islice(stream_rows(layout.prompts("train"), Prompt), config.warmup.limit)
        else:
            reports.append(Report(config.warmup.path))
            warmup = stream_prompts(reports[-1], config.warmup.split, renderer, *limits, None, config.data.turn, held)
            sets["warmup"] = islice(warmup, config.warmup.limit)
    sources = {(f.path, f.split, f.limit): f for f in (iteration.feedback for iteration in plan) if f.path is not None}
    if len(sources) > 1:
        raise ConfigError(
            f"the schedule names {len(sources)} labelled sets ({', '.join(str(path) for path, _, _ in sources)}); expected one feedback.path, or null, in each iteration"
        )
    rated: list[Rating] = []
    for feedback in sources.values():
        labelled, rated, report = load_labelled(feedback, renderer, *limits, held)
        sets |= {"labelled-pairs": labelled} if labelled else {}
        sets |= {"ratings": rated} if rated else {}
        reports.append(report)
    for index, iteration in enumerate(plan):
        if rated and iteration.feedback.path is not None and Criterion(iteration.objective).rows == "pairs":
            raise ConfigError(
                f"iteration {index}: feedback.path={iteration.feedback.path} holds ratings, which objective={iteration.objective.name} cannot use; take objective=kto"
            )
    for name, digest in damaged.items():
        reporter.say(f"warning: {layout.prompts(name)} is gone or was altered; it is made again from the data")
        again = unfinished(layout.prompts(name))
        found = write_rows(again, LABELLED.get(name, Prompt), sets.get(name, []))
        if found != digest:
            again.unlink()
            raise CheckpointError(
                f"{layout.prompts(name)} is gone or was altered, and the data it came from give other rows now; restore one of them, or choose another run_dir"
            )
        again.replace(layout.prompts(name))
        keep(layout.prompts(name))
    if damaged:
        return None
    digests = {name: write_rows(layout.prompts(name), LABELLED.get(name, Prompt), rows) for name, rows in sets.items()}
    for report in reports:
        reporter.say(f"data: {report.line()}")
    return {"sha256": digests, **{name: count_rows(layout.prompts(name)) for name in sets}}


def _write(path: Path, text: str) -> None:
    path.write_text(text)
