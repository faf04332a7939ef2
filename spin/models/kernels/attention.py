"""Causal attention inside groups: a token sees what is before it in its own prompt, and a completion sees its prompt and itself only.

No mask over the whole packed sequence is ever made. The queries are cut into blocks of BLOCK rows; a block meets the keys up to its own end
(its prompt's, then its own part's), so that the half above the diagonal is skipped but for a small triangle. Three matrix products a block
forward, five backward, where the probabilities are computed again: memory grows with the length, not with its square. On a CPU this is faster than
the flash kernel at every length that fits in the cache, and in bfloat16 at all.

`attend_forward` and `attend_backward` are plain functions for the hand-written layers of `spin.models.kernels.decoder`; `GroupAttention` is their autograd
form, and `hf_attention` what transformers' AttentionInterface calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spin.models.kernels.flex import FlexPlan
from spin.models.packing import Span

BLOCK = 128
"""Query rows at a time."""


@dataclass
class GroupPlan:
    """The layout of one packed sequence, as the model keyword `group_plan` of `hf_attention`."""

    attend: Sequence[Segment] | FlexPlan
    calls: int = 0
    """Attention layers that have used it: fewer than the model's layers means that some layer does not know of groups."""


@dataclass(frozen=True)
class Segment:
    """Consecutive queries with one rule: query i of `rows` sees all of `keys` but the last rows − 1 − i."""

    first: int
    """First query row."""
    rows: int
    keys: tuple[slice, ...]
    """Key rows, in order; the last `rows` of them belong to the queries themselves."""


def segments(spans: Sequence[Span], trimmed: bool = False) -> list[Segment]:
    """The segments of all groups. `trimmed`: queries are the kept tokens only (the end of each prompt, and the completions)."""
    result: list[Segment] = []
    kept = 0
    for span in spans:
        start, behind = span.start, span.start + span.prompt
        result.append(
            Segment(kept, 1, (slice(start, behind),))
            if trimmed
            else Segment(start, span.prompt, (slice(start, behind),))
        )
        kept += 1
        first = behind
        for fed in span.fed:
            if fed:
                own = (
                    (slice(start, first + fed),)
                    if first == behind
                    else (slice(start, behind), slice(first, first + fed))
                )
                result.append(Segment(kept if trimmed else first, fed, own))
            first += fed
            kept += fed
    return result


def _gather(x: Tensor, parts: tuple[slice, ...]) -> Tensor:
    """Rows of x as [heads, rows, width]; a view where they are consecutive."""
    rows = x[parts[0]] if len(parts) == 1 else torch.cat([x[part] for part in parts])
    return rows.transpose(0, 1)


def _columns(x: Tensor) -> Tensor:
    """[rows, heads, width] → [heads, width, rows], ready to be the right side of a product."""
    rows, heads, width = x.shape
    if (
        x.device.type == "cpu" and x.dtype == torch.bfloat16
    ):  # the bfloat16 product would copy a transposed view, once for each block
        return x.reshape(rows, heads * width).t().contiguous().view(heads, width, rows)
    return x.permute(1, 2, 0)


def _gather_columns(x: Tensor, parts: tuple[slice, ...]) -> Tensor:
    """`_gather` of what `_columns` returned: [heads, width, rows]."""
    return x[..., parts[0]] if len(parts) == 1 else torch.cat([x[..., part] for part in parts], -1)


def _blocks(segment: Segment) -> list[tuple[int, int, int]]:
    """First row, end row and number of keys of each block of queries."""
    length = sum(part.stop - part.start for part in segment.keys)
    return [
        (r, min(r + BLOCK, segment.rows), length - segment.rows + min(r + BLOCK, segment.rows))
        for r in range(0, segment.rows, BLOCK)
    ]


def _fold(x: Tensor, kv_heads: int) -> Tensor:
    """[rows, heads, width] → [kv_heads, repeats × rows, width]: the queries that share a key head side by side."""
    rows, heads, width = x.shape
    if heads == kv_heads:
        return x.transpose(0, 1)
    return x.view(rows, kv_heads, heads // kv_heads, width).permute(1, 2, 0, 3).reshape(kv_heads, -1, width)


def _unfold(x: Tensor, rows: int) -> Tensor:
    """The way back from `_fold`: [rows, heads, width]."""
    kv_heads, folded, width = x.shape
    return x.view(kv_heads, folded // rows, rows, width).permute(2, 0, 1, 3).reshape(rows, -1, width)


def _probs(q: Tensor, keys: Tensor, rows: int, above: Tensor, softcap: float | None) -> tuple[Tensor, Tensor | None]:
    """Softmax of one block's scores, its last `rows` keys causal, and the slope of the soft cap, if any.

    keys: Shape (kv_heads, width, keys). Returns Shape (kv_heads, repeats × rows, keys).
    """
    scores, slope = torch.bmm(q, keys), None
    if softcap is not None:
        scores = scores.div_(softcap).tanh_()
        slope = 1 - scores.square()
        scores *= softcap
    if rows > 1:
        seen = scores.shape[2]
        scores.view(len(q), -1, rows, seen)[..., seen - rows :].add_(above[:rows, :rows])
    return torch.softmax(scores, -1, out=scores), slope


def _above_diagonal(q: Tensor) -> Tensor:
    """−∞ above the diagonal, 0 elsewhere. Shape (BLOCK, BLOCK)."""
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
    """q: Shape (queries, heads, width), scaled already. k, v: Shape (keys, kv_heads, width). Returns the shape of q.

    `kept` is filled with the probabilities of all blocks; `attend_backward` takes it and need not compute them again (no soft cap).
    """
    out, above, columns = torch.empty_like(q), _above_diagonal(q), _columns(k)
    for segment in plan:
        keys, values = _gather_columns(columns, segment.keys), _gather(v, segment.keys)
        for r, end, seen in _blocks(segment):
            at = slice(segment.first + r, segment.first + end)
            probs, _ = _probs(_fold(q[at], k.shape[1]), keys[..., :seen], end - r, above, softcap)
            out[at] = _unfold(torch.bmm(probs, values[:, :seen]), end - r)
            if kept is not None:
                kept.append(probs)
    return out


def probs_bytes(plan: Sequence[Segment], heads: int, dtype: torch.dtype) -> int:
    """What the probabilities of all blocks take."""
    return sum((end - r) * seen for segment in plan for r, end, seen in _blocks(segment)) * heads * dtype.itemsize


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
    """Gradients of q, k and v from that of `attend_forward`'s result; those of k and v are summed in float32 (or better)."""
    wide = torch.promote_types(q.dtype, torch.float32)
    grad_q = torch.empty_like(q)
    grad_k, grad_v = (
        torch.zeros(k.shape, dtype=wide, device=k.device),
        torch.zeros(v.shape, dtype=wide, device=v.device),
    )
    above, key_columns, value_columns = _above_diagonal(q), None if kept else _columns(k), _columns(v)
    blocks = iter(kept or ())
    for segment in plan:
        rows_k, values = _gather(k, segment.keys), _gather_columns(value_columns, segment.keys)
        keys = None if key_columns is None else _gather_columns(key_columns, segment.keys)
        for r, end, seen in _blocks(segment):
            at = slice(segment.first + r, segment.first + end)
            queries, outer = _fold(q[at], k.shape[1]), _fold(grad[at], k.shape[1])
            probs, slope = (
                (next(blocks), None) if keys is None else _probs(queries, keys[..., :seen], end - r, above, softcap)
            )
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
    """`attend_forward` with its gradient."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: Sequence[Segment], softcap: float | None = None
    ) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.plan, ctx.softcap = plan, softcap
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
    """What transformers' AttentionInterface calls; query: Shape (1, heads, tokens, width). The layout comes as the model keyword `group_plan`.

    Raises ValueError on what it does not compute: a mask, attention sinks, biases.
    """
    plan: GroupPlan | None = kwargs.get("group_plan")
    if (
        plan is None
        or attention_mask is not None
        or any(kwargs.get(name) is not None for name in ("s_aux", "head_mask", "position_bias"))
    ):
        raise ValueError(f"{type(module).__name__} asks for attention that the packed layouts do not compute")
    plan.calls += 1
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    kind = query.device.type
    dtype = (
        torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else value.dtype
    )  # rotary positions leave float32 behind
    query, key, value = ((query * scaling).to(dtype), key.to(dtype), value.to(dtype))
    with torch.autocast(kind, enabled=False):
        if isinstance(plan.attend, FlexPlan):
            return plan.attend(query, key, value, kwargs.get("softcap")), None
        q, k, v = (part[0].transpose(0, 1) for part in (query, key, value))  # [tokens, heads, width]
        return GroupAttention.apply(q, k, v, plan.attend, kwargs.get("softcap")).unsqueeze(0), None
