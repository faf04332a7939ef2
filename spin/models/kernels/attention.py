"""Compute causal attention inside groups: a completion sees its prompt and itself only.

The mask of the whole packed sequence is never built. Queries are split into blocks of BLOCK rows.
Each block is multiplied only with the keys that it may see: those of its prompt, then those of its
own completion up to the end of the block. The half above the diagonal is therefore skipped, except
for one triangle of BLOCK × BLOCK in each block.

A block takes two matrix products forward and five backward. One of the five computes the
probabilities again, so that memory grows with the length and not with its square. On a CPU this is
faster than PyTorch's flash kernel in bfloat16 at every length, and in float32 as long as the data
fits in the processor's cache.

`attend_forward` and `attend_backward` are plain functions for `layer.py`. `GroupAttention` is their
autograd form. `hf_attention` is the function for transformers' AttentionInterface.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spin.models.kernels.flash import FlashPlan
from spin.models.kernels.flex import FlexPlan
from spin.models.kernels.segments import BLOCK, Segment, split_blocks

UNSUPPORTED = ("s_aux", "head_mask", "position_bias")
"""Keywords by which transformers passes attention sinks, head masks and position biases."""


@dataclass
class GroupPlan:
    """The layout of one packed sequence: the model keyword `group_plan` of `hf_attention`."""

    attend: Sequence[Segment] | FlexPlan | FlashPlan
    calls: int = 0
    """Number of attention layers that have used the plan, while the layers are not compiled.

    A smaller number than the model's layers means that a layer ignores the groups.
    """


def _gather(x: Tensor, parts: tuple[slice, ...]) -> Tensor:
    """Return rows of x, Shape (tokens, heads, width), as [heads, rows, width].

    One part gives a view, several parts a copy.
    """
    if len(parts) == 1:
        return x[parts[0]].transpose(0, 1)
    return torch.cat([x[part] for part in parts]).transpose(0, 1)


def _columns(x: Tensor) -> Tensor:
    """Return [rows, heads, width] as [heads, width, rows], the right operand of a product."""
    rows, heads, width = x.shape
    # The bfloat16 product of a CPU copies a transposed view in each block: copy it here, once.
    if x.device.type == "cpu" and x.dtype == torch.bfloat16:
        return x.reshape(rows, heads * width).t().contiguous().view(heads, width, rows)
    return x.permute(1, 2, 0)


def _gather_columns(x: Tensor, parts: tuple[slice, ...]) -> Tensor:
    """Return the chosen columns of a result of `_columns`, as [heads, width, rows]."""
    if len(parts) == 1:
        return x[..., parts[0]]
    return torch.cat([x[..., part] for part in parts], -1)


def _fold(x: Tensor, kv_heads: int) -> Tensor:
    """Return [rows, heads, width] as [kv_heads, repeats × rows, width].

    Query heads that share a key head become rows of one matrix product.
    """
    rows, heads, width = x.shape
    if heads == kv_heads:
        return x.transpose(0, 1)
    return x.view(rows, kv_heads, heads // kv_heads, width).permute(1, 2, 0, 3).reshape(kv_heads, -1, width)


def _unfold(x: Tensor, rows: int) -> Tensor:
    """Undo `_fold`: return [rows, heads, width]."""
    kv_heads, folded, width = x.shape
    return x.view(kv_heads, folded // rows, rows, width).permute(2, 0, 1, 3).reshape(rows, -1, width)


def _probs(q: Tensor, keys: Tensor, rows: int, above: Tensor, softcap: float | None) -> tuple[Tensor, Tensor | None]:
    """Return the softmax of one block's scores, and the derivative of the soft cap or None.

    Args:
        q: Shape (kv_heads, repeats × rows, width), from `_fold`.
        keys: Shape (kv_heads, width, keys). The last `rows` keys belong to the block itself.
        rows: Query rows of the block.
        above: From `_above_diagonal`.
        softcap: Scores become softcap · tanh(scores / softcap), as in Gemma 2.

    Returns: Shapes (kv_heads, repeats × rows, keys).
    """
    scores = torch.bmm(q, keys)
    slope = None
    # The derivative is taken here, while tanh is at hand: d scores = 1 − tanh².
    if softcap is not None:
        scores = scores.div_(softcap).tanh_()
        slope = 1 - scores.square()
        scores *= softcap
    # A query must not see later keys of its own block. A block of one row has no later keys.
    if rows > 1:
        seen = scores.shape[2]
        scores.view(len(q), -1, rows, seen)[..., seen - rows :].add_(above[:rows, :rows])
    return torch.softmax(scores, -1, out=scores), slope


def _above_diagonal(q: Tensor) -> Tensor:
    """Return −∞ above the diagonal and 0 elsewhere, Shape (BLOCK, BLOCK)."""
    return torch.full((BLOCK, BLOCK), -torch.inf, dtype=q.dtype, device=q.device).triu_(1)


@torch.no_grad()
def attend_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: Sequence[Segment],
    softcap: float | None = None,
    kept: list[Tensor] | None = None,
) -> Tensor:
    """Return the output of the attention, in the shape of q.

    Args:
        q: Shape (queries, heads, width), already scaled.
        k, v: Shape (keys, kv_heads, width).
        plan: Segments of the packed sequence.
        softcap: Soft cap of the scores.
        kept: Empty list that receives the probabilities of all blocks, for `attend_backward`. Must
            be None with a soft cap, whose derivative is not kept.
    """
    out = torch.empty_like(q)
    above = _above_diagonal(q)
    columns = _columns(k)
    for segment in plan:
        keys, values = _gather_columns(columns, segment.keys), _gather(v, segment.keys)
        # A block sees its first `seen` keys; later keys of the segment belong to later blocks.
        for r, end, seen in split_blocks(segment):
            block = slice(segment.first + r, segment.first + end)
            probs, _ = _probs(_fold(q[block], k.shape[1]), keys[..., :seen], end - r, above, softcap)
            out[block] = _unfold(torch.bmm(probs, values[:, :seen]), end - r)
            if kept is not None:
                kept.append(probs)
    return out


@torch.no_grad()
def attend_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: Sequence[Segment],
    softcap: float | None = None,
    kept: list[Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of q, k and v.

    Args:
        grad: Gradient of the result of `attend_forward`, in the shape of q.
        q, k, v, plan, softcap: As in `attend_forward`.
        kept: Probabilities that `attend_forward` kept. None or empty: compute them again.

    Returns: Shapes of q, k and v. The gradients of k and v are in float32 or better.
    """
    # Many blocks add to the gradient of the same key, which bfloat16 would round each time.
    wide = torch.promote_types(q.dtype, torch.float32)
    grad_q = torch.empty_like(q)
    grad_k = torch.zeros(k.shape, dtype=wide, device=k.device)
    grad_v = torch.zeros(v.shape, dtype=wide, device=v.device)
    above = _above_diagonal(q)
    value_columns = _columns(v)
    # The keys as columns serve only to compute the probabilities again.
    key_columns = None
    if not kept:
        key_columns = _columns(k)
    kept_probs = iter(kept or ())
    for segment in plan:
        rows_k = _gather(k, segment.keys)
        values = _gather_columns(value_columns, segment.keys)
        keys = None
        if key_columns is not None:
            keys = _gather_columns(key_columns, segment.keys)
        for r, end, seen in split_blocks(segment):
            block = slice(segment.first + r, segment.first + end)
            queries = _fold(q[block], k.shape[1])
            outer = _fold(grad[block], k.shape[1])
            # The probabilities P of the forward pass, kept or computed again.
            slope = None
            if keys is None:
                probs = next(kept_probs)
            else:
                probs, slope = _probs(queries, keys[..., :seen], end - r, above, softcap)
            # out = P V: dV = Pᵀ d out and dP = d out Vᵀ.
            _scatter_add(grad_v, torch.bmm(probs.transpose(1, 2), outer), segment.keys)
            delta = torch.bmm(outer, values[..., :seen])
            # Gradient of the scores S = Q Kᵀ, through the softmax and the soft cap.
            delta = torch.ops.aten._softmax_backward_data(delta, probs, -1, delta.dtype)
            if slope is not None:
                delta *= slope
            # dQ = dS K and dK = dSᵀ Q.
            grad_q[block] = _unfold(torch.bmm(delta, rows_k[:, :seen]), end - r)
            _scatter_add(grad_k, torch.bmm(delta.transpose(1, 2), queries), segment.keys)
    return grad_q, grad_k, grad_v


def _scatter_add(total: Tensor, part: Tensor, keys: tuple[slice, ...]) -> None:
    """Add [kv_heads, seen, width] to the first `seen` rows of `keys`."""
    done = 0
    for key in keys:
        count = min(key.stop - key.start, part.shape[1] - done)
        total[key.start : key.start + count] += part[:, done : done + count].transpose(0, 1)
        done += count


class GroupAttention(torch.autograd.Function):
    """The autograd form of `attend_forward`."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: Sequence[Segment], softcap: float | None = None
    ) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.plan = plan
        ctx.softcap = softcap
        return attend_forward(q, k, v, plan, softcap)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        q, k, v = ctx.saved_tensors
        grad_q, grad_k, grad_v = attend_backward(grad, q, k, v, ctx.plan, ctx.softcap)
        return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype), None, None


def hf_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Compute the attention of a transformers model (for its AttentionInterface).

    The layout of the packed sequence comes as the model keyword `group_plan`.

    Args:
        module: The attention layer, named in the error.
        query, key, value: Shape (1, heads, tokens, width).
        attention_mask: Must be None.
        scaling: Factor of the scores; None: width^-0.5.

    Returns: Shape (1, tokens, heads, width), and None in place of attention weights.
    Raises: ValueError on a mask, attention sinks or biases, which the packed layouts lack.
    """
    # An option that is not computed here would change the result without notice.
    plan: GroupPlan | None = kwargs.get("group_plan")
    unsupported = [name for name in UNSUPPORTED if kwargs.get(name) is not None]
    if plan is None or attention_mask is not None or unsupported:
        raise ValueError(f"{type(module).__name__} asks for attention that the packed layouts do not compute")
    # Inside compiled layers, a number that changes would have them compiled once for each layer.
    if not torch.compiler.is_compiling():
        plan.calls += 1
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    # Rotary positions have turned queries and keys into float32: cast them back.
    kind = query.device.type
    dtype = value.dtype
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    query = (query * scaling).to(dtype)
    key = key.to(dtype)
    value = value.to(dtype)
    # The products below have their dtypes already; autocast would add casts.
    with torch.autocast(kind, enabled=False):
        if isinstance(plan.attend, FlexPlan | FlashPlan):
            return plan.attend(query, key, value, kwargs.get("softcap")), None
        q, k, v = [part[0].transpose(0, 1) for part in (query, key, value)]  # [tokens, heads, width]
        return GroupAttention.apply(q, k, v, plan.attend, kwargs.get("softcap")).unsqueeze(0), None
