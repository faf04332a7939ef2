"""How many tokens fit in one forward pass."""

from __future__ import annotations

from typing import Any

import psutil
import torch

CPU_TOKEN_CAP = 2048
"""Most tokens of a pass on a CPU: matrix products are at their full rate from a few hundred rows
on, and more tokens only fall out of the cache."""

GPU_LAYER_FACTOR = 2.1
"""Memory of a token in the model's own layers on a GPU, in units of `bytes_per_token`. Measured on
an H200 with a model of 0.5B in bfloat16, as is the next one."""

GPU_COMPILED_FACTOR = 1.4
"""The same in compiled layers."""

GPU_BLOCK_BYTES = 2 << 30
"""Largest size, in bytes, of the logits of one block of the head on a GPU."""

GPU_HEAD_BYTES = 3 * GPU_BLOCK_BYTES
"""Logits, their gradient and a temporary of one block of the head."""

GPU_MEMORY_SHARE = 0.8
"""Share of the free memory of a GPU to fill; fragments and other processes take the rest."""


def bytes_per_token(config: Any, bytes_per_value: int, checkpointing: bool = False) -> int:
    """Return the memory that one token takes until its backward pass, in bytes.

    A layer like Llama's keeps two residual streams in float32 and, in the compute dtype, queries,
    keys, values, the output of the attention and both halves of the gated MLP. Other models are
    close to it. The logits have a budget of their own (`spin.models.kernels.head`).

    Args:
        config: The text config of the model.
        bytes_per_value: Size of a value in the compute dtype.
        checkpointing: With gradient checkpointing a layer keeps its input alone, and one layer at a
            time the rest.
    """
    hidden, layers = config.hidden_size, config.num_hidden_layers
    layer, transient = layer_bytes(config, bytes_per_value)
    if checkpointing:
        return int(layers * 4 * hidden + layer + transient)
    return int(layers * layer + transient)


def layer_bytes(config: Any, bytes_per_value: int) -> tuple[int, int]:
    """Return the bytes that a layer keeps of one token, and those that exist while it runs.

    A pass without a backward pass has both of one layer at a time.

    Args:
        config: The text config of the model.
        bytes_per_value: Size of a value in the compute dtype.
    """
    hidden = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * hidden
    kept = 2 * 4 * hidden + bytes_per_value * (4 * hidden + 2 * inner)
    transient = bytes_per_value * 3 * inner + 4 * 4 * hidden
    return kept, transient


def free_memory(device: torch.device | str) -> int:
    """Return the free bytes of a GPU, or those that the operating system calls available."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def auto_token_budget(
    config: Any,
    device: torch.device | str,
    bytes_per_value: int,
    free_bytes: int,
    checkpointing: bool = False,
    compiled: bool = False,
) -> int:
    """Return the tokens of one forward pass, at least 256.

    Args:
        config: The text config of the model.
        device: On a CPU, CPU_TOKEN_CAP is the largest budget.
        bytes_per_value: Size of a value in the compute dtype.
        free_bytes: What is left beside model, gradients and optimizer state.
        checkpointing: See `bytes_per_token`.
        compiled: Whether the layers are compiled, on a GPU.
    """
    token_bytes = bytes_per_token(config, bytes_per_value, checkpointing)
    if torch.device(device).type == "cpu":
        return min(max(256, free_bytes // 2 // token_bytes), CPU_TOKEN_CAP)
    available = GPU_MEMORY_SHARE * (free_bytes - GPU_HEAD_BYTES)
    return max(256, int(available / (gpu_factor(compiled) * token_bytes)))


def gpu_factor(compiled: bool) -> float:
    """Return the memory of a token on a GPU in units of `bytes_per_token`."""
    if compiled:
        return GPU_COMPILED_FACTOR
    return GPU_LAYER_FACTOR


def gpu_head_bytes(tokens: int, vocabulary: int, bytes_per_value: int) -> int:
    """Return the bytes that the head takes on a GPU for a pass of so many tokens, at most.

    Args:
        tokens: Tokens of the pass.
        vocabulary: Size of the vocabulary.
        bytes_per_value: Size of a value in the compute dtype.
    """
    return min(GPU_HEAD_BYTES, 3 * tokens * vocabulary * bytes_per_value)
