"""The policy's files: find, load, check, export, and the digest that names what was promoted."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spin.errors import ConfigError
from spin.records import file_sha256, finish_folder
from spin.storage import bring


class CheckpointError(RuntimeError):
    """A checkpoint on disk is not the one that was promoted, or cannot be used."""


@dataclass(frozen=True)
class Policy:
    """A checkpoint by path and content: whoever loads it checks that the files are still those."""

    path: str
    digest: str


def policy_digest(path: Path) -> str:
    """Hex SHA-256 over the names and bytes of the weights, config and tokenizer files of a checkpoint folder."""
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()):
        if file.suffix in (".safetensors", ".json", ".jinja", ".model", ".txt"):
            digest.update(f"{file.name} {file_sha256(file)}\n".encode())
    return digest.hexdigest()


def check_policy(policy: Policy) -> None:
    """Raise CheckpointError unless the folder's content is what the digest says."""
    folder = Path(policy.path)
    bring(folder)
    if not folder.is_dir():
        raise CheckpointError(f"checkpoint {folder} is gone; restore it, or start again with another run_dir")
    found = policy_digest(folder)
    if found != policy.digest:
        raise CheckpointError(
            f"checkpoint {folder} was altered: digest {found[:12]}, promoted {policy.digest[:12]}; restore it, or start again with another run_dir"
        )


def find_model(path: str) -> Path:
    """The local folder of a model: itself, or the Hub's snapshot. Raises ConfigError when there is none."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").exists():
            raise ConfigError(f"model.path={path} holds no config.json: expected a Hugging Face model folder")
        if not list(folder.glob("*.safetensors")):
            raise ConfigError(
                f"model.path={path} holds no *.safetensors: save the model with safe_serialization, other formats are not loaded"
            )
        return folder
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise ConfigError(
            f"model.path={path}: no such folder; expected a model folder, a Hub id (owner/name), or builtin:tiny"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]))
    except Exception as error:  # the hub client raises a dozen kinds for "not there" and "no network"
        raise ConfigError(
            f"model.path={path}: no such folder, and the Hub did not give it ({type(error).__name__}); check the name and the network"
        ) from error


def load_policy(path: Path, trust_remote_code: bool = False) -> Any:
    """The model in float32 and eval mode (no dropout). Raises CheckpointError when a tensor is missing or has another shape."""
    from transformers import AutoModelForCausalLM

    model, info = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, output_loading_info=True, use_safetensors=True, trust_remote_code=trust_remote_code
    )
    for problem in ("missing_keys", "mismatched_keys"):
        if info[problem]:
            raise CheckpointError(
                f"checkpoint {path}: {problem.replace('_', ' ')} {sorted(map(str, info[problem]))[:3]}"
            )
    return model.eval()


def check_finite(weights: Iterable[tuple[str, Tensor]], what: str) -> None:
    """Raise CheckpointError on a weight that is NaN or infinite; `weights`: by name."""
    for name, tensor in weights:
        if not torch.isfinite(tensor).all():
            raise CheckpointError(f"{what}: weight {name} is not finite")


def export_policy(model: Any, tokenizer: Any, path: Path, dtype: str, state: dict[str, Tensor] | None = None) -> str:
    """Write a checkpoint that transformers and vLLM load as it is; returns its digest. Raises CheckpointError on a non-finite weight.

    `state`: the weights, gathered, where `model` holds parts of them only.
    """
    check_finite(
        model.named_parameters() if state is None else state.items(), "after training (the last promoted policy stands)"
    )

    def write(temporary: Path) -> None:
        model.save_pretrained(temporary, state_dict=state, safe_serialization=True)
        tokenizer.save_pretrained(temporary)
        config = json.loads((temporary / "config.json").read_text())
        config["dtype"] = dtype
        (temporary / "config.json").write_text(json.dumps(config, indent=2))

    finish_folder(path, write)
    return policy_digest(path)
