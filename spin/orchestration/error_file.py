"""Write the error that ends a run into a file, for `spin status`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from spin.errors import ConfigError, one_line
from spin.run_dir.credentials import hide_passwords
from spin.run_dir.store import RunStore


@contextmanager
def record_error(path: Path, store: RunStore) -> Iterator[None]:
    """Write the error that ends the run into a file, for `spin status`."""
    try:
        yield
    # The launch was refused: no run has begun that could have a status.
    except ConfigError:
        raise
    except BaseException as error:
        text = "interrupted" if isinstance(error, (KeyboardInterrupt, SystemExit)) else one_line(error)
        record = {"time": datetime.now().isoformat(sep=" ", timespec="seconds"), "error": hide_passwords(text)}
        # If the disk is full, the file cannot be written either. Raise the first error.
        with suppress(OSError):
            path.write_text(json.dumps(record))
            store.publish(path)
        raise
