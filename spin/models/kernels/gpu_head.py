"""Compute log-probabilities of completions from hidden states and the head, on a GPU.

It computes what `head.py` computes on a CPU, where that module explains the equations. Here a block
holds many rows and the whole vocabulary, `torch.compile` fuses what lies between the matrix
products, and nothing waits for the device. The backward pass computes the logits again: four matrix
products, and no memory that grows with the number of tokens times the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor

from spin.models.token_budget import GPU_BLOCK_BYTES


def gpu_head_logps(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None,
    softcap: float | None,
    compute_dtype: torch.dtype,
    block_bytes: int = GPU_BLOCK_BYTES,
) -> Tensor:
    """Return the log-probability of each label. Arguments and result as in `head.head_logps`.

    `block_bytes` limits the logits of one block, in the dtype of the products.
    """
    rows = max(1, block_bytes // (len(weight) * torch.empty(0, dtype=compute_dtype).element_size()))
    token_logps: Tensor = _GpuHeadLogps.apply(hidden, weight, bias, labels, softcap, compute_dtype, rows)
    return token_logps


def reduce_logits(logits: Tensor, labels: Tensor, softcap: float | None) -> tuple[Tensor, Tensor]:
    """Return log p of the labels and log Σ exp z, from logits z. Shapes (rows,), float32."""
    z = _cap(logits.float(), softcap)
    logsums = torch.logsumexp(z, 1)
    chosen = z.gather(1, labels.unsqueeze(1)).squeeze(1)
    return chosen - logsums, logsums


def differentiate_logits(
    logits: Tensor, labels: Tensor, logsums: Tensor, grad: Tensor, softcap: float | None
) -> Tensor:
    """Return the gradient of the logits, (1_y − softmax z) g, in their dtype.

    Args:
        logits: Shape (rows, vocab).
        labels, logsums: Shape (rows,).
        grad: g, the gradient of log p of each label. Shape (rows,).
        softcap: As in `head.head_logps`.
    """
    z = _cap(logits.float(), softcap)
    is_label = torch.arange(logits.shape[1], device=logits.device) == labels.unsqueeze(1)
    delta = (is_label.float() - torch.exp(z - logsums.unsqueeze(1))) * grad.unsqueeze(1)
    if softcap is not None:
        # Derivative of the soft cap: 1 − tanh², where z = softcap · tanh(…).
        delta = delta * (1 - (z / softcap).square())
    return delta.to(logits.dtype)


def _cap(z: Tensor, softcap: float | None) -> Tensor:
    if softcap is None:
        return z
    return softcap * torch.tanh(z / softcap)


@cache
def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(function, dynamic=True)


def _choose(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """Return the compiled function on CUDA, and the function itself elsewhere (in tests)."""
    if device.type == "cuda":
        return _compile(function)
    return function


def _blocks(count: int, rows: int) -> Iterator[slice]:
    for first in range(0, count, rows):
        yield slice(first, min(first + rows, count))


class _GpuHeadLogps(torch.autograd.Function):
    """Return the log-probability of each label. Shape (labels,), float32."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        softcap: float | None,
        dtype: torch.dtype,
        rows: int,
    ) -> Tensor:
        h, w, b = _cast(hidden, weight, bias, dtype)
        reduce = _choose(reduce_logits, h.device)
        values = torch.empty(len(h), dtype=torch.float32, device=h.device)
        logsums = torch.empty_like(values)
        for block in _blocks(len(h), rows):
            logits = torch.nn.functional.linear(h[block], w, b)
            values[block], logsums[block] = reduce(logits, labels[block], softcap)
        ctx.save_for_backward(hidden, weight, bias, labels, logsums)
        ctx.settings = (softcap, dtype, rows)
        return values

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, labels, logsums = ctx.saved_tensors
        softcap, dtype, rows = ctx.settings
        h, w, b = _cast(hidden, weight, bias, dtype)
        differentiate = _choose(differentiate_logits, h.device)
        grad_hidden = torch.empty(h.shape, dtype=hidden.dtype, device=h.device)
        # Sums over blocks are in float32. A frozen head, as under an adapter, has none.
        grad_weight = grad_bias = None
        if ctx.needs_input_grad[1]:
            grad_weight = torch.zeros(w.shape, dtype=torch.float32, device=h.device)
        if ctx.needs_input_grad[2]:
            grad_bias = torch.zeros(len(w), dtype=torch.float32, device=h.device)
        for block in _blocks(len(h), rows):
            logits = torch.nn.functional.linear(h[block], w, b)
            delta = differentiate(logits, labels[block], logsums[block], grad[block].float(), softcap)
            grad_hidden[block] = delta @ w
            if grad_weight is not None:
                grad_weight += delta.t() @ h[block]
            if grad_bias is not None:
                grad_bias += delta.sum(0, dtype=torch.float32)
        return grad_hidden, _cast_grad(grad_weight, weight), _cast_grad(grad_bias, bias), None, None, None, None


def _cast_grad(grad: Tensor | None, argument: Tensor | None) -> Tensor | None:
    """Return a gradient in the dtype of its argument."""
    if grad is None or argument is None:
        return None
    return grad.to(argument.dtype)


def _cast(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the operands of the head in the dtype of the products."""
    if bias is not None:
        bias = bias.to(dtype)
    return hidden.to(dtype), weight.to(dtype), bias
