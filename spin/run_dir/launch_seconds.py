"""The seconds of all launches of a run, those included that an error or an interrupt ended."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from spin.run_dir.ledger import Ledger
from spin.run_dir.unit import LAUNCHES


@contextmanager
def timed_launch(ledger: Ledger, started: float) -> Iterator[None]:
    """Add the seconds of a launch to those of the launches before it, however it ends.

    A killed launch cannot write its seconds. The next launch counts it as left out.

    Args:
        ledger: The ledger of the run.
        started: Time at which the launch began, by `time.perf_counter`.
    """
    # Runs of before this line existed have only the total of their complete launches.
    before = ledger.get(LAUNCHES) or ledger.get("seconds") or {"total": 0.0}
    total = before["total"]
    left_out = before.get("left_out", 0)
    if before.get("running", False):
        left_out += 1
    ledger.append(LAUNCHES, total=total, left_out=left_out, running=True)

    def end() -> None:
        seconds = round(time.perf_counter() - started + total, 3)
        ledger.append(LAUNCHES, total=seconds, left_out=left_out, running=False)

    try:
        yield
    except BaseException:
        # A full disk may have ended the launch: then this line cannot be written either.
        with suppress(OSError):
            end()
        raise
    end()


def record_seconds(ledger: Ledger) -> None:
    """Record the seconds of all launches when the run is complete."""
    launches = ledger.get(LAUNCHES)
    assert launches is not None
    ledger.append("seconds", total=launches["total"], left_out=launches["left_out"])
