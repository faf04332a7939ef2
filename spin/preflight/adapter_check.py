"""Check the adapter of a run before anything is started, and count its values."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from spin.config.run import RunConfig
from spin.errors import ConfigError
from spin.models.lora import count_adapter_weights, find_lora_config, inject_adapter
from spin.preflight.start_adapter import find_start_adapter


def check_peft() -> None:
    """Raise ConfigError when peft is not installed."""
    if find_spec("peft") is None:
        raise ConfigError("adapters need the package peft: pip install 'spin-selfplay[lora]'")


def count_trained(config: RunConfig, model: Path) -> int:
    """Return the number of values in A and B of a run's adapter, without reading weights.

    Args:
        config: The run's config.
        model: Folder of the model, or of its sum with the adapter that the run starts from.

    Raises:
        ConfigError: The targets do not fit the model.
    """
    start = find_start_adapter(config)
    folder = None
    if start is not None:
        folder = start.adapter
    skeleton = make_skeleton(model, config.model.trust_remote_code)
    inject_adapter(skeleton, find_lora_config(folder, config.adapter))
    return count_adapter_weights(skeleton)


def make_skeleton(model: Path, trust_remote_code: bool) -> Any:
    """Return the modules of a model whose weights have shapes but no memory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
