"""Compute causal attention inside groups: a completion sees its prompt and itself only.

No mask over the whole packed sequence is made. The queries are split into blocks of BLOCK rows. A
block meets the keys up to its own end (those of its prompt, then of its own part), so that the
half above the diagonal is skipped except for a small triangle. A block takes three matrix products
forward and five backward, where the probabilities are computed again: memory grows with the length,
not with its square. On a CPU this is faster than the flash kernel at every length that fits in the
cache, and in bfloat16 at every length.

`attend_forward` and `attend_backward` are plain functions for `layer.py`. `GroupAttention` is their
autograd form. `hf_attention` is the function for transformers' AttentionInterface.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spin.models.kernels.flex import FlexPlan
from spin.models.kernels.segments import BLOCK, Segment, split_blocks

UNSUPPORTED = ("s_aux", "head_mask", "position_bias")
"""Keywords of transformers for attention sinks, head masks and position biases."""


@dataclass
class GroupPlan:
    """The layout of one packed sequence: the model keyword `group_plan` of `hf_attention`."""

    attend: Sequence[Segment] | FlexPlan
    calls: int = 0
    """Number of attention layers that have used it.

    A model with more layers than this has a layer that ignores the groups.
    """


def _gather(x: Tensor, parts: tuple[slice, ...]) -> Tensor:
    """Return rows of x as [heads, rows, width]; a view if they are consecutive."""
    if len(parts) == 1:
        return x[parts[0]].transpose(0, 1)
    return torch.cat([x[part] for part in parts]).transpose(0, 1)


def _columns(x: Tensor) -> Tensor:
    """Return [rows, heads, width] as [heads, width, rows], the right side of a product."""
    rows, heads, width = x.shape
    # A CPU's bfloat16 product copies a transposed view, once for each block: copy it only once.
    if x.device.type == "cpu" and x.dtype == torch.bfloat16:
        return x.reshape(rows, heads * width).t().contiguous().view(heads, width, rows)
    return x.permute(1, 2, 0)


def _gather_columns(x: Tensor, parts: tuple[slice, ...]) -> Tensor:
    """Return rows of the result of `_columns`: [heads, width, rows]."""
    if len(parts) == 1:
        return x[..., parts[0]]
    return torch.cat([x[..., part] for part in parts], -1)


def _fold(x: Tensor, kv_heads: int) -> Tensor:
    """Return [rows, heads, width] as [kv_heads, repeats × rows, width].

    The queries of all heads that share a key head are rows of one product.
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

    The last `rows` keys are causal. keys: Shape (kv_heads, width, keys).
    Returns Shape (kv_heads, repeats × rows, keys).
    """
    scores = torch.bmm(q, keys)
    slope = None
    if softcap is not None:
        scores = scores.div_(softcap).tanh_()
        slope = 1 - scores.square()
        scores *= softcap
    if rows > 1:
        seen = scores.shape[2]
        scores.view(len(q), -1, rows, seen)[..., seen - rows :].add_(above[:rows, :rows])
    return torch.softmax(scores, -1, out=scores), slope


def _above_diagonal(q: Tensor) -> Tensor:
    """Return −∞ above the diagonal and 0 elsewhere. Shape (BLOCK, BLOCK)."""
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
        kept: filled with the probabilities of all blocks, so that `attend_backward` need not
            compute them again. Not with a soft cap.
    """
    out = torch.empty_like(q)
    above = _above_diagonal(q)
    columns = _columns(k)
    for segment in plan:
        keys, values = _gather_columns(columns, segment.keys), _gather(v, segment.keys)
        for r, end, seen in split_blocks(segment):
            at = slice(segment.first + r, segment.first + end)
            probs, _ = _probs(_fold(q[at], k.shape[1]), keys[..., :seen], end - r, above, softcap)
            out[at] = _unfold(torch.bmm(probs, values[:, :seen]), end - r)
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
    """Return the gradients of q, k and v from the gradient of `attend_forward`'s result.

    Those of k and v are summed in float32 (or better). `kept`: the probabilities, if not empty.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    grad_q = torch.empty_like(q)
    grad_k = torch.zeros(k.shape, dtype=wide, device=k.device)
    grad_v = torch.zeros(v.shape, dtype=wide, device=v.device)
    above = _above_diagonal(q)
    value_columns = _columns(v)
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
            at = slice(segment.first + r, segment.first + end)
            queries = _fold(q[at], k.shape[1])
            outer = _fold(grad[at], k.shape[1])
            # The probabilities of the forward pass, or the same computed again.
            slope = None
            if keys is None:
                probs = next(kept_probs)
            else:
                probs, slope = _probs(queries, keys[..., :seen], end - r, above, softcap)
            # Gradient of the values, then of the scores, then of queries and keys.
            _scatter_add(grad_v, torch.bmm(probs.transpose(1, 2), outer), segment.keys)
            delta = torch.bmm(outer, values[..., :seen])
            delta = torch.ops.aten._softmax_backward_data(delta, probs, -1, delta.dtype)
            if slope is not None:
                delta *= slope
            grad_q[at] = _unfold(torch.bmm(delta, rows_k[:, :seen]), end - r)
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

    The layout is the model keyword `group_plan`.

    Args:
        query, key, value: Shape (1, heads, tokens, width).
        scaling: factor of the scores; None: width^-0.5.

    Returns: Shape (1, tokens, heads, width), and no attention weights.
    Raises: ValueError on a mask, attention sinks or biases: the packed layouts have none.
    """
    plan: GroupPlan | None = kwargs.get("group_plan")
    unsupported = [name for name in UNSUPPORTED if kwargs.get(name) is not None]
    if plan is None or attention_mask is not None or unsupported:
        raise ValueError(f"{type(module).__name__} asks for attention that the packed layouts do not compute")
    plan.calls += 1
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    # Rotary positions have turned queries and keys into float32.
    kind = query.device.type
    dtype = value.dtype
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    query = (query * scaling).to(dtype)
    key = key.to(dtype)
    value = value.to(dtype)
    with torch.autocast(kind, enabled=False):
        if isinstance(plan.attend, FlexPlan):
            return plan.attend(query, key, value, kwargs.get("softcap")), None
        q, k, v = [part[0].transpose(0, 1) for part in (query, key, value)]  # [tokens, heads, width]
        return GroupAttention.apply(q, k, v, plan.attend, kwargs.get("softcap")).unsqueeze(0), None
