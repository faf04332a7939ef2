"""The one error that a user can mend."""

from __future__ import annotations

import errno
import os


class CheckpointError(RuntimeError):
    """A checkpoint on disk is not the one that was promoted, or cannot be used."""


class TrainingError(RuntimeError):
    """An invariant of training failed; the last promoted policy stands."""


class ConfigError(ValueError):
    """The user's input cannot work. The message is one line: found, expected, way out."""


def require(condition: bool, message: str) -> None:
    """Raise ConfigError(message) unless `condition` holds."""
    if not condition:
        raise ConfigError(message)


def single_line(text: str) -> str:
    """Several lines as one."""
    return " ".join(line.strip() for line in text.splitlines() if line.strip())


def one_line(error: BaseException) -> str:
    """Return one line with the kind of an error; one from another process has its own kind."""
    cause = getattr(error, "cause", None) or error
    text = f"{type(cause).__name__}: {single_line(str(cause))}"
    if getattr(cause, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in text:
        text += "; free some space"
    return text


class OutOfMemory(RuntimeError):
    """A forward or backward pass did not fit into memory. The message says how large it was."""
