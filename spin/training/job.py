"""The description of one training stage that every training worker receives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from spin.config.objective_base import ObjectiveConfig, RowType
from spin.config.policy_gradient import has_critic_head
from spin.config.training import TrainingConfig
from spin.data.records import Pair
from spin.models.policy import Policy
from spin.models.scalar_head import Head


@dataclass(frozen=True)
class TrainingJob:
    """One training stage: which policy is trained, with which objective, on which files."""

    policy: Policy
    """The policy that training starts from."""
    reference: Policy
    """The policy that scored the rows; `policy` itself if the objective needs none."""
    objective: ObjectiveConfig
    training: TrainingConfig
    seed: int
    """Seed of the order of the rows."""
    iteration: int
    """Number of the iteration, part of the seed; -1 for the warm start."""
    out: str = ""
    """Folder of the promoted policy."""
    adapter_out: str = ""
    """Folder of the adapter, if it is merged into the policy."""
    states: str | None = None
    """Folder of the saved states; None to save none."""
    resume_step: int = 0
    """The saved state to continue from; 0 to start anew."""
    steps: int | None = None
    """Number of optimizer steps; None for `training.steps` or `training.epochs`."""
    shards: list[str] = field(default_factory=list)
    """The shards of self-play rows, in order."""
    shard_type: type = Pair
    """Record type of the rows of the shards."""
    others: list[tuple[type, str]] = field(default_factory=list)
    """Record type and path of each set of rows that exists before training."""
    truths: str | None = None
    """Prompts whose ground truths get the mean reward 0, for a reward model; None: not centred."""
    sizes: list[int] = field(default_factory=list)
    """For each shard, the number of rows that it has if none is dropped."""
    queue: Any = None
    """A `spin.cluster.run_ahead_queue` that announces finished shards; None if all are."""
    critic: Policy | None = None
    """The critic of PPO that training starts from; None with other objectives."""
    critic_out: str = ""
    """Folder of the trained critic."""
    pretraining: str | None = None
    """Prompts whose ground truths PPO-ptx trains beside the rows; None without it."""

    @property
    def head(self) -> Head:
        """Return what the trained model is read out with."""
        if self.objective.row_type is RowType.ranking:
            return Head.scalar
        return Head.language

    @property
    def critic_head(self) -> Policy | None:
        """Return the critic if it is a head on the policy; None otherwise."""
        if has_critic_head(self.objective):
            return self.critic
        return None

    @property
    def fixed_steps(self) -> int | None:
        """Number of optimizer steps, however many rows there are; None for whole epochs."""
        return self.steps or self.training.steps
