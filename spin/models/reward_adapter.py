"""Low-rank adapters in a reward model: A, B and the head are trained, and all else is frozen.

B is zero at first, so a new reward model has the body of its policy, bit for bit. The head has one
row, which is trained as a whole and in float32 in every case.
"""

from __future__ import annotations

from typing import Any

from spin.config.adapter import AdapterConfig
from spin.errors import ConfigError
from spin.models.lora import inject_adapter, make_lora_config
from spin.models.scalar_head import HEAD


def inject_reward_adapter(model: Any, settings: AdapterConfig) -> None:
    """Freeze the body of a reward model and put A and B into it; their values are not set yet.

    Raises:
        ConfigError: The model has no such targets, or the head is one of them.
    """
    head = model.get_submodule(HEAD)
    inject_adapter(model, make_lora_config(settings, "SEQ_CLS"))
    if model.get_submodule(HEAD) is not head:
        raise ConfigError(
            f"adapter.targets={settings.targets} names the head of the reward model ({HEAD}), which is trained as a "
            "whole; expected linear layers of the decoder"
        )
    head.weight.data = head.weight.data.float()
    head.weight.requires_grad_(True)


def count_trained_weights(model: Any) -> int:
    """Return the number of values that are trained: A, B and the head."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
