"""A language model body with a head of one number: the reward of a completion.

    groups ─ pack ─► decoder ─► hidden state of the last token of each completion ─► score ─► reward

The model is transformers' class for sequence classification with one label, so that a promoted
reward model is a folder which transformers and vLLM load. Its `score` layer is read at the last
token of the completion: the end of turn, or the last sampled token of a truncated completion.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spin.errors import CheckpointError
from spin.models.forward import GroupLogps
from spin.models.loading import CPU
from spin.models.packing import Group, Packed
from spin.models.token_logps import TokenLogps

HEAD = "score"
"""Name of the head in transformers' classes for sequence classification of decoders."""


class Head(Enum):
    """What a model's body is read out with."""

    language = "language"
    """The probabilities of the next token: a policy."""
    scalar = "scalar"
    """One number for a completion: a reward model."""
    value = "value"
    """One number for each token, read before it: a critic."""


class GroupRewards(GroupLogps):
    """Computes the rewards of the completions of groups, in the layouts of `GroupLogps`.

    The result has one value for each completion, its reward, so that `sums` returns the rewards.
    """

    feeds_last = True

    def choose(self, groups: Sequence[Group]) -> str | None:
        """See GroupLogps."""
        # A head of zeros has neither rewards nor gradients in the body to compare layouts by.
        head = self.model.get_submodule(HEAD).weight
        is_new = has_new_head(self.model)
        with torch.no_grad():
            if is_new:
                head.copy_(torch.linspace(-1, 1, head.numel()).view_as(head))
        note = super().choose(groups)
        with torch.no_grad():
            if is_new:
                head.zero_()
        return note

    def _apply_head(self, hidden: Tensor, packed: Packed, products: torch.dtype) -> TokenLogps:
        """Return the rewards from the last hidden states of the kept tokens."""
        return self._score(hidden[packed.ends])

    def _run_padded(self, ids: Tensor, attention: Tensor, completion_mask: Tensor) -> TokenLogps:
        """Return the rewards of padded rows; each argument has Shape (rows, length)."""
        # The body alone: the model's own pooling would take a last token that equals the padding
        # token for padding.
        body = self.model.get_decoder()
        hidden = body(input_ids=ids, attention_mask=attention, use_cache=False).last_hidden_state
        last = attention.sum(1) - 1
        return self._score(hidden[torch.arange(len(ids), device=ids.device), last])

    def _score(self, hidden: Tensor) -> TokenLogps:
        """Return the head's value of each hidden state as one completion each."""
        rewards = self._read(hidden)
        owners = torch.arange(len(rewards), device=rewards.device)
        return TokenLogps(rewards, owners, len(rewards))

    def _read(self, hidden: Tensor) -> Tensor:
        """Return the head's value of each hidden state, computed in float32. Shape (states,)."""
        return read_out(hidden, self.model.get_submodule(HEAD).weight)


class GroupValues(GroupRewards):
    """Computes the value of the state before each completion token, in the same layouts.

    The result has the values in the place of log-probabilities.
    """

    feeds_last = False

    def _apply_head(self, hidden: Tensor, packed: Packed, products: torch.dtype) -> TokenLogps:
        """Return the values from the hidden states that predict completion tokens."""
        return TokenLogps(self._read(hidden[packed.predictors]), packed.owners, packed.completions)

    def _run_padded(self, ids: Tensor, attention: Tensor, completion_mask: Tensor) -> TokenLogps:
        """Return the values of padded rows; each argument has Shape (rows, length)."""
        body = self.model.get_decoder()
        hidden = body(input_ids=ids, attention_mask=attention, use_cache=False).last_hidden_state
        rows, positions = completion_mask.nonzero(as_tuple=True)
        # A token is predicted at the position before it.
        return TokenLogps(self._read(hidden[rows, positions - 1]), rows, len(ids))


def read_out(hidden: Tensor, weight: Tensor) -> Tensor:
    """Return a head's value of each hidden state, computed in float32.

    Args:
        hidden: Shape (states, hidden size).
        weight: Weight of the head. Shape (1, hidden size).

    Returns:
        Shape (states,).
    """
    # One number a state costs nothing, so it is not rounded to bfloat16.
    with torch.autocast(hidden.device.type, enabled=False):
        return nn.functional.linear(hidden.float(), weight.float()).squeeze(-1)


def has_new_head(model: Any) -> bool:
    """Return whether the head has no weight but 0, as that of a model that was just made."""
    return not bool(model.get_submodule(HEAD).weight.any())


def draw_head(model: Any, seed: int) -> None:
    """Give a head of zeros normal values with variance 1 / (hidden size + 1), arXiv 2009.01325."""
    head = model.get_submodule(HEAD).weight
    # On the CPU, so that every worker and every device draws the same values.
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(head.shape, generator=generator) / math.sqrt(head.numel() + 1)
    with torch.no_grad():
        head.copy_(values)


def load_reward_model(
    path: Path, trust_remote_code: bool = False, dtype: torch.dtype = torch.float32, device: torch.device = CPU
) -> Any:
    """Load a reward model in eval mode, or make one from a language model.

    The body of a language model gets a head of zeros: every reward is 0 before training.

    Args:
        path: Folder of a language model, or of a reward model with one label.
        trust_remote_code: Run Python code from the model's folder.
        dtype: Dtype of the weights in memory; another one than float32 is for frozen weights.
        device: Where the weights are loaded to, see `load_policy`.

    Raises: CheckpointError when transformers has no such class for the model, or when a tensor is
        missing or has another shape.
    """
    from transformers import AutoModelForSequenceClassification

    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            path,
            num_labels=1,
            dtype=dtype,
            device_map={"": device},
            output_loading_info=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            trust_remote_code=trust_remote_code,
        )
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"checkpoint {path} cannot be a reward model ({reason}); expected a model with a class for sequence "
            "classification in transformers"
        ) from error
    # Encoders and a few decoders have heads of other shapes.
    head = getattr(model, HEAD, None)
    if not isinstance(head, nn.Linear) or head.bias is not None:
        raise CheckpointError(
            f"checkpoint {path}: {type(model).__name__} has no linear layer {HEAD} without bias; expected a decoder"
        )
    # transformers would only warn, and train such a tensor from random values.
    missing = {str(key) for key in info["missing_keys"]}
    problems = sorted(missing - {f"{HEAD}.weight"})
    if problems or info["mismatched_keys"]:
        keys = problems or sorted(map(str, info["mismatched_keys"]))
        raise CheckpointError(f"checkpoint {path}: keys {keys[:3]} are missing or have another shape")
    # Only the head is missing: the folder holds a language model.
    if missing:
        nn.init.zeros_(head.weight)
    return model.eval()
