"""Find the files of a policy, and check them against the digest recorded at its promotion."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

from spin.errors import CheckpointError, ConfigError
from spin.run_dir.files import expand_home, file_sha256

RECENT_SECONDS = 2.0
"""A file that was changed within this time could change again without a new time stamp."""

_known_digests: dict[tuple[int, ...], str] = {}
"""SHA-256 of files that this process has read, by device, inode, size and times of change."""

SUFFIXES = (".safetensors", ".json", ".jinja", ".model", ".txt")
"""Suffixes of the files of a checkpoint: weights, config, chat template and tokenizer."""


ADAPTER_CONFIG = "adapter_config.json"
"""File of peft with rank, alpha and targets of an adapter; its presence marks an adapter folder."""


@dataclass(frozen=True)
class Adapter:
    """A PEFT adapter, named by its folder and its content, and the model that it belongs to."""

    path: str
    """Local folder."""
    digest: str
    """From `policy_digest`, with the digest of the base."""
    base: Policy
    """The model with the frozen weights."""


@dataclass(frozen=True)
class Policy:
    """A checkpoint, named by its folder and its content.

    Readers check the digest before they load the files, so a changed file is never used.
    """

    path: str
    """Local folder, with a tokenizer: a whole model, or the folder of the adapter."""
    digest: str
    """From `policy_digest`."""
    adapter: Adapter | None = None
    """The adapter whose sum with its base this is, for the trainer; None: no adapter."""

    @property
    def is_adapter(self) -> bool:
        """Return True when the folder holds the adapter alone and not a whole model."""
        return self.adapter is not None and self.adapter.path == self.path

    @property
    def base(self) -> Policy:
        """Return the model whose weights stay frozen: that of the adapter, or this one."""
        if self.adapter is None:
            return self
        return self.adapter.base

    @property
    def folders(self) -> list[Path]:
        """Return all folders that a trainer reads."""
        paths = [self.path]
        if self.adapter is not None:
            paths += [self.adapter.path, self.adapter.base.path]
        return [Path(path) for path in dict.fromkeys(paths)]


def _file_digest(file: Path) -> str:
    """Return the SHA-256 of a file, from memory if the file has not changed since it was read.

    Each process loads a policy several times in an iteration, and weights may be tens of GB.
    """
    found = file.stat()
    key = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    if key not in _known_digests:
        digest = file_sha256(file)
        if time.time() - max(found.st_mtime, found.st_ctime) < RECENT_SECONDS:
            return digest
        _known_digests[key] = digest
    return _known_digests[key]


def policy_digest(path: Path, base: str = "") -> str:
    """Return the SHA-256, in hex, of a folder's weights, config and tokenizer files.

    Other files, such as the model card, may change without a new digest. A file that has not
    changed since this process read it is not read again.

    Args:
        path: The folder.
        base: For an adapter, the digest of the model that it belongs to.
    """
    digest = hashlib.sha256()
    # Equal adapters of two models are two policies.
    if base:
        digest.update(f"base {base}\n".encode())
    # Sorted, because a file system lists files in any order.
    for file in sorted(path.iterdir()):
        if file.suffix in SUFFIXES:
            digest.update(f"{file.name} {_file_digest(file)}\n".encode())
    return digest.hexdigest()


def check_policy(policy: Policy) -> None:
    """Raise CheckpointError when the folder is missing or its digest is not the policy's."""
    folder = Path(policy.path)
    if not folder.is_dir():
        raise CheckpointError(f"checkpoint {folder} is gone; restore it, or start again with another run_dir")
    base = ""
    if policy.is_adapter:
        base = policy.base.digest
    found = policy_digest(folder, base)
    if found != policy.digest:
        raise CheckpointError(
            f"checkpoint {folder} was altered: digest {found[:12]}, promoted {policy.digest[:12]}; "
            "restore it, or start again with another run_dir"
        )


def check_adapter(policy: Policy) -> None:
    """Raise CheckpointError when the adapter of a policy is missing or was altered."""
    adapter = policy.adapter
    if adapter is not None:
        check_policy(Policy(adapter.path, adapter.digest, adapter))


def is_adapter_folder(folder: Path) -> bool:
    """Return True when a folder holds a PEFT adapter in the place of a model."""
    return (folder / ADAPTER_CONFIG).exists() and not (folder / "config.json").exists()


def find_local_model(path: str, key: str = "model.path", needs_weights: bool = True) -> Path | None:
    """Return the folder of a model on this machine; None if the path is a Hub id.

    Args:
        path: The folder or Hub id.
        key: Config key of the path, for messages.
        needs_weights: Whether a folder without weights is refused.

    Raises:
        ConfigError: The folder does not exist or holds no model.
    """
    # A local folder. Formats other than safetensors can run code when they are loaded.
    folder = expand_home(path)
    if folder.is_dir():
        if not (folder / "config.json").exists() and not is_adapter_folder(folder):
            raise ConfigError(f"{key}={path} holds no config.json: expected a Hugging Face model folder")
        if needs_weights and not list(folder.glob("*.safetensors")):
            raise ConfigError(
                f"{key}={path} holds no *.safetensors: save the model with safe_serialization, "
                "other formats are not loaded"
            )
        return folder
    # A path that cannot be a Hub id is a mistyped folder: say so, without a download.
    if path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise ConfigError(
            f"{key}={path}: no such folder; expected a model folder, a Hub id (owner/name), or builtin:tiny"
        )
    return None


def find_model(path: str, key: str = "model.path", needs_weights: bool = True) -> Path:
    """Return the local folder of a model, downloaded from the Hub if needed.

    Args:
        path: A folder or a Hub id.
        key: Config key of the path, for messages.
        needs_weights: Whether weights are downloaded, and a folder without them is refused.

    Raises:
        ConfigError: There is no such model.
    """
    folder = find_local_model(path, key, needs_weights)
    if folder is not None:
        return folder
    from huggingface_hub import snapshot_download

    # Catch everything: the client has a dozen error types for a missing model or network.
    try:
        # The card names the licence.
        patterns = [f"*{suffix}" for suffix in SUFFIXES if needs_weights or suffix != ".safetensors"]
        patterns.append("README.md")
        return Path(snapshot_download(path, allow_patterns=patterns))
    except Exception as error:
        raise ConfigError(
            f"{key}={path}: no such folder, and the Hub did not give it ({type(error).__name__}); "
            "check the name and the network"
        ) from error
