"""Read the weights of decoder layers, and copy them to the dtype of the matrix products."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

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


@dataclass(frozen=True)
class LowRank:
    """An adapter beside a linear module, whose output gets scaling · B A x more (2106.09685)."""

    a: nn.Parameter
    """Shape (rank, in)."""
    b: nn.Parameter
    """Shape (out, rank)."""
    scaling: float


def split_adapter(module: nn.Module) -> tuple[nn.Module, LowRank | None]:
    """Return a linear module and its adapter; of a module of peft, the module inside it."""
    # Without an import of peft, which need not be installed.
    if not hasattr(module, "lora_A"):
        return module, None
    [name] = module.lora_A.keys()  # type: ignore[operator]
    adapter = LowRank(module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name])  # type: ignore
    return module.base_layer, adapter  # type: ignore[return-value]


class LayerWeights:
    """The parameters of one layer, read from its Hugging Face modules."""

    def __init__(self, layer: nn.Module) -> None:
        parts = [split_adapter(layer.get_submodule(name)) for name in PROJECTIONS]
        self.linears = [linear for linear, _ in parts]
        self.adapters = [adapter for _, adapter in parts]
        modules = dict(layer.named_modules())
        self.norms = [modules.get(name) for name in NORMS]
        # Width of one head, and factor of the attention scores.
        self.width = int(layer.self_attn.head_dim)  # type: ignore[union-attr, arg-type]
        self.scaling = float(layer.self_attn.scaling)  # type: ignore[union-attr, arg-type]

    def parameters(self) -> list[Tensor | None]:
        """Return 7 weights, 7 biases, 4 norms, 7 A and 7 B, with None for those that are missing.

        `layer_backward` returns gradients in the same order.
        """
        weights = [linear.weight for linear in self.linears]
        biases = [linear.bias for linear in self.linears]
        norms = [norm and norm.weight for norm in self.norms]
        a = [adapter and adapter.a for adapter in self.adapters]
        b = [adapter and adapter.b for adapter in self.adapters]
        return [*weights, *biases, *norms, *a, *b]  # type: ignore[list-item]

    def matrices(self, copies: WeightCopies, dtype: torch.dtype) -> list[Tensor]:
        """Return the 7 weights in the dtype of the matrix products."""
        return [copies(linear.weight, dtype) for linear in self.linears]  # type: ignore[arg-type]

    def low_rank(self, copies: WeightCopies, dtype: torch.dtype) -> list[tuple[Tensor, Tensor, float] | None]:
        """Return A, B and scaling of the 7 adapters in the dtype of the products; None for none."""
        found: list[tuple[Tensor, Tensor, float] | None] = []
        for adapter in self.adapters:
            if adapter is None:
                found.append(None)
            else:
                found.append((copies(adapter.a, dtype), copies(adapter.b, dtype), adapter.scaling))
        return found

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
