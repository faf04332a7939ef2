"""Start the run again, in the same process, when the raylet or the GCS of its own Ray dies.

Ray does not recover from such a death: its driver hangs, or is ended after a minute without a line,
and leaves processes behind. All finished work is on disk at any instant, so that a new start loses
no more than a killed driver would. The process replaces itself by the same command (execve),
because threads of Ray's C++ core cannot be stopped from outside.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from spin.interrupts import was_interrupted

SERVERS = ("raylet", "gcs_server")
"""The processes without which Ray cannot go on."""

MAX_RESTARTS = 3
"""Restarts in a row without a new line in the ledger, after which the run ends."""

RESTART_VARIABLE = "SPIN_RAY_RESTARTS"
"""Environment variable with the number of restarts in a row and the size of the ledger at the last
one, as ``2:1834``."""

INTERRUPT_SECONDS = 2.0
"""Seconds to wait after a death: if a signal to the whole process group killed the server, its
handler in this process runs within a second."""


class RayRestart:
    """Starts the command again, up to MAX_RESTARTS times without progress."""

    def __init__(self, environment: dict[str, str], terminal: int, ledger: Path) -> None:
        """Remember what a new start needs.

        Args:
            environment: The environment of the process before Ray changed it.
            terminal: File descriptor of the terminal, or of what the user redirected stderr to.
            ledger: The ledger of the run; it grows whenever something is finished.
        """
        self._environment = environment
        self._terminal = terminal
        self._ledger = ledger

    def restart(self, reason: str, processes: set[psutil.Process]) -> None:
        """Kill all processes of Ray and replace this process by the same command.

        Args:
            reason: What happened, for the warning.
            processes: All processes that Ray started.
        """
        # Wait for the dead: after execve they would still be children of this process.
        for process in processes:
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(processes, timeout=10)

        # Only restarts without progress are counted.
        before, _, size_before = self._environment.get(RESTART_VARIABLE, "0:0").partition(":")
        size = self._ledger.stat().st_size if self._ledger.exists() else 0
        restarts = 1
        if size <= int(size_before or 0):
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
        os.execve(sys.executable, sys.orig_argv, {**self._environment, RESTART_VARIABLE: f"{restarts}:{size}"})


@contextmanager
def watched(restart: RayRestart) -> Iterator[None]:
    """Watch the raylet and the GCS, which are children of this process, inside the context."""
    done = threading.Event()
    # A restart waits for its dead children, but one may be left on a busy machine.
    ignored = set(psutil.Process().children())

    def watch() -> None:
        everyone: set[psutil.Process] = set()
        servers: dict[str, psutil.Process] = {}
        # Look more often until both servers are there.
        while not done.wait(1.0 if len(servers) == len(SERVERS) else 0.2):
            dead = [name for name, server in servers.items() if _is_dead(server)]
            if dead:
                if done.wait(INTERRUPT_SECONDS) or was_interrupted():
                    return
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
        yield
    finally:
        # Ray is about to be shut down, which is no death.
        done.set()
        watcher.join()


def _is_dead(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def list_children() -> set[psutil.Process]:
    """Return all processes that this process has started, directly or not."""
    return set(psutil.Process().children(recursive=True))
