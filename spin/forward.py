"""The forward pass: groups of a prompt and its completions to summed log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spin.config import Dtype
from spin.logps import completion_logps
from spin.packing import Group


class GroupLogps(torch.nn.Module):
    """A causal language model whose output is log-probabilities, so that whatever wraps it (DDP, FSDP) sees every use of its weights."""

    def __init__(self, model: Any, dtype: Dtype) -> None:
        super().__init__()
        self.model = model
        self._dtype = dtype

    def forward(self, groups: Sequence[Group]) -> Tensor:
        """Summed completion log-probabilities, flat, in the order of the groups and of their completions. Shape (completions,), float64."""
        device = next(self.model.parameters()).device
        sequences = [(group.prompt_ids, completion) for group in groups for completion in group.completions]
        longest = max(len(prompt) + len(completion) for prompt, completion in sequences)
        ids = torch.zeros(len(sequences), longest, dtype=torch.long)
        attention, completion_mask = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
        for row, (prompt, completion) in enumerate(sequences):
            end = len(prompt) + len(completion)
            ids[row, :end] = torch.tensor(prompt + completion)
            attention[row, :end] = 1
            completion_mask[row, len(prompt) : end] = True
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=self._dtype is Dtype.bfloat16):
            logits = self.model(input_ids=ids.to(device), attention_mask=attention.to(device), use_cache=False).logits  # [batch, length, vocab]
        return completion_logps(logits, ids.to(device), completion_mask.to(device))
