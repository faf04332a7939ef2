"""The one error that a user can mend."""

from __future__ import annotations


class ConfigError(ValueError):
    """The user's input cannot work. The message is one line: found, expected, way out."""


def require(condition: bool, message: str) -> None:
    """Raise ConfigError(message) unless `condition` holds."""
    if not condition:
        raise ConfigError(message)
