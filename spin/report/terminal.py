"""Write lines and tables that fit the terminal; in a file, lines stay whole."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

FILE_WIDTH = 140
"""Columns of tables in a file or pipe, which has no width of its own."""

GAPS = (3, 2, 1)
"""Blanks between the columns of a table, widest first."""


def open_console() -> Console:
    """Return a console for the standard output."""
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = FILE_WIDTH
    return console


def print_line(console: Console, text: str, indent: int | None = None) -> None:
    """Print one line without markup.

    On a terminal it wraps at words; a word that is longer than a line, such as a path, stays whole.

    Args:
        console: From `open_console`.
        text: The line.
        indent: Columns by which its further lines on a terminal are indented; None: two more than
            the first one.
    """
    if console.is_terminal:
        text = wrap_line(text, console.width, indent)
    # Rich's own wrapping would break long words.
    console.print(text, markup=False, soft_wrap=True)


def wrap_line(text: str, width: int, indent: int | None = None) -> str:
    """Return a line broken at words, see `print_line`."""
    if indent is None:
        indent = len(text) - len(text.lstrip()) + 2
    lines = [""]
    # Blanks stay, but for those at which a line is broken.
    for part in re.findall(r"\s*\S+", text):
        # Letters of some scripts take two columns.
        if lines[-1].strip() and cell_len(lines[-1]) + cell_len(part) > width:
            lines.append(" " * indent + part.strip())
        else:
            lines[-1] += part
    return "\n".join(lines)


def show_table(console: Console, legend: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table; its first column is left-aligned, the others right-aligned.

    A table that is wider than the terminal leaves out the columns whose cells are all equal, and
    names them in a line below. One that is still too wide is printed in parts, one below the other.

    Args:
        console: From `open_console`.
        legend: What the columns mean, printed above the table; may be empty.
        columns: Headings.
        rows: Texts, one for each column.
    """
    if legend:
        console.print(wrap_line(legend, console.width), markup=False, soft_wrap=True)
    shown = list(range(len(columns)))
    equal: list[int] = []
    if len(rows) > 1 and _make_fitting(console, columns, rows, shown, GAPS[:-1]) is None:
        equal = [place for place in shown[1:] if len({row[place] for row in rows}) == 1]
        shown = [place for place in shown if place not in equal]

    # Each part has the first column, and as many others as fit.
    parts = [shown[:1]]
    for place in shown[1:]:
        if len(parts[-1]) > 1 and _make_fitting(console, columns, rows, [*parts[-1], place]) is None:
            parts.append(shown[:1])
        parts[-1].append(place)
    # Without a difference between the rows, the line below says all.
    if equal and len(shown) == 1:
        print_line(console, f"{', '.join(row[0] for row in rows)}:")
        parts = []
    for part in parts:
        table = _make_fitting(console, columns, rows, part)
        # The cells of two columns that do not fit wrap.
        console.print(table or _make_table(columns, rows, part, GAPS[-1]), soft_wrap=False)
    if equal:
        figures = [f"{columns[place]} {rows[0][place]}" for place in equal]
        print_line(console, f"the same in every row: {', '.join(figures)}")


def _make_fitting(
    console: Console,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    places: Sequence[int],
    gaps: Sequence[int] = GAPS,
) -> Table | None:
    """Return the table of some columns with the widest gap that fits; None if none does."""
    for gap in gaps:
        table = _make_table(columns, rows, places, gap)
        if Measurement.get(console, console.options.update(width=10_000), table).maximum <= console.width:
            return table
    return None


def _make_table(columns: Sequence[str], rows: Sequence[Sequence[str]], places: Sequence[int], gap: int) -> Table:
    """Return a table of some columns with a number of blanks between them."""
    # One blank is that of the box; the others are at the right and left of a cell.
    padding = (0, int(gap > 1), 0, int(gap > 2))
    table = Table(box=box.SIMPLE, pad_edge=False, padding=padding, show_edge=gap == GAPS[0])
    # A table with an edge has blank lines of its own.
    if not table.show_edge:
        table.title, table.caption = " ", " "
    for place in places:
        table.add_column(Text(columns[place]), justify="right", overflow="fold")
    table.columns[0].justify = "left"
    for row in rows:
        table.add_row(*[Text(row[place]) for place in places])
    return table
