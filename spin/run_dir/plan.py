"""List the units that a run makes, in order. `run_state.py` tells which of them are finished.

A unit is a file or folder that is finished as a whole and has one line in the ledger. Only this
module builds names of units. Resume, status, estimate, tables, bench and report read the plan.

    start           policy
    reward_model    reward_model, evaluation
    start           benchmark, lm_eval
    iterations/N    config, labelled-pairs, ratings, samples/0 …, rewards/SOURCE/0 …,
                    judgements/0 …
    reward_model/N  rankings, rankings-heldout, reward_model, evaluation
    iterations/N    rewards/reward_model/0 …, pairs/0 …, policy, benchmark, lm_eval
    baseline/N      policy, benchmark, lm_eval

Each stage has only those units that its config asks for. Besides the units, the ledger has lines
about the run (``run``, ``model``, ``data``, ``session``, ``best`` …), the saved states of a trainer
(``iterations/000/trainer``) and the totals of all shards of one kind (``iterations/000/samples``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from spin.config.groups import REWARD_MODEL
from spin.config.objective import SftObjective
from spin.config.objective_base import Need
from spin.config.reward_model import BY_JUDGE
from spin.config.run import RunConfig, to_plain
from spin.run_dir.paths import RunLayout, Stage
from spin.run_dir.shards import list_shards
from spin.run_dir.stage_work import (
    generates_samples,
    labels_by_judge,
    name_reward_model,
    refreshes_reward_model,
    uses_judge,
)
from spin.run_dir.unit import LABELLED_KINDS, MODEL, RANKING_KINDS, TRAINED_KINDS, Unit, kind_name


def plan_units(
    layout: RunLayout, config: RunConfig, iteration_configs: Sequence[RunConfig], data_rows: Mapping[str, int]
) -> list[Unit]:
    """Return all units of a run in the order in which they are made.

    Args:
        layout: The run directory.
        config: Config of the run, for what all iterations share: warm-up, benchmark, baseline.
        iteration_configs: One config for each iteration, with its schedule applied. If they are
            fewer than `config.iterations`, the plan is that of a run that the stop rule ended.
        data_rows: Number of rows of each prepared set, as `prepared_rows` returns it. If it is
            empty, the data are not prepared yet, and each iteration is planned with one shard.
    """
    # The starting policy: the result of the warm-up, or the model that the run was given. The
    # latter is no unit, because the run does not make it.
    units: list[Unit] = []
    policy = MODEL
    if config.warmup.enabled:
        policy = kind_name(layout.start, "policy")
        units.append(Unit(policy, layout.start, "policy", (MODEL,)))
    units += plan_reward_model(config, layout, policy)
    units += _plan_measurements(config, layout.start, policy, None)
    start_policy = policy

    # The iterations: each starts from the policy of the one before it.
    before = layout.start
    rankings: list[str] = []
    for index, iteration_config in enumerate(iteration_configs):
        stage = layout.iteration(index)
        # Only iterations that generated samples have pairs to replay.
        replayed = [
            layout.iteration(earlier)
            for earlier in range(max(0, index - iteration_config.replay), index)
            if generates_samples(iteration_configs[earlier])
        ]
        start_stage = None
        if index > 0 and Need.start_answers in iteration_config.objective.needs:
            start_stage = layout.iteration(0)
        rows = _plan_rows(iteration_config, stage, policy, replayed, start_stage, data_rows)
        # The config comes first: once it has its line, the settings of the iteration are fixed.
        units.append(Unit(kind_name(stage, "config"), stage, "config", (policy,)))
        if refreshes_reward_model(iteration_config):
            ranked = layout.refreshed_reward_model(index)
            rankings.append(kind_name(ranked, "rankings"))
            refreshed = plan_refresh(iteration_config, ranked, rows, start_policy, rankings)
            # It is trained before it scores the samples.
            place = [unit.reward_source for unit in rows].index(REWARD_MODEL)
            units += [*rows[:place], *refreshed, *rows[place:]]
        else:
            units += rows
        row_names = [unit.name for unit in rows if unit.kind in TRAINED_KINDS]
        opponent, policy = policy, kind_name(stage, "policy")
        units.append(Unit(policy, stage, "policy", (opponent, *row_names)))
        if _is_measured(config, index, len(iteration_configs)):
            units += _plan_measurements(config, stage, policy, before)
            before = stage

    # The baseline: a second sequence of policies from the same start, one for each iteration. It
    # comes last, because its stages take as many steps as the iterations took.
    policy, before = start_policy, layout.start
    for index in range(len(iteration_configs) if config.baseline else 0):
        stage = layout.baseline(index)
        opponent, policy = policy, kind_name(stage, "policy")
        units.append(Unit(policy, stage, "policy", (opponent,)))
        if _is_measured(config, index, len(iteration_configs)):
            units += _plan_measurements(config, stage, policy, before)
            before = stage
    return units


def _is_measured(config: RunConfig, index: int, iterations: int) -> bool:
    """Return whether the policy of an iteration is benchmarked."""
    return (index + 1) % config.benchmark.every == 0 or index + 1 == iterations


def plan_reward_model(config: RunConfig, layout: RunLayout, policy: str) -> list[Unit]:
    """Return the units of the reward model that is trained from a policy; none without data."""
    if config.reward_model.data_path is None:
        return []
    stage = layout.reward_model
    model = kind_name(stage, "reward_model")
    return [
        Unit(model, stage, "reward_model", (policy,)),
        Unit(kind_name(stage, "evaluation"), stage, "evaluation", (model,)),
    ]


def plan_refresh(
    config: RunConfig, stage: Stage, rows: Sequence[Unit], policy: str, rankings: Sequence[str]
) -> list[Unit]:
    """Return the units of the reward model that an iteration trains again.

    Args:
        config: Config of the iteration.
        stage: Stage of the reward model.
        rows: Units of the iteration that hold rows.
        policy: The policy that its training starts from.
        rankings: Names of the judged samples of this iteration and of those before it.
    """
    # Those who rank the samples: the judge, or a reward source.
    judged = []
    for unit in rows:
        by_judge = unit.kind == "judgements"
        if config.reward_model.refresh_by != BY_JUDGE:
            by_judge = unit.kind == "rewards" and unit.reward_source == config.reward_model.refresh_by
        if by_judge:
            judged.append(unit.name)
    model = kind_name(stage, "reward_model")
    units = [Unit(kind_name(stage, kind), stage, kind, tuple(judged)) for kind in RANKING_KINDS]
    heldout = units[1].name
    units.append(Unit(model, stage, "reward_model", (policy, *rankings)))
    units.append(Unit(kind_name(stage, "evaluation"), stage, "evaluation", (model, heldout)))
    return units


def _plan_rows(
    config: RunConfig,
    stage: Stage,
    opponent: str,
    replayed: Sequence[Stage],
    start_stage: Stage | None,
    data_rows: Mapping[str, int],
) -> list[Unit]:
    """Return the units of one iteration that hold rows: labelled sets, samples, rewards, pairs.

    `replayed` are the stages whose pairs are added, `start_stage` the one whose samples are added.
    """
    # Fine-tuning reads the prepared prompts and needs no other rows.
    units: list[Unit] = []
    if isinstance(config.objective, SftObjective):
        return units

    # Labelled sets, which the reference scores before training.
    if config.feedback.path is not None:
        for kind in LABELLED_KINDS:
            if data_rows.get(kind):
                units.append(Unit(f"{stage.name}/pairs/{kind}", stage, kind, (opponent,)))
    if not generates_samples(config):
        return units

    # Shards of samples.
    shards = list_shards(config, stage.index, data_rows.get("train", config.generation.shard_size))
    for shard, prompts in enumerate(shards):
        units.append(Unit(f"{stage.name}/samples/{shard}", stage, "samples", (opponent,), shard, prompts))

    # The judge's comparisons.
    for shard, prompts in enumerate(shards):
        if uses_judge(config):
            samples = (f"{stage.name}/samples/{shard}",)
            units.append(Unit(f"{stage.name}/judgements/{shard}", stage, "judgements", samples, shard, prompts))

    # The rewards of each source, in files of their own, so that an interrupted source goes on
    # where it stopped. The reward model comes last: it may learn from the others.
    rewards = [reward.name for reward in config.feedback.rewards]
    for reward in sorted(rewards, key=lambda name: name == REWARD_MODEL):
        for shard, prompts in enumerate(shards):
            name = f"{stage.name}/rewards/{reward}/{shard}"
            made_from = [f"{stage.name}/samples/{shard}"]
            model = name_reward_model(config, stage)
            if reward == REWARD_MODEL and model is not None:
                made_from.append(model)
            units.append(Unit(name, stage, "rewards", tuple(made_from), shard, prompts, reward))

    # Pairs, from the samples and all rewards or judgements of a shard. The pairs of earlier
    # iterations for the same prompts are added.
    for shard, prompts in enumerate(shards):
        own = [f"{stage.name}/rewards/{reward}/{shard}" for reward in rewards]
        if labels_by_judge(config):
            own.append(f"{stage.name}/judgements/{shard}")
        earlier = [f"{other.name}/pairs/{shard}" for other in replayed]
        start = [] if start_stage is None else [f"{start_stage.name}/samples/{shard}"]
        sources = (f"{stage.name}/samples/{shard}", *own, *earlier, *start)
        units.append(Unit(f"{stage.name}/pairs/{shard}", stage, "pairs", sources, shard, prompts))
    return units


def _plan_measurements(config: RunConfig, stage: Stage, policy: str, before: Stage | None) -> list[Unit]:
    """Return the units that measure one policy.

    `before` is the stage of the policy before it; the win rate compares the answers of the two.
    """
    if not config.benchmark.enabled:
        return []
    sources = [policy]
    if before is not None:
        sources.append(kind_name(before, "benchmark"))
    units = [Unit(kind_name(stage, "benchmark"), stage, "benchmark", tuple(sources))]
    lm_eval = config.benchmark.lm_eval
    # A resume may change the tasks. Then lm_eval is done again, so the unit has its settings.
    if lm_eval.tasks:
        units.append(Unit(kind_name(stage, "lm_eval"), stage, "lm_eval", (policy,), settings=to_plain(lm_eval)))
    return units
