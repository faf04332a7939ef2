"""Run decoders of the Llama kind on packed groups, forward and backward, faster on a CPU.

The parameters stay in the Hugging Face modules, so checkpoints, optimizer and export do not change.
Two things make it faster and leave the results equal. Each layer is one autograd function with a
backward pass written by hand (`layer.py`). The last layer computes queries, attention output and
MLP only for the tokens whose hidden state predicts a completion token.

Not supported: dropout, sliding windows, sharded parameters. `supports` rejects other
layers, and `spin.models.forward` compares the results with the model's before it uses this file.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from spin.models.kernels.layer import LayerPlan, layer_backward, layer_forward
from spin.models.kernels.segments import segments
from spin.models.kernels.weights import NORMS, PROJECTIONS, LayerWeights, WeightCopies, split_adapter
from spin.models.packing import Packed

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Model types of transformers whose layers have this structure."""


def supports(model: Any) -> bool:
    """Return True if the layers of `model` have the modules of `layer.py` and no others."""
    if getattr(model.config, "model_type", None) not in FAMILIES or getattr(model.config, "hidden_act", None) != "silu":
        return False
    required = {*PROJECTIONS, *NORMS[:2]}
    allowed = {*PROJECTIONS, *NORMS, "mlp.act_fn"}
    for layer in model.get_decoder().layers:
        # The innermost modules are all that computes. An unknown one would be left out here.
        if not required <= _list_leaves(layer) <= allowed:
            return False
        # Quantised layers are other types than nn.Linear.
        for name in PROJECTIONS:
            linear, _ = split_adapter(layer.get_submodule(name))
            if type(linear) is not nn.Linear:
                return False
    return True


def _list_leaves(layer: nn.Module) -> set[str]:
    """Return the names of the innermost modules; a linear module with its adapter is one."""
    leaves = {name for name, module in layer.named_modules() if next(module.children(), None) is None}
    for name, module in layer.named_modules():
        if split_adapter(module)[1] is not None:
            leaves = {leaf for leaf in leaves if not leaf.startswith(f"{name}.")}
            leaves.add(name)
    return leaves


class FastDecoder:
    """Embedding, layers and final norm of a supported model. Not a module: it owns no parameter."""

    trim = True
    """Compute the last layer only where a token is predicted. A benchmark sets it to False."""

    def __init__(self, model: Any) -> None:
        self.decoder = model.get_decoder()
        self.layers = [LayerWeights(layer) for layer in self.decoder.layers]
        self.copies = WeightCopies()

    def __call__(self, packed: Packed, dtype: torch.dtype, checkpointing: bool = False) -> Tensor:
        """Return the last hidden states of the kept tokens, after the final norm.

        Args:
            packed: Packed sequence of prompts and completions.
            dtype: Of the matrix products.
            checkpointing: Run each layer again in the backward pass instead of keeping activations.

        Returns: Shape (kept, hidden).
        """
        # The layers choose their own dtypes.
        with torch.autocast(packed.input_ids.device.type, enabled=False):
            return self._hidden(packed, dtype, checkpointing)

    def _hidden(self, packed: Packed, dtype: torch.dtype, checkpointing: bool) -> Tensor:
        x = self.decoder.embed_tokens(packed.input_ids)  # [tokens, hidden]
        # The residual stream is float32 or better, also over frozen weights in bfloat16.
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        # transformers repeats the angles for both halves of a head: keep one half.
        cos, sin = self.decoder.rotary_emb(x, packed.position_ids.unsqueeze(0))
        half = cos.shape[-1] // 2
        cos = cos[0, :, None, :half].contiguous()
        sin = sin[0, :, None, :half].contiguous()
        plan = LayerPlan(segments(packed.spans), cos, sin, dtype, self.copies)
        # No later layer reads the other tokens, so the last layer may leave them out.
        last_plan = plan
        if self.trim:
            last_plan = replace(plan, segments=segments(packed.spans, trimmed=True), kept=packed.kept)
        for weights in self.layers[:-1]:
            x = _Layer.apply(x, weights, plan, checkpointing, *weights.parameters())
        weights = self.layers[-1]
        x = _Layer.apply(x, weights, last_plan, checkpointing, *weights.parameters())
        if not self.trim:
            x = x[packed.kept]
        return self.decoder.norm(x)


class _Layer(torch.autograd.Function):
    """One decoder layer: hidden states [tokens, hidden] → [kept or tokens, hidden]."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weights: LayerWeights, plan: LayerPlan, checkpointing: bool, *parameters: Tensor | None
    ) -> Tensor:
        # autograd computes gradients of arguments only, hence the unused `parameters`.
        needs_grad = any(ctx.needs_input_grad)
        matrices = weights.matrices(plan.copies, plan.dtype)
        out, saved = layer_forward(x, weights, plan, matrices, needs_grad and not checkpointing)
        if needs_grad:
            ctx.weights = weights
            ctx.plan = plan
            ctx.matrices = matrices
            # With checkpointing the backward pass runs the layer again from x.
            ctx.saved = None
            if not checkpointing:
                ctx.saved = saved
            ctx.save_for_backward(x)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        saved = ctx.saved
        if saved is None:
            _, saved = layer_forward(x, ctx.weights, ctx.plan, ctx.matrices)
        # Drop the second reference, so that the activations are freed when this call returns.
        ctx.saved = None
        # `weights`, `plan` and `checkpointing` are the arguments between x and the parameters.
        needed = ctx.needs_input_grad[4:]
        grad_x, grads = layer_backward(grad, x, saved, ctx.weights, ctx.plan, ctx.matrices, needed)
        ctx.matrices = None
        # `weights`, `plan` and `checkpointing` have no gradient.
        return grad_x, None, None, None, *grads
