"""How the layers of a model are called: compiled, and computed again in the backward pass."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from spin.errors import ConfigError

MAX_COMPILATIONS = 64
"""Most versions of a compiled layer: training and scoring, with and without a prompt's copies."""


def set_layer_calls(model: Any, checkpointing: bool, compiled: bool = False) -> None:
    """Let the model's layers be computed again in the backward pass, or compiled, or neither.

    The switch for checkpointing of transformers works in training mode alone, where dropout is on.
    All layers share one compiled graph, because they differ in their weights alone. FSDP2 may wrap
    them afterwards: its hooks, which make the weights whole, run outside of the graph.

    Args:
        model: The model.
        checkpointing: Whether layers keep their input alone and are computed again.
        compiled: Whether torch.compile fuses what lies between the matrix products.

    Raises:
        ConfigError: Checkpointing is wanted, and the model has no layers for it.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if checkpointing and not layers:
        raise ConfigError(
            f"training.gradient_checkpointing=true: {type(model).__name__} has no layers that transformers knows to "
            "checkpoint; set it to false"
        )
    if compiled:
        torch._dynamo.config.cache_size_limit = MAX_COMPILATIONS
    for layer in layers:
        # Undo an earlier call.
        layer.__dict__.pop("forward", None)
        forward = layer.forward
        # In this order: around the checkpoint, torch.compile would give up without a word.
        if compiled:
            forward = torch.compile(forward, dynamic=True)
        if checkpointing:
            forward = partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False)
        if compiled or checkpointing:
            layer.forward = forward
