"""Write files and folders atomically: under a temporary name, forced to disk, then renamed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from spin.errors import ConfigError


def fsync_path(path: Path) -> None:
    """Flush a file, or the list of names of a folder, to the disk."""
    # fsync works on a file descriptor, and one that is open for reading is enough. A folder cannot
    # be opened for writing.
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def unfinished(path: Path) -> Path:
    """Return the temporary path of a file or folder that is being written."""
    # The same folder as the final path: a rename is atomic only within one file system.
    return path.with_name(path.name + ".tmp")


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file so that even after a crash it is either complete or absent.

    Args:
        path: The file; its folder is made if it is missing.
        write: Called with a temporary path beside `path`; writes the content there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = unfinished(path)
    write(temporary)
    # Flush the content before the rename. Otherwise a power cut may leave the final name on an
    # empty file.
    fsync_path(temporary)
    os.replace(temporary, path)
    # The new name is a part of the folder: flush it before the ledger names the file.
    fsync_path(path.parent)


def write_folder_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Write a folder so that it is complete or absent; replace an older one of the same name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = unfinished(path)
    # A crash may have left a temporary folder with files of another version.
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    write(temporary)
    rename_folder(temporary, path)


def rename_folder(temporary: Path, path: Path) -> None:
    """Flush a complete folder to the disk, then rename it."""
    # fsync does not descend into a folder: flush each file and subfolder.
    for file in sorted(temporary.rglob("*")):
        fsync_path(file)
    fsync_path(temporary)
    # os.replace refuses a folder as target that is not empty. After a crash between the two calls
    # the folder is missing; a reader notices that by the digest in the ledger.
    if path.exists():
        shutil.rmtree(path)
    os.replace(temporary, path)
    fsync_path(path.parent)


def delete_path(path: Path) -> None:
    """Delete a file, link or folder, if it is there."""
    # Of a link to a folder (`policy_best`) only the link is deleted. rmtree refuses links.
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def expand_home(path: str) -> Path:
    """Return a path with the home folder in place of ``~``; a name such as ``~x.jsonl`` stays."""
    # Path.expanduser raises an error for a user who does not exist.
    return Path(os.path.expanduser(path))


def existing_folder(path: Path) -> Path:
    """Return the nearest folder that exists: the path itself or one above it."""
    # A relative path ends at ".", which has no folder above it.
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def file_sha256(path: Path) -> str:
    """Return the hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    # Read 1 MiB at a time: a file of weights may be larger than the memory.
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def digest_files(paths: Sequence[Path]) -> str:
    """Return the hex SHA-256 of a file's bytes, or one digest over those of several files."""
    digests = [file_sha256(path) for path in paths]
    if len(digests) == 1:
        return digests[0]
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, values: Any) -> None:
    """Write an indented JSON file atomically."""
    write_text(path, json.dumps(values, indent=2) + "\n")


def read_json(path: Path, name: str = "", way_out: str = "restore it from a copy, or delete it") -> dict[str, Any]:
    """Return the object in a JSON file.

    Args:
        path: The file.
        name: How the error names the file; its path by default.
        way_out: What the user can do about a damaged file.

    Raises:
        ConfigError: The file cannot be read or holds no object.
    """
    name = name or str(path)
    try:
        value = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise ConfigError(f"{name} cannot be read ({error}); {way_out}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{name} holds no JSON object; {way_out}")
    return value
