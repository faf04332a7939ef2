"""Arguments of the commands beside `spin run`."""

from pathlib import Path

import pytest

from spin.cli.commands import (
    BenchArguments,
    ExportArguments,
    ReportArguments,
    StatusArguments,
    TableArguments,
    parse_arguments,
    split_list,
)
from spin.errors import ConfigError

NAMES = ["0123", "yes", "1e3", "null", "ref #2", "a=b", "a: b", "${seed}", "ä ö", "out [b]", "~", "a,b", "1_000"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("command", "kind"),
    [
        ("status", StatusArguments),
        ("export", ExportArguments),
        ("bench", BenchArguments),
        ("report", ReportArguments),
        ("table", TableArguments),
    ],
)
def test_a_run_directory_is_the_folder_of_exactly_that_name(name: str, command: str, kind: type) -> None:
    words = [f"run_dir={name}"]
    if kind is ExportArguments:
        words.append("to=x")
    run_dir = parse_arguments(command, kind, words).run_dir
    assert run_dir in (name, [name])


def test_lists_and_numbers_are_understood_and_the_rest_is_text() -> None:
    found = parse_arguments(
        "bench", BenchArguments, ["run_dir=[a, b c,010]", "samples=8", "tasks=arc", "to=1e3", "address=null"]
    )
    assert found == BenchArguments(run_dir=["a", "b c", "010"], samples=8, tasks=["arc"], to="1e3")
    assert parse_arguments("export", ExportArguments, ["run_dir=a", "to=b", "iteration=01"]).iteration == "01"


def test_a_folder_whose_name_looks_like_a_list_is_taken_as_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert split_list('[a,"b,c"]') == ["a", "b,c"]
    (tmp_path / "[a,b]").mkdir()
    assert split_list("[a,b]") == ["[a,b]"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["run_dir=a", "samples=eight"], "samples=eight: expected a whole number"),
        (["run_dir=a", "samples=1e3"], "samples=1e3: expected a whole number"),
        (["run_dir=a", "samples=0"], "samples=0: expected at least 1"),
        (["run_dir=[]"], "nothing given for run_dir"),
        (["a"], "'a' is no argument; expected run_dir="),
    ],
)
def test_what_does_not_fit_is_refused(words: list[str], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        parse_arguments("bench", BenchArguments, words)
