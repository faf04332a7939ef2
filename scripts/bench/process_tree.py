"""Measure the CPU time of a command and of all processes that it starts, over time.

Every 0.1 s the user and system time of each process below this one is read from /proc, by parent
process. This process adopts orphans (PR_SET_CHILD_SUBREAPER), so that daemons count too, as Ray's
do. The time of a process stays in the sum when it has ended. A process that its parent reaps loses
at most its last 0.1 s; direct children lose nothing, because they are read before they are reaped.
A process that lives shorter than 0.1 s may be missed.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

INTERVAL = 0.1
"""Seconds between two samples."""

LEFT_SECONDS = 10.0
"""Seconds that processes may outlive the command; then they are killed."""

ADOPT_ORPHANS = 36
"""PR_SET_CHILD_SUBREAPER of <linux/prctl.h>."""

Key = tuple[int, int]
"""Process id and start time, since ids are used again."""


@dataclass
class Usage:
    """The CPU seconds of a command, by process and over time."""

    seconds: float = 0.0
    """Wall clock of the command."""
    times: list[float] = field(default_factory=list)
    """Seconds since the epoch of each sample."""
    samples: list[dict[Key, float]] = field(default_factory=list)
    """CPU seconds so far of each process that has been seen, one dict for each sample."""
    commands: dict[Key, str] = field(default_factory=dict)
    """Last command line of each process."""

    @property
    def cpu_seconds(self) -> float:
        """CPU seconds of all processes."""
        return sum(self.samples[-1].values())

    def sum_roles(self, name_role: Callable[[str], str], first: float, last: float) -> dict[str, float]:
        """Return the CPU seconds between two points in time (s since the epoch) by role."""
        found: dict[str, float] = {}
        before, after = self._sample_at(first), self._sample_at(last)
        for key, value in after.items():
            role = name_role(self.commands[key])
            found[role] = found.get(role, 0.0) + value - before.get(key, 0.0)
        return found

    def _sample_at(self, moment: float) -> dict[Key, float]:
        """Return the last sample that is not later than a moment; an empty one before the first."""
        found: dict[Key, float] = {}
        for sampled, sample in zip(self.times, self.samples, strict=True):
            if sampled > moment:
                break
            found = sample
        return found


def measure_command(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Usage:
    """Run a command, wait until all its processes have ended, and return what they used.

    Args:
        command: Program and arguments.
        environment: Environment of the command.
        log: File that receives its output.

    Raises:
        RuntimeError: It failed; with the end of its output.
    """
    ctypes.CDLL(None).prctl(ADOPT_ORPHANS, 1, 0, 0, 0)
    usage = Usage()
    with log.open("wb") as file:
        began = time.perf_counter()
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=dict(environment))
    status = None
    ended = 0.0
    while True:
        alive = take_sample(usage)
        for pid, code in reap_children():
            if pid == process.pid:
                status, ended = code, time.perf_counter()
        if status is not None and not alive:
            break
        if status is not None and time.perf_counter() - ended > LEFT_SECONDS:
            for pid in alive:
                os.kill(pid, signal.SIGKILL)
        time.sleep(INTERVAL)
    process.returncode = os.waitstatus_to_exitcode(status)
    usage.seconds = ended - began
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{log.read_text(errors='replace')[-3000:]}")
    return usage


def take_sample(usage: Usage) -> list[int]:
    """Add a sample of all processes below this one, and return the ids of those that still run."""
    children: dict[int, list[tuple[Key, float, bool]]] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            # The name, in parentheses, may contain spaces.
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            # It has ended meanwhile.
            continue
        state, parent, started = fields[0], int(fields[1]), int(fields[19])
        seconds = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        children.setdefault(parent, []).append(((int(folder.name), started), seconds, state == "Z"))

    sample = dict(usage.samples[-1]) if usage.samples else {}
    alive = []
    parents = [os.getpid()]
    while parents:
        for key, seconds, is_zombie in children.get(parents.pop(), []):
            pid = key[0]
            parents.append(pid)
            sample[key] = seconds
            if not is_zombie:
                alive.append(pid)
            # Ray changes the command line of a process; that of a zombie is empty.
            usage.commands[key] = read_command(pid) or usage.commands.get(key, "")
    usage.times.append(time.time())
    usage.samples.append(sample)
    return alive


def read_command(pid: int) -> str:
    """Return the command line of a process; an empty text if it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ").strip()
    except OSError:
        return ""


def reap_children() -> list[tuple[int, int]]:
    """Return process id and status of each child that has ended since the last call."""
    found = []
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return found
        if pid == 0:
            return found
        found.append((pid, status))
