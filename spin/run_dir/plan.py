"""List the units that a run makes, in order. `run_state.py` tells which of them are finished.

A unit is a file or folder that is finished as a whole and has one line in the ledger. Only this
module builds names of units. Resume, status, estimate, tables, bench and report read the plan.

    start         policy
    reward_model  reward_model, evaluation
    start         benchmark, lm_eval
    iterations/N  config, labelled-pairs, ratings, samples/0 …, rewards/SOURCE/0 …,
                  judgements/0 …, pairs/0 …, policy, benchmark, lm_eval
    baseline/N    policy, benchmark, lm_eval

Each stage has only those units that its config asks for. Besides the units, the ledger has lines
about the run (``run``, ``model``, ``data``, ``session``, ``best`` …), the saved states of a trainer
(``iterations/000/trainer``) and the totals of all shards of one kind (``iterations/000/samples``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spin.config.groups import REWARD_MODEL
from spin.config.objective import SftObjective
from spin.config.objective_base import Need
from spin.config.run import RunConfig, to_plain
from spin.run_dir.paths import RunLayout, Stage

MODEL = "model"
"""Ledger line with the digest of the model that the run was given."""

PROMOTED_KINDS = ("policy", "reward_model")
"""Kinds of units that are folders with weights, named by a digest."""

LABELLED_KINDS = ("labelled-pairs", "ratings")
"""Kinds of units made from a prepared set of labelled data, which has the same name."""

TRAINED_KINDS = ("pairs", *LABELLED_KINDS)
"""Kinds of units whose rows are trained on."""

ROW_KINDS = ("samples", "rewards", "judgements", *TRAINED_KINDS)
"""Kinds of units that hold rows. Only the policy of their own stage needs them."""


JUDGED_ROWS = ("judged_pairs", "judged_ratings", "judged_rollouts")
"""Values of `feedback.rows` with which a judge judges the samples."""


@dataclass(frozen=True)
class Unit:
    """One file or folder that a run makes."""

    name: str
    """Name of its ledger line, for example ``iterations/000/samples/4``."""
    stage: Stage
    kind: str
    """``config``, ``samples``, ``rewards``, ``judgements``, ``pairs``, ``labelled-pairs``,
    ``ratings``, ``policy``, ``benchmark``, ``lm_eval``, ``reward_model`` or ``evaluation``.
    """
    sources: tuple[str, ...] = ()
    """Names of the units that it is made from.

    `FileFacts.source` is a digest of the first one and, for pairs, of the rewards and judgements.
    """
    shard: int | None = None
    """Number of the shard; None if the unit is no shard."""
    prompts: range = range(0)
    """Positions in the training set of the prompts of a shard."""
    reward_source: str = ""
    """Name of the reward source, for `rewards`."""
    settings: Any = None
    """Settings that the finished unit must have been made with; None if all settings are valid."""

    @property
    def path(self) -> Path:
        """The file or folder of the unit."""
        if self.shard is not None and self.kind == "rewards":
            return self.stage.rewards(self.reward_source, self.shard)
        if self.shard is not None:
            shards = {
                "samples": self.stage.samples,
                "judgements": self.stage.judgements,
                "pairs": self.stage.pairs,
            }
            return shards[self.kind](self.shard)
        if self.kind in LABELLED_KINDS:
            return self.stage.labelled(self.kind)
        paths = {
            "config": self.stage.config,
            "policy": self.stage.policy,
            "benchmark": self.stage.benchmark,
            "lm_eval": self.stage.lm_eval,
            "reward_model": self.stage.reward_model,
            "evaluation": self.stage.evaluation,
        }
        return paths[self.kind]


def kind_name(stage: Stage, kind: str) -> str:
    """Return the name of one kind of work of a stage, such as ``iterations/000/samples``."""
    return f"{stage.name}/{kind}"


def generates_samples(config: RunConfig) -> bool:
    """Return True when an iteration with this config generates samples and makes pairs of them."""
    # Fine-tuning learns from the target completions alone.
    return config.feedback.rows is not None and not isinstance(config.objective, SftObjective)


def uses_judge(config: RunConfig) -> bool:
    """Return True when a judge judges the samples of an iteration with this config."""
    return generates_samples(config) and config.feedback.rows in JUDGED_ROWS


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
    shards = _list_shards(config, stage.index, data_rows.get("train", config.generation.shard_size))
    for shard, prompts in enumerate(shards):
        units.append(Unit(f"{stage.name}/samples/{shard}", stage, "samples", (opponent,), shard, prompts))

    # The rewards of each source, in files of their own, so that an interrupted source goes on
    # where it stopped.
    rewards = [reward.name for reward in config.feedback.rewards]
    for reward in rewards:
        for shard, prompts in enumerate(shards):
            name = f"{stage.name}/rewards/{reward}/{shard}"
            made_from = [f"{stage.name}/samples/{shard}"]
            if reward == REWARD_MODEL and config.reward_model.data_path is not None:
                made_from.append("reward_model/reward_model")
            units.append(Unit(name, stage, "rewards", tuple(made_from), shard, prompts, reward))

    # The judge's comparisons.
    judged = uses_judge(config)
    for shard, prompts in enumerate(shards):
        if judged:
            samples = (f"{stage.name}/samples/{shard}",)
            units.append(Unit(f"{stage.name}/judgements/{shard}", stage, "judgements", samples, shard, prompts))

    # Pairs, from the samples and all rewards or judgements of a shard. The pairs of earlier
    # iterations for the same prompts are added.
    for shard, prompts in enumerate(shards):
        own = [f"{stage.name}/rewards/{reward}/{shard}" for reward in rewards]
        if judged:
            own.append(f"{stage.name}/judgements/{shard}")
        earlier = [f"{other.name}/pairs/{shard}" for other in replayed]
        start = [] if start_stage is None else [f"{start_stage.name}/samples/{shard}"]
        sources = (f"{stage.name}/samples/{shard}", *own, *earlier, *start)
        units.append(Unit(f"{stage.name}/pairs/{shard}", stage, "pairs", sources, shard, prompts))
    return units


def _list_shards(config: RunConfig, index: int, total: int) -> list[range]:
    """Return the positions in the training set of the prompts of each shard of an iteration.

    Args:
        config: Config of the iteration.
        index: Number of the iteration.
        total: Prompts of the training set, which are in an order that the seed fixes.
    """
    # The stretches of the training set that the iteration takes: two if it begins anew.
    wanted = config.generation.prompts_per_iteration
    stretches = [range(total)]
    if wanted is not None and wanted < total:
        first = index * wanted % total
        stretches = [range(first, min(total, first + wanted))]
        rest = wanted - len(stretches[0])
        if rest:
            stretches.append(range(rest))

    # Shards of `size` prompts. The last one of a stretch takes the rest.
    size = config.generation.shard_size
    shards = []
    for stretch in stretches:
        for first in range(stretch.start, stretch.stop, size):
            shards.append(range(first, min(stretch.stop, first + size)))
    return shards


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
