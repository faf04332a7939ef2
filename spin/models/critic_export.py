"""Write a trained critic, unless a weight is not finite."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from spin.models.policy_export import check_finite, write_checkpoint
from spin.models.value_head import write_value_head


def export_critic(critic: Any, tokenizer: Any, path: Path, dtype: str, state: dict[str, Tensor] | None = None) -> str:
    """Write the folder of a critic, and return its digest.

    Args:
        critic: A model of its own, or the head on a policy.
        tokenizer: Tokenizer to write beside a model.
        path: Folder to write.
        dtype: Dtype in which a model will be loaded. The weights are written in float32.
        state: All weights by name, if `critic` holds only this process's shards.

    Raises:
        CheckpointError: A weight is not finite.
    """
    weights = state
    if weights is None:
        weights = critic.state_dict()
    check_finite(weights.items(), "the critic after training (the last one is unchanged)")
    if isinstance(critic, nn.Linear):
        return write_value_head(weights["weight"], path)
    return write_checkpoint(critic, tokenizer, path, dtype, state)
