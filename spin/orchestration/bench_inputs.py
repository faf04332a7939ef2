"""Read what `spin bench` needs of a run: its policies, its history, and the held-out rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from spin.config.groups import Placement
from spin.config.run import RunConfig, fingerprint
from spin.config.training import Sharding
from spin.data import builtin
from spin.data.chat import Renderer
from spin.data.datasets import load_prompts
from spin.data.parquet import read_rows, write_rows
from spin.data.records import Prompt
from spin.errors import ConfigError
from spin.models.policy import Policy, check_policy, find_model
from spin.report.console import Reporter
from spin.run_dir.facts import PolicyFacts
from spin.run_dir.files import file_sha256, write_text
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import RunLayout, Stage
from spin.run_dir.plan import MODEL, kind_name
from spin.run_dir.run_state import read_config, read_state, record_session
from spin.run_dir.store import RunStore


@dataclass(frozen=True)
class BenchOptions:
    """Settings of a bench; None leaves a setting as the run has it."""

    to: str | None
    """Folder of the results; None: ``bench`` inside the run directory."""
    samples: int | None
    eval_path: str | None
    eval_split: str | None
    eval_limit: int | None
    tasks: list[str]
    """Tasks of lm-evaluation-harness; empty: as the run has them."""
    include_path: str | None
    limit: int | None
    """Number of documents of each task."""
    address: str | None
    """Address of the Ray cluster that all runs are benchmarked on; None: this machine alone."""


@dataclass(frozen=True)
class BenchmarkTarget:
    """One promoted policy of the run, and its stage in the folder of the bench."""

    stage: Stage
    policy: Policy


def bench_config(config: RunConfig, options: BenchOptions) -> RunConfig:
    """Return the config of a bench: that of the run, with one training worker and the options."""
    # Nothing is trained, so there is nothing to overlap.
    placement = config.cluster.placement
    if placement is Placement.split:
        placement = Placement.sequential

    # The options.
    lm_eval = config.benchmark.lm_eval
    lm_eval = replace(
        lm_eval,
        tasks=options.tasks or lm_eval.tasks,
        include_path=options.include_path or lm_eval.include_path,
        limit=options.limit or lm_eval.limit,
    )
    samples = options.samples or config.benchmark.samples
    data = replace(
        config.data,
        eval_path=options.eval_path or config.data.eval_path,
        eval_split=options.eval_split or config.data.eval_split,
        eval_limit=options.eval_limit or config.data.eval_limit,
    )
    return replace(
        config,
        cluster=replace(config.cluster, address=options.address, placement=placement),
        training=replace(config.training, workers=1, sharding=Sharding.none),
        benchmark=replace(config.benchmark, enabled=True, samples=samples, lm_eval=lm_eval),
        data=data,
    )


def copy_history(source: RunLayout, config: RunConfig, known: Ledger, ledger: Ledger) -> RunConfig:
    """Copy the run's ledger lines on time, tokens and policies into the ledger of the bench.

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
        names += [kind_name(stage, kind) for kind in ("samples", "rewards", "pairs", "policy")]
    for name in names:
        record = known.get(name)
        if record is not None and name not in ledger:
            ledger.append(**record)
    return planned


def find_start(source: RunLayout, config: RunConfig, known: Ledger, store: RunStore) -> Policy:
    """Return the policy that iteration 0 of a run started from.

    Raises ConfigError when it is not made yet.
    """
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


def prepare_heldout(
    source: RunLayout,
    layout: RunLayout,
    config: RunConfig,
    options: BenchOptions,
    ledger: Ledger,
    renderer: Renderer,
    reporter: Reporter,
    store: RunStore,
) -> None:
    """Write the held-out rows, unless they are there: the run's, or those of the options.

    Raises:
        ConfigError: The folder holds a benchmark with other settings, or the rows were altered.
    """
    path = layout.prompts("heldout")
    settings = {
        "samples": config.benchmark.samples,
        "eval_path": config.data.eval_path,
        "eval_split": config.data.eval_split,
        "eval_limit": config.data.eval_limit,
    }

    # The rows of an earlier bench in this folder.
    facts = ledger.get("bench")
    if facts is not None:
        changed = []
        for key, value in settings.items():
            if facts["settings"][key] != value:
                changed.append(f"{key}={value} (was {facts['settings'][key]})")
        if changed:
            raise ConfigError(
                f"{layout.root} holds a benchmark with other settings: {', '.join(changed)}; give to=another folder"
            )
        if file_sha256(path) != facts["sha256"]:
            raise ConfigError(f"{path} was altered; give to=another folder")
        return

    # The run's rows, or new ones.
    if options.eval_path is None and options.eval_split is None and options.eval_limit is None:
        rows = read_rows(source.prompts("heldout"), Prompt)
    else:
        rows = load_fresh_rows(source, config, renderer, reporter)
    sha256 = write_rows(path, Prompt, rows)
    write_text(layout.config, source.config.read_text())
    store.publish(path)
    store.publish(layout.config)
    ledger.append("bench", keys=fingerprint(config), settings=settings, sha256=sha256)


def load_fresh_rows(source: RunLayout, config: RunConfig, renderer: Renderer, reporter: Reporter) -> list[Prompt]:
    """Return the rows of `data.eval_path` without those that the run was trained on.

    Raises:
        ConfigError: No path is given, or no row is left.
    """
    data = config.data
    if data.eval_path is None:
        raise ConfigError(
            "the held-out rows were taken out of data.path when the run began, and the others were trained on; "
            "give eval_path=… with fresh ones"
        )
    limits = (config.max_prompt_length, config.generation.max_tokens)
    rows, report = load_prompts(data.eval_path, data.eval_split, renderer, *limits, data.answer_pattern, data.turn)

    # Number the rows that are left from 0.
    trained = {tuple(prompt.prompt_ids) for prompt in read_rows(source.prompts("train"), Prompt)}
    fresh = [prompt for prompt in rows if tuple(prompt.prompt_ids) not in trained]
    report.dropped["trained on"] += len(rows) - len(fresh)
    kept = [replace(prompt, prompt_id=index) for index, prompt in enumerate(fresh[: data.eval_limit])]
    report.kept = len(kept)
    reporter.print(f"data: {report.line()}")
    if not kept:
        raise ConfigError(f"eval_path={data.eval_path}: every usable row was trained on; give another")
    return kept
