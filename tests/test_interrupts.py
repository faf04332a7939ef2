"""Signals whose exceptions Python drops."""

import subprocess
import sys

PROGRAM = """
import signal
from spin.interrupts import handle_interrupts, raise_if_interrupted

class Dropping:
    def __del__(self):
        signal.raise_signal(signal.SIGTERM)

def handle_as_ray_does(number, frame):
    raise SystemExit(number)

handle_interrupts()
if {ray}:
    signal.signal(signal.SIGTERM, handle_as_ray_does)
Dropping()
try:
    raise_if_interrupted()
except KeyboardInterrupt:
    print("interrupted")
"""


def test_a_sigterm_whose_exception_is_dropped_is_not_lost_and_prints_no_traceback() -> None:
    for ray in (False, True):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM.format(ray=ray)], capture_output=True, text=True, timeout=60
        )
        assert (done.stdout, done.stderr) == ("interrupted\n", "")
