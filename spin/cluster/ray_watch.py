"""Start the run again, in the same process, when the raylet or the GCS of its own Ray dies.

Ray does not recover from such a death: its driver hangs, or is ended after a minute without a line,
and leaves processes behind. All finished work is on disk at any instant, so that a new start loses
no more than a killed driver would. The process replaces itself by the same command (execve),
because threads of Ray's C++ core cannot be stopped from outside.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import ray

from spin.interrupts import INTERRUPTED, cancel_abort, was_interrupted
from spin.run_dir.unit import LAUNCH_LINES

SERVERS = ("raylet", "gcs_server")
"""The processes without which Ray cannot go on."""

MAX_RESTARTS = 3
"""Restarts in a row without finished work, after which the run ends."""

RESTART_VARIABLE = "SPIN_RAY_RESTARTS"
"""Environment variable with the number of restarts in a row and of the ledger's lines of finished
work at the last one, as ``2:34``."""

INTERRUPT_SECONDS = 1.0
"""Seconds in which an interrupted process may end by itself. A signal to the whole process group
kills the servers too, and calls of Ray then wait for them."""

SHOW_CURSOR = b"\x1b[?25h"
"""Makes the cursor of a terminal visible, which a moving line hides."""

SHUTDOWN_SECONDS = 3.0
"""Seconds that Ray's own shutdown may take after an interrupt."""


class RayRestart:
    """Starts the command again, up to MAX_RESTARTS times without progress."""

    def __init__(self, environment: dict[str, str], terminal: int, ledger: Path) -> None:
        """Remember what a new start needs.

        Args:
            environment: The environment of the process before Ray changed it.
            terminal: File descriptor of the terminal, or of what the user redirected stderr to.
            ledger: The ledger of the run; it gets a line whenever something is finished.
        """
        self._environment = environment
        self._terminal = terminal
        self._ledger = ledger

    def end_interrupted(self, processes: set[psutil.Process]) -> None:
        """Kill all processes of Ray and end this process, whose main thread waits for them.

        What it leaves in the folder for temporary files is deleted by the next command.

        Args:
            processes: All processes that Ray started.
        """
        _kill(processes)
        os.dup2(self._terminal, 2)
        if os.isatty(2):
            os.write(2, SHOW_CURSOR)
        os.write(2, f"{INTERRUPTED}\n".encode())
        os._exit(130)

    def restart(self, reason: str, processes: set[psutil.Process]) -> None:
        """Kill all processes of Ray and replace this process by the same command.

        Args:
            reason: What happened, for the warning.
            processes: All processes that Ray started.
        """
        # Wait for the dead: after execve they would still be children of this process.
        _kill(processes)

        # Only restarts without progress are counted.
        before, _, finished_before = self._environment.get(RESTART_VARIABLE, "0:0").partition(":")
        finished = count_finished(self._ledger)
        restarts = 1
        if finished <= int(finished_before or 0):
            restarts = int(before) + 1

        # stderr belongs to Ray's log; give it back to the user.
        os.dup2(self._terminal, 2)
        if restarts > MAX_RESTARTS:
            message = (
                f"spin: {reason} {restarts} times without progress; the same command continues the run, Ray's logs "
                "may say why\n"
            )
            os.write(2, message.encode())
            os._exit(1)
        os.write(2, f"spin: warning: {reason}; starting again from what is finished\n".encode())
        os.execve(sys.executable, sys.orig_argv, {**self._environment, RESTART_VARIABLE: f"{restarts}:{finished}"})


def count_finished(ledger: Path) -> int:
    """Return the number of ledger lines that stand for finished work.

    Lines that each launch writes are left out, or a run that never gets further than its start
    would be started again without end.
    """
    if not ledger.exists():
        return 0
    lines = ledger.read_bytes().splitlines(keepends=True)
    marks = [f'{{"unit": {json.dumps(name)}'.encode() for name in LAUNCH_LINES]
    return sum(line.endswith(b"\n") and not line.startswith(tuple(marks)) for line in lines)


@contextmanager
def watched(restart: RayRestart) -> Iterator[threading.Event]:
    """Watch the raylet and the GCS, which are children of this process, and shut Ray down.

    Ray starts inside the context. The caller then sets the event.
    """
    started, ending, ended = threading.Event(), threading.Event(), threading.Event()
    # A restart waits for its dead children, but one may be left on a busy machine.
    ignored = set(psutil.Process().children())

    def watch() -> None:
        everyone: set[psutil.Process] = set()
        servers: dict[str, psutil.Process] = {}
        interrupted = False
        # Look more often while Ray starts.
        while not ended.wait(1.0 if started.is_set() else 0.2):
            # A SIGTERM while Ray starts is known by the alarm that Ray's core sets then: writing
            # its stack, it may need longer than the alarm gives it.
            alarm = not started.is_set() and signal.getitimer(signal.ITIMER_REAL)[0] > 0
            interrupted = interrupted or alarm or was_interrupted()

            if ending.is_set():
                # That the servers die is planned now.
                if interrupted:
                    cancel_abort()
                if not ended.wait(SHUTDOWN_SECONDS) and (interrupted or was_interrupted()):
                    restart.end_interrupted(everyone)
                continue

            dead = [name for name, server in servers.items() if _is_dead(server)]
            if dead or (interrupted and not started.is_set()):
                if interrupted:
                    cancel_abort()
                if ending.wait(INTERRUPT_SECONDS):
                    continue
                if interrupted or was_interrupted():
                    restart.end_interrupted(everyone)
                restart.restart(f"Ray's {dead[0]} died", everyone)

            # A process may end while it is looked at.
            with suppress(psutil.Error):
                everyone.update(set(psutil.Process().children(recursive=True)) - ignored)
                for child in psutil.Process().children():
                    if child.name() in SERVERS and child not in ignored:
                        servers[child.name()] = child

    watcher = threading.Thread(target=watch, daemon=True, name="ray-watch")
    watcher.start()
    try:
        yield started
    finally:
        ending.set()
        ray.shutdown()
        ended.set()
        watcher.join()


def _kill(processes: set[psutil.Process]) -> None:
    """Kill processes and wait until they are gone."""
    for process in processes:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(processes, timeout=10)


def _is_dead(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def list_children() -> set[psutil.Process]:
    """Return all processes that this process has started, directly or not."""
    return set(psutil.Process().children(recursive=True))
