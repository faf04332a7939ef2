"""A policy with a critic's head on its own hidden states: `objective.critic=shared`.

    groups ─ pack ─► decoder ─► hidden states ─┬─ language head ─► log-probabilities
                                               └─ value head ────► values of the states

The head is no part of the Hugging Face model: the promoted policy stays a plain language model,
and the head has a folder of its own beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spin.errors import CheckpointError
from spin.models.forward import GroupLogps
from spin.models.packing import Packed
from spin.models.policy import policy_digest
from spin.models.scalar_head import read_out
from spin.models.token_logps import TokenLogps, padded_logps
from spin.run_dir.files import write_folder_atomically

HEAD_FILE = "value_head.safetensors"
"""File of the head in the folder of a critic."""


class GroupLogpsAndValues(GroupLogps):
    """Computes log-probabilities and values of completion tokens in one forward pass."""

    def __init__(self, model: Any, *settings: Any) -> None:
        """Wrap a model, with a head of zeros.

        Args:
            model: A causal LM of transformers.
            settings: The other arguments of `GroupLogps`.
        """
        super().__init__(model, *settings)
        size = model.config.get_text_config().hidden_size
        device = next(model.parameters()).device
        self.value_head = nn.Linear(size, 1, bias=False, device=device, dtype=torch.float32)
        nn.init.zeros_(self.value_head.weight)

    def _apply_head(self, hidden: Tensor, packed: Packed, products: torch.dtype) -> TokenLogps:
        """Return log-probabilities and values from the last hidden states of the kept tokens."""
        logps = super()._apply_head(hidden, packed, products)
        return logps._replace(state_values=read_out(hidden[packed.predictors], self.value_head.weight))

    def _run_padded(self, ids: Tensor, attention: Tensor, completion_mask: Tensor) -> TokenLogps:
        """Return both for padded rows; each argument has Shape (rows, length)."""
        output = self.model(input_ids=ids, attention_mask=attention, use_cache=False, output_hidden_states=True)
        rows, positions = completion_mask.nonzero(as_tuple=True)
        # A token is predicted at the position before it.
        hidden = output.hidden_states[-1][rows, positions - 1]
        logps = padded_logps(output.logits, ids, completion_mask)
        return logps._replace(state_values=read_out(hidden, self.value_head.weight))


def write_value_head(weight: Tensor, folder: Path) -> str:
    """Write the folder of a head with this weight, and return its digest."""
    from safetensors.torch import save_file

    def write(temporary: Path) -> None:
        save_file({"weight": weight.detach().cpu().contiguous()}, temporary / HEAD_FILE)

    write_folder_atomically(folder, write)
    return policy_digest(folder)


def load_value_head(head: nn.Linear, folder: Path) -> None:
    """Load the weights of a head.

    Args:
        head: The head.
        folder: Folder from `write_value_head`.

    Raises:
        CheckpointError: The head belongs to a model of another size.
    """
    from safetensors.torch import load_file

    file = folder / HEAD_FILE
    weight = load_file(file)["weight"]
    if weight.shape != head.weight.shape:
        raise CheckpointError(
            f"{file}: the head has the shape {tuple(weight.shape)}, the policy needs {tuple(head.weight.shape)}; "
            "restore it, or start again with another run_dir"
        )
    with torch.no_grad():
        head.weight.copy_(weight)
