"""`spin bench`: benchmark the policies of a finished or running run, with other samples or held-out rows where they are given.

The run itself is only read: no lock is taken and none of its files is written, so that it may go on meanwhile. What comes out lies in a folder of its
own (`to`, by default ``bench`` inside the run directory) that is laid out like a run; the same command again measures what has been promoted since.
The engine starts once and takes each policy in turn; while it answers for one, the trainer scores the one before.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from spin.benchmark.lm_eval import check_tasks
from spin.cluster import ray_cluster
from spin.cluster.worker_groups import WorkerGroups
from spin.config.groups import Placement
from spin.config.run import RunConfig, fingerprint, load_config
from spin.config.training import Sharding
from spin.data import builtin
from spin.data.chat import Renderer
from spin.data.datasets import load_prompts
from spin.data.parquet import read_rows, write_rows
from spin.data.records import Prompt
from spin.errors import ConfigError
from spin.models.policy import Policy, check_policy, find_model
from spin.orchestration.benchmark_stage import generate_answers, harness_done, lm_eval, score_answers
from spin.orchestration.context import RunContext
from spin.preflight.checks import renderer_of
from spin.preflight.claim import locked, open_run_store
from spin.report.console import Reporter
from spin.report.tables import aggregate, stages
from spin.run_dir.files import file_sha256, write_atomically
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import RunLayout, Stage
from spin.run_dir.store import RunStore, open_store


@dataclass(frozen=True)
class BenchOptions:
    """What is to differ from the run; null: as the run had it."""

    to: str | None
    samples: int | None
    eval_path: str | None
    eval_split: str | None
    eval_limit: int | None
    tasks: Any
    """Of lm-evaluation-harness, one or a list, with what follows."""
    include_path: str | None
    limit: int | None
    address: str | None
    """Of the cluster that all of the runs are benchmarked on; null: this machine alone."""


@dataclass(frozen=True)
class BenchmarkTarget:
    """One promoted policy, its number in its chain, and the stage before it."""

    stage: Stage
    index: int
    policy: Policy
    before: Stage | None


def bench(run_dirs: list[str], wanted: BenchOptions) -> None:
    """Benchmark one run or several; then their table. Raises ConfigError for what cannot be."""
    if len(run_dirs) > 1 and wanted.to is not None:
        raise ConfigError(
            f"to={wanted.to} is one folder for {len(run_dirs)} runs; leave it out, and each gets a folder bench inside"
        )
    folders = [_bench(open_store(run_dir), wanted) for run_dir in run_dirs]
    aggregate([str(folder) for folder in folders], Console(highlight=False, soft_wrap=True))


def _bench(source_store: RunStore, wanted: BenchOptions) -> Path:
    """Benchmark one run; returns where."""
    started = time.perf_counter()
    if wanted.address is not None:  # actors of other machines use the paths
        source_store = replace(source_store, root=source_store.root.absolute())
    source = RunLayout(source_store.root)
    if not source.ledger.is_file() or not source.config.is_file():
        raise ConfigError(
            f"run_dir={source.root} holds no run (no config.yaml and ledger.jsonl); expected the folder that spin run was given"
        )
    known, config = Ledger(source.ledger, read_only=True), load_config(source.config)
    placement = (
        Placement.sequential if config.cluster.placement is Placement.split else config.cluster.placement
    )  # nobody trains
    config = replace(config, cluster=replace(config.cluster, address=wanted.address, placement=placement))
    target_store = open_run_store(replace(config, run_dir=wanted.to or str(source.root / "bench")))
    layout = RunLayout(target_store.root)
    if target_store.remote is not None and source_store.remote is not None:
        raise ConfigError(
            f"to={wanted.to}: the run is at a URL too, and one command writes to one URL; expected a local folder"
        )
    # The actors get one store: the one with a URL. It leaves the other's files alone.
    store = source_store if target_store.remote is None else target_store
    tasks = config.benchmark.lm_eval
    tasks = replace(
        tasks,
        tasks=[wanted.tasks] if isinstance(wanted.tasks, str) else wanted.tasks or tasks.tasks,
        include_path=wanted.include_path or tasks.include_path,
        limit=wanted.limit or tasks.limit,
    )
    config = replace(
        config,
        run_dir=str(layout.root),
        training=replace(config.training, workers=1, sharding=Sharding.none),
        benchmark=replace(
            config.benchmark, enabled=True, samples=wanted.samples or config.benchmark.samples, lm_eval=tasks
        ),
        data=replace(
            config.data,
            eval_path=wanted.eval_path or config.data.eval_path,
            eval_split=wanted.eval_split or config.data.eval_split,
            eval_limit=wanted.eval_limit or config.data.eval_limit,
        ),
    )
    check_tasks(tasks)
    start = start_policy(source, config, known, store)
    with locked(layout, store):
        ledger, reporter = Ledger(layout.ledger, store), Reporter(layout.metrics, layout.now)
        renderer = renderer_of(config, Path(start.path))
        heldout(source, layout, config, wanted, ledger, renderer, reporter, store)
        found = list(candidates(source, layout, known, start))
        for candidate in found:  # what the run's ledger knows of time and tokens goes into the table here too
            for kind in ("samples", "pairs", "policy"):
                unit = f"{candidate.stage.name}/{kind}"
                if unit in known and unit not in ledger:
                    ledger.append(**(known.get(unit) or {}))
        todo = [candidate for candidate in found if f"{candidate.stage.name}/benchmark" not in ledger]
        untested = [
            candidate for candidate in found if tasks.tasks and not harness_done(tasks, candidate.stage, ledger)
        ]
        if not todo and not untested:
            reporter.print(f"all {len(found)} policies of {source.root} are benchmarked in {layout.root}")
            return layout.root
        with ray_cluster.started(config, layout.native_log, [start.path], reporter.print, store) as places:
            worker_groups = WorkerGroups(config, places, renderer.stop_ids, reporter.print, lambda tokens: None, store)
            worker_groups.preload(start)
            worker_groups.ready(start, None)
            run = RunContext(config, [config], layout, ledger, reporter, worker_groups, store)
            list(worker_groups.on_generators(lambda actor, policy: actor.load.remote(policy), [start]))
            up = time.perf_counter()
            generated = measure(run, todo, start)
            seconds = time.perf_counter() - up
            for candidate in untested:
                lm_eval(run, candidate.stage, candidate.policy)
        if not todo:
            return layout.root
        reporter.print(
            f"{len(todo)} policies in {seconds:.1f} s, of which {generated:.1f} s for the answers ({seconds / generated:.2f}×); "
            f"up in {up - started:.1f} s, engine included; in {layout.root}"
        )
    return layout.root


def measure(run: RunContext, todo: list[BenchmarkTarget], start: Policy) -> float:
    """Benchmark the candidates, each scored while the next one answers. Returns the seconds that the answers took."""
    generated, concluding, asked = 0.0, None, None
    with ThreadPoolExecutor(1) as background:
        for candidate in todo:
            if concluding is not None:
                concluding.result()
            run.verify_engines(candidate.policy)  # before the trainer is busy with the policy before: it takes part
            concluding = background.submit(score_answers, run, asked) if asked else None
            if concluding is not None and run.config.cluster.placement is Placement.colocated:
                concluding.result()  # the engine sleeps while the trainer scores
            asked = generate_answers(run, candidate.stage, candidate.index, candidate.policy, start, candidate.before)
            generated += asked.generated
        if concluding is not None:
            concluding.result()
    if asked is not None:
        score_answers(run, asked)
    return generated


def start_policy(source: RunLayout, config: RunConfig, known: Ledger, store: RunStore) -> Policy:
    """What iteration 0 of a run started from. Raises ConfigError when it is not there yet."""
    facts = known.get("start/policy" if config.warmup.enabled else "model")
    if facts is None:
        raise ConfigError(f"run_dir={source.root} has no starting policy yet; wait for its warm start")
    folder = (
        source.start.policy
        if config.warmup.enabled
        else source.model
        if config.model.path == builtin.BUILTIN_MODEL
        else find_model(config.model.path)
    )
    policy = Policy(str(folder.resolve()), facts["digest"])
    store.fetch(Path(policy.path))
    check_policy(policy)
    return policy


def candidates(source: RunLayout, layout: RunLayout, known: Ledger, start: Policy) -> Iterator[BenchmarkTarget]:
    """Every policy that the run has promoted: the start, the iterations, the baseline."""
    yield BenchmarkTarget(layout.start, -1, start, None)
    before = layout.start
    for stage in stages(source, known, "policy"):
        if stage.name == "start":
            continue
        index, here = int(stage.folder.name), Stage(layout.root, stage.name)
        yield BenchmarkTarget(
            here,
            index,
            Policy(str(stage.policy.resolve()), (known.get(f"{stage.name}/policy") or {})["digest"]),
            before if index else layout.start,
        )
        before = here


def heldout(
    source: RunLayout,
    layout: RunLayout,
    config: RunConfig,
    wanted: BenchOptions,
    ledger: Ledger,
    renderer: Renderer,
    reporter: Reporter,
    store: RunStore,
) -> None:
    """The held-out rows: the run's, or those asked for, without what the run trained on. Raises ConfigError when `to` holds a benchmark of others."""
    path, data = layout.prompts("heldout"), config.data
    settings = {
        "samples": config.benchmark.samples,
        "eval_path": data.eval_path,
        "eval_split": data.eval_split,
        "eval_limit": data.eval_limit,
    }
    if (facts := ledger.get("bench")) is not None:
        changed = [
            f"{key}={value} (was {facts['settings'][key]})"
            for key, value in settings.items()
            if facts["settings"][key] != value
        ]
        if changed:
            raise ConfigError(
                f"{layout.root} holds a benchmark with other settings: {', '.join(changed)}; give to=another folder"
            )
        if file_sha256(path) != facts["sha256"]:
            raise ConfigError(f"{path} was altered; give to=another folder")
        return
    if (wanted.eval_path, wanted.eval_split, wanted.eval_limit) == (None, None, None):
        rows = read_rows(source.prompts("heldout"), Prompt)
    elif data.eval_path is None:
        raise ConfigError(
            "the held-out rows were taken out of data.path when the run began, and the others were trained on; give eval_path=… with fresh ones"
        )
    else:
        rows, report = load_prompts(
            data.eval_path,
            data.eval_split,
            renderer,
            config.max_prompt_length,
            config.generation.max_tokens,
            data.answer_pattern,
            data.turn,
        )
        trained = {tuple(prompt.prompt_ids) for prompt in read_rows(source.prompts("train"), Prompt)}
        fresh = [prompt for prompt in rows if tuple(prompt.prompt_ids) not in trained]
        report.dropped["trained on"] += len(rows) - len(fresh)
        rows = [replace(prompt, prompt_id=index) for index, prompt in enumerate(fresh[: data.eval_limit])]
        report.kept = len(rows)
        reporter.print(f"data: {report.line()}")
        if not rows:
            raise ConfigError(f"eval_path={data.eval_path}: every usable row was trained on; give another")
    sha256 = write_rows(path, Prompt, rows)
    write_atomically(layout.config, lambda temporary: _copy(source.config, temporary))
    store.publish(path)
    store.publish(layout.config)
    ledger.append("bench", keys=fingerprint(config), settings=settings, sha256=sha256)


def _copy(source: Path, path: Path) -> None:
    path.write_bytes(source.read_bytes())
