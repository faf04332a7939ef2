"""Read and write the folder of an adapter, in the format of peft."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spin.config.adapter import AdapterConfig
from spin.errors import CheckpointError, ConfigError, single_line
from spin.models.lora import NAME, list_adapter_weights, make_lora_config
from spin.models.policy import ADAPTER_CONFIG
from spin.run_dir.files import expand_home

ADAPTER_WEIGHTS = "adapter_model.safetensors"


UNSUPPORTED = {
    "use_dora": "DoRA",
    "lora_bias": "a bias of B",
    "modules_to_save": "modules that are trained as a whole",
    "target_parameters": "targets that are no modules",
    "trainable_token_indices": "trained tokens",
    "layer_replication": "repeated layers",
    "alora_invocation_tokens": "activation by tokens",
}
"""Settings of peft that change what an adapter computes, and which spin does not have."""


def read_lora_config(folder: Path) -> Any:
    """Return the settings of an adapter folder, for peft.

    Raises:
        ConfigError: The adapter is of another kind than LoRA, or has what spin does not compute.
    """
    from peft import LoraConfig, PeftConfig

    try:
        config = PeftConfig.from_pretrained(str(folder))
    except Exception as error:  # peft raises many kinds
        raise ConfigError(f"{folder / ADAPTER_CONFIG} cannot be read: {single_line(str(error))[:200]}") from error
    if not isinstance(config, LoraConfig):
        raise ConfigError(f"{folder} holds an adapter of type {config.peft_type}; expected LORA")
    for name, words in UNSUPPORTED.items():
        if getattr(config, name, None):
            raise ConfigError(
                f"{folder} holds an adapter with {words} ({name}), which spin does not train; expected plain LoRA: "
                "merge it into its base with peft's merge_and_unload and give that as model.path"
            )
    if config.bias != "none":
        raise ConfigError(f"{folder} holds an adapter with bias={config.bias}; expected none")
    # A saved adapter is marked as one that is not trained any more.
    config.inference_mode = False
    return config


def find_lora_config(folder: Path | None, config: AdapterConfig) -> Any:
    """Return the settings of an existing adapter, or those of a new one."""
    if folder is None:
        return make_lora_config(config)
    return read_lora_config(folder)


@torch.no_grad()
def load_adapter(model: Any, folder: Path) -> None:
    """Set A and B to the values in an adapter folder.

    Raises:
        CheckpointError: A tensor is missing, unknown, or has another shape.
    """
    from safetensors.torch import load_file

    path = folder / ADAPTER_WEIGHTS
    try:
        values = load_file(path)
    except (OSError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path} cannot be read: {single_line(str(error))[:200]}") from error
    expected = dict(list_adapter_weights(model))
    differing = sorted(values.keys() ^ expected.keys())
    if differing:
        raise CheckpointError(
            f"{path} does not fit the model: {len(differing)} tensors are in one of them only, such as {differing[0]}"
        )
    for name, parameter in expected.items():
        if values[name].shape != parameter.shape:
            found, wanted = tuple(values[name].shape), tuple(parameter.shape)
            raise CheckpointError(f"{path}: {name} has shape {found}, the model needs {wanted}")
        parameter.copy_(values[name])


def name_base(base: Path, given: str, folder: Path, root: Path) -> str:
    """Return how an adapter folder names its base, for peft and for other programs.

    Args:
        base: Folder of the base.
        given: The name that the user gave the base: a Hub id, a path, or builtin:tiny.
        folder: The adapter folder.
        root: The run directory.

    Returns:
        A Hub id, an absolute path, or a path relative to `folder` if the base is in the run
        directory, which may be moved.
    """
    if base.resolve().is_relative_to(root.resolve()):
        return os.path.relpath(base.resolve(), folder.resolve())
    if given.count("/") == 1 and not expand_home(given).exists():
        return given
    return str(base.resolve())


def write_adapter(folder: Path, model: Any, values: dict[str, Tensor], base: str) -> None:
    """Write an adapter folder that peft and vLLM can load.

    Args:
        folder: Existing folder.
        model: Model with the adapter, for its settings.
        values: From `gather_adapter`.
        base: Path or Hub id of the model that the adapter belongs to.
    """
    from safetensors.torch import save_file

    settings = model.peft_config[NAME].to_dict()
    settings["base_model_name_or_path"] = base
    settings["inference_mode"] = True
    # Sets have another order in each process, and the digest covers this file.
    for name, value in settings.items():
        if isinstance(value, set):
            settings[name] = sorted(value)
    text = json.dumps(settings, indent=2, sort_keys=True, default=_to_name)
    (folder / ADAPTER_CONFIG).write_text(text + "\n")
    save_file(values, folder / ADAPTER_WEIGHTS, {"format": "pt"})


def _to_name(value: Any) -> str:
    """Return what JSON holds in the place of an enum of peft."""
    return str(getattr(value, "value", value))
