"""Low-rank adapters (LoRA, arXiv 2106.09685) inside a model, by peft.

    W x  becomes  W x + (alpha / rank) B A x     W frozen, A (rank × in) random, B (out × rank) zero

Before the first step B is zero, so that the model computes what its base does, bit for bit. A and B
are float32 in every case.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from spin.config.adapter import AdapterConfig
from spin.errors import ConfigError, single_line

NAME = "default"
"""The name of the adapter inside the model, as peft gives it."""

PREFIX = "base_model.model."
"""What peft puts before the names of tensors in its files."""


def make_lora_config(config: AdapterConfig, task: str = "CAUSAL_LM") -> Any:
    """Return the settings of a new adapter for peft.

    Args:
        config: Rank, alpha and targets.
        task: peft's name of what the model is for, which says what its head is.
    """
    from peft import LoraConfig

    targets = config.targets
    if not isinstance(targets, str):
        targets = list(targets)
    return LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=targets, task_type=task)


def describe_scaling(lora_config: Any) -> str:
    """Return what scales an adapter; two with the same differ in the values of A and B alone.

    The names of the targets are left out: peft writes them in several ways, and `load_adapter`
    compares them.
    """
    names = ("r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern")
    return " ".join(f"{name}={getattr(lora_config, name)}" for name in names)


def inject_adapter(model: Any, lora_config: Any) -> None:
    """Freeze a model and put A and B beside its targets, in place; their values are not set yet.

    Raises:
        ConfigError: The model has no such targets, or one of them is the embedding or the head.
    """
    from peft import inject_adapter_in_model

    try:
        inject_adapter_in_model(lora_config, model)
    except ValueError as error:
        raise ConfigError(f"adapter.targets={lora_config.target_modules}: {single_line(str(error))[:300]}") from error
    # The trainer reads their weights itself, and tied ones would be trained twice.
    outside = {id(model.get_input_embeddings()): "the embedding", id(model.get_output_embeddings()): "the output head"}
    for name, module in list_layers(model):
        if id(module) in outside:
            raise ConfigError(
                f"adapter.targets names {outside[id(module)]} ({name}); expected linear layers of the decoder"
            )
        if not isinstance(module.base_layer, nn.Linear) and type(module.base_layer).__name__ != "Conv1D":
            kind = type(module.base_layer).__name__
            raise ConfigError(f"adapter.targets names {name}, which is a {kind}; expected linear layers")
    # peft takes the dtype of the base; sums of small updates need float32.
    for _, parameter in list_adapter_weights(model):
        parameter.data = parameter.data.float()
    # peft adds a dropout module in training mode.
    model.eval()


def list_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """Yield name and module of each target."""
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def list_adapter_weights(model: Any) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the name in peft's files and the parameter of each A and B."""
    for name, module in list_layers(model):
        for part in ("lora_A", "lora_B"):
            yield f"{PREFIX}{name}.{part}.weight", getattr(module, part)[NAME].weight


def count_adapter_weights(model: Any) -> int:
    """Return the number of trained values."""
    return sum(parameter.numel() for _, parameter in list_adapter_weights(model))


@torch.no_grad()
def reset_adapter(model: Any, seed: int) -> None:
    """Set B to zero and A to random values that depend on the seed and its name alone."""
    for name, parameter in list_adapter_weights(model):
        if ".lora_B." in name:
            parameter.zero_()
            continue
        # The hash of Python differs between processes.
        number = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8], "big") >> 1
        generator = torch.Generator().manual_seed(number)
        values = torch.empty(parameter.shape)
        # As in peft, uniform in ±1/√in.
        nn.init.kaiming_uniform_(values, a=math.sqrt(5), generator=generator)
        parameter.copy_(values)


def gather_adapter(model: Any, state: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """Return A and B under the names of peft's files, in main memory.

    Args:
        model: Model with an adapter.
        state: All weights by name, if `model` holds only this process's shards.
    """
    values = {}
    for name, module in list_layers(model):
        for part in ("lora_A", "lora_B"):
            weight = getattr(module, part)[NAME].weight
            if state is not None:
                weight = state[f"{name}.{part}.{NAME}.weight"]
            values[f"{PREFIX}{name}.{part}.weight"] = weight.detach().float().cpu().contiguous()
    return values


@torch.no_grad()
def merge_adapter(model: Any, state: dict[str, Tensor] | None) -> dict[str, Tensor]:
    """Return all weights of the model without adapters, as if each update was added to its W.

    The sum W + (alpha / rank) B A is computed in float32 and kept in it.

    Args:
        model: Model with an adapter, which stays as it is.
        state: All weights by name, if `model` holds only this process's shards.

    Returns:
        Weights by the names of the model without adapters, in main memory.
    """
    if state is None:
        state = model.state_dict()
    # Tied weights are one tensor under several names, and stay one.
    merged: dict[str, Tensor] = {}
    copies: dict[int, Tensor] = {}
    for name, tensor in state.items():
        if ".lora_A." in name or ".lora_B." in name:
            continue
        key = tensor.data_ptr()
        if key not in copies:
            copies[key] = tensor.detach().float().cpu()
        merged[name.replace(".base_layer.", ".")] = copies[key]
    for name, module in list_layers(model):
        a = state[f"{name}.lora_A.{NAME}.weight"].float().cpu()
        b = state[f"{name}.lora_B.{NAME}.weight"].float().cpu()
        update = (b @ a) * module.scaling[NAME]
        # Conv1D of GPT-2 keeps its weight transposed.
        if module.fan_in_fan_out:
            update = update.t()
        merged[f"{name}.weight"] = merged[f"{name}.weight"] + update
    return merged


def keep_trained_only(module: nn.Module) -> None:
    """Leave frozen weights out of the state dict of a module, so that saved states are small.

    Loading such a state leaves the frozen weights as they are.
    """

    def find_frozen(part: nn.Module) -> set[str]:
        named = part.named_parameters(remove_duplicate=False)
        return {name for name, parameter in named if not parameter.requires_grad}

    def drop_frozen(part: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        for name in find_frozen(part):
            state.pop(prefix + name, None)

    def accept_missing(part: nn.Module, incompatible: Any) -> None:
        frozen = find_frozen(part)
        missing = incompatible.missing_keys
        # The names begin with those of the modules around this one.
        missing[:] = [key for key in missing if not any(key.endswith(name) for name in frozen)]

    module.register_state_dict_post_hook(drop_frozen)
    module.register_load_state_dict_post_hook(accept_missing)
