"""Lines and tables on terminals of several widths, and in files."""

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from spin.report.terminal import print_line, wrap_line

LINE = "estimate, memory: 0.8 M weights; on one CPU of 23.5 GiB: generation 3.1 MiB and 0.2 GiB of cache"


@pytest.mark.parametrize("width", [40, 80, 100])
def test_a_line_on_a_terminal_breaks_at_words_and_loses_none(width: int) -> None:
    output = io.StringIO()
    print_line(Console(file=output, force_terminal=True, width=width, highlight=False), LINE)
    lines = output.getvalue().rstrip("\n").split("\n")
    assert max(map(len, lines)) <= width
    assert " ".join(output.getvalue().split()) == LINE
    assert all(line.startswith("  ") for line in lines[1:])
    assert len(lines) == {40: 3, 80: 2, 100: 1}[width]


def test_a_line_in_a_file_stays_whole() -> None:
    output = io.StringIO()
    print_line(Console(file=output, width=40), LINE)
    assert output.getvalue() == LINE + "\n"


def test_a_path_longer_than_a_line_stays_whole_and_columns_are_kept() -> None:
    path = "/home/" + "x" * 40
    assert wrap_line(f"run        {path}: spin", 30, 11) == f"run\n           {path}:\n           spin"
    assert wrap_line("    chosen, 5 tokens", 16) == "    chosen, 5\n      tokens"


def test_letters_that_take_two_columns_are_counted_as_two() -> None:
    lines = wrap_line("語語語 語語語 語語語", 14, 0).split("\n")
    assert [cell_len(line) for line in lines] == [13, 6]
