"""Write and read records as parquet files, a row group at a time."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from spin.run_dir.files import file_sha256, write_atomically

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


ROW_GROUP = 1024
"""Rows that are written, and can be read, at a time."""


def write_rows(path: Path, row_type: type, rows: Iterable[Any]) -> str:
    """Write records as one parquet file, by rename. Returns its SHA-256. No more than a row group of them is in memory."""

    def write(temporary: Path) -> None:
        with pq.ParquetWriter(temporary, schema(row_type)) as writer:
            for part in _tables(row_type, rows):
                writer.write_table(part)

    write_atomically(path, write)
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
