"""Lines and tables on terminals of several widths, and in files."""

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from spin.report.metric_titles import HEADINGS
from spin.report.terminal import print_line, show_table, wrap_line

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


COLUMNS = ["policy", *HEADINGS.values(), "gen s", "train s"]
ROWS = [
    ["start", "0.190±.075", "0.028±.015", "0.791±.045", "-", "0.000±.000", "0.0", "34.4"],
    ["iteration 0", "0.210±.080", "0.030±.020", "0.729±.045", "0.758±.084", "0.049±.036", "0.0", "1.2"],
    ["baseline 0", "0.200±.080", "0.031±.021", "0.722±.045", "0.726±.088", "0.144±.059", "0.0", "1.0"],
]
"""The table at the end of a run that generated nothing: one column has equal cells."""


def print_table(width: int, terminal: bool = True) -> list[str]:
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, color_system=None, width=width, highlight=False)
    show_table(console, "EM: exact match on held-out prompts; NLL of the target, nats per token", COLUMNS, ROWS)
    return output.getvalue().rstrip("\n").split("\n")


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("width", [40, 50, 80, 100, 140])
def test_a_table_fits_every_width_and_keeps_every_figure(width: int, terminal: bool) -> None:
    lines = print_table(width, terminal)
    assert max(map(len, lines)) <= width
    # Rules go from the first to the last column, so none is broken in two.
    rules = [line for line in lines if set(line) <= set("─ ") and "─" in line]
    headings = [line for line in lines if line.lstrip().startswith("policy")]
    assert len(rules) == len(headings)
    for row in ROWS:
        for text in set(row[1:6]) - {"-"}:
            assert sum(line.count(text) for line in lines) == 1


def test_rows_without_a_difference_are_named_in_a_line() -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, color_system=None, width=30)
    rows = [[f"iteration {number}", "0.200±0.196", "0.100±0.010"] for number in range(2)]
    show_table(console, "", ["policy", "bias", "mass"], rows)
    text = " ".join(output.getvalue().split())
    assert text == "iteration 0, iteration 1: the same in every row: bias 0.200±0.196, mass 0.100±0.010"


def test_at_100_columns_the_table_is_whole_and_at_80_it_leaves_out_the_equal_column() -> None:
    assert sum("gen s" in line and "train s" in line for line in print_table(100)) == 1
    narrow = print_table(80)
    assert sum("policy" in line for line in narrow) == 1
    assert narrow[-1] == "the same in every row: gen s 0.0"
    # 50 columns have room for the policy and three metrics; the others are in a second part.
    parts = [line.split() for line in print_table(50) if "policy" in line]
    assert parts == [["policy", "EM", "EM", "T", "NLL"], ["policy", "win", "KL", "train", "s"]]
