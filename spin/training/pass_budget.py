"""The tokens of a forward pass of a training worker, from the memory that the model leaves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from spin.config.training import Dtype, Sharding
from spin.models.model_size import VALUE_BYTES, training_bytes
from spin.models.token_budget import auto_token_budget


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

    def held_bytes(self, dtype: Dtype, sharding: Sharding, workers: int) -> int:
        """Return the memory of training on one worker beside its tokens, with AdamW.

        It consists of weights, gradients and two moments of each model, and with `full` of what a
        worker has whole in a step.
        """
        held = 0.0
        for model in self.each():
            parts = workers if sharding is Sharding.full else 1
            held += model.training_bytes(moments=2, parts=parts)
            if sharding is Sharding.full:
                held += model.whole_bytes(dtype)
        return int(held)

    def each(self) -> list[TrainedModel]:
        """Return the models that are trained: the policy, and a critic of its own."""
        models = [replace(self, own_critic=False)]
        if self.own_critic:
            models.append(TrainedModel(self.config, self.weights))
        return models

    def training_bytes(self, moments: int, parts: int = 1) -> float:
        """Return the memory of weights, gradients and moments, see `model_size.training_bytes`."""
        return training_bytes(self.weights, self.trained, self.base_dtype, moments, parts)

    def whole_bytes(self, dtype: Dtype) -> float:
        """Return the memory of what a worker of a sharded model has whole in a step.

        In bfloat16 this is what was gathered, the gradient of the rest of the model, and those of
        one layer; the reduction of gradients copies them. In float32, and with an adapter, it is
        counted as a copy of the weights, which is cautious.
        """
        if dtype is not Dtype.bfloat16 or self.trained:
            # Weights alone: no gradients and no moments.
            return self.training_bytes(moments=-1)
        rest = self._count_rest()
        one_layer = (self.weights - rest) / self.config.num_hidden_layers
        gradient_bytes = VALUE_BYTES[Dtype.float32]
        layer_bytes = 2 * (VALUE_BYTES[Dtype.bfloat16] + gradient_bytes) * one_layer
        return self.gathered_bytes() + 2 * gradient_bytes * rest + layer_bytes

    def gathered_bytes(self) -> float:
        """Return the memory of layers in bfloat16 and of the rest of the model in float32."""
        rest = self._count_rest()
        return VALUE_BYTES[Dtype.bfloat16] * (self.weights - rest) + VALUE_BYTES[Dtype.float32] * rest

    def _count_rest(self) -> int:
        """Return the number of weights of the embedding and the head."""
        tables = 1 if self.config.tie_word_embeddings else 2
        count: int = tables * self.config.vocab_size * self.config.hidden_size
        return count


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
    free = max(0, free_bytes - model.held_bytes(dtype, sharding, workers))
    return auto_token_budget(model.config, device, VALUE_BYTES[dtype], free, checkpointing, compiled)
