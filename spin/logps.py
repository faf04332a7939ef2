"""Logits and labels to per-completion log-probabilities. Torch only."""

from __future__ import annotations

import torch
from torch import Tensor


def completion_logps(logits: Tensor, input_ids: Tensor, completion_mask: Tensor) -> Tensor:
    """Sum of log p(token_t | tokens before t) over the completion tokens of each row.

    Args:
        logits: Shape (batch, length, vocab), any float dtype.
        input_ids: Shape (batch, length).
        completion_mask: Shape (batch, length), bool; true at the completion's own tokens, never at position 0.

    Returns: Shape (batch,), float64: a sequential float32 sum costs ten times the accuracy.
    Raises: ValueError on shapes that do not fit.
    """
    if logits.dim() != 3 or logits.shape[:2] != input_ids.shape or input_ids.shape != completion_mask.shape:
        raise ValueError(f"logits {tuple(logits.shape)}, input_ids {tuple(input_ids.shape)}, completion_mask {tuple(completion_mask.shape)} do not fit")
    if bool(completion_mask[:, 0].any()):
        raise ValueError("a completion token at position 0 has nothing to be predicted from")
    rows, positions = completion_mask.nonzero(as_tuple=True)  # [tokens]
    chosen = logits[rows, positions - 1].float()  # [tokens, vocab]: completion positions only
    token_logps = torch.log_softmax(chosen, dim=-1).gather(1, input_ids[rows, positions].unsqueeze(1)).squeeze(1)  # [tokens]
    return torch.zeros(len(logits), dtype=torch.float64, device=logits.device).index_add(0, rows, token_logps.double())
