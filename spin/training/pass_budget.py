"""The tokens of a forward pass of a training worker, from the memory that the model leaves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from spin.config.training import Dtype, Sharding
from spin.models.model_size import VALUE_BYTES
from spin.models.token_budget import auto_token_budget
from spin.training.sharding import count_held_bytes


@dataclass(frozen=True)
class TrainedModel:
    """The sizes of what the workers train."""

    config: Any
    """The text config of the model."""
    weights: int
    """Number of weights."""
    trained: int = 0
    """Number of values in A and B; 0 if all weights are trained."""
    base_dtype: Dtype = Dtype.float32
    """Dtype of frozen weights."""
    own_critic: bool = False
    """True if a critic of the same size is trained beside it."""

    def held_bytes(self, sharding: Sharding, workers: int) -> int:
        """Return the memory of one worker beside its tokens, see `count_held_bytes`."""
        held = count_held_bytes(self.weights, self.trained, self.base_dtype, sharding, workers)
        if self.own_critic:
            held += count_held_bytes(self.weights, 0, Dtype.float32, sharding, workers)
        return held


def plan_token_budget(
    model: TrainedModel,
    device: torch.device | str,
    free_bytes: int,
    dtype: Dtype,
    sharding: Sharding,
    workers: int,
    checkpointing: bool = False,
    compiled: bool = False,
) -> int:
    """Return the tokens of a forward pass of one worker.

    Args:
        model: Sizes of what is trained.
        device: Device of the worker.
        free_bytes: Free memory of the device before the model is loaded.
        dtype: Dtype of the matrix products.
        sharding: How the workers share the model.
        workers: Number of workers.
        checkpointing: `training.gradient_checkpointing`, with which a token takes less memory.
        compiled: `training.compile_layers`; so does this.
    """
    free = max(0, free_bytes - model.held_bytes(sharding, workers))
    return auto_token_budget(model.config, device, VALUE_BYTES[dtype], free, checkpointing, compiled)
