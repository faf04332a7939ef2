"""From groups of token ids to completion log-probabilities: one module around the causal LM, in the fastest layout that is exact for it.

    groups ─ pack ─→ decoder ─ hidden states that predict a completion token ─→ fused head ─→ one sum a completion

Layouts, in the order in which `choose` tries them:

    shared   a prompt once, its completions behind it            (decoders of the Llama kind on a CPU: by spin.models.kernels.decoder)
    packed   each completion behind a prompt of its own, no padding
    padded   a right-padded batch through the model as it is, its own logits: slow, right for every model, and what the others are compared with
"""

from __future__ import annotations

import ctypes
import logging
import math
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from spin.config.training import Dtype
from spin.errors import ConfigError
from spin.models.kernels.attention import GroupPlan, hf_attention
from spin.models.kernels.decoder import FastDecoder, supports
from spin.models.kernels.flex import FlexPlan
from spin.models.kernels.head import completion_logps, head_logps
from spin.models.kernels.segments import segments
from spin.models.packing import Group, Packed, one_by_one, pack

LAYOUTS = ("shared", "packed", "padded")


ATTENTION = "spin_groups"
"""The name of the group attention in transformers' registry."""


TOLERANCE = {Dtype.float32: (1e-4, 1e-3), Dtype.bfloat16: (2e-2, 1e-1)}
"""How far a layout may be from `padded`: nats a token of the log-probabilities, and the relative error of the whole gradient."""


logger = logging.getLogger(__name__)


class GroupLogps(nn.Module):
    """Summed completion log-probabilities of groups; everything that touches a parameter happens in `forward`, so that DDP and FSDP2 may wrap it."""

    def __init__(
        self,
        model: Any,
        dtype: Dtype,
        layout: str = "auto",
        gradient_checkpointing: bool = False,
        sharded: bool = False,
    ) -> None:
        """`layout`: auto (ask `choose` once, before training; shared until then), shared, packed or padded. Raises ValueError on another one.

        `sharded`: FSDP2 will hold the parameters, so that the model's own modules compute from the start: outside of them no parameter is whole.
        """
        super().__init__()
        if layout not in ("auto", *LAYOUTS):
            raise ValueError(f"layout {layout!r}: expected auto, {', '.join(LAYOUTS)}")
        self.model = model
        self.dtype = dtype
        self.automatic = layout == "auto"
        self.layout = "shared" if self.automatic else layout
        self.note: str | None = None
        """What it fell back to, and why; None: nothing."""
        self.gradient_checkpointing = gradient_checkpointing
        self._own_attention = _own_attention(model)
        self._window = smallest_window(model.config)
        self.fast = FastDecoder(model) if supports(model) and not sharded else None
        _checkpoint_layers(model, gradient_checkpointing)

    def weights_kept(self) -> AbstractContextManager[None]:
        """To be entered by who calls this module several times between two changes of its weights: what is derived from them is computed once."""
        return nullcontext() if self.fast is None else self.fast.copies.cached()

    def forward(self, groups: Sequence[Group]) -> Tensor:
        """Shape (completions of all groups,), float64, in the order of groups and of their completions; differentiable.

        Falls back to `padded` for good when a sequence is longer than the model's attention window.
        """
        if self.layout != "padded":
            longest = max(group.longest for group in groups)
            if self._window is not None and longest > self._window:
                self._fall_back(
                    "padded", f"the attention window of {self._window} tokens is shorter than a sequence of {longest}"
                )
        return self._logps(groups, self.layout, self.dtype)

    def _logps(self, groups: Sequence[Group], layout: str, dtype: Dtype) -> Tensor:
        device = next(self.model.parameters()).device
        products = torch.bfloat16 if dtype is Dtype.bfloat16 else torch.float32
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype is Dtype.bfloat16):
            if layout == "padded":
                return self._padded(groups, device)
            packed = pack(groups if layout == "shared" else one_by_one(groups), device)
            fast = self.fast if device.type == "cpu" else None
            hidden = (
                self._hidden(packed)
                if fast is None
                else fast(packed, products, self.gradient_checkpointing and torch.is_grad_enabled())
            )
            copy = None if fast is None else fast.copies(self.model.get_output_embeddings().weight, products)
        return self._head(hidden[packed.predictors], packed, products, copy)

    def _hidden(self, packed: Packed) -> Tensor:
        """Last hidden states of the kept tokens by the model's own decoder, with the group attention in place of its own. Shape (kept, hidden)."""
        self._attend_with(ATTENTION)
        on_cpu = packed.input_ids.device.type == "cpu"
        plan = GroupPlan(
            segments(packed.spans) if on_cpu else FlexPlan(packed.spans, len(packed.input_ids), packed.input_ids.device)
        )
        out = self.model.get_decoder()(
            input_ids=packed.input_ids.unsqueeze(0),
            position_ids=packed.position_ids.unsqueeze(0),
            attention_mask=None,
            use_cache=False,
            group_plan=plan,
        )
        layers = self.model.config.get_text_config().num_hidden_layers
        if plan.calls < layers:
            raise ValueError(f"{plan.calls} of {layers} layers attend through transformers' attention interface")
        return out.last_hidden_state[0, packed.kept]

    def _head(self, hidden: Tensor, packed: Packed, products: torch.dtype, copy: Tensor | None) -> Tensor:
        config, head = self.model.config.get_text_config(), self.model.get_output_embeddings()
        scale = getattr(config, "logit_scale", None) or 1 / (
            getattr(config, "logits_scaling", None) or 1
        )  # Cohere multiplies, Granite divides
        softcap = getattr(config, "final_logit_softcapping", None)
        hidden = hidden if scale == 1 else hidden * scale
        bias = getattr(head, "bias", None)
        return head_logps(
            hidden, head.weight, packed.labels, packed.owners, packed.completions, bias, softcap, products, copy
        )

    def _padded(self, groups: Sequence[Group], device: torch.device) -> Tensor:
        """The reference: a right-padded batch through the model as it is."""
        self._attend_with(self._own_attention)
        sequences = [(group.prompt_ids, completion) for group in groups for completion in group.completions]
        longest = max(len(prompt) + len(completion) for prompt, completion in sequences)
        ids = torch.zeros(len(sequences), longest, dtype=torch.long)
        attention, completion_mask = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
        for row, (prompt, completion) in enumerate(sequences):
            end = len(prompt) + len(completion)
            ids[row, :end] = torch.tensor(prompt + completion)
            attention[row, :end] = 1
            completion_mask[row, len(prompt) : end] = True
        logits = self.model(
            input_ids=ids.to(device), attention_mask=attention.to(device), use_cache=False
        ).logits  # [batch, length, vocab]
        return completion_logps(logits, ids.to(device), completion_mask.to(device))

    def _attend_with(self, name: str) -> None:
        if self.model.config._attn_implementation != name:
            from transformers import AttentionInterface

            AttentionInterface.register(ATTENTION, hf_attention)
            self.model.set_attn_implementation(name)

    def _fall_back(self, layout: str, reason: str) -> None:
        self.layout = layout
        self.note = f"layout {layout}: {reason}"
        logger.warning(self.note)

    def choose(self, groups: Sequence[Group]) -> str | None:
        """Settle `layout: auto` on a few real groups, before the module is wrapped: the first layout that agrees with `padded`.

        Compares log-probabilities and the gradient within TOLERANCE. Leaves no gradient behind. Returns the one line that says what it fell back
        to and why, or None when nothing was lost. With a layout that was asked for it does nothing but return the note.
        """
        if not self.automatic:
            return self.note
        groups = _with_company(groups)
        reasons: list[str] = []
        longest = max(group.longest for group in groups)
        if self._window is not None and longest > self._window:
            self._fall_back(
                "padded", f"the attention window of {self._window} tokens is shorter than a sequence of {longest}"
            )
            return self.note
        dtypes = dict.fromkeys((Dtype.float32, self.dtype))  # float32 tells a wrong layout from rounding
        for layout in LAYOUTS[:-1]:
            problem = None
            for dtype in dtypes:
                truth = self._measure(
                    groups, "padded", dtype
                )  # again for each layout that is tried: two sets of gradients in memory, never more
                try:
                    problem = self._compare(truth, self._measure(groups, layout, dtype), groups, dtype)
                except (
                    ValueError,
                    TypeError,
                    RuntimeError,
                    AttributeError,
                    NotImplementedError,
                ) as error:  # a model may fail in its own way
                    problem = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
                if problem is not None:
                    break
            if problem is None:
                self.layout = layout
                if reasons:
                    self._fall_back(layout, "; ".join(reasons))
                return self.note
            reasons.append(f"{layout} is not exact for {type(self.model).__name__} ({problem})")
        self._fall_back("padded", "; ".join(reasons))
        return self.note

    def _measure(self, groups: Sequence[Group], layout: str, dtype: Dtype) -> tuple[Tensor, dict[str, Tensor]]:
        """Log-probabilities, and the gradients of a sum in which every completion has another weight.

        `padded` takes one sequence at a time: the logits of all its positions are what this needs most memory for.
        """
        parts = [[group] for group in one_by_one(groups)] if layout == "padded" else [groups]
        parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        weights = torch.linspace(-1, 1, sum(len(group.completions) for group in groups), dtype=torch.float64) + 0.1
        found: list[Tensor] = []
        totals: dict[str, Tensor] = {}
        for part in parts:
            with torch.enable_grad():
                logps = self._logps(part, layout, dtype)
                done = sum(map(len, found))
                loss = (logps * weights[done : done + len(logps)].to(logps.device)).sum()
                grads = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
            found.append(logps.detach())
            for name, grad in zip(parameters, grads, strict=True):
                if grad is not None:
                    totals[name] = totals[name].add_(grad.cpu()) if name in totals else grad.cpu()  # off the device
        return torch.cat(found), totals

    def _compare(
        self,
        truth: tuple[Tensor, dict[str, Tensor]],
        found: tuple[Tensor, dict[str, Tensor]],
        groups: Sequence[Group],
        dtype: Dtype,
    ) -> str | None:
        """What is wrong with a layout, or None."""
        allowed, allowed_gradient = TOLERANCE[dtype]
        tokens = truth[0].new_tensor([len(completion) for group in groups for completion in group.completions])
        gap = float(((truth[0] - found[0]).abs() / tokens).max())
        if not gap <= allowed:
            return f"log-probabilities differ by {gap:.1e} nats a token, allowed {allowed:.0e}"
        if truth[1].keys() != found[1].keys():
            return f"{len(truth[1].keys() ^ found[1].keys())} parameters get a gradient in one of the two only"
        norm = math.hypot(*(float(torch.linalg.vector_norm(grad, dtype=torch.float64)) for grad in truth[1].values()))
        off = math.hypot(
            *(
                float(torch.linalg.vector_norm(grad - found[1][name], dtype=torch.float64))
                for name, grad in truth[1].items()
            )
        )
        if not off <= allowed_gradient * norm:
            return f"gradients differ by {off / norm if norm else off:.1e}, allowed {allowed_gradient:.0e}"
        return None


def _own_attention(model: Any) -> str:
    """The attention that the model came with; remembered, for when it is wrapped again. Eager where scores are soft-capped: sdpa ignores the cap."""
    if model.config._attn_implementation != ATTENTION:
        capped = getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None
        model.attention_before_spin = "eager" if capped else model.config._attn_implementation
    return model.attention_before_spin


def _checkpoint_layers(model: Any, wanted: bool) -> None:
    """Let the model's own layers be computed again in the backward pass, or no longer; transformers' switch does so in training mode only, where dropout is on."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if wanted and not layers:
        raise ConfigError(
            f"training.gradient_checkpointing=true: {type(model).__name__} has no layers that transformers knows to checkpoint; set it to false"
        )
    for layer in layers:
        layer.__dict__.pop("forward", None)
        if wanted:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)


def _with_company(groups: Sequence[Group]) -> list[Group]:
    """At least two groups, one of them with two completions, so that a model that looks into its neighbours is seen to."""
    groups = list(groups)
    if max(len(group.completions) for group in groups) < 2:
        groups.append(Group(groups[0].prompt_ids, [groups[0].completions[0], groups[-1].completions[0][::-1] * 2]))
    return groups if len(groups) > 1 else groups * 2


def smallest_window(config: Any) -> int | None:
    """The shortest attention window that the config names for a layer (sliding or chunked), in tokens; None: all layers see everything."""
    config = config.get_text_config()
    if getattr(config, "use_sliding_window", True) is False:
        return None
    windows = [
        getattr(config, name, None)
        for name in ("sliding_window", "attention_chunk_size", "window_size", "local_attention")
    ]
    kinds = getattr(config, "layer_types", None)
    if kinds and all(kind == "full_attention" for kind in kinds):
        return None
    return min((int(window) for window in windows if isinstance(window, int) and window > 0), default=None)


def keep_freed_memory() -> None:
    """Ask glibc to keep freed memory for the next micro-batch; page faults took 3–8 % of a step on a CPU. Elsewhere, nothing happens.

    The peak does not change: what is kept was allocated at the peak. Blocks up to 32 MiB (glibc's limit) come from the heap from here on.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
        libc.mallopt(mmap_threshold, 32 << 20)
        libc.mallopt(trim_threshold, 2**31 - 1)


def limit_kernel_caches(kernels: int = 64) -> None:
    """Let oneDNN keep the compiled products of the last 64 shapes, not of 1024; for a CPU, to be called before the first product.

    In bfloat16 each shape costs a compilation and up to a few MiB, and every micro-batch has shapes of its own: after ten steps of a model of 17 million
    weights the process took 1.1 GiB in place of 2.0, in the same time. What the user has set stays.
    """
    for variable in (
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY",
        "LRU_CACHE_CAPACITY",
    ):  # oneDNN's own, and that of torch's wrapper
        os.environ.setdefault(variable, str(kernels))
