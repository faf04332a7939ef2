"""Atomic files and folders of a run directory: written under a temporary name, forced to disk, renamed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spin.run_dir.remote import keep


def fsync_path(path: Path) -> None:
    """Force a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def unfinished(path: Path) -> Path:
    """The name of a file or folder until it is whole."""
    return path.with_name(path.name + ".tmp")


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a temporary file beside `path`, then force it to disk and rename it: `path` is whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = unfinished(path)
    write(temporary)
    fsync_path(temporary)
    os.replace(temporary, path)
    fsync_path(path.parent)
    keep(path)


def write_folder_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """As `finish_file` for a folder; an older folder of that name is replaced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = unfinished(path)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    write(temporary)
    rename_folder(temporary, path)


def rename_folder(temporary: Path, path: Path) -> None:
    """Force a folder that is fully written to the disk, then give it its name."""
    for file in sorted(temporary.rglob("*")):
        fsync_path(file)
    fsync_path(temporary)
    if path.exists():
        shutil.rmtree(path)
    os.replace(temporary, path)
    fsync_path(path.parent)
    keep(path)


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, values: Any) -> None:
    """Write a JSON file atomically, indented."""
    write_text(path, json.dumps(values, indent=2) + "\n")
