"""Write files and folders atomically: under a temporary name, forced to disk, then renamed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any


def fsync_path(path: Path) -> None:
    """Force a file or folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def unfinished(path: Path) -> Path:
    """Return the temporary name of a file or folder that is being written."""
    return path.with_name(path.name + ".tmp")


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file so that it is complete or absent, after a crash too.

    Args:
        path: The file; its folder is made if it is missing.
        write: Called with a temporary path beside `path`, which it fills.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = unfinished(path)
    write(temporary)
    fsync_path(temporary)
    os.replace(temporary, path)
    fsync_path(path.parent)


def write_folder_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Write a folder as `write_atomically` writes a file; replace an older one of that name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = unfinished(path)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    write(temporary)
    rename_folder(temporary, path)


def rename_folder(temporary: Path, path: Path) -> None:
    """Force a complete folder to disk, then rename it."""
    for file in sorted(temporary.rglob("*")):
        fsync_path(file)
    fsync_path(temporary)
    if path.exists():
        shutil.rmtree(path)
    os.replace(temporary, path)
    fsync_path(path.parent)


def delete_path(path: Path) -> None:
    """Delete a file, link or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def existing_folder(path: Path) -> Path:
    """Return the nearest folder that exists: the path itself or one above it."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def file_sha256(path: Path) -> str:
    """Return the hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, values: Any) -> None:
    """Write an indented JSON file atomically."""
    write_text(path, json.dumps(values, indent=2) + "\n")
