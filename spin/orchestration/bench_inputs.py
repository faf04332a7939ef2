"""Read the inputs of `spin bench` from a run: its policies, its history, and the held-out rows."""

from __future__ import annotations

from dataclasses import dataclass, replace

from spin.config.cluster import Placement
from spin.config.run import RunConfig, fingerprint
from spin.config.training import Sharding
from spin.data.chat_renderer import Renderer
from spin.data.datasets import load_prompts
from spin.data.parquet import read_rows, write_rows
from spin.data.records import Prompt
from spin.errors import CheckpointError, ConfigError
from spin.models.policy import Policy, check_adapter, check_policy
from spin.models.stage_policy import make_stage_policy
from spin.preflight.starting_model import locate_model, make_model_policy
from spin.report.console import Reporter
from spin.run_dir.facts import PolicyFacts, read_facts
from spin.run_dir.files import write_text
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import RunLayout, Stage
from spin.run_dir.recorded_config import read_config, record_session
from spin.run_dir.run_state import read_state
from spin.run_dir.store import RunStore
from spin.run_dir.unit import MODEL, kind_name
from spin.run_dir.verification import verify_file


@dataclass(frozen=True)
class BenchOptions:
    """Settings of a bench. None means the setting of the run."""

    to: str | None
    """Folder of the results; None means ``bench`` inside the run directory."""
    samples: int | None
    verifier: str | None
    """Function that tells whether an answer is right."""
    eval_path: str | None
    eval_split: str | None
    eval_limit: int | None
    tasks: list[str]
    """Tasks of lm-evaluation-harness; an empty list means those of the run."""
    include_path: str | None
    """Folder with the user's own tasks."""
    limit: int | None
    """Number of documents of each task."""
    address: str | None
    """Address of the Ray cluster to use for all runs; None means this machine alone."""


@dataclass(frozen=True)
class BenchmarkTarget:
    """A promoted policy of the run, and its stage in the folder of the bench."""

    stage: Stage
    policy: Policy


def bench_config(config: RunConfig, options: BenchOptions) -> RunConfig:
    """Return the config of a bench: that of the run, with one training worker and the options."""
    # Nothing is trained, so a scorer beside the trainers would be idle.
    placement = config.cluster.placement
    if placement is Placement.split:
        placement = Placement.sequential

    # An option that is not given leaves the setting of the run.
    lm_eval = config.benchmark.lm_eval
    lm_eval = replace(
        lm_eval,
        tasks=options.tasks or lm_eval.tasks,
        include_path=options.include_path or lm_eval.include_path,
        limit=options.limit or lm_eval.limit,
    )
    samples = options.samples or config.benchmark.samples
    verifier = options.verifier or config.benchmark.verifier
    data = replace(
        config.data,
        eval_path=options.eval_path or config.data.eval_path,
        eval_split=options.eval_split or config.data.eval_split,
        eval_limit=options.eval_limit or config.data.eval_limit,
    )

    # One trainer is enough to score. It loads the whole policy, so nothing is sharded.
    return replace(
        config,
        cluster=replace(config.cluster, address=options.address, placement=placement),
        training=replace(config.training, workers=1, sharding=Sharding.none),
        benchmark=replace(config.benchmark, enabled=True, samples=samples, verifier=verifier, lm_eval=lm_eval),
        data=data,
    )


def copy_history(source: RunLayout, config: RunConfig, known: Ledger, ledger: Ledger) -> RunConfig:
    """Copy the ledger lines of the run about time, tokens and policies into that of the bench.

    The table of the bench then shows the speed of the run's training and generation too.

    Args:
        source: The run directory.
        config: The config of the bench.
        known: The ledger of the run.
        ledger: The ledger of the bench.

    Returns:
        The config with the current number of iterations of the run, and with its baseline.
    """
    # A resume may have changed both since config.yaml was written.
    in_force = read_config(source, known)
    planned = replace(config, iterations=in_force.iterations, baseline=in_force.baseline)
    record_session(ledger, planned)

    # Totals of the kinds of work, not single shards: the bench makes none.
    names = [MODEL]
    for stage in read_state(source, known).stages():
        names += [kind_name(stage, kind) for kind in ("samples", "rewards", "pairs", "policy")]
    for name in names:
        record = known.get(name)
        if record is not None and name not in ledger:
            ledger.append(**record)
    return planned


def find_start(source: RunLayout, config: RunConfig, known: Ledger, store: RunStore) -> Policy:
    """Return the policy that iteration 0 of a run started from, after a check of its digest.

    Raises:
        ConfigError: The policy does not exist yet.
        CheckpointError: The policy was lost or altered.
    """
    facts = known.get(kind_name(source.start, "policy") if config.warmup.enabled else MODEL)
    if facts is None:
        raise ConfigError(f"run_dir={source.root} has no starting policy yet; wait for its warm start")
    # The model that the run was given, which is also the base of its adapters.
    model_facts = known.get(MODEL)
    assert model_facts is not None
    folder = locate_model(config, RunStore(source.root), write_own=False)
    policy = make_model_policy(config, folder, model_facts)
    if config.warmup.enabled:
        base = policy.base if config.adapter.keeps_base else None
        policy = make_target(source.start, read_facts(facts, PolicyFacts), base)
    for part in policy.folders:
        store.fetch(part)
    check_policy(policy)
    check_adapter(policy)
    return policy


def make_target(stage: Stage, facts: PolicyFacts, base: Policy | None) -> Policy:
    """Return the policy of a stage of another run directory, by its absolute path."""
    stage = Stage(stage.root.resolve(), stage.name)
    if base is None:
        return Policy(str(stage.policy), facts.digest)
    return make_stage_policy(stage, facts, base)


def list_targets(
    source: RunLayout, layout: RunLayout, config: RunConfig, known: Ledger, start: Policy
) -> list[BenchmarkTarget]:
    """Return all promoted policies that the run keeps: the start, the iterations, the baseline."""
    # All policies are adapters of the same base, or whole models.
    base = start.base if config.adapter.keeps_base else None
    # A start without a warm-up is no unit of the run, so it is added here in both cases.
    targets = [BenchmarkTarget(layout.start, start)]
    state = read_state(source, known)
    for stage in state.stages("policy"):
        if stage == source.start:
            continue
        facts = state.facts(state.unit(stage, "policy"), PolicyFacts)
        if not facts.dropped:
            policy = make_target(stage, facts, base)
            # The files are read from the run, the results are written to the folder of the bench.
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
    """Write the held-out rows of the run, or those that the options name, unless they are written.

    Raises:
        ConfigError: The folder holds a benchmark with other settings, or the rows were altered.
    """
    path = layout.prompts("heldout")
    settings = {
        "samples": config.benchmark.samples,
        "verifier": config.benchmark.verifier,
        "eval_path": config.data.eval_path,
        "eval_split": config.data.eval_split,
        "eval_limit": config.data.eval_limit,
    }

    # An earlier bench has written them. With other settings its results could not be compared.
    facts = ledger.get("bench")
    if facts is not None:
        changed = []
        for key, value in settings.items():
            # A bench of an earlier version has no verifier.
            before = facts["settings"].get(key)
            if before != value:
                changed.append(f"{key}={value} (was {before})")
        if changed:
            raise ConfigError(
                f"{layout.root} holds a benchmark with other settings: {', '.join(changed)}; give to=another folder"
            )
        problem = verify_file(path, facts["sha256"])
        if problem is not None:
            raise ConfigError(f"{path} {problem}; give to=another folder")
        return

    # Take the rows of the run, or read new ones.
    if options.eval_path is None and options.eval_split is None and options.eval_limit is None:
        rows = read_prompts(source, "heldout")
    else:
        rows = load_fresh_rows(source, config, renderer, reporter)

    # Commands that read the results, such as `spin table`, need the config. The ledger line comes
    # last: it says that both files are complete.
    sha256 = write_rows(path, Prompt, rows)
    write_text(layout.config, source.config.read_text())
    store.publish(path)
    store.publish(layout.config)
    ledger.append("bench", keys=fingerprint(config), settings=settings, sha256=sha256)


def read_prompts(source: RunLayout, name: str) -> list[Prompt]:
    """Return a prepared set of the run. Raises CheckpointError when it was lost or altered."""
    path = source.prompts(name)
    digests = (Ledger(source.ledger, read_only=True).get("data") or {"sha256": {}})["sha256"]
    problem = verify_file(path, digests.get(name, ""))
    if problem is not None:
        raise CheckpointError(f"{path} {problem}; restore it from a copy")
    return read_rows(path, Prompt)


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

    # Leave out rows that the run was trained on. Number the others from 0, as a run does: the seeds
    # of the samples depend on the number.
    trained = {tuple(prompt.prompt_ids) for prompt in read_prompts(source, "train")}
    fresh = [prompt for prompt in rows if tuple(prompt.prompt_ids) not in trained]
    report.dropped["trained on"] += len(rows) - len(fresh)
    kept = [replace(prompt, prompt_id=index) for index, prompt in enumerate(fresh[: data.eval_limit])]
    report.kept = len(kept)
    reporter.print(f"data: {report.line()}")
    if not kept:
        raise ConfigError(f"eval_path={data.eval_path}: every usable row was trained on; give another")
    return kept
