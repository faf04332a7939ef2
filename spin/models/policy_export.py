"""Export a trained model or adapter in safetensors, unless a weight is not finite."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spin.errors import CheckpointError
from spin.models.adapter_files import write_adapter
from spin.models.lora import gather_adapter
from spin.models.policy import Policy, policy_digest
from spin.run_dir.files import write_folder_atomically


def check_finite(weights: Iterable[tuple[str, Tensor]], what: str) -> None:
    """Raise CheckpointError when a weight is NaN or infinite. `what` begins the message."""
    for name, tensor in weights:
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{what}: weight {name} is not finite")


def export_policy(
    model: Any,
    tokenizer: Any,
    path: Path,
    dtype: str,
    stop_ids: Sequence[int] = (),
    state: dict[str, Tensor] | None = None,
) -> str:
    """Write a checkpoint for transformers and vLLM, and return its digest.

    Args:
        model: Model to export.
        tokenizer: Tokenizer to write beside it.
        path: Folder to write.
        dtype: Dtype in which vLLM and transformers will load the checkpoint. The weights are
            written in float32.
        stop_ids: Token ids that end an answer. Those that the generation config lacks are added, so
            that every user of the checkpoint stops where the run did.
        state: All weights by name, if `model` holds only this process's shards.

    Raises: CheckpointError when a weight is not finite.
    """
    # A policy with such weights must not be promoted: its answers would be noise.
    weights = model.named_parameters()
    if state is not None:
        weights = state.items()
    check_finite(weights, "after training (the last promoted policy is unchanged)")
    add_stop_ids(model.generation_config, stop_ids)

    return write_checkpoint(model, tokenizer, path, dtype, state)


def write_checkpoint(
    model: Any,
    tokenizer: Any,
    path: Path,
    dtype: str,
    state: dict[str, Tensor] | None,
    more: dict[str, dict[str, Any]] | None = None,
) -> str:
    """Write the folder of a model whose weights are finite, and return its digest.

    Args:
        model: Model to write.
        tokenizer: Tokenizer to write beside it.
        path: Folder to write.
        dtype: Dtype in which the checkpoint will be loaded.
        state: All weights by name, if `model` holds only this process's shards.
        more: Values of further JSON files by their names.
    """

    def write(temporary: Path) -> None:
        model.save_pretrained(temporary, state_dict=state, safe_serialization=True)
        tokenizer.save_pretrained(temporary)
        # save_pretrained records float32, which a loader would take as the dtype to run in.
        config = json.loads((temporary / "config.json").read_text())
        config["dtype"] = dtype
        (temporary / "config.json").write_text(json.dumps(config, indent=2))
        for name, values in (more or {}).items():
            (temporary / name).write_text(json.dumps(values, indent=2))

    # A killed process leaves no half-written checkpoint under this name.
    write_folder_atomically(path, write)
    return policy_digest(path)


def export_adapter(
    model: Any,
    path: Path,
    base: Policy,
    base_name: str,
    tokenizer: Any = None,
    state: dict[str, Tensor] | None = None,
) -> str:
    """Write the adapter of a model as a PEFT folder, and return its digest.

    Args:
        model: Model with an adapter.
        path: Folder to write.
        base: The model that the adapter belongs to.
        base_name: Its path or Hub id, for other programs that read the folder.
        tokenizer: Tokenizer to write beside it, if the folder is the policy itself.
        state: All weights by name, if `model` holds only this process's shards.

    Raises: CheckpointError when a weight is not finite.
    """
    values = gather_adapter(model, state)
    check_finite(values.items(), "after training (the last promoted policy is unchanged)")

    def write(temporary: Path) -> None:
        write_adapter(temporary, model, values, base_name)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)

    write_folder_atomically(path, write)
    return policy_digest(path, base.digest)


def convert_weights(weights: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Return weights in another dtype; tied ones stay one tensor, and other values as they are."""
    copies: dict[int, Tensor] = {}
    converted = {}
    for name, tensor in weights.items():
        key = tensor.data_ptr()
        if key not in copies:
            copies[key] = tensor
            if tensor.is_floating_point():
                copies[key] = tensor.to(dtype)
        converted[name] = copies[key]
    return converted


def convert_folder(folder: Path, dtype: str) -> None:
    """Write the weights of a model folder again in another dtype, and name it in the config.

    One file is in memory at a time.

    Args:
        folder: Folder in safetensors, of one file or several.
        dtype: ``float32`` or ``bfloat16``.
    """
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        weights = convert_weights(load_file(path), getattr(torch, dtype))
        total += sum(tensor.nbytes for tensor in weights.values())
        # Not in place: the file may be a hard link, and it is read while it is written.
        temporary = path.with_suffix(".converted")
        save_file(weights, temporary, metadata)
        temporary.replace(path)

    # The index of several files has their size, which the Hub shows.
    index_path = folder / "model.safetensors.index.json"
    if index_path.exists():
        index = json.loads(index_path.read_text())
        index["metadata"]["total_size"] = total
        index_path.write_text(json.dumps(index, indent=2))
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = dtype
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def add_stop_ids(generation_config: Any, stop_ids: Sequence[int]) -> None:
    """Add the stop ids that a generation config lacks; leave a complete config unchanged."""
    # transformers allows None, one id, or a list of ids.
    known = generation_config.eos_token_id
    if known is None:
        known = []
    if isinstance(known, int):
        known = [known]
    missing = sorted(set(stop_ids) - set(known))
    if missing:
        generation_config.eos_token_id = [*known, *missing]
