"""Export the adapter of a policy, alone or added to its base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from spin.config.groups import ModelConfig
from spin.errors import CheckpointError
from spin.models.adapter_folder import AdapterFolder, find_base, write_merged
from spin.models.policy import ADAPTER_CONFIG, Adapter, Policy, policy_digest
from spin.run_dir.files import read_json, write_folder_atomically

CARD = "README.md"


def export_form(policy: Policy, adapter: Adapter, target: Path, weights: str, dtype: str, model: ModelConfig) -> str:
    """Write a policy as an adapter, or an adapter as a whole model; return the digest.

    Args:
        policy: The policy.
        adapter: Its adapter.
        target: Folder to write.
        weights: ``merged`` or ``adapter``.
        dtype: Dtype of the weights of a whole model.
        model: Settings of the run's model.

    Raises:
        CheckpointError: The base is not the one that the adapter was trained on.
    """
    folder = Path(adapter.path)
    base = find_base(folder, adapter.path)
    card = Path(policy.path) / CARD
    if weights == "adapter":
        write_folder_atomically(target, lambda temporary: _copy_adapter(folder, base, card, temporary))
        return policy_digest(target, adapter.base.digest)

    found = policy_digest(base)
    if found != adapter.base.digest:
        raise CheckpointError(
            f"{base} is not the model that {folder} was trained on: digest {found[:12]}, expected "
            f"{adapter.base.digest[:12]}; restore it, or export with weights=adapter"
        )
    source = AdapterFolder(folder, base)
    write_merged(source, target, model.trust_remote_code, dtype, written=getattr(torch, dtype))
    if card.exists():
        shutil.copyfile(card, target / CARD)
    return policy_digest(target)


def _copy_adapter(folder: Path, base: Path, card: Path, temporary: Path) -> None:
    """Copy an adapter folder with its card, and name its base so that others find it."""
    shutil.copytree(folder, temporary, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.tmp"))
    settings = read_json(temporary / ADAPTER_CONFIG)
    # A path from the folder of the run means nothing elsewhere.
    if (folder / settings["base_model_name_or_path"]).is_dir():
        settings["base_model_name_or_path"] = str(base.resolve())
        (temporary / ADAPTER_CONFIG).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    if card.exists():
        # The Hub shows how to load a model by this line.
        text = card.read_text().replace("library_name: transformers", "library_name: peft", 1)
        (temporary / CARD).write_text(text)
