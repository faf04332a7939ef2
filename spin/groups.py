"""The config groups of a run, each a dataclass, and the checks of their values that need no model."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum

from omegaconf import MISSING

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


class Turn(Enum):
    """Which assistant turn of a row of `messages` is the truth; what stands before it is the prompt."""

    first = "first"
    last = "last"


@dataclass
class ModelConfig:
    """The starting model: a local folder, a Hub id, or ``builtin:tiny``."""

    path: str = MISSING
    dtype: Dtype = Dtype.float32
    chat_template: str = "auto"
    """`auto` (the tokenizer's own), `chatml`, `plain`, or a .jinja file."""
    trust_remote_code: bool = False


@dataclass
class DataConfig:
    """The SFT set. Held-out rows come from `eval_path`, or are taken out of `path`."""

    path: str = MISSING
    split: str = "train"
    turn: Turn = Turn.last
    """Of `messages`; the other formats have one."""
    limit: int | None = None
    eval_path: str | None = None
    eval_split: str = "test"
    eval_limit: int = 200
    answer_pattern: str | None = None
    """Regular expression; the last match (its group 1) is the answer. None compares whole texts."""

    def __post_init__(self) -> None:
        require(
            self.limit is None or self.limit >= 1, f"data.limit={self.limit}: expected at least 1 row, or null for all"
        )
        require(self.eval_limit >= 1, f"data.eval_limit={self.eval_limit}: expected at least 1 held-out row")


@dataclass
class GenerationConfig:
    """How the opponent answers."""

    max_tokens: int = 256
    max_prompt_tokens: int = 256
    """Rows with a longer prompt are dropped and counted."""
    temperature: float = 1.0
    top_p: float = 1.0
    samples_per_prompt: int = 1
    replicas: int = 1
    tensor_parallel_size: int = 1
    shard_size: int = 256
    """Prompts in one shard, the unit of generation and of resume."""
    kv_cache_gib: float = 1.0
    """Key-value cache on CPU; a GPU's is taken from `gpu_memory_utilization`."""
    gpu_memory_utilization: float = 0.4

    def __post_init__(self) -> None:
        for name in (
            "max_tokens",
            "max_prompt_tokens",
            "samples_per_prompt",
            "replicas",
            "tensor_parallel_size",
            "shard_size",
        ):
            require(getattr(self, name) >= 1, f"generation.{name}={getattr(self, name)}: expected at least 1")
        require(
            self.temperature > 0,
            f"generation.temperature={self.temperature}: expected above 0 (the opponent samples; greedy answers are measured anyway)",
        )
        require(0 < self.top_p <= 1, f"generation.top_p={self.top_p}: expected above 0 and at most 1")
        require(
            0 < self.gpu_memory_utilization <= 1,
            f"generation.gpu_memory_utilization={self.gpu_memory_utilization}: expected above 0 and at most 1",
        )
        require(self.kv_cache_gib > 0, f"generation.kv_cache_gib={self.kv_cache_gib}: expected above 0")


@dataclass
class FeedbackConfig:
    """Who labels: a class that labels the opponent's samples, and rows that are labelled already."""

    _target_: str | None = MISSING
    """Called on each prompt's samples; null: nothing is generated."""
    path: str | None = None
    """Preference pairs or ratings to train on besides: a local file or a Hub id; null: none."""
    split: str = "train"
    limit: int | None = None

    def __post_init__(self) -> None:
        require(
            self._target_ is not None or self.path is not None,
            "feedback._target_ and feedback.path are both null: nothing to learn from; give one of them",
        )
        require(
            self.limit is None or self.limit >= 1,
            f"feedback.limit={self.limit}: expected at least 1 row, or null for all",
        )


@dataclass
class PairsConfig:
    """Which pairs of self-play are dropped; each is counted by its reason."""

    drop_identical: bool = True
    """Both halves are the same tokens: they carry no signal."""
    drop_cut: bool = False
    """The sample was cut at `generation.max_tokens`."""
    drop_right: bool = False
    """The sample is already right: its answer (`data.answer_pattern`) is the ground truth's."""


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


class Placement(Enum):
    """Where the stages of an iteration run; it changes no result."""

    sequential = "one after the other; engine and trainer stay in memory"
    split = "training begins on the first shards while the next are generated; scoring has a worker of its own"
    colocated = "one after the other on the same GPU; the engine sleeps while the trainer works"


@dataclass
class ClusterConfig:
    """The Ray cluster: one of its own on this machine, or `address`."""

    address: str | None = None
    """``auto`` (the cluster that this machine is part of), ``host:port``, or ``ray://host:port`` from outside; null: one of this machine's own, for this run."""
    placement: Placement = Placement.sequential
    """`sequential`: stage after stage; `split`: train while the next shards are generated; `colocated`: on one GPU, the engine asleep while the trainer works."""
    cpus: int | None = None
    gpus: int | None = None
    trainer_threads: int = 1
    """torch threads of one training worker on CPU."""

    def __post_init__(self) -> None:
        require(self.cpus is None or self.cpus >= 1, f"cluster.cpus={self.cpus}: expected at least 1, or null for all")
        require(self.gpus is None or self.gpus >= 0, f"cluster.gpus={self.gpus}: expected at least 0, or null for all")
        require(self.trainer_threads >= 1, f"cluster.trainer_threads={self.trainer_threads}: expected at least 1")
