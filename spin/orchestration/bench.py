"""`spin bench`: benchmark the policies of a finished or running run, with other samples or held-out rows where they are given.

The run itself is only read: no lock is taken and none of its files is written, so that it may go on meanwhile. What comes out lies in a folder of its
own (`to`, by default ``bench`` inside the run directory) that is laid out like a run; the same command again measures what has been promoted since.
The engine starts once and takes each policy in turn; while it answers for one, the trainer scores the one before.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
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
from spin.orchestration.benchmark_stage import HeldoutAnswers, generate_answers, lm_eval, score_answers
from spin.orchestration.context import RunContext
from spin.preflight.checks import renderer_of
from spin.preflight.claim import locked, open_run_store
from spin.report.console import Reporter
from spin.report.tables import aggregate
from spin.run_dir.facts import PolicyFacts
from spin.run_dir.files import file_sha256, write_atomically
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import RunLayout, Stage
from spin.run_dir.plan import MODEL, kind_name
from spin.run_dir.run_state import plan_state, read_config, read_state, record_session
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
    """One promoted policy of the run, and its stage in the folder of the bench."""

    stage: Stage
    policy: Policy


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
    start = find_start(source, config, known, store)
    with locked(layout, store):
        ledger, reporter = Ledger(layout.ledger, store), Reporter(layout.metrics, layout.now)
        renderer = renderer_of(config, Path(start.path))
        heldout(source, layout, config, wanted, ledger, renderer, reporter, store)
        planned = copy_history(source, config, known, ledger)
        state = plan_state(layout, planned, [planned] * planned.iterations, ledger)
        targets = list_targets(source, layout, known, start)
        todo, untested = [], []
        for target in targets:
            if not state.done(state.unit(target.stage, "benchmark")):
                todo.append(target)
            if not all(state.done(unit) for unit in state.units(target.stage, "lm_eval")):
                untested.append(target)
        if not todo and not untested:
            reporter.print(f"all {len(targets)} policies of {source.root} are benchmarked in {layout.root}")
            return layout.root
        with ray_cluster.started(config, layout.native_log, [start.path], reporter.print, store) as places:
            worker_groups = WorkerGroups(config, places, renderer.stop_ids, reporter.print, lambda tokens: None, store)
            worker_groups.preload(start)
            worker_groups.ready(start, None)
            run = RunContext(config, [], layout, state, reporter, worker_groups, store)
            list(worker_groups.on_generators(lambda actor, policy: actor.load.remote(policy), [start]))
            up = time.perf_counter()
            generated = measure_all(run, todo, start)
            seconds = time.perf_counter() - up
            for target in untested:
                lm_eval(run, target.stage, target.policy)
        if not todo:
            return layout.root
        reporter.print(
            f"{len(todo)} policies in {seconds:.1f} s, of which {generated:.1f} s for the answers ({seconds / generated:.2f}×); "
            f"up in {up - started:.1f} s, engine included; in {layout.root}"
        )
    return layout.root


def measure_all(run: RunContext, targets: list[BenchmarkTarget], start: Policy) -> float:
    """Benchmark the policies; each is scored while the engine answers for the next one.

    Returns:
        The seconds that the answers took.
    """
    generated = 0.0
    answers: HeldoutAnswers | None = None
    with ThreadPoolExecutor(1) as background:
        scoring: Future[Any] | None = None
        for target in targets:
            if scoring is not None:
                scoring.result()
            # The check of the engines needs the trainer, so it comes before the scoring of the policy before.
            run.verify_engines(target.policy)
            if answers is not None:
                scoring = background.submit(score_answers, run, answers)
                # On a shared device the engine sleeps while the trainer scores.
                if run.config.cluster.placement is Placement.colocated:
                    scoring.result()
            answers = generate_answers(run, target.stage, target.policy, start)
            generated += answers.generated
        if scoring is not None:
            scoring.result()
    if answers is not None:
        score_answers(run, answers)
    return generated


def copy_history(source: RunLayout, config: RunConfig, known: Ledger, ledger: Ledger) -> RunConfig:
    """Copy the run's ledger lines on time, tokens and policies into the ledger of the bench, for its table.

    Args:
        source: The run directory.
        config: The config of the bench.
        known: The ledger of the run.
        ledger: The ledger of the bench.

    Returns:
        The config with the number of iterations and the baseline that are in force in the run.
    """
    in_force = read_config(source, known)
    planned = replace(config, iterations=in_force.iterations, baseline=in_force.baseline)
    record_session(ledger, planned)
    names = [MODEL]
    for stage in read_state(source, known).stages():
        names += [kind_name(stage, kind) for kind in ("samples", "pairs", "policy")]
    for name in names:
        record = known.get(name)
        if record is not None and name not in ledger:
            ledger.append(**record)
    return planned


def find_start(source: RunLayout, config: RunConfig, known: Ledger, store: RunStore) -> Policy:
    """Return the policy that iteration 0 of a run started from. Raises ConfigError when it is not made yet."""
    facts = known.get(kind_name(source.start, "policy") if config.warmup.enabled else MODEL)
    if facts is None:
        raise ConfigError(f"run_dir={source.root} has no starting policy yet; wait for its warm start")
    if config.warmup.enabled:
        folder = source.start.policy
    elif config.model.path == builtin.BUILTIN_MODEL:
        folder = source.model
    else:
        folder = find_model(config.model.path)
    policy = Policy(str(folder.resolve()), facts["digest"])
    store.fetch(Path(policy.path))
    check_policy(policy)
    return policy


def list_targets(source: RunLayout, layout: RunLayout, known: Ledger, start: Policy) -> list[BenchmarkTarget]:
    """Return every policy that the run has promoted: the start, the iterations, the baseline."""
    targets = [BenchmarkTarget(layout.start, start)]
    state = read_state(source, known)
    for stage in state.stages("policy"):
        if stage != source.start:
            digest = state.facts(state.unit(stage, "policy"), PolicyFacts).digest
            policy = Policy(str(stage.policy.resolve()), digest)
            targets.append(BenchmarkTarget(Stage(layout.root, stage.name), policy))
    return targets


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
