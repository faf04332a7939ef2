"""Config group `reward_model`: a model that gives answers a number, and how it is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar

from spin.config.objective_base import Need, ObjectiveConfig, RowType
from spin.config.ranges import bounded, check_ranges
from spin.config.training import LrSchedule, TrainingConfig
from spin.errors import require


class Ties(Enum):
    """What two answers of equal rank are for the loss."""

    drop = "drop"
    """No pair: they are left out."""
    half = "half"
    """A pair with preference one half."""


class Center(Enum):
    """What is subtracted from the rewards of a trained model."""

    truths = "truths"
    """The mean reward of the ground truths of the training prompts, as in InstructGPT."""
    none = "none"
    """Nothing."""
    batch = "batch"
    """The mean reward of the samples that are scored together: those of a shard."""


class Refresh(Enum):
    """When a run trains its reward model again."""

    never = "never"
    """The model that exists, or that was trained before iteration 0, serves all iterations."""
    every = "every"
    """Each iteration trains it on the judged samples of this iteration and of those before it."""


class Backend(Enum):
    """The program that runs the reward model to score samples."""

    trainer = "trainer"
    """The training workers, which load it in turn with the policy."""
    vllm = "vllm"
    """A vLLM engine of its own. Before its first use it is compared with a training worker."""


BY_JUDGE = "judge"
"""The value of `reward_model.refresh_by` that stands for the judge of the run."""


class HeadInit(Enum):
    """Initial weights of the head of a new reward model."""

    zeros = "zeros"
    """All rewards are 0, and the first loss is ln 2."""
    normal = "normal"
    """Normal values with variance 1 / (hidden size + 1), as in arXiv 2009.01325."""


@dataclass
class BradleyTerryObjective(ObjectiveConfig):
    """The loss of a reward model: all pairs of ranked answers, arXiv 2203.02155 eq. 1."""

    row_type: ClassVar[RowType] = RowType.ranking
    needs: ClassVar[frozenset[Need]] = frozenset()
    name: str = "bradley_terry"
    center_coefficient: float = 0.0
    """See `RewardModelConfig`, as are the next fields."""
    ties: Ties = Ties.drop
    head_init: HeadInit = HeadInit.zeros


def _default_training() -> TrainingConfig:
    """Return InstructGPT's settings: one epoch, since a second one overfits (appendix C.2)."""
    return TrainingConfig(learning_rate=9e-6, lr_schedule=LrSchedule.cosine_to_tenth, warmup_ratio=0.0)


@dataclass
class RewardModelConfig:
    """A reward model: given, or trained on ranked answers before iteration 0."""

    path: str | None = None
    """A reward model that exists: a folder or a Hub id; null: none, or one trained by this run."""
    # Data of the stage that trains one.
    data_path: str | None = None
    """Ranked answers to train a reward model on before iteration 0: a local file, a Hub id or a
    builtin set; null trains none."""
    split: str = "train"
    """Split of a Hub data set."""
    limit: int | None = bounded(None, at_least=1, at_most=1_000_000_000)
    """Rows to use, at least 1; null uses all."""
    eval_path: str | None = None
    """Held-out ranked answers, as in `data_path`; null takes them out of `data_path`."""
    eval_split: str = "test"
    """Split of a Hub data set of held-out rows."""
    eval_limit: int = bounded(500, at_least=1, at_most=1_000_000_000)
    """Held-out rows, at least 1."""
    max_responses: int = bounded(9, at_least=2, at_most=1000)
    """Most answers of a prompt, at least 2; of more, as many are taken evenly over the ranking."""
    margin_column: str | None = "margin"
    """Column of pairs: by how much the better reward should be larger; null reads none."""
    subset_column: str | None = "subset"
    """Column with the part of the set that a row belongs to, for figures; null reads none."""
    subset_counts: dict[str, float] = field(default_factory=dict)
    """Weight of each subset in the mean over subsets, such as ``{easy: 100, hard: 358}``.

    Above 0, for every subset of the held-out rows; empty: all weigh alike."""
    # Loss.
    ties: Ties = Ties.drop
    """Answers of equal rank: drop (no pair) or half (a pair with preference one half)."""
    center_coefficient: float = bounded(0.01, at_least=0, at_most=1_000_000)
    """Weight of (r_i + r_j)², which keeps rewards near 0; at least 0."""
    center: Center = Center.truths
    """Value to subtract from the rewards before they are used: truths, batch or none.

    `truths` is the mean reward of the ground truths, `batch` that of the samples of a shard."""
    head_init: HeadInit = HeadInit.zeros
    """Head of a new reward model: zeros (the first loss is ln 2) or normal."""
    backend: Backend = Backend.trainer
    """Program that scores the samples: trainer, or vllm (an engine of its own)."""
    # Training it again on the run's own samples.
    refresh: Refresh = Refresh.never
    """When it is trained again: never, or in every iteration that uses it."""
    refresh_by: str = BY_JUDGE
    """Source of the ranks for `refresh=every`: judge, or a source of `feedback.rewards`."""
    training: TrainingConfig = field(default_factory=_default_training)
    """Training settings of this stage; the workers and their sharding are those of `training`.

    A row of `batch_size` is a prompt with all its answers."""

    def __post_init__(self) -> None:
        check_ranges(self, "reward_model.")
        check_subset_counts("reward_model.subset_counts", self.subset_counts)
        require(
            self.path is None or self.data_path is None,
            f"reward_model.path={self.path} and reward_model.data_path={self.data_path}: the model is either given or "
            "trained; set one of them to null",
        )

        require(
            self.path is None or self.refresh is Refresh.never,
            f"reward_model.path={self.path} with reward_model.refresh=every: a given model is not trained; set "
            "refresh=never, or path=null",
        )
        require(
            self.data_path is not None or not self.subset_counts,
            "reward_model.subset_counts weighs the subsets of held-out rows, and reward_model.data_path is null; set "
            "subset_counts={}",
        )

    @property
    def is_trained(self) -> bool:
        """Return whether the run trains a reward model."""
        return self.data_path is not None or self.refresh is Refresh.every

    @property
    def objective(self) -> BradleyTerryObjective:
        """Return the loss of the stage."""
        return BradleyTerryObjective(
            center_coefficient=self.center_coefficient, ties=self.ties, head_init=self.head_init
        )


def check_subset_counts(key: str, counts: Mapping[str, float]) -> None:
    """Raise ConfigError when the weight of a subset is not above 0. `key` names it in the error."""
    for name, count in counts.items():
        require(math.isfinite(count) and count > 0, f"{key}: {name} has {count}; expected a number above 0")
