"""Config groups of a training stage: precision, optimizer, schedule, sharding, layout."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum

from spin.errors import require


class Dtype(Enum):
    """Precision of the forward pass and of the engine; weights are trained and saved in float32 masters either way."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class Optimizer(Enum):
    """`rmsprop` is the SPIN paper's."""

    adamw = "adamw"
    rmsprop = "rmsprop"


class LrSchedule(Enum):
    """Decay after the warm-up of the learning rate; the names are those of transformers."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"


class Sharding(Enum):
    """What each of several training workers holds: `none`, the whole model (DDP); `full`, its part of weights, gradients and optimizer state (FSDP2)."""

    none = "none"
    full = "full"


class Layout(Enum):
    """How prompts and completions share a forward pass; `auto` takes the first that is exact for the model, which it tries on real rows."""

    auto = "auto"
    shared = "shared"
    packed = "packed"
    padded = "padded"


@dataclass
class TrainingConfig:
    """One training stage: a fresh optimizer over `epochs` passes of its rows."""

    learning_rate: float = 5e-7
    epochs: int = 1
    batch_size: int = 64
    """Rows (pairs) in one optimizer step, over all workers."""
    micro_batch_tokens: int | None = None
    """Tokens in one forward pass of one worker, gradients being accumulated up to `batch_size`; null: found from the memory that is free."""
    layout: Layout = Layout.auto
    """`shared`: no padding, a prompt once for all its completions; `packed`: no padding; `padded`: the plain way, which the others are compared with."""
    gradient_checkpointing: bool = False
    """Compute each layer again in the backward pass instead of keeping it: less memory, a third more time."""
    max_length: int = 1024
    """Longest prompt + completion in tokens."""
    optimizer: Optimizer = Optimizer.adamw
    weight_decay: float = 0.0
    lr_schedule: LrSchedule = LrSchedule.linear
    warmup_ratio: float = 0.1
    max_grad_norm: float = 1.0
    workers: int = 1
    sharding: Sharding = Sharding.none
    """`full`: the workers share the model out (FSDP2), for one that does not fit on each of them; slower, and the same but for rounding."""
    checkpoint_every: str = "10min"
    """How often the trainer's state is saved: ``100`` optimizer steps, ``10min`` or 0 for never. An interrupted stage goes on from the last."""
    keep: int = 1
    """Saved states of a stage that are kept; older ones go once a newer one is whole, and all of them once the stage is promoted."""
    log_every: int = 1

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "workers", "log_every", "keep"):
            require(getattr(self, name) >= 1, f"training.{name}={getattr(self, name)}: expected at least 1")
        require(
            self.micro_batch_tokens is None or self.micro_batch_tokens >= 1,
            f"training.micro_batch_tokens={self.micro_batch_tokens}: expected at least 1, or null",
        )
        require(self.max_length >= 2, f"training.max_length={self.max_length}: expected at least 2 tokens")
        require(self.learning_rate > 0, f"training.learning_rate={self.learning_rate}: expected above 0")
        require(
            0 <= self.warmup_ratio < 1, f"training.warmup_ratio={self.warmup_ratio}: expected at least 0 and below 1"
        )
        require(self.max_grad_norm > 0, f"training.max_grad_norm={self.max_grad_norm}: expected above 0")
        require(self.weight_decay >= 0, f"training.weight_decay={self.weight_decay}: expected at least 0")
        require(
            re.fullmatch(r"\d+|\d+(\.\d+)?min", self.checkpoint_every) is not None,
            f"training.checkpoint_every={self.checkpoint_every}: expected optimizer steps (100), minutes (10min), or 0 for never",
        )
        require(
            self.batch_size >= self.workers,
            f"training.batch_size={self.batch_size} is below training.workers={self.workers}: each worker needs a row; raise the first or lower the second",
        )
        require(
            self.sharding is Sharding.none or self.workers >= 2,
            f"training.sharding={self.sharding.name} with training.workers={self.workers}: there is nobody to share the model with; "
            "set the second to at least 2, or the first to none",
        )

    @property
    def save_every(self) -> tuple[int, float]:
        """`checkpoint_every` as steps and seconds; 0 is never."""
        minutes = self.checkpoint_every.removesuffix("min")
        return (0, 60 * float(minutes)) if minutes != self.checkpoint_every else (int(minutes), 0.0)


@dataclass
class WarmupConfig:
    """A supervised stage before iteration 0, on its own data."""

    enabled: bool = False
    path: str | None = None
    """None takes the run's own `data.path`."""
    split: str = "train"
    limit: int | None = None
    training: TrainingConfig = field(default_factory=TrainingConfig)
