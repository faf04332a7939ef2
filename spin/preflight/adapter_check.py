"""Check the adapter of a run before anything is started, and count its values."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from spin.config.adapter import AdapterConfig
from spin.errors import ConfigError
from spin.models.lora import count_adapter_weights, find_lora_config, inject_adapter


def check_peft(adapter: AdapterConfig) -> None:
    """Raise ConfigError when adapters are wanted and peft is not installed."""
    if adapter.enabled and find_spec("peft") is None:
        raise ConfigError("adapter=lora needs the package peft: pip install 'spin-selfplay[lora]'")


def count_trained(adapter: AdapterConfig, model: Path, start: Path | None, trust_remote_code: bool) -> int:
    """Return the number of values in A and B of an adapter for a model, without its weights.

    Args:
        adapter: Settings of a new adapter.
        model: Folder of the model.
        start: Folder of the adapter to start from, which has its own settings.
        trust_remote_code: Run Python code from the model's folder.

    Raises:
        ConfigError: The targets do not fit the model.
    """
    skeleton = make_skeleton(model, trust_remote_code)
    inject_adapter(skeleton, find_lora_config(start, adapter))
    return count_adapter_weights(skeleton)


def make_skeleton(model: Path, trust_remote_code: bool) -> Any:
    """Return the modules of a model whose weights have shapes but no memory."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
