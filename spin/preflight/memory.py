"""Estimate the main memory of all processes of a run that exist at once, on CPUs.

    driver + Ray + engines + training workers (+ scorer, judge, engine of the reward model)

No process gives its memory back between stages. The constants were measured as proportional set
sizes, on models from 1 to 270 million weights: docs/performance.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from spin.config.cluster import Placement
from spin.config.reward_model import Backend
from spin.config.run import RunConfig
from spin.config.training import Dtype, TrainingConfig
from spin.models.model_size import ModelShape, count_weights
from spin.models.policy import find_model
from spin.models.token_budget import CPU_TOKEN_CAP
from spin.preflight.hardware import Device
from spin.report.formatting import format_bytes

GIB = 1 << 30

DRIVER_BYTES = int(0.45 * GIB)
"""The driver, with PyTorch, Ray and transformers."""

RAY_BYTES = int(0.4 * GIB)
"""Ray's own processes."""

ENGINE_BYTES = int(0.75 * GIB)
"""A process with vLLM, besides weights and cache."""

TRAINER_BYTES = int(0.55 * GIB)
"""A process with PyTorch, Ray and transformers, besides weights and tokens."""

SAMPLED_SEQUENCES = 256
"""Sequences that vLLM samples for at once, at most."""

SAMPLER_COPIES = 5
"""Tensors as large as the float32 logits of these sequences that vLLM's sampler has at once."""

HEAD_GRADIENTS = 3
"""Gradients of the embedding beside its own: of the head, of the input, and a temporary sum."""


@dataclass(frozen=True)
class MemoryPart:
    """The memory of the processes of one role."""

    role: str
    count: int
    each: float
    """Bytes of one process."""
    remark: str = ""

    def describe(self) -> str:
        """Return the part as text, such as ``2 engines 4.2 GiB each``."""
        text = f"{self.role} {format_bytes(self.each)}"
        if self.count > 1:
            text = f"{self.count} × {text}"
        if self.remark:
            text += f" ({self.remark})"
        return text


def list_memory_parts(
    config: RunConfig, engine: tuple[float, float], training_bytes: float, shape: ModelShape, others: Mapping[str, int]
) -> list[MemoryPart]:
    """Return the memory of all processes of a run on CPUs.

    Args:
        config: Config of the run.
        engine: Bytes of weights and of cache of an engine.
        training_bytes: Bytes of weights, gradients and moments of a training worker, with those of
            a critic of its own.
        shape: Sizes of the model.
        others: Weights of the models of further engines by their role.
    """
    value_bytes = 4
    if config.model.dtype is Dtype.bfloat16:
        value_bytes = 2
    weights, cache = engine
    sampler = SAMPLER_COPIES * 4 * SAMPLED_SEQUENCES * shape.vocabulary
    parts = [
        MemoryPart("driver and Ray", 1, DRIVER_BYTES + RAY_BYTES),
        MemoryPart(
            "engine",
            config.generation.replicas,
            ENGINE_BYTES + weights + cache + sampler,
            f"weights {format_bytes(weights)}, cache {format_bytes(cache)}, logits {format_bytes(sampler)}",
        ),
    ]
    for role, count in others.items():
        parts.append(MemoryPart(role, 1, ENGINE_BYTES + value_bytes * count + cache))

    # A training worker, with the tokens of a forward pass until their backward pass.
    num_tokens = count_pass_tokens(config.training)
    one_pass = num_tokens * shape.token_bytes[config.model.dtype]
    if not config.adapter.enabled:
        one_pass += HEAD_GRADIENTS * 4 * shape.vocabulary * shape.hidden
    remark = (
        f"weights, gradients and moments {format_bytes(training_bytes)}, a pass of {num_tokens:,} tokens "
        f"{format_bytes(one_pass)}"
    )
    each = TRAINER_BYTES + training_bytes + one_pass
    parts.append(MemoryPart("training worker", config.training.workers, each, remark))
    if config.cluster.placement is Placement.split:
        parts.append(MemoryPart("scorer", 1, TRAINER_BYTES + 4 * weights / value_bytes))
    return parts


def count_other_engines(config: RunConfig, weights: int) -> dict[str, int]:
    """Return the numbers of weights of a judge and of a reward model with engines of their own.

    Args:
        config: Config of the run.
        weights: Number of weights of the policy, from which a run's own reward model is made.
    """
    others = {}
    if config.judge.is_own_model:
        assert config.judge.model is not None
        others["judge"] = count_weights(find_model(config.judge.model, "judge.model"))
    if config.reward_model.backend is Backend.vllm:
        others["engine of the reward model"] = weights
        if config.reward_model.path is not None:
            others["engine of the reward model"] = count_weights(find_model(config.reward_model.path))
    return others


def count_pass_tokens(training: TrainingConfig) -> int:
    """Return the most tokens of a forward pass on a CPU."""
    longest = training.micro_batch_tokens or CPU_TOKEN_CAP
    return min(longest, 2 * training.batch_size * training.max_length)


def describe_memory(
    config: RunConfig,
    device: Device,
    engine: tuple[float, float],
    training: float,
    sizes: tuple[int, int, ModelShape],
    others: Mapping[str, int],
) -> str:
    """Return one line: on CPUs on the processes of a run and their sum, on GPUs on each device.

    Args:
        config: Config of the run.
        device: One GPU, or the CPU.
        engine: Bytes of weights and of cache of an engine.
        training: Bytes of weights, gradients and moments of a training worker.
        sizes: Number of weights of the model and of values in its adapter, and other sizes.
        others: From `count_other_engines`.
    """
    weights, adapter_weights, shape = sizes
    if device.name != "CPU":
        return _describe_device(device, engine, training, weights, adapter_weights)
    parts = list_memory_parts(config, engine, training, shape, others)
    total = sum(part.count * part.each for part in parts)
    excess = ""
    if total > device.memory:
        excess = ", MORE THAN THE MACHINE HAS"
    return (
        f"estimate, memory: {format_bytes(total)} of {format_bytes(device.memory)} for all processes at once{excess}; "
        f"{weights / 1e6:,.1f} M weights: {'; '.join(part.describe() for part in parts)}"
    )


def _describe_device(
    device: Device, engine: tuple[float, float], training: float, weights: int, adapter_weights: int
) -> str:
    """Return one line on the memory of a GPU."""
    adapted = excess = ""
    if adapter_weights:
        adapted = f" with {adapter_weights / 1e6:,.1f} M trained values beside frozen weights"
    if training > device.memory:
        excess = ", MORE THAN THE DEVICE HAS"
    return (
        f"estimate, memory: {weights / 1e6:,.1f} M weights; on one {device.name} of {format_bytes(device.memory)}: "
        f"generation {format_bytes(engine[0])} and {format_bytes(engine[1])} of cache, training "
        f"{format_bytes(training)} of weights, gradients and moments{adapted}{excess}, besides activations"
    )
