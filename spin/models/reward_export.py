"""Export a reward model, so that transformers and vLLM give the rewards of the trainer.

transformers reads the score at the last token that is not the padding token, vLLM at the last
token. So the padding token must be one that no answer ends with.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from spin.config.reward_model import Center
from spin.errors import CheckpointError, ConfigError
from spin.models.policy_export import check_finite, write_checkpoint

REWARD_FILE = "reward.json"
"""File beside the weights with the facts that the weights do not hold."""


@dataclass(frozen=True)
class RewardFacts:
    """Facts that lie beside the weights in a reward model's folder."""

    bias: float = 0.0
    """Subtracted from the score of the model: the mean score of the ground truths."""
    data: str = ""
    """SHA-256 of the rankings that it was trained on; empty if they are not known."""
    scale: float = 1.0
    """A reward is (score − bias) / scale; above 0. spin itself writes 1."""


def read_reward_facts(folder: Path) -> RewardFacts:
    """Return the facts of a reward model; those of one from elsewhere are the defaults.

    Raises:
        CheckpointError: The file holds something else.
    """
    path = folder / REWARD_FILE
    if not path.exists():
        return RewardFacts()
    # A user may have written the file: an unusable number would make every reward unusable.
    try:
        facts = RewardFacts(**json.loads(path.read_text()))
        usable = math.isfinite(facts.bias) and math.isfinite(facts.scale) and facts.scale > 0
        known_data = re.fullmatch(r"([0-9a-f]{64})?", facts.data) is not None
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}; expected bias, scale and data") from error
    if not usable:
        raise CheckpointError(
            f"{path} has bias={facts.bias} and scale={facts.scale}; expected finite numbers, the second above 0"
        )
    if not known_data:
        raise CheckpointError(f"{path} has data={facts.data!r}; expected the SHA-256 of the rankings as 64 hex digits")
    return facts


def to_rewards(scores: Sequence[float], folder: Path, center: Center) -> list[float]:
    """Return the rewards of scores, with the bias and the scale of the model's folder."""
    facts = read_reward_facts(folder)
    bias = 0.0
    if center is Center.truths:
        bias = facts.bias
    return [(score - bias) / facts.scale for score in scores]


def find_pad_id(tokenizer: Any, stop_ids: Sequence[int]) -> int:
    """Return the id of a special token that ends no answer, for padding.

    Raises:
        ConfigError: The tokenizer has no such token.
    """
    # The tokenizer's own choice first, then any other special token.
    candidates = [tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id]
    candidates += sorted(id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special)
    for candidate in candidates:
        if candidate is not None and candidate not in stop_ids and candidate != tokenizer.eos_token_id:
            return int(candidate)
    raise ConfigError(
        "the tokenizer has no special token besides those that end an answer, so that transformers would not find the "
        "end of a padded one; add a pad token to the tokenizer of model.path"
    )


def export_reward_model(
    model: Any,
    tokenizer: Any,
    path: Path,
    dtype: str,
    stop_ids: Sequence[int],
    facts: RewardFacts,
    state: dict[str, Tensor] | None = None,
) -> str:
    """Write a folder for sequence classification with one label, and return its digest.

    Args:
        model: Reward model to export.
        tokenizer: Tokenizer to write beside it.
        path: Folder to write.
        dtype: Dtype in which vLLM and transformers will load it. The weights are in float32.
        stop_ids: Token ids that end an answer.
        facts: What the weights do not hold.
        state: All weights by name, if `model` holds only this process's shards.

    Raises: CheckpointError when a weight is not finite, ConfigError when no token can be padding.
    """
    # Rewards of such weights would be noise.
    weights = model.named_parameters()
    if state is not None:
        weights = state.items()
    check_finite(weights, "after training of the reward model")
    # Model and tokenizer must name the same padding token.
    pad_id = find_pad_id(tokenizer, stop_ids)
    model.config.get_text_config().pad_token_id = pad_id
    tokenizer.pad_token_id = pad_id
    return write_checkpoint(model, tokenizer, path, dtype, state, {REWARD_FILE: asdict(facts)})
