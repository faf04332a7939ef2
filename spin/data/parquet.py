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

# int32 for lists of token ids: no vocabulary needs more, and they make up most of a file.
_ARROW: dict[Any, pa.DataType] = {
    int: pa.int64(),
    int | None: pa.int64(),
    bool: pa.bool_(),
    float: pa.float64(),
    str: pa.string(),
    str | None: pa.string(),
    list[int]: pa.list_(pa.int32()),
    list[list[int]]: pa.list_(pa.list_(pa.int32())),
    list[float]: pa.list_(pa.float64()),
}


def schema(row_type: type) -> pa.Schema:
    """Return the arrow schema of a record type."""
    # Annotations are texts in modules with deferred evaluation, so they are resolved first.
    hints = typing.get_type_hints(row_type)
    fields = []
    for field in dataclasses.fields(row_type):
        fields.append(pa.field(field.name, _ARROW[hints[field.name]]))
    return pa.schema(fields)


ROW_GROUP = 1024
"""Number of rows that are written, and can be read, at a time."""


def write_rows(path: Path, row_type: type, rows: Iterable[Any]) -> str:
    """Write records as one parquet file, atomically and one row group at a time.

    Args:
        path: The file.
        row_type: Dataclass of the records.
        rows: Records, taken as they are written.

    Returns:
        Hex SHA-256 of the file.
    """

    def write(temporary: Path) -> None:
        with pq.ParquetWriter(temporary, schema(row_type)) as writer:
            for part in _tables(row_type, rows):
                writer.write_table(part)

    write_atomically(path, write)
    return file_sha256(path)


def _tables(row_type: type, rows: Iterable[Any]) -> Iterator[pa.Table]:
    """Yield tables of up to ROW_GROUP rows; without rows, yield one empty table."""
    source = iter(rows)
    expected = schema(row_type)
    part = list(islice(source, ROW_GROUP))
    while True:
        yield pa.Table.from_pylist([dataclasses.asdict(row) for row in part], schema=expected)
        part = list(islice(source, ROW_GROUP))
        if not part:
            return


def reordered(rows: Iterable[Row], row_type: type[Row], order: Callable[[int], Iterable[int]]) -> Iterator[Row]:
    """Yield rows in another order; meanwhile they lie in a temporary file, not in memory.

    Args:
        rows: Records in their first order.
        row_type: Dataclass of the records.
        order: Returns the positions of the rows in the new order, given their number.
    """
    with TemporaryDirectory(prefix="spin-rows-") as folder:
        path = str(Path(folder) / "rows.arrow")
        # Arrow's own format, unlike parquet, gives one row without reading its row group.
        with pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, schema(row_type)) as writer:
            for part in _tables(row_type, rows):
                writer.write_table(part)
        # The map reads from the disk only what is asked for.
        with pa.memory_map(path) as source:
            file = pa.ipc.open_file(source)
            batches = [file.get_batch(number) for number in range(file.num_record_batches)]
            total = sum(len(batch) for batch in batches)
            for position in order(total):
                batch = batches[position // ROW_GROUP]
                [row] = batch.slice(position % ROW_GROUP, 1).to_pylist()
                yield row_type(**row)


def stream_rows(path: Path, row_type: type[Row], first: int = 0, last: int | None = None) -> Iterator[Row]:
    """Yield records of one parquet file; read only the row groups that hold them.

    Args:
        path: The file.
        row_type: Dataclass of the records.
        first: Position of the first record.
        last: Position after the last record; None: the end of the file.

    Raises:
        ValueError: The file does not hold the columns of `row_type`.
    """
    with pq.ParquetFile(path) as file:
        expected = schema(row_type)
        if not file.schema_arrow.equals(expected):
            raise ValueError(f"{path} holds columns {file.schema_arrow.names}, expected {expected.names}")
        if last is None:
            last = file.metadata.num_rows
        # Position in the file of the row group's first record.
        start = 0
        for group in range(file.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows
            # Read the row group only if it holds a record that is asked for.
            if start < last and first < end:
                wanted = slice(max(first, start) - start, min(last, end) - start)
                for row in file.read_row_group(group)[wanted].to_pylist():
                    yield row_type(**row)
            start = end


def read_rows(path: Path, row_type: type[Row], first: int = 0, last: int | None = None) -> list[Row]:
    """Return records of one parquet file as a list: see `stream_rows`."""
    return list(stream_rows(path, row_type, first, last))


def count_rows(path: Path) -> int:
    """Return the number of records in a parquet file."""
    return int(pq.read_metadata(path).num_rows)


def list_totals(path: Path, columns: list[str]) -> tuple[int, list[int]]:
    """Return the number of records in a parquet file, and for each column of lists its items.

    Of lists of lists, the items of the inner lists are counted.
    """
    totals = [0] * len(columns)
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=columns)
            for index, column in enumerate(columns):
                # The sum is None for an empty row group.
                values = table[column]
                if pa.types.is_list(values.type.value_type):
                    values = pc.list_flatten(values)
                lengths = pc.list_value_length(values)
                totals[index] += pc.sum(lengths).as_py() or 0
        return int(file.metadata.num_rows), totals
