"""How much room a run takes: memory of an engine and of a training worker, bytes on the disk. Arithmetic on the config, the model's shape and the prepared rows.

Not here: how long it takes (`pace.py`), and what is said of both (`estimate.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spin.config.objective import SftObjective
from spin.config.run import RunConfig
from spin.config.training import Dtype, Optimizer, TrainingConfig
from spin.data.parquet import list_totals
from spin.preflight.devices import Device
from spin.run_dir.ledger import Ledger
from spin.run_dir.paths import RunLayout

LOGITS_BYTES = 64 << 20
"""The byte budget of the head: see `spin.models.kernels.head`."""


ROW_BYTES_PER_TOKEN = 5
"""On disk, token ids and text together."""


GIB = 2**30


SETS = {
    **dict.fromkeys(("train", "heldout", "warmup"), ["completion_ids"]),
    "labelled-pairs": ["chosen_ids", "rejected_ids"],
    "ratings": ["completion_ids"],
}
"""The prepared sets and their columns of completions."""


@dataclass(frozen=True)
class Shape:
    """A model as far as costs go."""

    weights: int
    layers: int
    kv_values: int
    """Key and value numbers of one token, over all layers."""
    hidden: int
    inner: int
    config: Any
    """The Hugging Face config of the text model."""


def model_shape(folder: Path, config: Any) -> Shape:
    """From a model's `config` and the headers of its safetensors: no weight is read."""
    from safetensors import safe_open

    weights = 0
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="np") as tensors:
            weights += sum(int(np.prod(tensors.get_slice(name).get_shape())) for name in tensors.keys())  # noqa: SIM118
    text = config.get_text_config()
    heads = text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    inner = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    kv_values = 2 * text.num_hidden_layers * (getattr(text, "num_key_value_heads", None) or heads) * width
    return Shape(weights, text.num_hidden_layers, kv_values, text.hidden_size, inner, text)


@dataclass(frozen=True)
class RowCounts:
    """A prepared set by its size: how many rows, and the tokens of a prompt and of what follows it, on average."""

    count: int
    prompt: float
    completion: float
    """Of a pair, both completions together."""


def measure_rows(layout: RunLayout) -> dict[str, RowCounts]:
    """The prepared sets by name; only the lengths of their lists are read."""
    found = {}
    for name, completions in SETS.items():
        if layout.prompts(name).exists():
            count, (prompts, *others) = list_totals(layout.prompts(name), ["prompt_ids", *completions])
            found[name] = RowCounts(count, prompts / max(1, count), sum(others) / max(1, count))
    return found


def generation_memory(shape: Shape, config: RunConfig, device: Device) -> tuple[float, float, int]:
    """Bytes of weights and of key-value cache in one engine's device, and how many answers of full length the cache has room for."""
    value, parts = value_bytes(config), config.generation.tensor_parallel_size
    weights = shape.weights * value / parts
    cache = (
        config.generation.gpu_memory_utilization * device.memory - weights
        if device.kind == "gpu"
        else config.generation.kv_cache_gib * GIB
    )
    longest = config.max_prompt_length + config.generation.max_tokens
    return weights, max(0.0, cache), int(max(0.0, cache) / (shape.kv_values * value / parts * longest))


def training_memory(shape: Shape, config: RunConfig, training: TrainingConfig, sharded: bool) -> float:
    """Bytes at least that training takes in one worker's device.

    Float32 weights, gradients and optimizer moments, all of them or a part of each where they are `sharded` over the workers (then two layers are whole at
    a time); a copy of the weights in the precision of the products; activations of the larger of `micro_batch_tokens` and one pair of full length.
    """
    from spin.models.packing import bytes_per_token

    moments = 2 if training.optimizer is Optimizer.adamw else 1
    held, whole = (training.workers, 2 / shape.layers) if sharded else (1, 1.0)
    states = 4 * (2 + moments) * shape.weights / held + (4 * whole * shape.weights if sharded else 0)
    copies = 2 * whole * shape.weights if config.model.dtype is Dtype.bfloat16 else 0
    tokens = max(training.micro_batch_tokens or 0, config.max_prompt_length + 2 * config.generation.max_tokens)
    return (
        states
        + copies
        + tokens * bytes_per_token(shape.config, value_bytes(config), training.gradient_checkpointing)
        + LOGITS_BYTES
    )


def value_bytes(config: RunConfig) -> int:
    """Bytes of a number in the run's precision."""
    return 2 if config.model.dtype is Dtype.bfloat16 else 4


@dataclass(frozen=True)
class Disk:
    """Bytes that are still to be written, at the most."""

    policies: int
    policy: int
    """Bytes of one: weights are saved in float32."""
    states: int
    state: int
    rows: int

    @property
    def total(self) -> int:
        return self.policies * self.policy + self.states * self.state + self.rows

    def __str__(self) -> str:
        parts = [f"{self.policies} policies of {size(self.policy)}"] if self.policies else []
        parts += [f"{self.states} trainer states of {size(self.state)}"] if self.states else []
        return ", ".join([*parts, f"{size(self.rows)} of samples and pairs"])


def disk_left(
    iteration_configs: list[RunConfig], shape: Shape, rows: dict[str, RowCounts], layout: RunLayout, ledger: Ledger
) -> Disk:
    """What the run has yet to write. While a stage trains, the state that is being saved stands beside those that are kept."""
    config, train = iteration_configs[0], rows["train"]
    chains = (layout.iteration, layout.baseline) if config.baseline else (layout.iteration,)
    trained = [
        (chain(index), iteration.training) for chain in chains for index, iteration in enumerate(iteration_configs)
    ]
    trained += [(layout.start, config.warmup.training)] if config.warmup.enabled else []
    left = [(stage, training) for stage, training in trained if f"{stage.name}/policy" not in ledger]
    saving = [(stage, training) for stage, training in left if training.save_every != (0, 0.0)]
    moments = max((2 if training.optimizer is Optimizer.adamw else 1 for _, training in saving), default=0)
    there = max((len(list(stage.trainer.glob("step-*"))) for stage, _ in saving), default=0)
    states = max(0, max((training.keep + 1 for _, training in saving), default=0) - there)
    tokens = 0.0
    for index, iteration in enumerate(iteration_configs):
        if (
            f"{layout.iteration(index).name}/policy" not in ledger
            and iteration.feedback._target_
            and not isinstance(iteration.objective, SftObjective)
        ):
            own = train.count * iteration.generation.samples_per_prompt
            tokens += own * train.completion + own * (1 + min(iteration.replay, index)) * (
                train.prompt + 2 * train.completion
            )
    return Disk(
        len(left), 4 * shape.weights, states, 4 * (1 + moments) * shape.weights, int(ROW_BYTES_PER_TOKEN * tokens)
    )


def size(count: float) -> str:
    """Bytes for people."""
    unit = "GiB" if count >= 0.1 * GIB else "MiB"
    return f"{count / (GIB if unit == 'GiB' else 2**20):,.1f} {unit}"
