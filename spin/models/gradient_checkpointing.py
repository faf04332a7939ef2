"""Gradient checkpointing of a model's own layers."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch.utils.checkpoint import checkpoint

from spin.errors import ConfigError


def checkpoint_layers(model: Any, wanted: bool) -> None:
    """Let the model's layers be computed again in the backward pass, or no longer.

    The switch of transformers works in training mode alone, where dropout is on.

    Raises:
        ConfigError: The model has no layers that transformers can checkpoint.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if wanted and not layers:
        raise ConfigError(
            f"training.gradient_checkpointing=true: {type(model).__name__} has no layers that transformers knows to "
            "checkpoint; set it to false"
        )
    for layer in layers:
        # Remove the wrapper of an earlier call.
        layer.__dict__.pop("forward", None)
        if wanted:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
