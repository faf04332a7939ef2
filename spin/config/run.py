"""The configuration of a run: all config groups in one dataclass, and what a resume may change.

Hydra composes the values and checks their types. `OmegaConf.to_object` makes the dataclasses, and
their ``__post_init__`` checks the values.
"""

from __future__ import annotations

import dataclasses
import json
import pkgutil
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from spin.config.adapter import AdapterConfig, Serve
from spin.config.benchmark import BenchmarkConfig, KeepConfig, StopConfig
from spin.config.cluster import ClusterConfig
from spin.config.groups import DataConfig, FeedbackConfig, GenerationConfig, ModelConfig, PairsConfig
from spin.config.judge import JudgeConfig
from spin.config.objective import register_objectives
from spin.config.objective_base import Need, ObjectiveConfig
from spin.config.ranges import bounded, check_ranges
from spin.config.reward_model import RewardModelConfig
from spin.config.training import Dtype, Sharding, TrainingConfig, WarmupConfig
from spin.errors import ConfigError, require

_PACKAGED = Path(__file__).parent.parent / "conf"

CONF_DIR = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parent.parent.parent / "conf"
"""Folder of Hydra's files: in the package as a wheel installs it, beside it in a checkout."""


class Baseline(Enum):
    """A second chain of policies from the same start, for comparison."""

    sft = "sft"
    """Continued supervised training on the targets of the same prompts."""


TRACKERS = ("tensorboard", "wandb", "mlflow")
"""Names that `tracking` accepts."""


@dataclass
class RunConfig:
    """Everything one run depends on."""

    run_dir: str = MISSING
    """Folder or URL of the run; the same command on it continues the run."""
    iterations: int = bounded(3, at_least=1, at_most=100_000)
    """Iterations of self-play, at least 1."""
    seed: int = bounded(0, at_least=0, at_most=2**31 - 1)
    """Seed of all sampling and shuffling, 0 to 2147483647."""
    # Self-play.
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    feedback: FeedbackConfig = field(default_factory=FeedbackConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    reward_model: RewardModelConfig = field(default_factory=RewardModelConfig)
    pairs: PairsConfig = field(default_factory=PairsConfig)
    replay: int = bounded(0, at_least=0, at_most=100_000)
    """Earlier iterations whose pairs are trained on again, at least 0.

    Their pairs are scored again under the current reference."""
    # Training.
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    warmup: WarmupConfig = field(default_factory=WarmupConfig)
    # Measurement.
    benchmark: BenchmarkConfig = field(default_factory=BenchmarkConfig)
    stop: StopConfig = field(default_factory=StopConfig)
    keep: KeepConfig = field(default_factory=KeepConfig)
    baseline: Baseline | None = None
    """`sft` adds continued SFT from the same start with as many optimizer steps; null adds none."""
    # Machines, trackers and exceptions.
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    tracking: Any = field(default_factory=list)
    """Trackers that get the metrics too: tensorboard, wandb, mlflow, or a list of them."""
    schedule: dict[int, list[str]] = field(default_factory=dict)
    """Overrides of single iterations, such as ``{1: [objective=ipo], 2: [objective.beta=0.2]}``.

    An override holds for its iteration only."""

    def __post_init__(self) -> None:
        check_ranges(self, "")
        # One tracker, a list of them, or null for none.
        if self.tracking is None:
            self.tracking = []
        if not isinstance(self.tracking, list):
            self.tracking = [self.tracking]
        for name in self.tracking:
            require(name in TRACKERS, f"tracking={name}: expected one of {', '.join(TRACKERS)}, or a list of them")
        # Settings of different groups that do not go together.
        require(
            self.benchmark.enabled or self.stop.patience is None,
            f"stop.patience={self.stop.patience} needs the metrics that benchmark.enabled=false leaves out; "
            "set the first to null or the second to true",
        )
        require(
            self.benchmark.enabled or not self.benchmark.lm_eval.tasks,
            f"benchmark.lm_eval.tasks={self.benchmark.lm_eval.tasks} with benchmark.enabled=false: "
            "set the first to [] or the second to true",
        )
        require(
            self.warmup.training.sharding is Sharding.none,
            f"warmup.training.sharding={self.warmup.training.sharding.name}: the workers are the whole run's; "
            "set training.sharding, which the warm start follows",
        )
        # Rows of earlier iterations are found by the number of their shard.
        require(
            self.generation.prompts_per_iteration is None or self.replay == 0,
            f"generation.prompts_per_iteration={self.generation.prompts_per_iteration} with replay={self.replay}: "
            "iterations have other prompts, so their rows cannot be added; set one of them to null or 0",
        )
        require(
            self.generation.prompts_per_iteration is None or Need.start_answers not in self.objective.needs,
            f"generation.prompts_per_iteration={self.generation.prompts_per_iteration} with "
            f"objective={self.objective.name}, which needs the answers of iteration 0 to the same prompts; "
            "set the first to null",
        )
        require(
            self.adapter.base_dtype is Dtype.float32 or self.model.dtype is Dtype.bfloat16,
            f"adapter.base_dtype={self.adapter.base_dtype.name} with model.dtype={self.model.dtype.name}: products in "
            "float32 need weights in float32; set both to bfloat16, or the first to float32",
        )
        require(
            self.reward_model.training.sharding is Sharding.none,
            f"reward_model.training.sharding={self.reward_model.training.sharding.name}: the workers are the whole "
            "run's; set training.sharding, which the reward model follows",
        )
        # A reward model is made of a whole model.
        starts_from_adapter = self.adapter.enabled and self.adapter.serve is Serve.adapter and self.warmup.enabled
        require(
            not (starts_from_adapter and self.reward_model.is_trained),
            "adapter.serve=adapter with warmup.enabled=true: the reward model begins as the whole model that the warm "
            "start leaves; set adapter.serve=merged",
        )
        # Prompt and completion share `training.max_length`.
        room = self.training.max_length - self.generation.max_tokens
        require(
            room >= 1,
            f"generation.max_tokens={self.generation.max_tokens} leaves no room for a prompt "
            f"in training.max_length={self.training.max_length}: "
            "raise the second or lower the first",
        )

        require(
            not self.reward_model.is_trained or self.max_ranked_length >= 1,
            f"reward_model.training.max_length={self.reward_model.training.max_length} leaves no room for an answer "
            f"after prompts of {self.max_prompt_length} tokens; raise it or lower generation.max_prompt_tokens",
        )

    @property
    def max_ranked_length(self) -> int:
        """Longest ranked answer in tokens that a reward model learns from; the rest is cut off."""
        return self.reward_model.training.max_length - self.max_prompt_length

    @property
    def max_prompt_length(self) -> int:
        """Longest prompt in tokens, so that prompt and completion fit `training.max_length`."""
        return min(self.generation.max_prompt_tokens, self.training.max_length - self.generation.max_tokens)


def import_target(key: str, target: str) -> Any:
    """Return the object that a `_target_` names. Raises ConfigError when it cannot be imported."""
    try:
        return pkgutil.resolve_name(target)
    except Exception as error:  # whatever a user's module can raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"{key}={target} cannot be imported ({reason}); expected module.name on PYTHONPATH"
        ) from error


def to_plain(config: Any) -> Any:
    """Return a config dataclass as values that JSON can hold; enums by name."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_plain(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Enum):
        return config.name
    if isinstance(config, list | tuple):
        return [to_plain(value) for value in config]
    if isinstance(config, dict):
        return {key: to_plain(value) for key, value in config.items()}
    return config


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested dicts as one dict with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


FREE_KEYS = (
    "run_dir",
    "iterations",
    # Machines and memory.
    "generation.replicas",
    "generation.kv_cache_gib",
    "generation.gpu_memory_utilization",
    "judge.replicas",
    "judge.api_key_env",
    "judge.concurrency",
    "judge.retries",
    "judge.timeout",
    "judge.max_requests",
    "judge.price",
    "cluster.",
    # Metrics and saved states.
    "training.log_every",
    "training.checkpoint_every",
    "training.keep",
    "reward_model.training.log_every",
    "reward_model.training.checkpoint_every",
    "reward_model.training.keep",
    "warmup.training.log_every",
    "warmup.training.checkpoint_every",
    "warmup.training.keep",
    # An iteration has a config of its own once it has begun.
    "schedule",
    # Measurement.
    "benchmark.enabled",
    "benchmark.lm_eval.",
    "stop.",
    "keep.",
    "baseline",
    "tracking",
)
"""Keys, or their first parts, that a resume may change: they change no result of a finished unit.

`iterations` may only be raised. The schedule of an iteration is fixed once that has begun."""

SCHEDULED_KEYS = (
    "objective.",
    "training.",
    "feedback.",
    "pairs.",
    "replay",
    "generation.temperature",
    "generation.top_p",
    "generation.samples_per_prompt",
)
"""Keys, or their first parts, that a schedule may change."""

RUN_KEYS = ("training.workers", "training.sharding", "training.max_length")
"""Keys among SCHEDULED_KEYS that a schedule may not change."""


def list_defaults(config: Any) -> dict[str, Any]:
    """Return the defaults of a config dataclass as values that JSON can hold; enums by name.

    A required key has the value that it has in `config`.
    """
    values = {}
    for key in dataclasses.fields(config):
        value = getattr(config, key.name)
        if dataclasses.is_dataclass(value):
            values[key.name] = list_defaults(value)
            continue
        if key.default is not dataclasses.MISSING and key.default != MISSING:
            value = key.default
        elif key.default_factory is not dataclasses.MISSING:
            value = key.default_factory()
        values[key.name] = to_plain(value)
    return values


def fingerprint(config: RunConfig) -> dict[str, str]:
    """Return the keys that a resumed run must share, each value as JSON."""
    return _select_bound_keys(to_plain(config))


def fingerprint_of_defaults(config: RunConfig) -> dict[str, str]:
    """Return the keys of `fingerprint` with the defaults that they have in this version."""
    return _select_bound_keys(list_defaults(config))


def _select_bound_keys(plain: dict[str, Any]) -> dict[str, str]:
    return {key: json.dumps(value) for key, value in flatten(plain).items() if not key.startswith(FREE_KEYS)}


def register() -> None:
    """Put the dataclasses in Hydra's store, which checks keys and types against them."""
    store = ConfigStore.instance()
    store.store(name="run_schema", node=RunConfig)
    register_objectives(store)
    store.store(group="feedback", name="feedback_schema", node=FeedbackConfig)
    store.store(group="adapter", name="adapter_schema", node=AdapterConfig)
