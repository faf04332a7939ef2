"""Write lines for a terminal, where they wrap at words, and for a file, where they stay whole."""

from __future__ import annotations

import re

from rich.cells import cell_len
from rich.console import Console

FILE_WIDTH = 140
"""Columns of tables in a file or pipe, which has no width of its own."""


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
