"""metrics.jsonl, and what the person at the terminal sees: a bar a stage while it runs, one line a stage when it is done."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from spin.run_dir.files import write_text


class StageProgress:
    """The advance of one stage: bar, rate and time left, on the terminal and in a small file for `spin status`."""

    def __init__(self, progress: Progress, total: int, label: str, unit: str, now: Path) -> None:
        self._progress, self._task, self._unit = progress, progress.add_task(label, total=total or None, note=""), unit
        self._start, self._done, self._total, self._label = time.perf_counter(), 0, total, label
        self._now, self._written = now, 0.0
        self._write(0.0)

    def advance(self, count: int, note: str = "", total: int | None = None) -> None:
        """`count` more units are done, of `total` where it was not known before."""
        self._done, self._total = self._done + count, total or self._total
        rate = self._done / max(1e-9, time.perf_counter() - self._start)
        self._progress.update(
            self._task, advance=count, total=self._total or None, note=f"{rate:,.1f} {self._unit}/s  {note}"
        )
        if time.perf_counter() - self._written > 1.0:
            self._write(rate)

    def _write(self, rate: float) -> None:
        """By rename, but not forced to the disk: after a power cut nobody asks how far it was."""
        self._written = time.perf_counter()
        left = (self._total - self._done) / rate if self._total and rate else None
        values = {
            "label": self._label,
            "done": self._done,
            "total": self._total,
            "unit": self._unit,
            "rate": rate,
            "left": left,
            "time": time.time(),
        }
        temporary = self._now.with_suffix(".tmp")
        temporary.write_text(json.dumps(values))
        temporary.replace(self._now)


class Reporter:
    """Only the driver has one. Off a terminal there are no bars, and one line a stage."""

    def __init__(self, metrics: Path, now: Path, console: Console | None = None) -> None:
        self._metrics, self._now = metrics, now
        self.sinks: list[Callable[[dict[str, Any]], None]] = []
        """Each is given every row that is logged."""
        self.console = console or Console(highlight=False, soft_wrap=True)

    def keep_finished(self, finished: Callable[[dict[str, Any]], bool]) -> None:
        """Keep the rows of which `finished` is true: what the others tell of will run again."""
        if not self._metrics.exists():
            return
        lines = [
            line
            for line in self._metrics.read_text().splitlines(keepends=True)
            if (row := _row(line)) and finished(row)
        ]
        write_text(self._metrics, "".join(lines))

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows that have been logged so far, without a line that is not complete."""
        if not self._metrics.exists():
            return []
        rows = [_row(line) for line in self._metrics.read_text().splitlines()]
        return [row for row in rows if row is not None]

    def log(self, unit: str, **values: Any) -> None:
        """Append one line, with the ledger unit that it belongs to."""
        row = {"unit": unit, "time": round(time.time(), 3), **values}
        with self._metrics.open("a") as handle:
            handle.write(json.dumps(row) + "\n")
        for sink in self.sinks:
            sink(row)

    def print(self, text: str) -> None:
        """One line, plain."""
        self.console.print(text, markup=False)

    @contextmanager
    def stage(self, label: str, total: int, unit: str) -> Iterator[StageProgress]:
        """A bar while the stage runs."""
        columns = (
            TextColumn("{task.description:<26}"),
            BarColumn(24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as progress:
            try:
                yield StageProgress(progress, total, label, unit, self._now)
            finally:
                self._now.unlink(missing_ok=True)


def format_duration(seconds: float) -> str:
    """Return a duration as ``42 s``, ``12 min`` or ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def show_table(console: Console, title: str, columns: list[str], rows: list[list[str]]) -> None:
    """A table; the first column is left-aligned."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    wanted = Measurement.get(console, console.options.update(width=1000), table).maximum
    wide = Console(
        file=console.file, width=max(console.width, wanted), force_terminal=console.is_terminal, highlight=False
    )
    wide.print(table)  # a log counts as 80 wide: figures are not to be cut


def _row(line: str) -> dict[str, Any] | None:
    """A line of metrics; None for one that a crash left torn."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and "unit" in row else None
