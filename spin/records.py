"""The rows that touch disk, and the one way they are written and read.

A shard is a plain parquet file: pandas and `datasets` open it. A file is finished by rename, so whoever sees its name sees it whole.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import typing
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from spin.storage import bring, keep


@dataclass(frozen=True)
class Prompt:
    """One usable row of the SFT set, rendered to token ids once. Example: ``Prompt(7, [1, 9, 4], [5, 2], "stop", "Sort: ba", "ab", "ab")``."""

    prompt_id: int
    """Position among the usable rows of its set."""
    prompt_ids: list[int]
    """The rendered prompt, generation header included. The same ids serve generation, training, scoring and benchmarks."""
    real_ids: list[int]
    """The ground truth's tokens; ends with the end-of-turn id unless ``real_finish`` is ``length``."""
    real_finish: str
    """``stop``, or ``length`` where the truth was cut at the limit and so carries no end of sequence."""
    prompt_text: str
    real_text: str
    answer: str | None
    """What an answer must match exactly to be right; None where the truth matches no answer pattern."""


@dataclass(frozen=True)
class Sample:
    """One answer of a policy to one prompt, as token ids, exactly as they were sampled."""

    prompt_id: int
    sample_index: int
    token_ids: list[int]
    finish_reason: str
    """``stop`` or ``length``; a cut sample carries no end of sequence."""
    logp: float
    """Sum of the untempered token log-probabilities under the policy that sampled, from the engine."""
    text: str


@dataclass(frozen=True)
class Pair:
    """What the main player learns from: the real completion (chosen) and the opponent's (rejected) for one prompt."""

    prompt_id: int
    """Position in the training set, or among the labelled pairs where `iteration` is -1."""
    sample_index: int
    iteration: int
    """The iteration whose opponent wrote the generated half; -1: both halves come from labelled data."""
    prompt_ids: list[int]
    real_ids: list[int]
    generated_ids: list[int]
    reference_real_logp: float
    """log π_ref(real | prompt), summed over tokens."""
    reference_generated_logp: float
    engine_generated_logp: float
    """The engine's own figure for the generated half under the policy that sampled it: an independent check. NaN for labelled data."""


@dataclass(frozen=True)
class Rating:
    """One completion that somebody called desirable or not. Example: ``Rating(3, [1, 9, 4], [5, 2], True, -7.5)``."""

    rating_id: int
    """Position among the usable ratings of its set."""
    prompt_ids: list[int]
    completion_ids: list[int]
    desirable: bool
    reference_logp: float
    """log π_ref(completion | prompt), summed over tokens; NaN until it was scored."""


@dataclass(frozen=True)
class HeldoutAnswer:
    """What one policy answers to one held-out prompt: all that its figures are made of, and the next iteration's win rate is measured against it."""

    prompt_id: int
    prompt_text: str
    real_text: str
    greedy_text: str
    greedy_right: bool
    sampled_text: str
    """The first of `benchmark.samples` answers."""
    sampled_right: bool
    sampled_ids: list[int]
    sampled_finish: str
    real_logp: float
    """log π(real | prompt) under this policy, summed over tokens."""
    sampled_logp: float
    real_tokens: int
    greedy_tokens: int
    greedy_repetition: float
    """Share of the 4-grams of the tokens that were there before."""
    sampled_share: float
    """Share of the sampled answers that are right; this and what follows are means over all of them."""
    sampled_cut: float
    sampled_tokens: float
    sampled_repetition: float
    kl: float
    """log π − log π_start of the sampled answers, in nats an answer."""
    margin: float
    """Δ of the truth against the opponent's first sampled answer; NaN without an opponent, or where that answer is the truth."""


Row = TypeVar("Row")
_ARROW: dict[Any, pa.DataType] = {
    int: pa.int64(),
    bool: pa.bool_(),
    float: pa.float64(),
    str: pa.string(),
    str | None: pa.string(),
    list[int]: pa.list_(pa.int32()),
}


def schema(row_type: type) -> pa.Schema:
    """The arrow schema of a record type."""
    hints = typing.get_type_hints(row_type)
    return pa.schema([pa.field(field.name, _ARROW[hints[field.name]]) for field in dataclasses.fields(row_type)])


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


def finish_file(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then force it to disk and rename it: `path` is whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = unfinished(path)
    write(temporary)
    fsync_path(temporary)
    os.replace(temporary, path)
    fsync_path(path.parent)
    keep(path)


def finish_folder(path: Path, write: Callable[[Path], None]) -> None:
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


ROW_GROUP = 1024
"""Rows that are written, and can be read, at a time."""


def write_rows(path: Path, row_type: type, rows: Iterable[Any]) -> str:
    """Write records as one parquet file, by rename. Returns its SHA-256. No more than a row group of them is in memory."""

    def write(temporary: Path) -> None:
        with pq.ParquetWriter(temporary, schema(row_type)) as writer:
            for part in _tables(row_type, rows):
                writer.write_table(part)

    finish_file(path, write)
    return file_sha256(path)


def _tables(row_type: type, rows: Iterable[Any]) -> Iterator[pa.Table]:
    """A row group at a time; of no rows one empty table."""
    source, expected = iter(rows), schema(row_type)
    part = list(islice(source, ROW_GROUP))
    while True:
        yield pa.Table.from_pylist([dataclasses.asdict(row) for row in part], schema=expected)
        if not (part := list(islice(source, ROW_GROUP))):
            return


def reordered(rows: Iterable[Row], row_type: type[Row], order: Callable[[int], Iterable[int]]) -> Iterator[Row]:
    """The rows in another order: `order` gives their positions, from their number. Meanwhile they lie in a temporary file, not in memory."""
    with TemporaryDirectory(prefix="spin-rows-") as folder:
        path = str(Path(folder) / "rows.arrow")
        with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, schema(row_type)) as writer:
            for part in _tables(row_type, rows):
                writer.write_table(part)
        with pa.memory_map(path) as source:
            file = pa.ipc.open_file(source)
            batches = [file.get_batch(number) for number in range(file.num_record_batches)]
            for position in order(sum(map(len, batches))):
                [row] = batches[position // ROW_GROUP].slice(position % ROW_GROUP, 1).to_pylist()
                yield row_type(**row)


def stream_rows(path: Path, row_type: type[Row], first: int = 0, last: int | None = None) -> Iterator[Row]:
    """The records `first` to `last` - 1 of one parquet file, a row group at a time; groups beside them are not read.

    Raises ValueError naming the file when it does not hold the columns of `row_type`.
    """
    bring(path)
    with pq.ParquetFile(path) as file:
        expected = schema(row_type)
        if not file.schema_arrow.equals(expected):
            raise ValueError(f"{path} holds columns {file.schema_arrow.names}, expected {expected.names}")
        start, last = 0, file.metadata.num_rows if last is None else last
        for group in range(file.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows
            if start < last and first < end:
                own = slice(max(first, start) - start, min(last, end) - start)
                yield from (row_type(**row) for row in file.read_row_group(group)[own].to_pylist())
            start = end


def read_rows(path: Path, row_type: type[Row], first: int = 0, last: int | None = None) -> list[Row]:
    """The records of one parquet file, or some of them: see `stream_rows`."""
    return list(stream_rows(path, row_type, first, last))


def count_rows(path: Path) -> int:
    """How many records a parquet file holds."""
    return int(pq.read_metadata(path).num_rows)


def list_totals(path: Path, columns: list[str]) -> tuple[int, list[int]]:
    """How many records a parquet file holds, and how many items the lists of each column have in all."""
    totals = [0] * len(columns)
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=columns)
            totals = [
                total + (pc.sum(pc.list_value_length(table[column])).as_py() or 0)
                for total, column in zip(totals, columns, strict=True)
            ]
        return int(file.metadata.num_rows), totals
