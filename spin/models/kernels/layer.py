"""One decoder layer of the Llama kind, forward and backward, as plain functions of tensors.

The layer is h = x + attention(norm(x)) and out = h + mlp(norm(h)), with RMSNorm, rotary positions
and a gated MLP. The backward pass is written by hand. The forward pass keeps for it the queries,
keys, values, the attention's output, h and both inputs of the gated product. The backward pass
computes norms and activations again.

A linear module may have an adapter: y = W x + s B A x. With the gradient δ of y, that of A is
s Bᵀ δ xᵀ and that of B is s δ (A x)ᵀ. The gradients of frozen weights are not computed.

In bfloat16 the matrix products use copies of the float32 weights. The residual stream, norms,
rotary positions and the sums of gradients stay in float32, as under autocast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spin.models.kernels.attention import attend_backward, attend_forward
from spin.models.kernels.segments import Segment, probs_bytes
from spin.models.kernels.weights import LayerWeights, WeightCopies

PROBS_BYTES = 16 << 20
"""Largest size, in bytes, of one layer's attention probabilities to keep for the backward pass.

The backward pass computes larger ones again.
"""


@dataclass(frozen=True)
class LayerPlan:
    """Inputs that all layers of one forward pass share."""

    segments: list[Segment]
    cos: Tensor
    """Shape (tokens, 1, width / 2), float32 or better."""
    sin: Tensor
    """Shape (tokens, 1, width / 2)."""
    dtype: torch.dtype
    """Dtype of the matrix products."""
    copies: WeightCopies
    kept: Tensor | None = None
    """Indices of the rows for which queries are computed; None: all rows."""

    @property
    def query_rotation(self) -> tuple[Tensor, Tensor]:
        """Cosines and sines of the rows that have queries."""
        return self.select(self.cos), self.select(self.sin)

    def select(self, x: Tensor) -> Tensor:
        """Return the rows of x that have queries."""
        if self.kept is None:
            return x
        return x[self.kept]


@dataclass
class Saved:
    """Tensors of the forward pass that the backward pass of one layer needs."""

    q: Tensor
    """Shape (queries, heads, width), rotated and scaled."""
    k: Tensor
    """Shape (tokens, kv_heads, width), rotated."""
    v: Tensor
    """Shape (tokens, kv_heads, width)."""
    attended: Tensor
    """Output of the attention. Shape (queries, heads × width)."""
    middle: Tensor
    """The residual stream between attention and MLP. Shape (queries, hidden)."""
    gate: Tensor
    """Shape (queries, intermediate), before the activation."""
    up: Tensor
    """Shape (queries, intermediate)."""
    probs: list[Tensor]
    """Attention probabilities of all blocks up to PROBS_BYTES; empty if they are larger."""
    raw_q: Tensor | None = None
    """Queries before the per-head norm; None for a model without one."""
    raw_k: Tensor | None = None
    """Keys before the per-head norm; None for a model without one."""


def layer_forward(
    x: Tensor, weights: LayerWeights, plan: LayerPlan, matrices: list[Tensor], keep_probs: bool = True
) -> tuple[Tensor, Saved]:
    """Return the output of a layer, Shape (queries, hidden), and the tensors for backward.

    Args:
        x: Shape (tokens, hidden).
        weights: Biases and norms of the layer.
        plan: Layout and rotary positions.
        matrices: From `LayerWeights.matrices`.
        keep_probs: Keep attention probabilities of at most PROBS_BYTES.
    """
    # Query, key, value, output, gate, up, down; norms before attention, before MLP, per head.
    wq, wk, wv, wo, wg, wu, wd = matrices
    bq, bk, bv, bo, bg, bu, bd = weights.biases(plan.dtype)
    norm1, norm2, norm_q, norm_k = weights.norms
    pq, pk, pv, po, pg, pu, pd = weights.low_rank(plan.copies, plan.dtype)

    # Queries for the kept rows, keys and values for all.
    h = _norm(x, norm1, plan.dtype)
    hq = plan.select(h)
    q = _project(hq, wq, bq, pq).view(len(hq), -1, weights.width)
    k = _project(h, wk, bk, pk).view(len(h), -1, weights.width)
    v = _project(h, wv, bv, pv).view(len(h), -1, weights.width)
    raw_q = raw_k = None
    if norm_q is not None:
        raw_q, raw_k = q, k
        q = _norm(q, norm_q, plan.cos.dtype)
        k = _norm(k, norm_k, plan.cos.dtype)
    # Rotation and scaling of the scores are both linear: one multiplication does both.
    cos, sin = plan.query_rotation
    q = _rotate(q, cos * weights.scaling, sin * weights.scaling).to(plan.dtype)
    k = _rotate(k, plan.cos, plan.sin).to(plan.dtype)

    # Attention. The list `probs` stays empty unless the probabilities are kept.
    probs: list[Tensor] = []
    kept = None
    if keep_probs and probs_bytes(plan.segments, q.shape[1], q.dtype) <= PROBS_BYTES:
        kept = probs
    attended = attend_forward(q, k, v, plan.segments, kept=kept).view(len(hq), -1)
    middle = plan.select(x) + _project(attended, wo, bo, po)

    # Gated MLP.
    h = _norm(middle, norm2, plan.dtype)
    gate = _project(h, wg, bg, pg)
    up = _project(h, wu, bu, pu)
    out = _project(F.silu(gate).mul_(up), wd, bd, pd).to(x.dtype)
    return out.add_(middle), Saved(q, k, v, attended, middle, gate, up, probs, raw_q, raw_k)


def layer_backward(
    grad: Tensor,
    x: Tensor,
    saved: Saved,
    weights: LayerWeights,
    plan: LayerPlan,
    matrices: list[Tensor],
    needed: Sequence[bool],
) -> tuple[Tensor, list[Tensor | None]]:
    """Return the gradients of the layer's input and of `LayerWeights.parameters`.

    Args:
        grad: Gradient of the output, Shape (queries, hidden).
        x: Input of the layer, Shape (tokens, hidden).
        saved: From `layer_forward`.
        weights, plan, matrices: As in `layer_forward`.
        needed: For each of `LayerWeights.parameters`, whether its gradient is wanted.
    """
    # 7 weights, 7 biases, 4 norms, 7 A, 7 B: the order of `LayerWeights.parameters`.
    wq, wk, wv, wo, wg, wu, wd = matrices
    norm1, norm2, norm_q, norm_k = weights.norms
    low_rank = weights.low_rank(plan.copies, plan.dtype)
    grads: list[Tensor | None] = [None] * 32

    def linear_backward(index: int, delta: Tensor, source: Tensor) -> Tensor | None:
        """Keep the gradients of a linear module; return the part of its adapter in that of x."""
        if needed[index]:
            grads[index] = (delta.t() @ source).to(x.dtype)
        if needed[7 + index]:
            grads[7 + index] = delta.sum(0, dtype=x.dtype)
        adapter = low_rank[index]
        if adapter is None:
            return None
        a, b, scaling = adapter
        inner = (delta @ b).mul_(scaling)  # [rows, rank]
        grads[18 + index] = (inner.t() @ source).to(x.dtype)
        grads[25 + index] = (delta.t() @ (source @ a.t()).mul_(scaling)).to(x.dtype)
        return inner @ a

    # Gated MLP: out = middle + (silu(gate) ∘ up) Wdᵀ
    delta = grad.to(plan.dtype)
    silu = F.silu(saved.gate)
    adapted = linear_backward(6, delta, silu * saved.up)
    inner = _add(delta @ wd, adapted)
    grad_up = silu.mul_(inner)
    grad_gate = torch.ops.aten.silu_backward(inner.mul_(saved.up), saved.gate)
    h = _norm(saved.middle, norm2, plan.dtype)
    grad_h = (grad_gate @ wg).addmm_(grad_up, wu)
    _add(grad_h, linear_backward(4, grad_gate, h))
    _add(grad_h, linear_backward(5, grad_up, h))
    grad_middle, grads[15] = _norm_backward(grad_h, saved.middle, norm2)
    grad_middle += grad
    # These are the largest tensors of the layer: free them before the attention needs memory.
    del silu, inner, grad_up, grad_gate, h

    # Attention: middle = x + attended Woᵀ
    delta = grad_middle.to(plan.dtype)
    adapted = linear_backward(3, delta, saved.attended)
    grad_attended = _add(delta @ wo, adapted)
    q, k, v = saved.q, saved.k, saved.v
    grad_q, grad_k, grad_v = attend_backward(grad_attended.view(q.shape), q, k, v, plan.segments, kept=saved.probs)
    # The gradient of a rotation is a rotation by the opposite angle.
    cos, sin = plan.query_rotation
    grad_q = _rotate(grad_q, cos * weights.scaling, sin * -weights.scaling)
    grad_k = _rotate(grad_k, plan.cos, -plan.sin)
    # Per-head norms of queries and keys, which some models have.
    if saved.raw_q is not None and saved.raw_k is not None:
        grad_q, grads[16] = _norm_backward(grad_q, saved.raw_q, norm_q)
        grad_k, grads[17] = _norm_backward(grad_k, saved.raw_k, norm_k)

    # Projections to queries, keys and values.
    flat_q = grad_q.to(plan.dtype).flatten(1)
    flat_k = grad_k.to(plan.dtype).flatten(1)
    flat_v = grad_v.to(plan.dtype).flatten(1)
    h = _norm(x, norm1, plan.dtype)
    adapted_q = linear_backward(0, flat_q, plan.select(h))
    grad_h = (flat_k @ wk).addmm_(flat_v, wv)
    _add(grad_h, linear_backward(1, flat_k, h))
    _add(grad_h, linear_backward(2, flat_v, h))

    # Input of the layer. Only the kept rows have queries and a residual stream.
    if plan.kept is None:
        _add(grad_h.addmm_(flat_q, wq), adapted_q)
    else:
        grad_h.index_add_(0, plan.kept, _add(flat_q @ wq, adapted_q))
    grad_x, grads[14] = _norm_backward(grad_h, x, norm1)
    if plan.kept is None:
        grad_x += grad_middle
    else:
        grad_x.index_add_(0, plan.kept, grad_middle)
    for index in range(14, 18):
        if not needed[index]:
            grads[index] = None
    return grad_x, grads


def _project(x: Tensor, weight: Tensor, bias: Tensor | None, adapter: tuple[Tensor, Tensor, float] | None) -> Tensor:
    """Return W x + b, and s B A x more if there is an adapter (A, B, s)."""
    out = F.linear(x, weight, bias)
    if adapter is not None:
        a, b, scaling = adapter
        out += F.linear(F.linear(x, a), b).mul_(scaling)
    return out


def _add(total: Tensor, part: Tensor | None) -> Tensor:
    """Add a part, if there is one, in place."""
    if part is not None:
        total += part
    return total


def _norm(x: Tensor, norm: Any, dtype: torch.dtype) -> Tensor:
    """Return the RMSNorm over the last dimension, computed in float32 (or better), in `dtype`."""
    weight = _norm_weight(norm)
    return F.rms_norm(x.to(weight.dtype), weight.shape, weight, norm.variance_epsilon).to(dtype)


def _norm_weight(norm: Any) -> Tensor:
    """Return the weight of a norm in float32 or better; that of a frozen model may be bfloat16."""
    weight: Tensor = norm.weight.detach()
    return weight.to(torch.promote_types(weight.dtype, torch.float32))


def _norm_backward(grad: Tensor, x: Tensor, norm: Any) -> tuple[Tensor, Tensor]:
    """Return the gradients of the input and of the weight w, in float32 or better.

    With u = x / rms(x) and the gradient g of the output, the gradient of the input is
    (w∘g − u mean(u∘w∘g)) / rms(x), and that of the weight is the sum of g∘u over the rows.
    """
    weight = _norm_weight(norm)
    x = x.to(weight.dtype)
    grad = grad.to(weight.dtype)
    mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1])
    inverse = (mean_square + norm.variance_epsilon).rsqrt_()
    unit = x * inverse
    product = grad * unit
    grad_weight = product.flatten(0, -2).sum(0)
    mean = (product @ weight).unsqueeze(-1) / x.shape[-1]
    return (grad * weight).sub_(unit.mul_(mean)).mul_(inverse), grad_weight


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate queries or keys by their positions, in the dtype of `cos`.

    Args:
        x: Shape (tokens, heads, width). Its two halves are the components of the rotated pairs.
        cos, sin: Shape (tokens, 1, width / 2).
    """
    a, b = x.to(cos.dtype).chunk(2, -1)
    swapped = torch.cat([b, a], -1)
    return (x * torch.cat([cos, cos], -1)).addcmul_(swapped, torch.cat([-sin, sin], -1))
