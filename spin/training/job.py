"""The description of one training stage that every training worker receives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from spin.config.objective import ObjectiveConfig
from spin.config.training import TrainingConfig
from spin.models.policy import Policy


@dataclass(frozen=True)
class TrainingJob:
    """One training stage, as every worker is told of it."""

    policy: Policy
    reference: Policy
    pairs: list[str]
    """The shards of self-play pairs, in order."""
    others: list[tuple[type, str]]
    """Record type and path of each set of rows that is there from the start: truths, labelled pairs, ratings."""
    sizes: list[int]
    """Of each shard of pairs, how many rows it would have if none were dropped."""
    objective: ObjectiveConfig
    training: TrainingConfig
    iteration: int
    out: str
    states: str
    resume_step: int = 0
    steps: int | None = None
    """Optimizer steps, where `training.epochs` is not to say."""
    queue: Any = None
    """Where shards of pairs are announced (`spin.cluster.shard_queue`); None: all of them are finished."""
