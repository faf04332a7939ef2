"""Read the rows of a data set from a file, a folder, the Hub, or a built-in set.

Values stay as they are in the file: cells of a CSV file are text, and dates in JSON are not parsed.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import lzma
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from spin.data import builtin
from spin.errors import ConfigError
from spin.run_dir.files import expand_home

Row = dict[str, Any]
PlacedRow = tuple[str, Row]
"""File and line (or index) of a row, and its columns."""

EXPECTED = (
    "a .jsonl, .json, .csv or .parquet file (also .gz, .bz2, .xz or .zst), a folder of datasets, or a Hub id, "
    "with a subset as owner/name:subset"
)
DATASET_DICT = "dataset_dict.json"
"""File that `DatasetDict.save_to_disk` writes."""
DATASET_STATE = "state.json"
"""File that `Dataset.save_to_disk` writes."""
BATCH_SIZE = 1000
"""Rows of a parquet file that are in memory together."""


def check_exists(path: str) -> None:
    """Raise ConfigError when a path is no Hub id and no file or folder has its name."""
    if path.startswith("builtin:"):
        return
    # What looks like a file is no Hub id.
    file = expand_home(split_subset(path)[0])
    kind, _ = split_suffix(file)
    if not file.exists() and (path.startswith((".", "/", "~")) or kind in READERS):
        raise ConfigError(f"{path}: no such file; expected {EXPECTED}, or builtin:letters")


def load_rows(path: str, split: str) -> Iterator[PlacedRow]:
    """Yield the rows of a data set with their places.

    Args:
        path: ``builtin:NAME``, a local file or folder, or a Hub id, with ``:subset`` at its end
            for a subset.
        split: of a set that has splits; a single file has none.

    Raises:
        ConfigError: the set cannot be read. Names the file, and the line if one is broken.
    """
    if path.startswith("builtin:"):
        for index, row in enumerate(builtin.rows(path.removeprefix("builtin:"), split)):
            yield f"{path}[{index}]", dict(row)
        return
    # A single file, by its ending.
    file = expand_home(path)
    kind, compression = split_suffix(file)
    if file.is_file():
        if kind not in READERS:
            raise ConfigError(f"{path}: found a file of type {file.suffix or '(no ending)'}; expected {EXPECTED}")
        try:
            yield from READERS[kind](file, compression)
        except DAMAGED as error:
            raise ConfigError(f"{path} cannot be read: {error}; repair or replace the file") from error
        return
    check_exists(path)
    for index, row in enumerate(load_table(path, file, split)):
        yield f"{path}[{index}]", remove_nulls(dict(row))


def split_suffix(file: Path) -> tuple[str, str]:
    """Return the endings of a file for its type and its compression, in lower case or empty."""
    suffix = file.suffix.lower()
    if suffix in OPENERS:
        return Path(file.stem).suffix.lower(), suffix
    return suffix, ""


def open_file(file: Path, compression: str) -> Any:
    """Open a file for reading bytes, decompressed."""
    if compression:
        return OPENERS[compression](file)
    return file.open("rb")


def open_zstandard(file: Path) -> BinaryIO:
    """Open a file compressed with Zstandard, which Python itself reads from version 3.14 on."""
    import io

    import pyarrow

    return io.BufferedReader(pyarrow.input_stream(str(file), compression="zstd"))  # type: ignore[arg-type]


OPENERS: dict[str, Callable[[Path], Any]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": open_zstandard,
}


def read_jsonl(file: Path, compression: str) -> Iterator[PlacedRow]:
    """Yield the rows of a file with one JSON object a line."""
    with open_file(file, compression) as handle:
        for number, line in enumerate(handle, start=1):
            # Editors leave empty lines.
            if not line.strip():
                continue
            place = f"{file}:{number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ConfigError(f"{place}: no JSON ({error}); repair or remove the line") from error
            yield place, check_object(row, place)


def read_json(file: Path, compression: str) -> Iterator[PlacedRow]:
    """Yield the rows of a JSON list, of the only list in a JSON object, or of lines of JSON."""
    with open_file(file, compression) as handle:
        content = handle.read()
    # A file that ends in .json may hold lines of JSON.
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        # Several objects, one a line; the reader of lines names the broken one.
        yield from read_jsonl(file, compression)
        return
    # A single object is a row, or the header around the only list of rows.
    rows = value
    if isinstance(value, dict):
        lists = [entry for entry in value.values() if isinstance(entry, list) and is_objects(entry)]
        rows = [value]
        if len(lists) == 1 and not set(value) & {"messages", "conversations", "conversation"}:
            rows = lists[0]
    if not isinstance(rows, list):
        raise ConfigError(f"{file}: found a JSON {type(value).__name__}, expected a list of objects")
    for index, row in enumerate(rows):
        place = f"{file}[{index}]"
        yield place, check_object(row, place)


def is_objects(values: list[Any]) -> bool:
    """Return True for a list of JSON objects that is not empty."""
    return bool(values) and all(isinstance(value, dict) for value in values)


def check_object(row: Any, place: str) -> Row:
    """Return a row, or raise ConfigError if it is no JSON object."""
    if not isinstance(row, dict):
        raise ConfigError(f"{place}: found a JSON {type(row).__name__}, expected an object with named columns")
    return row


def read_csv(file: Path, compression: str) -> Iterator[PlacedRow]:
    """Yield the rows of a CSV file; every cell is text as it stands in the file."""
    import io

    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with open_file(file, compression) as handle, io.TextIOWrapper(handle, encoding="utf-8-sig", newline="") as text:
        reader = csv.DictReader(text, strict=True)
        first_line = 2
        try:
            # The first line names the columns.
            names = list(reader.fieldnames or [])
            if len(set(names)) < len(names):
                raise ConfigError(f"{file}:1: two columns have the same name; rename one of them")
            for row in reader:
                place = f"{file}:{first_line}"
                # A cell of several lines moves the count.
                first_line = reader.line_num + 1
                # The reader puts surplus cells under None.
                if None in row:
                    raise ConfigError(
                        f"{place}: more cells than the {len(names)} columns of the first line; put cells that "
                        "contain commas in quotes"
                    )
                yield place, dict(row)
        except (csv.Error, UnicodeDecodeError) as error:
            raise ConfigError(f"{file}:{first_line}: no CSV in UTF-8 ({error}); repair or remove the line") from error


def read_parquet(file: Path, compression: str) -> Iterator[PlacedRow]:
    """Yield the rows of a parquet file."""
    import pyarrow
    from pyarrow import parquet

    index = 0
    try:
        # Batches keep memory small.
        with open_file(file, compression) as handle, parquet.ParquetFile(handle) as table:
            for batch in table.iter_batches(BATCH_SIZE):
                for row in batch.to_pylist():
                    yield f"{file}[{index}]", remove_nulls(row)
                    index += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise ConfigError(f"{file} cannot be read as parquet: {str(error).splitlines()[0]}") from error


DAMAGED = (OSError, EOFError, lzma.LZMAError, zlib.error)
"""Errors of the decompressors for a damaged or cut file."""
READERS: dict[str, Callable[[Path, str], Iterator[PlacedRow]]] = {
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".parquet": read_parquet,
}


def split_subset(path: str) -> tuple[str, str | None]:
    """Return a data set and the subset that follows it after a colon, or None without one."""
    name, colon, subset = path.rpartition(":")
    # A file or folder may have a colon in its name.
    if not colon or not name or expand_home(path).exists():
        return path, None
    return name, subset


def load_table(path: str, folder: Path, split: str) -> Any:
    """Return a split of a folder of `save_to_disk`, of a folder of files, or of a Hub set."""
    import datasets

    name, subset = split_subset(path)

    # The library raises a dozen kinds of errors: no such set or split, no network, a broken file.
    try:
        if (folder / DATASET_DICT).is_file() or (folder / DATASET_STATE).is_file():
            table = datasets.load_from_disk(str(folder))
        else:
            table = datasets.load_dataset(name, subset, split=split)
    except Exception as error:  # datasets raises the errors of many libraries
        reason = (str(error).splitlines() or [""])[0]
        raise ConfigError(f"{path} (split {split}) cannot be read: {type(error).__name__}: {reason}") from error
    # A folder of several splits.
    if not isinstance(table, datasets.DatasetDict):
        return table
    if split not in table:
        raise ConfigError(f"{path} has no split {split!r}; expected one of {', '.join(table)}")
    return table[split]


def remove_nulls(value: Any) -> Any:
    """Remove null entries of objects at any depth: tables fill them in for other rows."""
    if isinstance(value, dict):
        return {key: remove_nulls(entry) for key, entry in value.items() if entry is not None}
    if isinstance(value, list):
        return [remove_nulls(entry) for entry in value]
    return value
