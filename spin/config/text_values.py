"""Take the value of a text key from the command line as it stands: paths, patterns, names.

Hydra reads a value by a grammar of its own, in which ``~``, ``=``, ``,``, ``#``, brackets and
parentheses mean something, and a folder called ``0123`` is the number 123.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any

from spin.config.objective import OBJECTIVE_CONFIGS
from spin.config.run import RunConfig

OVERRIDE = re.compile(r"(\+{0,2})([\w.]+)=(.*)", re.DOTALL)
"""``key=value``, also with one or two plus signs."""


def quote_text(override: str, sweep: bool) -> str:
    """Return an override with the value of a text key quoted for Hydra; others unchanged.

    A path that begins with ``~/`` is expanded, because the shell does not do it behind ``key=``.
    Not changed are null, values that are quoted already, and those with an interpolation.

    Args:
        override: One word of the command line.
        sweep: Whether several runs were asked for (``-m``), whose values are separated by commas.
    """
    match = OVERRIDE.fullmatch(override)
    if match is None:
        return override
    prefix, key, value = match.groups()
    if key not in list_text_keys() or value in ("", "null", "???") or "${" in value:
        return override
    if value[0] in "'\"" and value[-1] == value[0] and len(value) > 1:
        return override
    if sweep and "," in value:
        return override
    if value == "~" or value.startswith("~/"):
        value = str(Path(value).expanduser())
    # Hydra takes backslashes as they are, but for those before a quote and at the end.
    value = re.sub(r"(\\*)'", lambda found: found[1] * 2 + "\\'", value)
    value = re.sub(r"(\\+)$", lambda found: found[1] * 2, value)
    return f"{prefix}{key}='{value}'"


@cache
def list_text_keys() -> frozenset[str]:
    """Return all keys whose value is a text, with dots."""
    keys = set(_walk(RunConfig, ""))
    for objective in OBJECTIVE_CONFIGS.values():
        keys |= set(_walk(objective, "objective."))
    # This one names a config group as well.
    return frozenset(keys - {"objective.name"})


def _walk(group: type[Any], prefix: str) -> list[str]:
    """Return the text keys of a config dataclass and of the groups in it."""
    keys = []
    hints = typing.get_type_hints(group)
    for entry in dataclasses.fields(group):
        hint = hints[entry.name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            keys += _walk(hint, f"{prefix}{entry.name}.")
        elif hint is str or set(typing.get_args(hint)) == {str, NoneType}:
            keys.append(f"{prefix}{entry.name}")
    return keys
