"""The watcher ends an interrupted process whose main thread does not."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from spin.cluster.ray_watch import count_finished
from spin.run_dir.launch_seconds import timed_launch
from spin.run_dir.ledger import Ledger
from spin.run_dir.unit import EXPECTED

PROGRAM = """
import os, signal, time
from pathlib import Path
import psutil, ray
from spin.cluster import ray_watch
from spin.interrupts import handle_interrupts

ray.shutdown = lambda: time.sleep({shutdown})
handle_interrupts()
restart = ray_watch.RayRestart(dict(os.environ), os.dup(2), Path("none"))
with ray_watch.watched(restart) as started:
    server = psutil.Popen(["sleep", "60"])
    time.sleep(1)
    if {started}:
        started.set()
    # The main thread is in a library, which does not let Python's handler run.
    signal.signal(signal.SIGTERM, lambda *_: None)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep({busy})
"""


@pytest.mark.parametrize(("started", "busy", "shutdown"), [(False, 60, 0), (False, 0, 60), (True, 0, 60)])
def test_an_interrupt_ends_a_process_whose_main_thread_waits_for_ray(started: bool, busy: int, shutdown: int) -> None:
    """The main thread hangs in the start of Ray, or in its shutdown."""
    program = PROGRAM.format(started=started, busy=busy, shutdown=shutdown)
    # A server that was left alive would keep the pipes open until the time is over.
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stderr) == (130, "spin: interrupted; the same command continues the run\n")


def test_the_cursor_of_a_terminal_is_visible_again() -> None:
    controller, terminal = pty.openpty()
    program = PROGRAM.format(started=False, busy=60, shutdown=0)
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL, stderr=terminal)
    process.wait(timeout=50)
    os.close(terminal)
    assert os.read(controller, 1000).startswith(b"\x1b[?25h")
    os.close(controller)


def test_a_launch_that_finishes_nothing_is_no_progress(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.jsonl")
    assert count_finished(ledger.path) == 0
    ledger.append("data", train=9)
    for _ in range(2):
        ledger.append(EXPECTED, seconds={"train": 1.0})
        with timed_launch(ledger, 0.0):
            pass
        assert count_finished(ledger.path) == 1
    # A saved state has the name of the one before.
    ledger.append("start/trainer", states={})
    ledger.append("start/trainer", states={})
    assert count_finished(ledger.path) == 3
    # A line that a crash left incomplete is no progress.
    with ledger.path.open("a") as handle:
        handle.write('{"unit": "start/policy"')
    assert count_finished(ledger.path) == 3
