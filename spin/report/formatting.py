"""Format durations and numbers of bytes, and print tables."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table


def show_table(console: Console, title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table; its first column is left-aligned, the others right-aligned."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    table.columns[0].justify = "left"
    for row in rows:
        table.add_row(*row)
    # rich assumes that a log is 80 columns wide, and would cut the numbers off.
    needed = Measurement.get(console, console.options.update(width=1000), table).maximum
    width = max(console.width, needed)
    wide = Console(file=console.file, width=width, force_terminal=console.is_terminal, highlight=False)
    wide.print(table)


def format_duration(seconds: float) -> str:
    """Return a duration as ``42 s``, ``12 min`` or ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def format_bytes(count: float) -> str:
    """Return a number of bytes in MiB, or in GiB from 0.1 GiB on."""
    if count < 0.1 * 2**30:
        return f"{count / 2**20:,.1f} MiB"
    return f"{count / 2**30:,.1f} GiB"
