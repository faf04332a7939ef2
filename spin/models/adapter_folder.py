"""A PEFT adapter folder: find the model that it belongs to, and add the two."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from spin.errors import CheckpointError, ConfigError
from spin.models.adapter_files import ADAPTER_WEIGHTS, load_adapter, read_lora_config
from spin.models.loading import load_policy
from spin.models.lora import inject_adapter, merge_adapter
from spin.models.policy import ADAPTER_CONFIG, find_model, is_adapter_folder
from spin.models.policy_export import convert_weights, export_policy
from spin.run_dir.files import read_json


@dataclass(frozen=True)
class AdapterFolder:
    """The folders of an adapter and of the model that it belongs to."""

    adapter: Path
    model: Path


def check_folder(folder: Path, key: str) -> Path:
    """Return an adapter folder. Raises ConfigError when its files are not there."""
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (folder / name).is_file():
            raise ConfigError(f"{key}={folder} holds no {name}: expected a PEFT adapter folder in safetensors")
    return folder


def find_base(folder: Path, path: str) -> Path:
    """Return the folder of the model that an adapter names.

    Raises:
        ConfigError: There is no such model.
    """
    name = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ConfigError(
            f"model.path={path} names no base (base_model_name_or_path); give the model as model.path "
            f"and the adapter as adapter.path={path}"
        )
    # spin names a base inside the run directory by its path from the adapter folder.
    beside = folder / name
    try:
        base = beside if beside.is_dir() else find_model(name)
    except ConfigError as error:
        raise ConfigError(
            f"model.path={path} is an adapter of {name}, which is not there; give the model as model.path and the "
            f"adapter as adapter.path={path}"
        ) from error
    if is_adapter_folder(base):
        raise ConfigError(f"model.path={path} is an adapter of {name}, which is an adapter too; merge that one first")
    return base


def write_merged(
    source: AdapterFolder, folder: Path, trust_remote_code: bool, dtype: str, written: torch.dtype = torch.float32
) -> None:
    """Write the sum of a model and an adapter, computed in float32.

    Args:
        source: The folders of the two.
        folder: Folder to write.
        trust_remote_code: Run Python code from the model's folder.
        dtype: Dtype in which others will load it.
        written: Dtype of the weights in the files.

    Raises:
        ConfigError: The adapter does not fit the model.
    """
    model = load_policy(source.model, trust_remote_code)
    inject_adapter(model, read_lora_config(source.adapter))
    try:
        load_adapter(model, source.adapter)
    except CheckpointError as error:
        raise ConfigError(f"{error}; expected the model that the adapter was trained on") from error
    merged = merge_adapter(model, None)
    if written is not torch.float32:
        merged = convert_weights(merged, written)
    export_policy(model, _load_tokenizer(source, trust_remote_code), folder, dtype, state=merged)


def _load_tokenizer(source: AdapterFolder, trust_remote_code: bool) -> Any:
    """Return the tokenizer that lies beside the adapter, which may have its own chat template."""
    from transformers import AutoTokenizer

    folder = source.model
    if (source.adapter / "tokenizer_config.json").exists():
        folder = source.adapter
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
