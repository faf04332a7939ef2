"""Every kind of file and folder gives the same rows, with values as they stand in it."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spin.data.file_readers import check_exists, load_rows
from spin.errors import ConfigError

ROWS = [{"question": "q", "answer": "a"}, {"question": "r", "answer": "2024-05-01"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def write_zstandard(path: Path, content: bytes) -> None:
    import pyarrow

    with pyarrow.CompressedOutputStream(str(path), "zstd") as stream:
        stream.write(content)


def write_parquet(path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)


def save_dataset(path: Path) -> None:
    import datasets

    datasets.Dataset.from_list(ROWS).save_to_disk(path)


def save_dataset_dict(path: Path) -> None:
    import datasets

    other = datasets.Dataset.from_list(ROWS[:1])
    datasets.DatasetDict({"test": other, "train": datasets.Dataset.from_list(ROWS)}).save_to_disk(path)


WRITERS: dict[str, Callable[[Path], Any]] = {
    "x.jsonl": lambda path: path.write_bytes(LINES),
    "x.JSONL": lambda path: path.write_bytes(LINES),
    "x.jsonl.gz": lambda path: path.write_bytes(gzip.compress(LINES)),
    "x.jsonl.bz2": lambda path: path.write_bytes(bz2.compress(LINES)),
    "x.jsonl.xz": lambda path: path.write_bytes(lzma.compress(LINES)),
    "x.jsonl.zst": lambda path: write_zstandard(path, LINES),
    "list.json": lambda path: path.write_text(json.dumps(ROWS, indent=1)),
    "object.json": lambda path: path.write_text(json.dumps({"version": "1", "data": ROWS})),
    "lines.json": lambda path: path.write_bytes(LINES),
    "x.csv": lambda path: path.write_text("question,answer\nq,a\nr,2024-05-01\n"),
    "excel.csv": lambda path: path.write_bytes(b"\xef\xbb\xbfquestion,answer\r\nq,a\r\nr,2024-05-01\r\n"),
    "x.csv.gz": lambda path: path.write_bytes(gzip.compress(b"question,answer\nq,a\nr,2024-05-01\n")),
    "x.parquet": write_parquet,
    "saved": save_dataset,
    "saved_dict": save_dataset_dict,
}


@pytest.mark.parametrize("name", list(WRITERS))
def test_every_kind_of_file_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path / name)
    assert [row for _, row in load_rows(str(tmp_path / name), "train")] == ROWS


def test_a_subset_of_a_data_set_follows_a_colon(tmp_path: Path) -> None:
    # The library reads a folder with this card as it reads a set of the Hub.
    folder = tmp_path / "set"
    folder.mkdir()
    configs = [{"config_name": "main", "data_files": "main.jsonl"}, {"config_name": "other", "data_files": "o.jsonl"}]
    (folder / "README.md").write_text(f"---\n{json.dumps({'configs': configs})}\n---\n")
    (folder / "main.jsonl").write_bytes(LINES)
    (folder / "o.jsonl").write_bytes(LINES.splitlines(keepends=True)[0])
    assert [row for _, row in load_rows(f"{folder}:main", "train")] == ROWS
    [(place, row)] = load_rows(f"{folder}:other", "train")
    assert (place, row) == (f"{folder}:other[0]", ROWS[0])
    with pytest.raises(ConfigError, match="set:none .* cannot be read"):
        list(load_rows(f"{folder}:none", "train"))
    # Without a subset, the library asks for one.
    with pytest.raises(ConfigError, match="Config name is missing"):
        list(load_rows(str(folder), "train"))


def test_a_colon_in_the_name_of_a_file_is_no_subset(tmp_path: Path) -> None:
    path = tmp_path / "a:b.jsonl"
    path.write_bytes(LINES)
    assert [row for _, row in load_rows(str(path), "train")] == ROWS
    with pytest.raises(ConfigError, match="no such file"):
        check_exists(str(tmp_path / "missing.jsonl:main"))


def test_cells_of_a_csv_file_are_text_as_they_stand(tmp_path: Path) -> None:
    cells = ["None", "NA", "null", "007", "2024-05-01", "1.50", "1e3", "True", " padded ", "", "nan", "-0"]
    path = tmp_path / "x.csv"
    path.write_text("question,answer\n" + "".join(f"q,{cell}\n" for cell in cells))
    assert [row["answer"] for _, row in load_rows(str(path), "train")] == cells


def test_the_place_of_a_csv_row_is_the_line_where_it_begins(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text('question,answer\n"two\nlines, and a comma",a\nr,b\n')
    assert list(load_rows(str(path), "train")) == [
        (f"{path}:2", {"question": "two\nlines, and a comma", "answer": "a"}),
        (f"{path}:4", {"question": "r", "answer": "b"}),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("question,answer\nq,a\nWhat, is it?,a\n", "x.csv:3: more cells than the 2 columns"),
        ("answer,answer\nq,a\n", "x.csv:1: two columns have the same name"),
        ('question,answer\n"q,a\n', "x.csv:2: no CSV in UTF-8"),
        (b"question,answer\n\xff,a\n", "no CSV in UTF-8"),
    ],
)
def test_a_broken_csv_file_is_refused_with_its_line(content: str | bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    if isinstance(content, str):
        content = content.encode()
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        list(load_rows(str(path), "train"))


@pytest.mark.parametrize("name", ["x.jsonl", "x.json"])
def test_json_that_is_nested_too_deeply_is_refused_with_its_line(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(LINES.decode() + "[" * 100_000 + "]" * 100_000 + "\n")
    with pytest.raises(ConfigError, match=f"{name}:3: no JSON"):
        list(load_rows(str(tmp_path / name), "train"))


def test_null_entries_that_a_table_fills_in_are_removed(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    calls = [{"role": "assistant", "name": None, "tool_calls": [{"city": "Bern", "date": None}]}]
    parquet.write_table(pyarrow.Table.from_pylist([{"messages": calls, "system": None}]), tmp_path / "x.parquet")
    [(place, row)] = load_rows(str(tmp_path / "x.parquet"), "train")
    assert place == f"{tmp_path}/x.parquet[0]"
    assert row == {"messages": [{"role": "assistant", "tool_calls": [{"city": "Bern"}]}]}


@pytest.mark.parametrize("name", ["x.parquet", "x.jsonl.gz", "x.jsonl.xz", "x.jsonl.zst", "x.json"])
def test_a_damaged_file_is_refused_by_its_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"garbage")
    with pytest.raises(ConfigError, match=name) as error:
        list(load_rows(str(tmp_path / name), "train"))
    assert "\n" not in str(error.value)


def test_a_split_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    save_dataset_dict(tmp_path / "saved")
    with pytest.raises(ConfigError, match="no split 'validation'; expected one of test, train"):
        list(load_rows(str(tmp_path / "saved"), "validation"))


def test_a_file_of_another_type_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("q")
    with pytest.raises(ConfigError, match=r"file of type \.txt; expected a \.jsonl"):
        list(load_rows(str(tmp_path / "x.txt"), "train"))


def test_a_name_that_begins_with_a_tilde_is_a_file_unless_it_names_a_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    for path in (tmp_path / "~nobody-has-this-name.jsonl", tmp_path / "home" / "rows.jsonl"):
        path.write_text('{"prompt": "q", "completion": "a"}\n')
    for name in ("~nobody-has-this-name.jsonl", "~/rows.jsonl"):
        assert [row for _, row in load_rows(name, "train")] == [{"prompt": "q", "completion": "a"}]
