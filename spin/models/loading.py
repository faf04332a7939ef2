"""Load a policy for training, check its weights, and export it as safetensors."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spin.errors import CheckpointError
from spin.models.policy import policy_digest
from spin.run_dir.files import write_folder_atomically


def load_policy(path: Path, trust_remote_code: bool = False) -> Any:
    """The model in float32 and eval mode (no dropout). Raises CheckpointError when a tensor is missing or has another shape."""
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, output_loading_info=True, use_safetensors=True, trust_remote_code=trust_remote_code
    )
    for problem in ("missing_keys", "mismatched_keys"):
        if info[problem]:
            raise CheckpointError(
                f"checkpoint {path}: {problem.replace('_', ' ')} {sorted(map(str, info[problem]))[:3]}"
            )
    return model.eval()


def check_finite(weights: Iterable[tuple[str, Tensor]], what: str) -> None:
    """Raise CheckpointError on a weight that is NaN or infinite; `weights`: by name."""
    for name, tensor in weights:
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{what}: weight {name} is not finite")


def export_policy(model: Any, tokenizer: Any, path: Path, dtype: str, state: dict[str, Tensor] | None = None) -> str:
    """Write a checkpoint that transformers and vLLM load as it is; returns its digest. Raises CheckpointError on a non-finite weight.

    `state`: the weights, gathered, where `model` holds parts of them only.
    """
    check_finite(
        model.named_parameters() if state is None else state.items(), "after training (the last promoted policy stands)"
    )

    def write(temporary: Path) -> None:
        model.save_pretrained(temporary, state_dict=state, safe_serialization=True)
        tokenizer.save_pretrained(temporary)
        config = json.loads((temporary / "config.json").read_text())
        config["dtype"] = dtype
        (temporary / "config.json").write_text(json.dumps(config, indent=2))

    write_folder_atomically(path, write)
    return policy_digest(path)
