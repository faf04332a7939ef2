"""Log-probabilities of completions: one module around the causal LM, in the fastest exact layout.

    groups ─ pack ─► decoder ─► hidden states that predict completion tokens ─► head ─► TokenLogps

On a CPU, decoders like Llama's are computed by `spin.models.kernels.decoder` in the layouts
`shared` and `packed`; other models compute their own layers with the group attention of
`spin.models.kernels`; on a GPU this is a flash kernel or FlexAttention. See also `layouts`.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from spin.config.training import Dtype
from spin.models.kernels.attention import GroupPlan, hf_attention
from spin.models.kernels.decoder import FastDecoder, supports
from spin.models.kernels.flash import FlashPlan, supports_flash
from spin.models.kernels.flex import FlexPlan
from spin.models.kernels.head import head_logps
from spin.models.kernels.segments import segments
from spin.models.layer_calls import set_layer_calls
from spin.models.layouts import (
    LAYOUTS,
    ForwardChoice,
    add_company,
    choose_layout,
    compare,
    describe_error,
    measure,
    smallest_window,
)
from spin.models.packing import Group, Packed, one_by_one, pack
from spin.models.token_logps import TokenLogps, padded_logps

ATTENTION = "spin_groups"
"""The name of the group attention in the registry of transformers."""

logger = logging.getLogger(__name__)


class GroupLogps(nn.Module):
    """Computes log-probabilities of the completions of groups.

    Everything that reads a parameter happens in `forward`, so that DDP and FSDP2 can wrap it.
    """

    feeds_last: ClassVar[bool] = False
    """Whether the last token of a completion is fed to the model."""

    def __init__(
        self,
        model: Any,
        dtype: Dtype,
        layout: str = "auto",
        gradient_checkpointing: bool = False,
        sharded: bool = False,
        choice: ForwardChoice | None = None,
        compile_layers: bool = False,
    ) -> None:
        """Wrap a model.

        Args:
            model: A causal LM of transformers in float32.
            dtype: Dtype of the matrix products.
            layout: shared, packed or padded; auto means shared until `choose` was called.
            gradient_checkpointing: Whether layers are computed again in the backward pass.
            sharded: Whether FSDP2 will hold the parameters. Then the model's own layers compute,
                because outside of them no parameter is whole.
            choice: What `choose` found before for a model of this kind; used if `layout` is auto.
            compile_layers: Whether `choose` tries to compile the layers, on a GPU.

        Raises:
            ValueError: There is no such layout.
            ConfigError: The model has no layers to checkpoint.
        """
        super().__init__()
        if layout not in ("auto", *LAYOUTS):
            raise ValueError(f"layout {layout!r}: expected auto, {', '.join(LAYOUTS)}")
        self.model = model
        self.dtype = dtype
        self.automatic = layout == "auto"
        self.layout = "shared" if self.automatic else layout
        self.flash, self.compiled = False, False
        if self.automatic and choice is not None:
            self.layout, self.flash, self.compiled = choice.layout, choice.flash, choice.compiled
        self.note: str | None = None
        """What it fell back to, and why; None if it did not."""
        self.gradient_checkpointing = gradient_checkpointing
        self._own_attention = _own_attention(model)
        self._window = smallest_window(model.config)
        self.fast: FastDecoder | None = None
        if supports(model) and not sharded:
            self.fast = FastDecoder(model)
        self._compile_layers = compile_layers
        set_layer_calls(model, gradient_checkpointing, self.compiled)

    @property
    def choice(self) -> ForwardChoice:
        """Return how the module computes."""
        return ForwardChoice(self.layout, self.flash, self.compiled)

    def weights_kept(self) -> AbstractContextManager[None]:
        """Compute once what is derived from the weights, for all calls inside the context.

        The weights must not change inside it.
        """
        if self.fast is None:
            return nullcontext()
        return self.fast.copies.cached()

    def forward(self, groups: Sequence[Group]) -> TokenLogps:
        """Return the log-probabilities of all completion tokens.

        Completions are numbered over all groups. A sequence that is longer than the attention
        window of the model lets this module fall back to `padded` for good.
        """
        if self.layout != "padded":
            problem = self._explain_window(groups)
            if problem is not None:
                self._fall_back("padded", problem)
        return self._compute(groups, self.layout, self.dtype)

    def choose(self, groups: Sequence[Group]) -> str | None:
        """Choose the layout on a few real groups, before the module is wrapped.

        A layout that was asked for stays.

        Returns:
            One line that says what it fell back to and why; None if nothing was lost.
        """
        if not self.automatic:
            return self.note
        groups = add_company(groups)
        problem = self._explain_window(groups)
        if problem is not None:
            self._fall_back("padded", problem)
            return self.note

        # A flash kernel if all is exact with it; otherwise FlexAttention. CPUs have neither.
        on_gpu = next(self.model.parameters()).device.type == "cuda"
        self.flash = on_gpu and self.dtype is Dtype.bfloat16 and supports_flash(self.model.config.get_text_config())
        self.layout, problem = choose_layout(self.model, self._sum_logps, groups, self.dtype)
        if self.flash and problem is not None:
            self.flash = False
            self.layout, problem = choose_layout(self.model, self._sum_logps, groups, self.dtype)
        if problem is not None:
            self._fall_back(self.layout, problem)
        if on_gpu and self._compile_layers and self.layout != "padded":
            self._try_compiled(groups)
        return self.note

    def _sum_logps(self, groups: Sequence[Group], layout: str, dtype: Dtype) -> Tensor:
        """Return the log-probability of each completion. Shape (completions,)."""
        return self._compute(groups, layout, dtype).sums()

    def _try_compiled(self, groups: Sequence[Group]) -> None:
        """Compile the layers, unless this changes log-probabilities or gradients or fails."""
        expected = measure(self.model, self._sum_logps, groups, "padded", self.dtype)
        self.compiled = True
        set_layer_calls(self.model, self.gradient_checkpointing, self.compiled)
        # The compiler can fail in any way on a model that it was not made for.
        try:
            found = measure(self.model, self._sum_logps, groups, self.layout, self.dtype)
            problem = compare(expected, found, groups, self.dtype)
        except Exception as error:
            problem = describe_error(error)
        if problem is not None:
            self.compiled = False
            set_layer_calls(self.model, self.gradient_checkpointing)
            self.note = f"the layers of {type(self.model).__name__} are not compiled: {problem}"
            logger.warning(self.note)

    def _explain_window(self, groups: Sequence[Group]) -> str | None:
        """Return why no packed layout can be used for these groups; None if one can."""
        longest = max(group.longest for group in groups)
        if self._window is None or longest <= self._window:
            return None
        return f"the attention window of {self._window} tokens is shorter than a sequence of {longest}"

    def _fall_back(self, layout: str, reason: str) -> None:
        """Take another layout, and say why."""
        self.layout = layout
        self.note = f"layout {layout}: {reason}"
        logger.warning(self.note)

    def _compute(self, groups: Sequence[Group], layout: str, dtype: Dtype) -> TokenLogps:
        """Return the log-probabilities in a given layout and dtype."""
        device = next(self.model.parameters()).device
        bfloat16 = dtype is Dtype.bfloat16
        products = torch.bfloat16 if bfloat16 else torch.float32
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bfloat16):
            if layout == "padded":
                return self._compute_padded(groups, device)
            if layout == "packed":
                groups = one_by_one(groups)
            packed = pack(groups, device, self.feeds_last)
            if self.fast is not None and device.type == "cpu":
                checkpointing = self.gradient_checkpointing and torch.is_grad_enabled()
                hidden = self.fast(packed, products, checkpointing)
            else:
                hidden = self._compute_hidden(packed)
        return self._apply_head(hidden, packed, products)

    def _compute_hidden(self, packed: Packed) -> Tensor:
        """Return the last hidden states of the kept tokens, by the model's own layers.

        The group attention takes the place of the model's attention. Shape (kept, hidden).

        Raises:
            ValueError: A layer does not use the attention interface of transformers.
        """
        self._set_attention(ATTENTION)
        plan = GroupPlan(self._plan_attention(packed))
        output = self.model.get_decoder()(
            input_ids=packed.input_ids.unsqueeze(0),
            position_ids=packed.position_ids.unsqueeze(0),
            attention_mask=None,
            use_cache=False,
            group_plan=plan,
        )
        layers = self.model.config.get_text_config().num_hidden_layers
        # Calls are not counted inside compiled layers, which were compared with counted ones.
        if not self.compiled and plan.calls < layers:
            raise ValueError(f"{plan.calls} of {layers} layers attend through transformers' attention interface")
        return output.last_hidden_state[0, packed.kept]

    def _plan_attention(self, packed: Packed) -> Any:
        """Return what computes the attention of a packed sequence on its device."""
        device = packed.input_ids.device
        if device.type == "cpu":
            return segments(packed.spans)
        if self.flash and torch.is_autocast_enabled(device.type):
            return FlashPlan(packed.spans, device)
        return FlexPlan(packed.spans, len(packed.input_ids), device)

    def _apply_head(self, hidden: Tensor, packed: Packed, products: torch.dtype) -> TokenLogps:
        """Return log-probabilities from the last hidden states of the kept tokens."""
        config = self.model.config.get_text_config()
        head = self.model.get_output_embeddings()
        copy = None
        if self.fast is not None and hidden.device.type == "cpu":
            copy = self.fast.copies(head.weight, products)
        hidden = hidden[packed.predictors]
        # Cohere multiplies logits by a scale, Granite divides them.
        scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
        if scale != 1:
            hidden = hidden * scale
        softcap = getattr(config, "final_logit_softcapping", None)
        bias = getattr(head, "bias", None)
        values = head_logps(hidden, head.weight, packed.labels, bias, softcap, products, copy)
        return TokenLogps(values, packed.owners, packed.completions)

    def _compute_padded(self, groups: Sequence[Group], device: torch.device) -> TokenLogps:
        """Return log-probabilities of a right-padded batch through the unchanged model."""
        self._set_attention(self._own_attention)
        sequences = []
        for group in one_by_one(groups):
            sequences.append((group.prompt_ids, group.completions[0]))
        longest = max(group.longest for group in groups)
        ids = torch.zeros(len(sequences), longest, dtype=torch.long)
        attention = torch.zeros_like(ids)
        completion_mask = torch.zeros_like(ids, dtype=torch.bool)
        for row, (prompt, completion) in enumerate(sequences):
            end = len(prompt) + len(completion)
            ids[row, :end] = torch.tensor(prompt + completion)
            attention[row, :end] = 1
            completion_mask[row, len(prompt) : end] = True
        return self._run_padded(ids.to(device), attention.to(device), completion_mask.to(device))

    def _run_padded(self, ids: Tensor, attention: Tensor, completion_mask: Tensor) -> TokenLogps:
        """Return log-probabilities of the completion tokens. Arguments: Shape (rows, length)."""
        # [rows, length, vocab]
        logits = self.model(input_ids=ids, attention_mask=attention, use_cache=False).logits
        return padded_logps(logits, ids, completion_mask)

    def _set_attention(self, name: str) -> None:
        """Let the model's layers use an attention of the registry of transformers."""
        if self.model.config._attn_implementation != name:
            from transformers import AttentionInterface

            AttentionInterface.register(ATTENTION, hf_attention)
            self.model.set_attn_implementation(name)


def _own_attention(model: Any) -> str:
    """Return the attention that the model came with.

    It is stored on the model, for when the model is wrapped again. It is eager for models with
    capped attention scores, because sdpa ignores the cap.
    """
    if model.config._attn_implementation != ATTENTION:
        capped = getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None
        model.attention_before_spin = "eager" if capped else model.config._attn_implementation
    return model.attention_before_spin
