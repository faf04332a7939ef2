"""A fast exact forward and backward for decoders of the Llama kind (llama, mistral, qwen2, qwen3), on packed groups.

It reads the parameters of the Hugging Face modules, so that checkpoints, optimizer and export know nothing of it. What it does
otherwise than they do, all of it exact:

- each layer is one autograd function with a backward pass written by hand: it keeps the layer's input, the queries, keys and values, the
  attention's outcome, the middle of the residual stream and both halves of the gated MLP; norms and activations are computed again
- the last layer computes queries, attention output and MLP only for the tokens whose hidden state predicts a completion token
- in bfloat16 the products run on bfloat16 copies of the float32 weights, made once for each micro-batch, or once for all of an optimizer step where the
  caller says so (`Copies.kept`: a copy cannot tell by itself that an optimizer has changed its weight, the fused ones leave no trace); the residual stream,
  norms, rotary positions and the sums of gradients stay in float32, as under autocast

What it leaves out: dropout, sliding windows, adapters, sharded parameters. `supports` says so, and `spin.models.forward` compares before it trusts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spin.models.kernels.attention import Segment, attend_backward, attend_forward, probs_bytes, segments
from spin.models.packing import Packed

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")


PROJECTIONS = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.gate_proj",
    "mlp.up_proj",
    "mlp.down_proj",
)


PROBS_BYTES = 16 << 20
"""Of one layer's attention probabilities that are kept for the backward pass; above, they are computed again there."""


NORMS = ("input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm")


def supports(model: Any) -> bool:
    """Whether `model` has the modules that this file computes, and nothing else in its layers."""
    if getattr(model.config, "model_type", None) not in FAMILIES or getattr(model.config, "hidden_act", None) != "silu":
        return False
    for layer in model.get_decoder().layers:
        names = {name for name, module in layer.named_modules() if next(module.children(), None) is None}
        if not set(PROJECTIONS) | set(NORMS[:2]) <= names or not names <= {*PROJECTIONS, *NORMS, "mlp.act_fn"}:
            return False
        if any(type(layer.get_submodule(name)) is not nn.Linear for name in PROJECTIONS):
            return False  # an adapter or a quantised layer
    return True


class Copies:
    """Weights in the dtype of the products."""

    def __init__(self) -> None:
        self._made: dict[Tensor, Tensor] | None = None

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Until this ends no weight changes: each is copied once."""
        self._made = {}
        try:
            yield
        finally:
            self._made = None

    def __call__(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """`weight` itself where it has that dtype."""
        if weight.dtype == dtype:
            return weight.detach()
        if self._made is None:
            return weight.detach().to(dtype)
        if weight not in self._made:
            self._made[weight] = weight.detach().to(dtype)
        return self._made[weight]


@dataclass(frozen=True)
class Plan:
    """What all layers of one forward pass share."""

    segments: list[Segment]
    cos: Tensor
    """Shape (tokens, 1, width / 2), float32 or better."""
    sin: Tensor
    dtype: torch.dtype
    """Of the products."""
    copies: Copies
    kept: Tensor | None = None
    """Rows that queries are computed for; None: all."""


class Weights:
    """The parameters of one layer."""

    def __init__(self, layer: nn.Module) -> None:
        self.linears = [layer.get_submodule(name) for name in PROJECTIONS]
        present = {name for name, _ in layer.named_modules()}
        self.norms = [layer.get_submodule(name) if name in present else None for name in NORMS]
        self.width = int(layer.self_attn.head_dim)  # type: ignore[union-attr, arg-type]
        self.scaling = float(layer.self_attn.scaling)  # type: ignore[union-attr, arg-type]

    def parameters(self) -> list[Tensor | None]:
        """7 weights, 7 biases, 4 norms; None where the model has none. Gradients come back in this order."""
        return [
            *(linear.weight for linear in self.linears),
            *(linear.bias for linear in self.linears),
            *(norm and norm.weight for norm in self.norms),
        ]  # type: ignore[misc]

    def matrices(self, plan: Plan) -> list[Tensor]:
        """The 7 weights in the plan's dtype."""
        return [plan.copies(linear.weight, plan.dtype) for linear in self.linears]  # type: ignore[arg-type]


class FastDecoder:
    """Embedding, layers and final norm of a supported model. Not a module: it owns no parameter."""

    trim = True
    """Whether the last layer leaves out what nothing is predicted from; off only to measure what it is worth."""

    def __init__(self, model: Any) -> None:
        self.decoder = model.get_decoder()
        self.layers = [Weights(layer) for layer in self.decoder.layers]
        self.copies = Copies()

    def __call__(self, packed: Packed, dtype: torch.dtype, checkpointing: bool = False) -> Tensor:
        """Last hidden states of the kept tokens, after the final norm. Shape (kept, hidden)."""
        with torch.autocast(packed.input_ids.device.type, enabled=False):
            return self._hidden(packed, dtype, checkpointing)

    def _hidden(self, packed: Packed, dtype: torch.dtype, checkpointing: bool) -> Tensor:
        x = self.decoder.embed_tokens(packed.input_ids)  # [tokens, hidden]
        cos, sin = self.decoder.rotary_emb(x, packed.position_ids.unsqueeze(0))
        half = cos.shape[-1] // 2
        cos, sin = cos[0, :, None, :half].contiguous(), sin[0, :, None, :half].contiguous()
        plan = Plan(segments(packed.spans), cos, sin, dtype, self.copies)
        last = (
            Plan(segments(packed.spans, trimmed=True), cos, sin, dtype, self.copies, packed.kept) if self.trim else plan
        )
        for index, weights in enumerate(self.layers):
            here = last if index == len(self.layers) - 1 else plan
            x = _Layer.apply(x, weights, here, checkpointing, *weights.parameters())
        if not self.trim:
            x = x[packed.kept]
        return self.decoder.norm(x)


@dataclass
class Saved:
    """What the backward pass of one layer needs."""

    q: Tensor
    k: Tensor
    v: Tensor
    attended: Tensor
    middle: Tensor
    gate: Tensor
    up: Tensor
    probs: list[Tensor]
    """Of the attention's blocks, where they are small; empty otherwise."""
    raw_q: Tensor | None = None
    """Before the per-head norm, where there is one."""
    raw_k: Tensor | None = None


class _Layer(torch.autograd.Function):
    """One decoder layer: hidden states [tokens, hidden] → [kept or tokens, hidden]."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weights: Weights, plan: Plan, checkpointing: bool, *parameters: Tensor | None
    ) -> Tensor:
        out, saved = layer_forward(
            x, weights, plan, matrices := weights.matrices(plan), any(ctx.needs_input_grad) and not checkpointing
        )
        if any(ctx.needs_input_grad):
            ctx.weights, ctx.plan, ctx.saved, ctx.matrices = weights, plan, None if checkpointing else saved, matrices
            ctx.save_for_backward(x)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        saved = ctx.saved or layer_forward(x, ctx.weights, ctx.plan, ctx.matrices)[1]
        ctx.saved = None  # freed as the backward pass goes on
        grad_x, grads = layer_backward(grad, x, saved, ctx.weights, ctx.plan, ctx.matrices)
        ctx.matrices = None
        return grad_x, None, None, None, *grads


def layer_forward(
    x: Tensor, weights: Weights, plan: Plan, matrices: list[Tensor], keep_probs: bool = True
) -> tuple[Tensor, Saved]:
    """x: Shape (tokens, hidden). Returns the layer's outcome and what its backward pass needs."""
    wq, wk, wv, wo, wg, wu, wd = matrices
    bq, bk, bv, bo, bg, bu, bd = (
        None if linear.bias is None else linear.bias.detach().to(plan.dtype) for linear in weights.linears
    )
    norm1, norm2, norm_q, norm_k = weights.norms
    rows = x if plan.kept is None else x[plan.kept]
    h = _norm(x, norm1, plan.dtype)
    hq = h if plan.kept is None else h[plan.kept]
    q = F.linear(hq, wq, bq).view(len(hq), -1, weights.width)
    k = F.linear(h, wk, bk).view(len(h), -1, weights.width)
    v = F.linear(h, wv, bv).view(len(h), -1, weights.width)
    raw_q, raw_k = (q, k) if norm_q is not None else (None, None)
    if norm_q is not None:
        q, k = _norm(q, norm_q, plan.cos.dtype), _norm(k, norm_k, plan.cos.dtype)
    cos, sin = (plan.cos, plan.sin) if plan.kept is None else (plan.cos[plan.kept], plan.sin[plan.kept])
    q = _rotate(q, cos * weights.scaling, sin * weights.scaling).to(plan.dtype)
    k = _rotate(k, plan.cos, plan.sin).to(plan.dtype)
    probs: list[Tensor] = []
    small = keep_probs and probs_bytes(plan.segments, q.shape[1], q.dtype) <= PROBS_BYTES
    attended = attend_forward(q, k, v, plan.segments, kept=probs if small else None).view(len(hq), -1)
    middle = rows + F.linear(attended, wo, bo)
    h = _norm(middle, norm2, plan.dtype)
    gate, up = F.linear(h, wg, bg), F.linear(h, wu, bu)
    out = F.linear(F.silu(gate).mul_(up), wd, bd).to(x.dtype)
    return out.add_(middle), Saved(q, k, v, attended, middle, gate, up, probs, raw_q, raw_k)


def layer_backward(
    grad: Tensor, x: Tensor, saved: Saved, weights: Weights, plan: Plan, matrices: list[Tensor]
) -> tuple[Tensor, list[Tensor | None]]:
    """Gradient of the layer's input, and those of `Weights.parameters`."""
    wq, wk, wv, wo, wg, wu, wd = matrices
    norm1, norm2, norm_q, norm_k = weights.norms
    grads: list[Tensor | None] = [None] * 18

    def linear_backward(index: int, delta: Tensor, source: Tensor) -> None:
        grads[index] = (delta.t() @ source).to(x.dtype)
        if weights.linears[index].bias is not None:
            grads[7 + index] = delta.sum(0, dtype=x.dtype)

    # MLP: out = middle + (silu(gate) ∘ up) Wdᵀ
    delta = grad.to(plan.dtype)
    silu = F.silu(saved.gate)
    linear_backward(6, delta, silu * saved.up)
    inner = delta @ wd
    grad_up = silu.mul_(inner)
    grad_gate = torch.ops.aten.silu_backward(inner.mul_(saved.up), saved.gate)
    h = _norm(saved.middle, norm2, plan.dtype)
    linear_backward(4, grad_gate, h)
    linear_backward(5, grad_up, h)
    grad_h = (grad_gate @ wg).addmm_(grad_up, wu)
    grad_middle, grads[15] = _norm_backward(grad_h, saved.middle, norm2)
    grad_middle += grad
    del silu, inner, grad_up, grad_gate, h

    # Attention: middle = x + attended Woᵀ
    delta = grad_middle.to(plan.dtype)
    linear_backward(3, delta, saved.attended)
    q, k, v = saved.q, saved.k, saved.v
    grad_q, grad_k, grad_v = attend_backward((delta @ wo).view(q.shape), q, k, v, plan.segments, kept=saved.probs)
    cos, sin = (plan.cos, plan.sin) if plan.kept is None else (plan.cos[plan.kept], plan.sin[plan.kept])
    grad_q = _rotate(grad_q, cos * weights.scaling, sin * -weights.scaling)  # the way back is the opposite angle
    grad_k = _rotate(grad_k, plan.cos, -plan.sin)
    if saved.raw_q is not None and saved.raw_k is not None:
        grad_q, grads[16] = _norm_backward(grad_q, saved.raw_q, norm_q)
        grad_k, grads[17] = _norm_backward(grad_k, saved.raw_k, norm_k)
    flat_q, flat_k, flat_v = (part.to(plan.dtype).flatten(1) for part in (grad_q, grad_k, grad_v))
    h = _norm(x, norm1, plan.dtype)
    linear_backward(0, flat_q, h if plan.kept is None else h[plan.kept])
    linear_backward(1, flat_k, h)
    linear_backward(2, flat_v, h)
    grad_h = (flat_k @ wk).addmm_(flat_v, wv)
    if plan.kept is None:
        grad_h.addmm_(flat_q, wq)
    else:
        grad_h.index_add_(0, plan.kept, flat_q @ wq)
    grad_x, grads[14] = _norm_backward(grad_h, x, norm1)
    if plan.kept is None:
        grad_x += grad_middle
    else:
        grad_x.index_add_(0, plan.kept, grad_middle)
    return grad_x, grads


def _norm(x: Tensor, norm: Any, dtype: torch.dtype) -> Tensor:
    """RMSNorm over the last dimension in float32 (or better), then `dtype`."""
    return F.rms_norm(x.to(norm.weight.dtype), norm.weight.shape, norm.weight.detach(), norm.variance_epsilon).to(dtype)


def _norm_backward(grad: Tensor, x: Tensor, norm: Any) -> tuple[Tensor, Tensor]:
    """Gradients of the input and of the weight, in the weight's dtype. With u = x / rms(x): w∘g − u mean(u∘w∘g), over rms(x)."""
    weight = norm.weight.detach()
    x, grad = x.to(weight.dtype), grad.to(weight.dtype)
    inverse = (
        torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]) + norm.variance_epsilon
    ).rsqrt_()
    unit = x * inverse
    product = grad * unit
    grad_weight = product.flatten(0, -2).sum(0)
    mean = (product @ weight).unsqueeze(-1) / x.shape[-1]
    return (grad * weight).sub_(unit.mul_(mean)).mul_(inverse), grad_weight


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions, in the dtype of cos. x: Shape (tokens, heads, width); cos, sin: Shape (tokens, 1, width / 2)."""
    a, b = x.to(cos.dtype).chunk(2, -1)
    swapped = torch.cat([b, a], -1)
    return (x * torch.cat([cos, cos], -1)).addcmul_(swapped, torch.cat([-sin, sin], -1))
