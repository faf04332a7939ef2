"""Count the weights of a model and the values of an adapter, and the memory of training them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spin.config.adapter import AdapterConfig
from spin.config.training import Dtype
from spin.errors import ConfigError, single_line
from spin.models.adapter_files import find_lora_config
from spin.models.lora import count_adapter_weights, inject_adapter
from spin.models.reward_adapter import count_trained_weights, inject_reward_adapter

FLOAT32_BYTES = 4

VALUE_BYTES = {Dtype.float32: 4, Dtype.bfloat16: 2}
"""Bytes of a value of each dtype."""


def has_weights(folder: Path) -> bool:
    """Return whether a model folder holds files of weights."""
    return any(folder.glob("*.safetensors"))


def count_weights(folder: Path) -> int:
    """Return the number of weights in a model folder, from the headers of its files."""
    from safetensors import safe_open

    weights = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="np") as file:
            weights += sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return weights


def count_config_weights(folder: Path, trust_remote_code: bool) -> int:
    """Return the number of weights that config.json asks for; tied weights count once.

    Args:
        folder: The model folder, which needs no weights.
        trust_remote_code: Run Python code from the model's folder.
    """
    skeleton = make_skeleton(folder, trust_remote_code)
    skeleton.tie_weights()
    return sum(weight.numel() for weight in skeleton.parameters())


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a model that its memory depends on, besides the number of weights."""

    vocabulary: int = 0
    hidden: int = 0
    token_bytes: Mapping[Dtype, int] = field(default_factory=lambda: dict.fromkeys(Dtype, 0))
    """Memory of one token until its backward pass, by the dtype of the matrix products."""
    cache_values: int = 0
    """Values of keys and values of one token in all layers."""


def read_shape(folder: Path, checkpointing: bool, trust_remote_code: bool) -> ModelShape:
    """Return the sizes that the config of a model folder names.

    Args:
        folder: The model.
        checkpointing: `training.gradient_checkpointing`.
        trust_remote_code: Run Python code from the model's folder.
    """
    from transformers import AutoConfig

    from spin.models.token_budget import bytes_per_token

    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code).get_text_config()
    token_bytes = {}
    for dtype, value_bytes in VALUE_BYTES.items():
        token_bytes[dtype] = bytes_per_token(config, value_bytes, checkpointing)
    return ModelShape(config.vocab_size, config.hidden_size, token_bytes, count_cache_values(config))


def count_cache_values(config: Any) -> int:
    """Return the values of keys and values of one token in all layers.

    Args:
        config: The text config of the model.
    """
    heads = config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return int(2 * config.num_hidden_layers * key_heads * width)


def count_adapter(adapter: AdapterConfig, model: Path, start: Path | None, trust_remote_code: bool) -> int:
    """Return the number of values in A and B, without reading weights; 0 without adapters.

    Args:
        adapter: Settings of a new adapter.
        model: Folder of the model.
        start: Folder of an existing adapter, which has settings of its own; None for a new one.
        trust_remote_code: Run Python code from the model's folder.

    Raises:
        ConfigError: The targets do not fit the model.
    """
    if not adapter.enabled:
        return 0
    skeleton = make_skeleton(model, trust_remote_code)
    inject_adapter(skeleton, find_lora_config(start, adapter))
    return count_adapter_weights(skeleton)


def count_reward_adapter(adapter: AdapterConfig, model: Path, trust_remote_code: bool) -> int:
    """Return the number of trained values of a reward model with a new adapter, with its head.

    Weights are not read.

    Args:
        adapter: Settings of the adapter.
        model: Folder of the model whose weights stay frozen.
        trust_remote_code: Run Python code from the model's folder.

    Raises:
        ConfigError: The targets do not fit the model.
    """
    try:
        skeleton = make_skeleton(model, trust_remote_code, is_reward_model=True)
    except ValueError as error:
        raise ConfigError(f"{model} cannot be a reward model: {single_line(str(error))[:200]}") from error
    inject_reward_adapter(skeleton, adapter)
    return count_trained_weights(skeleton)


def make_skeleton(model: Path, trust_remote_code: bool, is_reward_model: bool = False) -> Any:
    """Return the modules of a model whose weights have shapes but no memory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    kind: Any = AutoModelForCausalLM
    if is_reward_model:
        kind, config.num_labels = AutoModelForSequenceClassification, 1
    with torch.device("meta"):
        return kind.from_config(config, trust_remote_code=trust_remote_code)


def training_bytes(weights: int, adapter_weights: int, base_dtype: Dtype, moments: int, parts: int = 1) -> float:
    """Return the memory of weights, gradients and moments of one training worker.

    Args:
        weights: Number of weights of the model.
        adapter_weights: Number of values in A and B; 0 if all weights are trained.
        base_dtype: Dtype of frozen weights.
        moments: Float32 moments of the optimizer for each trained value.
        parts: Number of workers that share all of them.
    """
    trained_bytes = FLOAT32_BYTES * (2 + moments)
    if not adapter_weights:
        return trained_bytes * weights / parts
    return (VALUE_BYTES[base_dtype] * weights + trained_bytes * adapter_weights) / parts
