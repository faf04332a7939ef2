"""Read and write metrics.jsonl: one row for each logged step, kind of shards, or benchmark."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spin.run_dir.files import write_text


class MetricsLog:
    """The file metrics.jsonl of a run."""

    def __init__(self, path: Path) -> None:
        """Append to the file `path`, which need not exist yet."""
        self._path = path
        self.sinks: list[Callable[[dict[str, Any]], None]] = []
        """Functions that are called with every row that is appended."""

    def keep_finished(self, finished: Callable[[dict[str, Any]], bool]) -> None:
        """Delete the rows for which `finished` is false: their units will run again."""
        if not self._path.exists():
            return
        # A last line that a crash left incomplete is deleted too.
        kept = []
        for line in self._path.read_text().splitlines(keepends=True):
            row = _parse_row(line)
            if row is not None and finished(row):
                kept.append(line)
        write_text(self._path, "".join(kept))

    def rows(self) -> list[dict[str, Any]]:
        """Return the rows that have been logged so far, without a line that is not complete."""
        if not self._path.exists():
            return []
        rows = [_parse_row(line) for line in self._path.read_text().splitlines()]
        return [row for row in rows if row is not None]

    def append(self, unit: str, **values: Any) -> None:
        """Append one row. `unit`: the ledger unit that it belongs to."""
        row = {"unit": unit, "time": round(time.time(), 3), **values}
        with self._path.open("a") as handle:
            handle.write(json.dumps(row) + "\n")
        for sink in self.sinks:
            sink(row)


def _parse_row(line: str) -> dict[str, Any] | None:
    """Return a line of metrics.jsonl; None if a crash left it incomplete."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    if not isinstance(row, dict) or "unit" not in row:
        return None
    return row
