"""The ledger: one JSON line a finished unit, the only truth for resume.

Only the driver writes it. A line is appended and forced to disk after the file it speaks of was; a torn last line is dropped.
"""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

from spin.errors import ConfigError
from spin.run_dir.store import LOCAL_STORE, RunStore


class LedgerError(ConfigError):
    """The ledger cannot be trusted: a line in its middle is unreadable."""


class Ledger:
    """Finished units by name; the last line of a name wins."""

    def __init__(self, path: Path, store: RunStore = LOCAL_STORE, read_only: bool = False) -> None:
        """Replay `path`, which need not exist; `read_only` leaves a torn last line where it is. Raises LedgerError when another line is unreadable."""
        self.path = path
        self._store = store
        self._units: dict[str, dict[str, Any]] = {}
        data = path.read_bytes() if path.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                record = json.loads(line)
                self._units[record["unit"]] = record
            except (ValueError, KeyError, TypeError) as error:
                raise LedgerError(
                    f"{path}:{number} is no ledger line ({line[:60]!r}); restore the file from a copy, or choose another run_dir"
                ) from error
        if len(whole) < len(data) and not read_only:  # the driver died while it wrote
            with path.open("r+b") as handle:
                handle.truncate(len(whole))
                os.fsync(handle.fileno())

    def append(self, unit: str, **facts: Any) -> None:
        """Record that `unit` is finished. Returns when the line is on disk, and at the run directory's URL where it has one."""
        record = {"unit": unit, **facts}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab", buffering=0) as handle:
            before = handle.tell()
            line = json.dumps(record).encode() + b"\n"
            try:
                if handle.write(line) != len(line):  # a disk that is nearly full takes a part
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
                os.fsync(handle.fileno())
            except OSError:
                handle.truncate(before)
                raise
        self._store.publish_ledger(self.path)
        self._units[unit] = json.loads(line)  # as a resume will read it

    def get(self, unit: str) -> dict[str, Any] | None:
        """The facts of a finished unit, or None."""
        return self._units.get(unit)

    def family(self, prefix: str) -> list[dict[str, Any]]:
        """The facts of all finished units whose name begins so."""
        return [record for unit, record in self._units.items() if unit.startswith(prefix)]

    def __contains__(self, unit: str) -> bool:
        return unit in self._units
