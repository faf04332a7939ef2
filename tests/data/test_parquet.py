"""Shards: what is written is what is read, and a file is whole or absent."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from spin.data.parquet import ROW_GROUP, count_rows, read_rows, reordered, write_rows
from spin.data.records import Prompt, Sample
from spin.run_dir.files import file_sha256, write_atomically


def test_rows_come_back_as_written_and_the_digest_is_the_files(tmp_path: Path) -> None:
    rows = [Prompt(0, [1, 2], [3], "stop", "p", "r", None), Prompt(1, [4], [5, 6], "length", "q", "s", "42")]
    path = tmp_path / "prompts" / "train.parquet"
    digest = write_rows(path, Prompt, rows)
    assert read_rows(path, Prompt) == rows
    assert digest == file_sha256(path)


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    rows = [Sample(0, 0, [7], "stop", -0.5, "x")]
    assert write_rows(tmp_path / "a.parquet", Sample, rows) == write_rows(tmp_path / "b.parquet", Sample, rows)


def test_a_writer_that_dies_leaves_the_finished_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text("old")

    def die(temporary: Path) -> None:
        temporary.write_text("half")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write_atomically(path, die)
    assert path.read_text() == "old"


def test_a_file_with_other_columns_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(ValueError, match="x.parquet holds columns"):
        read_rows(path, Sample)


def test_a_part_of_a_file_is_read_from_the_row_groups_it_lies_in(tmp_path: Path) -> None:
    rows = [Sample(index, 0, [index], "stop", -0.5, "x") for index in range(2 * ROW_GROUP + 3)]
    path = tmp_path / "a.parquet"
    write_rows(path, Sample, iter(rows))
    assert pq.ParquetFile(path).num_row_groups == 3
    assert count_rows(path) == len(rows)
    assert read_rows(path, Sample) == rows
    for first, last in (
        (0, 1),
        (ROW_GROUP - 1, ROW_GROUP + 1),
        (ROW_GROUP, 2 * ROW_GROUP),
        (2 * ROW_GROUP, 9999),
        (5, 5),
    ):
        assert read_rows(path, Sample, first, last) == rows[first:last]


def test_rows_come_in_the_order_that_was_asked_for() -> None:
    rows = [Sample(index, 0, [index] * (index % 3), "stop", -0.5, "x") for index in range(ROW_GROUP + 3)]
    backwards = list(reordered(iter(rows), Sample, lambda count: range(count - 1, -1, -1)))
    assert backwards == rows[::-1]
    assert list(reordered([], Sample, range)) == []


def test_a_file_without_rows_is_read_as_one(tmp_path: Path) -> None:
    write_rows(tmp_path / "a.parquet", Sample, [])
    assert read_rows(tmp_path / "a.parquet", Sample) == []
