"""Check the adapter of a run before anything is started, and count its values."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from spin.config.run import RunConfig
from spin.errors import ConfigError
from spin.models.model_size import count_adapter, count_reward_adapter
from spin.preflight.start_adapter import find_start_adapter


def check_peft() -> None:
    """Raise ConfigError when peft is not installed."""
    if find_spec("peft") is None:
        raise ConfigError("adapters need the package peft: pip install 'spin-selfplay[lora]'")


def count_trained(config: RunConfig, model: Path) -> int:
    """Return the number of values in A and B of a run's adapter; 0 without adapters.

    Args:
        config: The run's config.
        model: Folder of the model, or of its sum with the adapter that the run starts from.

    Raises:
        ConfigError: The targets do not fit the model.
    """
    if not config.adapter.enabled:
        return 0
    start = find_start_adapter(config)
    folder = None
    if start is not None:
        folder = start.adapter
    return count_adapter(config.adapter, model, folder, config.model.trust_remote_code)


def count_reward_trained(config: RunConfig, model: Path) -> int:
    """Return the number of trained values of a run's reward model beside frozen weights.

    They are A, B and the head. It is 0 if the run trains no reward model, or all its weights.

    Args:
        config: The run's config.
        model: Folder of the model, or of its sum with the adapter that the run starts from.

    Raises:
        ConfigError: The targets do not fit the model.
    """
    if not config.adapter.enabled or not config.reward_model.is_trained:
        return 0
    return count_reward_adapter(config.adapter, model, config.model.trust_remote_code)
