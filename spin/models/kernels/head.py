"""Compute log-probabilities of completions from hidden states and the head.

`head_logps` serves the training step. It computes logits only at the positions that predict a
completion token, and in tiles of limited size, so that memory does not grow with the vocabulary
(except for the weight and its gradient). A position predicts the token y from its hidden state h.
With the logits z = h Wᵀ, and g the gradient of the sum that contains log p(y):

    log p(y) = z_y − log Σ exp z        ∂/∂z = g (1_y − softmax z)

If the logits of all positions fit in the budget, their softmax is kept for the backward pass: 3
matrix products in all. Otherwise the backward pass computes each tile again: 4 matrix products.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spin.models.kernels.gpu_head import gpu_head_logps

BYTE_BUDGET = 64 << 20
"""Largest size, in bytes, of the logits that exist at the same time."""


ROWS = 512
"""Positions in one tile: enough for matrix products at full rate."""


def head_logps(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    softcap: float | None = None,
    compute_dtype: torch.dtype | None = None,
    copy: Tensor | None = None,
    byte_budget: int = BYTE_BUDGET,
) -> Tensor:
    """Return the log-probability of each label.

    Args:
        hidden: Shape (labels, width): the hidden states that predict the labels. For a model with
            scaled logits, multiply them by the scale.
        weight: Shape (vocab, width).
        labels: Shape (labels,): the tokens to predict.
        bias: Shape (vocab,).
        softcap: Logits become softcap · tanh(logits / softcap), as in Gemma 2.
        compute_dtype: Of the matrix products; None: of `hidden`. Sums are in float32 or better.
        copy: `weight` in `compute_dtype`, if the caller has a copy. It must not change before the
            backward pass.
        byte_budget: Largest size of the logits that exist at the same time.

    Returns:
        Shape (labels,), float32 or better.

    Raises:
        ValueError: The shapes do not match.
    """
    # Check here: a mismatch found inside a tile would be hard to trace.
    widths_fit = hidden.dim() == 2 and hidden.shape[1] == weight.shape[1]
    if not widths_fit or labels.dim() != 1 or len(labels) != len(hidden):
        raise ValueError(
            f"hidden {tuple(hidden.shape)}, weight {tuple(weight.shape)}, labels {tuple(labels.shape)} do not fit"
        )
    dtype = compute_dtype or hidden.dtype
    if hidden.device.type != "cpu":
        return gpu_head_logps(hidden, weight, labels, bias, softcap, dtype)
    token_logps: Tensor = _HeadLogps.apply(hidden, weight, bias, labels, softcap, dtype, copy, byte_budget)
    return token_logps


class _HeadLogps(torch.autograd.Function):
    """Return the log-probability of each label. Shape (labels,), float32 or better."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        labels: Tensor,
        softcap: float | None,
        dtype: torch.dtype,
        copy: Tensor | None,
        byte_budget: int,
    ) -> Tensor:
        h = hidden.to(dtype)
        w = weight.to(dtype) if copy is None else copy
        wide = torch.promote_types(dtype, torch.float32)
        n, vocab = len(h), len(w)

        # Number of positions whose logits over the whole vocabulary fit in the budget. Their
        # softmax is written over the logits, but the gradient of a soft cap needs the logits.
        whole_rows = 0
        if softcap is None:
            whole_rows = byte_budget // (vocab * h.element_size())
        keep = n <= whole_rows and any(ctx.needs_input_grad)
        # Otherwise a tile has this many positions and columns of the vocabulary.
        rows = min(n, ROWS)
        tile = max(1, byte_budget // (rows * torch.empty(0, dtype=wide).element_size()))

        # One pass over all positions, or one pass for each tile.
        token_logps = torch.empty(n, dtype=wide, device=h.device)
        logsums = torch.empty(n, dtype=wide, device=h.device)
        probs: Tensor | None = None
        if keep:
            probs = _logits(h, w, bias, None)
            _softmax_in_place(probs, labels, token_logps, logsums)
        else:
            for r in range(0, n, rows):
                part = slice(r, r + rows)
                if rows <= whole_rows:
                    _softmax_in_place(_logits(h[part], w, bias, None), labels[part], token_logps[part], logsums[part])
                    continue
                logsums[part], chosen = _tiled_logsum(h[part], w, bias, labels[part], softcap, tile, wide)
                token_logps[part] = chosen - logsums[part]
        ctx.save_for_backward(hidden, weight, bias, labels, logsums, probs, copy)
        ctx.settings = (softcap, dtype, wide, rows, tile)
        return token_logps

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, labels, logsums, probs, copy = ctx.saved_tensors
        softcap, dtype, wide, rows, tile = ctx.settings
        h = hidden.to(dtype)
        w = weight.to(dtype) if copy is None else copy
        grad = grad.to(wide).unsqueeze(1)  # [labels, 1]
        grad_bias = None
        if bias is not None and ctx.needs_input_grad[2]:
            grad_bias = torch.zeros(len(w), dtype=wide, device=h.device)

        # With the kept softmax p, multiply (1_y − p) g by W and by h. The row factor g is applied
        # to the narrow operand, so that the large p is read only once.
        if probs is not None:
            grad_hidden = (w[labels].to(wide) - (probs @ w)) * grad
            # A frozen head, beside adapters, needs no gradient.
            grad_weight = None
            if ctx.needs_input_grad[1]:
                grad_weight = (probs.t() @ (h * grad.to(dtype))).to(wide).neg_()
                grad_weight.index_add_(0, labels, hidden.to(wide) * grad)
            if grad_bias is not None:
                grad_bias -= (probs.t() @ grad.to(dtype)).squeeze(1).to(wide)
                grad_bias.index_add_(0, labels, grad.squeeze(1))
            return _cast_grads(grad_hidden, grad_weight, grad_bias, hidden, weight, bias)

        # Without it, compute the logits z of each tile again, and their gradient.
        grad_hidden = torch.zeros(h.shape, dtype=wide, device=h.device)
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = torch.zeros(w.shape, dtype=wide, device=h.device)
        for r in range(0, len(h), rows):
            part = slice(r, r + rows)
            for t in range(0, len(w), tile):
                cut = slice(t, t + tile)
                z = _logits(h[part], w[cut], _part_of(bias, cut), softcap).to(wide)
                # Derivative of the soft cap: 1 − tanh², where z = softcap · tanh(…).
                slope = None
                if softcap is not None:
                    slope = 1 - (z / softcap).square()
                # delta = (1_y − softmax z) g
                delta = z.sub_(logsums[part].unsqueeze(1)).exp_().neg_()
                inside, columns = _inside(labels[part], t, len(w[cut]))
                delta[inside, columns] += 1
                delta *= grad[part]
                if slope is not None:
                    delta *= slope
                if grad_bias is not None:
                    grad_bias[cut] += delta.sum(0)
                # Sums over tiles stay in `wide`; only the products are in `dtype`.
                delta = delta.to(dtype)
                grad_hidden[part] += delta @ w[cut]
                if grad_weight is not None:
                    grad_weight[cut] += delta.t() @ h[part]
        return _cast_grads(grad_hidden, grad_weight, grad_bias, hidden, weight, bias)


def _cast_grads(
    grad_hidden: Tensor,
    grad_weight: Tensor | None,
    grad_bias: Tensor | None,
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Return one gradient for each argument of `_HeadLogps.forward`, in the argument's dtype."""
    if grad_bias is not None and bias is not None:
        grad_bias = grad_bias.to(bias.dtype)
    if grad_weight is not None:
        grad_weight = grad_weight.to(weight.dtype)
    return grad_hidden.to(hidden.dtype), grad_weight, grad_bias, None, None, None, None, None


def _logits(h: Tensor, w: Tensor, bias: Tensor | None, softcap: float | None) -> Tensor:
    """Return the logits of rows of h against rows of w. Shape (rows of h, rows of w)."""
    if bias is not None:
        bias = bias.to(h.dtype)
    z = torch.nn.functional.linear(h, w, bias)
    if softcap is None:
        return z
    return z.div_(softcap).tanh_().mul_(softcap)


def _part_of(bias: Tensor | None, part: slice) -> Tensor | None:
    if bias is None:
        return None
    return bias[part]


def _softmax_in_place(z: Tensor, labels: Tensor, token_logps: Tensor, logsums: Tensor, block: int = 64) -> None:
    """Turn logits into their softmax, and write log p of the labels and log Σ exp z.

    Args:
        z: Shape (rows, vocab): logits, overwritten by the softmax.
        labels: Shape (rows,).
        token_logps, logsums: Shape (rows,): receive log p and log Σ exp z.
        block: Rows to process at a time, few enough for the processor's cache.
    """
    wide = token_logps.dtype
    for r in range(0, len(z), block):
        part = slice(r, r + block)
        rows = z[part]
        wide_rows = rows if rows.dtype == wide else rows.to(wide)
        top = wide_rows.amax(1)
        chosen = wide_rows.gather(1, labels[part].unsqueeze(1)).squeeze(1)
        # The softmax works row by row, so it may run in place.
        torch.softmax(wide_rows, 1, out=wide_rows)
        # The largest probability is exp(top − log Σ exp z), which gives the sum without another
        # pass over z.
        logsums[part] = top - wide_rows.amax(1).log()
        token_logps[part] = chosen - logsums[part]
        if wide_rows is not rows:
            rows.copy_(wide_rows)


def _tiled_logsum(
    h: Tensor, w: Tensor, bias: Tensor | None, labels: Tensor, softcap: float | None, tile: int, wide: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return log Σ exp z and the label's z of each row, tile by tile. Shapes (rows,)."""
    logsum = torch.full((len(h),), -torch.inf, dtype=wide, device=h.device)
    chosen = torch.empty(len(h), dtype=wide, device=h.device)
    for t in range(0, len(w), tile):
        cut = slice(t, t + tile)
        z = _logits(h, w[cut], _part_of(bias, cut), softcap).to(wide)
        inside, columns = _inside(labels, t, len(w[cut]))
        chosen[inside] = z[inside, columns]
        # Subtract the largest logit first: exp would overflow.
        top = z.amax(1, keepdim=True)
        part = z.sub_(top).exp_().sum(1).log_() + top.squeeze(1)
        logsum = torch.logaddexp(logsum, part)
    return logsum, chosen


def _inside(labels: Tensor, first: int, columns: int) -> tuple[Tensor, Tensor]:
    """Return the rows whose label lies in a tile of the vocabulary, and the label's column in it.

    Args:
        first: First token id of the tile.
        columns: Number of token ids in the tile.
    """
    rows = ((labels >= first) & (labels < first + columns)).nonzero().squeeze(1)
    return rows, labels[rows] - first
