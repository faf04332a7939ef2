"""The range of each number of the config, declared beside its default and checked in one place."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from spin.errors import require


@dataclass(frozen=True)
class Range:
    """The values that a number may have. A bound that is None does not exist."""

    at_least: float | None
    above: float | None
    at_most: float | None
    below: float | None

    def contains(self, value: float) -> bool:
        """Return whether a value is in the range; NaN and infinity are in none."""
        if not math.isfinite(value):
            return False
        if self.at_least is not None and value < self.at_least:
            return False
        if self.above is not None and value <= self.above:
            return False
        if self.at_most is not None and value > self.at_most:
            return False
        return self.below is None or value < self.below

    def describe(self) -> str:
        """Return the range in words, such as ``at least 1 and at most 1000``."""
        words = []
        for name in ("at_least", "above", "at_most", "below"):
            bound = getattr(self, name)
            if bound is not None:
                words.append(f"{name.replace('_', ' ')} {bound:.10g}")
        return " and ".join(words)


def bounded(
    default: Any,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> Any:
    """Return a dataclass field with a default and the range of its values.

    The default None stands for a choice that spin makes; it is in every range. The type is Any, as
    that of `dataclasses.field`.
    """
    return field(default=default, metadata={"range": Range(at_least, above, at_most, below)})


def check_ranges(config: Any, group: str) -> None:
    """Check the numbers of a config dataclass.

    Args:
        config: The dataclass.
        group: What stands before the name of a field in the error, such as ``training.``.

    Raises:
        ConfigError: A number is outside of its range.
    """
    for entry in dataclasses.fields(config):
        bounds: Range | None = entry.metadata.get("range")
        value = getattr(config, entry.name)
        if bounds is None or value is None:
            continue
        otherwise = ", or null" if entry.default is None else ""
        require(bounds.contains(value), f"{group}{entry.name}={value}: expected {bounds.describe()}{otherwise}")
