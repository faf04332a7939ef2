"""Write metrics.jsonl, and show progress: a bar while a stage runs, one line when it is done."""

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
    """The progress of one stage: a bar on the terminal, and a small file for `spin status`."""

    def __init__(self, progress: Progress, total: int, label: str, unit: str, now: Path) -> None:
        """Start at 0. `total`: 0 if it is not known yet. `now`: the file for `spin status`."""
        self._progress = progress
        self._task = progress.add_task(label, total=total or None, note="")
        self._label = label
        self._unit = unit
        self._done = 0
        self._total = total
        self._start = time.perf_counter()
        self._now = now
        self._write(0.0)

    def advance(self, count: int, note: str = "", total: int | None = None) -> None:
        """Count more units as done. `total`: the number of all units, once it is known."""
        self._done += count
        self._total = total or self._total
        rate = self._done / max(1e-9, time.perf_counter() - self._start)
        text = f"{rate:,.1f} {self._unit}/s  {note}"
        self._progress.update(self._task, advance=count, total=self._total or None, note=text)
        # At most once a second: the file is for a person.
        if time.perf_counter() - self._written > 1.0:
            self._write(rate)

    def _write(self, rate: float) -> None:
        """Replace the file. It is not flushed to the disk: after a power cut it is useless."""
        self._written = time.perf_counter()
        left = None
        if self._total and rate:
            left = (self._total - self._done) / rate
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
    """The log and the console of the driver. Without a terminal there are no bars."""

    def __init__(self, metrics: Path, now: Path, console: Console | None = None) -> None:
        """Append to `metrics`; `now` is the file of the running stage's progress."""
        self._metrics = metrics
        self._now = now
        self.sinks: list[Callable[[dict[str, Any]], None]] = []
        """Functions that are called with every row that is logged."""
        self.console = console or Console(highlight=False, soft_wrap=True)

    def keep_finished(self, finished: Callable[[dict[str, Any]], bool]) -> None:
        """Delete the rows for which `finished` is false: their units will run again."""
        if not self._metrics.exists():
            return
        kept = []
        for line in self._metrics.read_text().splitlines(keepends=True):
            row = _parse_row(line)
            if row is not None and finished(row):
                kept.append(line)
        write_text(self._metrics, "".join(kept))

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows that have been logged so far, without a line that is not complete."""
        if not self._metrics.exists():
            return []
        rows = [_parse_row(line) for line in self._metrics.read_text().splitlines()]
        return [row for row in rows if row is not None]

    def log(self, unit: str, **values: Any) -> None:
        """Append one row. `unit`: the ledger unit that it belongs to."""
        row = {"unit": unit, "time": round(time.time(), 3), **values}
        with self._metrics.open("a") as handle:
            handle.write(json.dumps(row) + "\n")
        for sink in self.sinks:
            sink(row)

    def print(self, text: str) -> None:
        """Print one line without markup."""
        self.console.print(text, markup=False)

    @contextmanager
    def stage(self, label: str, total: int, unit: str) -> Iterator[StageProgress]:
        """Show a bar while the stage runs."""
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


def show_table(console: Console, title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table; its first column is left-aligned, the others right-aligned."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    table.columns[0].justify = "left"
    for row in rows:
        table.add_row(*row)
    # rich takes a log for 80 columns wide and would truncate the numbers.
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


def _parse_row(line: str) -> dict[str, Any] | None:
    """Return a line of metrics.jsonl; None if a crash left it incomplete."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or "unit" not in row:
        return None
    return row
