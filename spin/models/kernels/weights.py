"""Read the weights of decoder layers, and copy them to the dtype of the matrix products."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

PROJECTIONS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)
"""Linear modules of a layer, in the order of `LayerWeights.parameters`."""

NORMS = ("input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm")
"""Norms of a layer. Some models have no per-head norms of queries and keys."""


class WeightCopies:
    """Copies of weights in the dtype of the matrix products."""

    def __init__(self) -> None:
        self._cache: dict[Tensor, Tensor] | None = None

    @contextmanager
    def cached(self) -> Iterator[None]:
        """Copy each weight only once until the block ends.

        The caller must not change a weight inside the block. The cache could not notice it, because
        fused optimizers do not raise the version number of a tensor.
        """
        self._cache = {}
        try:
            yield
        finally:
            self._cache = None

    def __call__(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the weight in `dtype`. No copy is made if the weight has this dtype."""
        if weight.dtype == dtype:
            return weight.detach()
        # Outside of `cached` a copy would outlive the next optimizer step, so it is not stored.
        if self._cache is None:
            return weight.detach().to(dtype)
        if weight not in self._cache:
            self._cache[weight] = weight.detach().to(dtype)
        return self._cache[weight]


class LayerWeights:
    """The parameters of one layer, read from its Hugging Face modules."""

    def __init__(self, layer: nn.Module) -> None:
        self.linears = [layer.get_submodule(name) for name in PROJECTIONS]
        modules = dict(layer.named_modules())
        self.norms = [modules.get(name) for name in NORMS]
        # Width of one head, and factor of the attention scores.
        self.width = int(layer.self_attn.head_dim)  # type: ignore[union-attr, arg-type]
        self.scaling = float(layer.self_attn.scaling)  # type: ignore[union-attr, arg-type]

    def parameters(self) -> list[Tensor | None]:
        """Return 7 weights, 7 biases and 4 norms, with None for those that the model lacks.

        `layer_backward` returns gradients in the same order.
        """
        weights = [linear.weight for linear in self.linears]
        biases = [linear.bias for linear in self.linears]
        norms = [norm and norm.weight for norm in self.norms]
        return [*weights, *biases, *norms]  # type: ignore[list-item]

    def matrices(self, copies: WeightCopies, dtype: torch.dtype) -> list[Tensor]:
        """Return the 7 weights in the dtype of the matrix products."""
        return [copies(linear.weight, dtype) for linear in self.linears]  # type: ignore[arg-type]

    def biases(self, dtype: torch.dtype) -> list[Tensor | None]:
        """Return the 7 biases in the dtype of the matrix products; None for a missing bias."""
        biases: list[Tensor | None] = []
        for linear in self.linears:
            # Biases are small, so they are cast in each call.
            bias: Tensor | None = linear.bias  # type: ignore[assignment]
            if bias is not None:
                bias = bias.detach().to(dtype)
            biases.append(bias)
        return biases
