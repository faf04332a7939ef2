"""The policy's files: find, load, check, export, and the digest that names what was promoted."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from spin.errors import CheckpointError, ConfigError
from spin.run_dir.files import file_sha256


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
