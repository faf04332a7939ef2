"""Words of lines for the user."""

from __future__ import annotations


def count_of(number: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun, such as ``1 policy`` or ``2,000 rows``.

    Args:
        number: The number.
        noun: The noun in the singular.
        plural: Its plural, if that is not the noun with an s.
    """
    if number == 1:
        return f"1 {noun}"
    return f"{number:,} {plural or noun + 's'}"
