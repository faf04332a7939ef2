"""The config groups of a run, each a dataclass, and the checks of their values that need no model."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from omegaconf import MISSING

from spin.config.training import Dtype
from spin.errors import require


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
