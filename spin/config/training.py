"""Config groups `training` and `warmup`: precision, optimizer, schedule, sharding, layout."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum

from spin.config.ranges import bounded, check_ranges
from spin.errors import require


class Dtype(Enum):
    """Precision of the forward pass and of the engine; a run keeps its policies in float32."""

    float32 = "float32"
    """All products in float32: exact, for CPUs and small models."""
    bfloat16 = "bfloat16"
    """Products in bfloat16: half the memory of an engine, and fast on GPUs."""


class Optimizer(Enum):
    """Optimizer of a training stage; every stage starts with a fresh one."""

    adamw = "adamw"
    """AdamW: two float32 moments per weight."""
    rmsprop = "rmsprop"
    """RMSprop, which the SPIN paper uses: one float32 moment per weight."""


class LrSchedule(Enum):
    """Learning rate after the warm-up; the names are those of transformers."""

    constant = "constant"
    """The learning rate stays as it is."""
    linear = "linear"
    """The learning rate falls linearly to 0 at the last step."""
    cosine = "cosine"
    """The learning rate falls along half a cosine to 0 at the last step."""
    cosine_to_tenth = "cosine_to_tenth"
    """The learning rate falls along half a cosine to a tenth of its peak."""


class Sharding(Enum):
    """Part of the model that each of several training workers holds."""

    none = "none"
    """Each worker holds the whole model (DDP)."""
    full = "full"
    """Each worker holds its part of weights, gradients and optimizer state (FSDP2)."""


class Layout(Enum):
    """Arrangement of prompts and completions in one forward pass."""

    auto = "auto"
    """The first of shared, packed and padded whose results on real rows equal those of padded."""
    shared = "shared"
    """No padding; a prompt is computed once for all its completions."""
    packed = "packed"
    """No padding; a prompt is computed once per completion."""
    padded = "padded"
    """One row per completion, padded to the longest; the others are compared with it."""


@dataclass
class TrainingConfig:
    """One training stage: a fresh optimizer over `epochs` passes of its rows."""

    # Steps.
    learning_rate: float = bounded(5e-7, above=0, at_most=10)
    """Peak learning rate, above 0. The default is the SPIN paper's for 7B weights."""
    epochs: int = bounded(1, at_least=1, at_most=10_000)
    """Passes over the rows of the stage, at least 1."""
    steps: int | None = bounded(None, at_least=1, at_most=1_000_000_000)
    """Optimizer steps of the stage, at least 1, however many rows it has; null: those of `epochs`.

    For comparisons of methods that make different numbers of rows."""
    batch_size: int = bounded(64, at_least=1, at_most=1_000_000)
    """Rows (pairs) in one optimizer step, over all workers; at least `workers`.

    The default is the SPIN paper's."""
    # Forward passes.
    micro_batch_tokens: int | None = bounded(None, at_least=1, at_most=100_000_000)
    """Tokens in one forward pass of one worker, at least 1; null uses half of the free memory.

    Gradients are accumulated up to `batch_size`, so this changes memory and speed only."""
    layout: Layout = Layout.auto
    """Arrangement of the rows of one forward pass: auto, shared, packed or padded."""
    gradient_checkpointing: bool = False
    """Compute each layer again in the backward pass: less memory, about a third more time."""
    compile_layers: bool = False
    """Compile the model's layers on a GPU with `layout=auto`: faster steps after a slow start.

    Without effect on CPUs."""
    max_length: int = bounded(1024, at_least=2, at_most=10_000_000)
    """Longest prompt plus completion, in tokens; at least 2 and above `generation.max_tokens`."""
    # Optimizer.
    optimizer: Optimizer = Optimizer.adamw
    """Optimizer of the stage: adamw or rmsprop."""
    adam_epsilon: float = bounded(1e-8, above=0, at_most=1)
    """ε of AdamW, which is added to the root of the second moment; above 0; PPO: often 1e-5."""
    weight_decay: float = bounded(0.0, at_least=0, at_most=10)
    """Weight decay of the optimizer, at least 0."""
    lr_schedule: LrSchedule = LrSchedule.linear
    """Learning rate after the warm-up: constant, linear, cosine or cosine_to_tenth."""
    warmup_ratio: float = bounded(0.1, at_least=0, below=1)
    """Share of the steps in which the learning rate rises from 0; at least 0 and below 1."""
    max_grad_norm: float = bounded(1.0, above=0, at_most=1_000_000)
    """Gradients with a larger norm are scaled down to it; above 0."""
    # Workers.
    workers: int = bounded(1, at_least=1, at_most=1024)
    """Training workers, at least 1: one GPU each, or one process on a CPU."""
    sharding: Sharding = Sharding.none
    """Part that each worker holds: none (the whole model) or full (its share).

    `full` is for a model that one worker cannot hold. It needs at least 2 workers, is slower, and
    gives the same results except for rounding."""
    # Saved states and metrics.
    checkpoint_every: str = "10min"
    """Interval at which the trainer's state is saved: steps (100), minutes (10min), or 0 for never.

    An interrupted stage continues from the last saved state. Minutes are a lower bound: saving
    takes at most 3 % of the time."""
    keep: int = bounded(1, at_least=1, at_most=10_000)
    """Saved states to keep, at least 1; all are deleted when the policy is promoted."""
    log_every: int = bounded(1, at_least=1, at_most=1_000_000)
    """Optimizer steps between two lines of metrics, at least 1."""

    def __post_init__(self) -> None:
        check_ranges(self, "training.")
        # Saved states.
        require(
            re.fullmatch(r"\d+|\d+(\.\d+)?min", self.checkpoint_every) is not None,
            f"training.checkpoint_every={self.checkpoint_every}: "
            "expected optimizer steps (100), minutes (10min), or 0 for never",
        )
        # Workers: each has at least one row of a step, and shards the model with others.
        require(
            self.batch_size >= self.workers,
            f"training.batch_size={self.batch_size} is below training.workers={self.workers}: each worker needs a row; "
            "raise the first or lower the second",
        )
        require(
            self.sharding is Sharding.none or self.workers >= 2,
            f"training.sharding={self.sharding.name} with training.workers={self.workers}: "
            "one worker has no other to share the model with; "
            "set the second to at least 2, or the first to none",
        )

    @property
    def save_every(self) -> tuple[int, float]:
        """The interval of `checkpoint_every` in optimizer steps and in seconds; 0: never."""
        if self.checkpoint_every.endswith("min"):
            return 0, 60 * float(self.checkpoint_every.removesuffix("min"))
        return int(self.checkpoint_every), 0.0


@dataclass
class WarmupConfig:
    """A supervised stage before iteration 0, on its own data."""

    enabled: bool = False
    """Train on the targets of `path` before iteration 0; the result is the starting policy."""
    path: str | None = None
    """Data of this stage: a local file, a Hub id or a builtin set; null uses `data.path`."""
    split: str = "train"
    """Split of a Hub data set."""
    limit: int | None = bounded(None, at_least=1, at_most=1_000_000_000)
    """Rows to take from the start; null takes all."""
    training: TrainingConfig = field(default_factory=TrainingConfig)
    """Training settings of this stage; the workers and their sharding are those of `training`."""

    def __post_init__(self) -> None:
        check_ranges(self, "warmup.")
