"""Load a policy for training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from spin.errors import CheckpointError

CPU = torch.device("cpu")
"""Where weights are loaded to if no device is named."""


def load_policy(
    path: Path, trust_remote_code: bool = False, dtype: torch.dtype = torch.float32, device: torch.device = CPU
) -> Any:
    """Load a policy's model in eval mode (without dropout).

    Args:
        path: Folder of the checkpoint.
        trust_remote_code: Run Python code from the model's folder.
        dtype: Dtype of the weights.
        device: Where the weights are loaded to, tensor by tensor: eight workers with a GPU each
            would hold eight models in main memory otherwise.

    Raises: CheckpointError when a tensor is missing or has another shape.
    """
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(
        path,
        dtype=dtype,
        device_map={"": device},
        output_loading_info=True,
        use_safetensors=True,
        trust_remote_code=trust_remote_code,
    )
    # transformers would only warn, and train such a tensor from random values.
    for problem in ("missing_keys", "mismatched_keys"):
        if info[problem]:
            keys = sorted(map(str, info[problem]))[:3]
            raise CheckpointError(f"checkpoint {path}: {problem.replace('_', ' ')} {keys}")
    if dtype is torch.bfloat16:
        model.get_input_embeddings().register_forward_hook(_to_float32)
    return model.eval()


def _to_float32(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
    """Return embeddings in float32: then the residual stream is too, as over float32 weights."""
    return output.float()
