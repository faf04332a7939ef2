"""The run: launch checks, the starting policy, the iterations, the table at the end."""

from __future__ import annotations

import fcntl
import json
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from spin import builtin, cluster
from spin.chat import Renderer, make_renderer
from spin.config import ConfigError, RunConfig, SftObjective, fingerprint, plain
from spin.crew import Crew
from spin.data import load_prompts, prepare
from spin.iteration import Run, benchmark, run_iteration, train
from spin.layout import RunLayout
from spin.ledger import Ledger
from spin.metrics import Reporter
from spin.model import CheckpointError, Policy, check_policy, find_model, policy_digest
from spin.records import Prompt, file_sha256, finish_file, finish_folder, write_rows


def run_loop(config: RunConfig) -> None:
    """Run, or continue, what `config` describes. Raises ConfigError for what the user can mend, before any compute."""
    started = time.perf_counter()
    layout = RunLayout(Path(config.run_dir))
    with locked(layout):
        ledger = claim(config, layout)
        reporter = Reporter(layout.metrics)
        reporter.keep_finished(lambda row: row["unit"] in ledger or row.get("step", 1) <= saved_step(ledger, row["unit"]))
        last = layout.iteration(config.iterations - 1)
        if f"{last.name}/policy" in ledger and (not config.benchmark.enabled or f"{last.name}/benchmark" in ledger):
            reporter.say(f"the run is complete: {config.iterations} iterations in {layout.root}; raise iterations to go on")
            summary(config, layout, ledger, reporter)
            return
        model = start_model(config, layout, ledger)
        renderer = launch_checks(config, layout, ledger, model)
        prepare_data(config, layout, ledger, reporter, renderer)
        with cluster.started(config, layout.native_log) as shares:
            signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C; set after Ray, which installs its own
            crew = Crew(config, shares, renderer.stop_ids)
            run = Run(config, layout, ledger, reporter, crew, config.data.answer_pattern)
            reporter.say(f"up in {time.perf_counter() - started:.1f} s; run directory {layout.root}")
            iterate(run, model)
        ledger.append("seconds", total=round(time.perf_counter() - started + (ledger.get("seconds") or {"total": 0})["total"], 3))
        summary(config, layout, ledger, reporter)


def saved_step(ledger: Ledger, unit: str) -> int:
    """The optimizer step from which an unfinished training stage goes on; 0 from its start."""
    return (ledger.get(unit.replace("/policy", "/trainer")) or {"step": 0})["step"]


def iterate(run: Run, model: Policy) -> None:
    """The starting policy and every iteration, each benchmarked."""
    config, layout = run.config, run.layout
    run.crew.warm(model)
    run.crew.ready()
    policy = start_policy(run, model)
    if config.benchmark.enabled:
        benchmark(run, "start", layout.start, -1, policy, None)
    for index in range(config.iterations):
        policy = run_iteration(run, index, policy)
        if config.benchmark.enabled:
            before = layout.iteration(index - 1) if index else layout.start
            benchmark(run, f"iteration {index}", layout.iteration(index), index, policy, before)


def start_policy(run: Run, model: Policy) -> Policy:
    """The model itself, or what the warm-up makes of it."""
    facts, stage = run.ledger.get("start/policy"), run.layout.start
    if not run.config.warmup.enabled:
        return model
    if facts is None:
        return train(run, "warm start", stage, -1, model, [str(run.layout.prompts("warmup"))], SftObjective(), run.config.warmup.training)
    policy = Policy(str(stage.policy), facts["digest"])
    check_policy(policy)
    return policy


@contextmanager
def locked(layout: RunLayout) -> Iterator[None]:
    """Hold the run directory. The lock is the kernel's: it goes with the process, however that dies."""
    try:
        layout.root.mkdir(parents=True, exist_ok=True)
        handle = layout.lock.open("a")
    except OSError as error:
        raise ConfigError(f"run_dir={layout.root} cannot be written ({error.strerror}); choose another") from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ConfigError(f"run_dir={layout.root} is in use by another spin run; wait for it, or choose another run_dir") from error
        yield


def claim(config: RunConfig, layout: RunLayout) -> Ledger:
    """Write the config once, or check that this is the run's. Raises ConfigError naming the keys that changed."""
    ledger = Ledger(layout.ledger)
    if "run" in ledger and "data" not in ledger:  # a launch that was refused: nothing was begun, so its config binds nobody
        layout.config.unlink(missing_ok=True)
        layout.ledger.unlink()
        shutil.rmtree(layout.model, ignore_errors=True)
        shutil.rmtree(layout.prompts("train").parent, ignore_errors=True)
        layout.metrics.unlink(missing_ok=True)
        ledger = Ledger(layout.ledger)
    keys, known = fingerprint(config), ledger.get("run")
    if known is None:
        strangers = sorted(path.name for path in layout.root.iterdir() if path not in (layout.lock, layout.config))
        if strangers:
            raise ConfigError(f"run_dir={layout.root} is no run (no ledger) and not empty ({', '.join(strangers[:3])}); choose another, or empty it")
        text = OmegaConf.to_yaml(OmegaConf.create(plain(config)))
        finish_file(layout.config, lambda temporary: _write(temporary, text))
        ledger.append("run", keys=keys)
        return ledger
    changed = [f"{key}={keys.get(key)} (was {known['keys'].get(key)})" for key in sorted(keys | known["keys"]) if keys.get(key) != known["keys"].get(key)]
    if changed:
        raise ConfigError(f"run_dir={layout.root} holds a run with another config: {', '.join(changed)}; put these back to continue it, or choose another run_dir")
    return ledger


def start_model(config: RunConfig, layout: RunLayout, ledger: Ledger) -> Policy:
    """The model as found or made on the spot, by its digest; the same one on every resume."""
    if config.model.path == builtin.BUILTIN_MODEL:
        folder = layout.model
        if "model" not in ledger:
            finish_folder(folder, lambda temporary: builtin.write_tiny_model(temporary, config.seed))
    elif config.model.path.startswith("builtin:"):
        raise ConfigError(f"model.path={config.model.path}: the only built-in model is {builtin.BUILTIN_MODEL}")
    else:
        folder = find_model(config.model.path)
    facts = ledger.get("model")
    if facts is None:
        facts = {"digest": policy_digest(folder)}
        ledger.append("model", **facts)
    policy = Policy(str(folder.resolve()), facts["digest"])
    check_policy(policy)
    return policy


def launch_checks(config: RunConfig, layout: RunLayout, ledger: Ledger, model: Policy) -> Renderer:
    """Everything about the model that can be known before it is loaded."""
    from transformers import AutoConfig, AutoTokenizer

    folder = Path(model.path)
    try:
        facts = AutoConfig.from_pretrained(folder, trust_remote_code=config.model.trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=config.model.trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"model.path={config.model.path} is no usable model: {str(error).splitlines()[0]}") from error
    longest = config.max_prompt_length + config.generation.max_tokens
    context = getattr(facts, "max_position_embeddings", None)
    if context is not None and longest > context:
        raise ConfigError(
            f"prompts of {config.max_prompt_length} and answers of {config.generation.max_tokens} tokens exceed the model's context of {context}; "
            "lower generation.max_prompt_tokens or generation.max_tokens"
        )
    if config.generation.max_tokens >= longest or config.max_prompt_length < 1:
        raise ConfigError(f"training.max_length={config.training.max_length} leaves no room for a prompt; raise it or lower generation.max_tokens")
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    left = sum(f"iterations/{index:03d}/policy" not in ledger for index in range(config.iterations)) + config.warmup.enabled
    free = shutil.disk_usage(layout.root).free
    if free < size * left * 1.1:
        raise ConfigError(
            f"run_dir={layout.root} has {free / 2**30:.1f} GiB free, but {left} checkpoints of {size / 2**30:.1f} GiB are to be written; free some or choose another disk"
        )
    generation = folder / "generation_config.json"
    stops = json.loads(generation.read_text()).get("eos_token_id") if generation.exists() else None
    return make_renderer(tokenizer, config.model.chat_template, stops if isinstance(stops, list) else [] if stops is None else [stops])


def prepare_data(config: RunConfig, layout: RunLayout, ledger: Ledger, reporter: Reporter, renderer: Renderer) -> None:
    """Write the prepared sets once; on a resume check that they are those of the run."""
    facts = ledger.get("data")
    if facts is not None:
        for name, digest in facts["sha256"].items():
            path = layout.prompts(name)
            if not path.exists() or file_sha256(path) != digest:
                raise CheckpointError(f"{path} is missing or was altered; restore it, or start again with another run_dir")
        return
    limits = (config.max_prompt_length, config.generation.max_tokens)
    prepared = prepare(config.data, renderer, *limits, config.seed)
    sets, reports = {"train": prepared.train, "heldout": prepared.heldout}, prepared.reports
    if config.warmup.enabled:
        if config.warmup.path is None:
            sets["warmup"] = prepared.train[: config.warmup.limit]
        else:
            rows, report = load_prompts(config.warmup.path, config.warmup.split, renderer, *limits, None)
            held = {tuple(prompt.prompt_ids) for prompt in prepared.heldout}
            sets["warmup"] = [prompt for prompt in rows if tuple(prompt.prompt_ids) not in held][: config.warmup.limit]
            report.kept = len(sets["warmup"])
            reports.append(report)
    for report in reports:
        reporter.say(f"data: {report.line()}")
    digests = {name: write_rows(layout.prompts(name), Prompt, rows) for name, rows in sets.items()}
    ledger.append("data", sha256=digests, **{name: len(rows) for name, rows in sets.items()})


def summary(config: RunConfig, layout: RunLayout, ledger: Ledger, reporter: Reporter) -> None:
    """The table of the start and every iteration, and where the time went."""
    stages = [layout.start, *(layout.iteration(index) for index in range(config.iterations))]

    def seconds(unit: str) -> float:
        return float((ledger.get(unit) or {}).get("seconds", 0.0))

    rows, spent = [], {"samples": 0.0, "pairs": 0.0, "policy": 0.0, "benchmark": 0.0}
    for stage in stages:
        figures: dict[str, Any] = json.loads(stage.benchmark.read_text()) if f"{stage.name}/benchmark" in ledger else {}
        times = {kind: seconds(f"{stage.name}/{kind}") for kind in spent}
        spent = {kind: spent[kind] + times[kind] for kind in spent}
        shown = [figures.get(key) for key in ("exact_match_greedy", "exact_match_sampled", "nll", "win_rate")]
        name = "start" if stage.name == "start" else f"iteration {int(stage.folder.name)}"
        shown_times = (times["samples"], times["policy"], times["pairs"] + times["benchmark"])
        rows.append([name, *("-" if v is None else f"{v:.3f}" for v in shown), *(f"{t:.1f}" for t in shown_times)])
    columns = ["policy", "EM", "EM T", "NLL", "win", "gen s", "train s", "other s"]
    title = (
        f"EM: exact match on held-out prompts, greedy; EM T: sampled at temperature {config.generation.temperature:g}; "
        "NLL of the truth, nats a token; win: truth preferred to the opponent's answer"
    )
    reporter.table(title, columns, rows)
    total = (ledger.get("seconds") or {"total": 0.0})["total"]
    if total:
        neither = total - spent["samples"] - spent["policy"]
        reporter.say(f"wall clock {total:.0f} s: generation {spent['samples']:.0f}, training {spent['policy']:.0f}, neither {neither:.0f} ({neither / total:.0%})")
    reporter.say(f"run directory: {layout.root}")


def _write(path: Path, text: str) -> None:
    path.write_text(text)
