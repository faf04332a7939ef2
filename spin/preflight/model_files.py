"""Check the files of a model folder, without transformers.

Each of these faults would otherwise be found after Ray and the engine have started, or not at all:
transformers and vLLM accept the folder, or ignore the fault without a word.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np

from spin.errors import ConfigError, single_line
from spin.run_dir.files import read_json

LFS_POINTER = b"version https://git-lfs"
"""First bytes of the file that Git leaves where git-lfs is not installed."""

SCANNED_BYTES = 1 << 30
"""Largest size of all weights that are searched for NaN before the launch, in bytes; the trainer
searches larger ones when it has loaded them."""

QUANTISED_TYPES = ("I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4")
"""Dtypes of safetensors that no trained model has; booleans and U8 may be masks."""

FLOAT_TYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16}
"""Dtypes of safetensors that numpy can read."""


def check_model_files(folder: Path, path: str) -> None:
    """Check what can be seen without transformers.

    Args:
        folder: The model folder.
        path: `model.path`, for the error.

    Raises:
        ConfigError: The folder holds an adapter or quantised weights, a file is a Git LFS pointer,
            a weight file is broken, or a weight is not finite.
    """
    if (folder / "adapter_config.json").exists():
        raise ConfigError(
            f"model.path={path} holds a model and an adapter (adapter_config.json); expected one of the two: take the "
            "adapter out, or merge it into the model with peft's merge_and_unload"
        )
    config = read_model_json(folder / "config.json", path)
    for key in ("quantization_config", "compression_config"):
        if config.get(key):
            method = dict(config[key]).get("quant_method", "unknown method")
            raise ConfigError(
                f"model.path={path}: config.json says that the weights are quantised ({method}), and training needs "
                "full ones; take the model that was not quantised"
            )
    if _holds_nan(config):
        raise ConfigError(f"model.path={path}: a number in config.json is NaN; correct it")
    for file in sorted(folder.glob("*.safetensors")):
        if not file.is_file():
            raise ConfigError(f"model.path={path}: {file.name} is a folder, or a link to nothing; expected a file")
    total = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    for file in sorted(folder.iterdir()):
        if file.is_file():
            _check_pointer(file, path)
    for file in sorted(folder.glob("*.safetensors")):
        tensors = read_header(file, path)
        _check_types(file, tensors, path)
        if total <= SCANNED_BYTES:
            _check_values(file, tensors, path)
    # A plan for other machines needs no weights; a run without them is refused elsewhere.
    if total:
        _check_index(folder, path)


def _holds_nan(value: Any) -> bool:
    """Return True if a number in a JSON value is NaN, at any depth."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return any(_holds_nan(entry) for entry in value)
    return isinstance(value, float) and math.isnan(value)


def read_model_json(file: Path, path: str) -> dict[str, Any]:
    """Return a JSON file of a model folder; raises ConfigError when it cannot be read."""
    return read_json(file, f"model.path={path}: {file.name}", "download or save it again")


def _check_pointer(file: Path, path: str) -> None:
    with file.open("rb") as handle:
        start = handle.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        raise ConfigError(
            f"model.path={path}: {file.name} is a Git LFS pointer, not the file itself; run git lfs pull there"
        )


def read_header(file: Path, path: str) -> dict[str, dict[str, Any]]:
    """Return dtype, shape and offsets of each tensor of a safetensors file.

    Raises:
        ConfigError: The file is cut or no safetensors file.
    """
    # Eight bytes with the length of the header, the header as JSON, then the values.
    size = file.stat().st_size
    try:
        with file.open("rb") as handle:
            (length,) = struct.unpack("<Q", handle.read(8))
            if length > size:
                raise ValueError("the header is longer than the file")
            header = json.loads(handle.read(length))
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if 8 + length + end > size:
            raise ValueError(f"{8 + length + end:,} bytes expected, {size:,} found")
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"model.path={path}: {file.name} is no complete safetensors file ({single_line(str(error))}); "
            "download or save it again"
        ) from error
    tensors: dict[str, dict[str, Any]] = header
    return tensors


def _check_types(file: Path, tensors: dict[str, dict[str, Any]], path: str) -> None:
    """Raise ConfigError when a weight has a dtype of quantised weights."""
    for name, entry in tensors.items():
        if entry["dtype"] in QUANTISED_TYPES:
            raise ConfigError(
                f"model.path={path}: weight {name} in {file.name} has the type {entry['dtype']}: it is quantised, and "
                "training needs full weights; take the model that was not quantised"
            )


def _check_values(file: Path, tensors: dict[str, dict[str, Any]], path: str) -> None:
    """Raise ConfigError when a weight is NaN or infinite."""
    with file.open("rb") as handle:
        (length,) = struct.unpack("<Q", handle.read(8))
    values = np.memmap(file, np.uint8, "r")
    for name, entry in tensors.items():
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        part = values[start:end]
        if entry["dtype"] in FLOAT_TYPES:
            # A copy, because the values may not be aligned.
            finite = np.isfinite(np.frombuffer(part.tobytes(), FLOAT_TYPES[entry["dtype"]])).all()
        elif entry["dtype"] == "BF16":
            # A value is NaN or infinite if all 8 bits of its exponent are set.
            words = np.frombuffer(part.tobytes(), np.uint16)
            finite = not ((words & 0x7F80) == 0x7F80).any()
        else:
            continue
        if not finite:
            raise ConfigError(f"model.path={path}: weight {name} in {file.name} is not finite (NaN or infinity)")


def _check_index(folder: Path, path: str) -> None:
    """Raise ConfigError when the trainer would read other files of weights than the engine.

    With an index, the engine reads the files that it names, otherwise all. The trainer prefers
    model.safetensors, and otherwise reads those of the index.
    """
    single = "model.safetensors"
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        for file in sorted(folder.glob("*.safetensors")):
            if file.name != single and (folder / single).exists():
                raise ConfigError(
                    f"model.path={path}: {file.name} is no part of the model in {single}, and the engine would read "
                    "it too; move it out of the folder"
                )
        return
    named = read_model_json(index, path).get("weight_map")
    if not isinstance(named, dict):
        raise ConfigError(f"model.path={path}: {index.name} has no weight_map; download or save it again")
    names = sorted({str(name) for name in named.values()})
    for name in names:
        if not (folder / name).exists():
            raise ConfigError(f"model.path={path}: {index.name} names {name}, which is missing; download it again")
    if (folder / single).exists() and single not in names:
        raise ConfigError(
            f"model.path={path} holds {single} and an index of other files: the trainer would read the first and the "
            "engine the others; delete those that are out of date"
        )
