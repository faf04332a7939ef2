"""Warn when the opponent has nearly memorised the targets.

Its samples are then equal to the targets, and pairs of equal completions are dropped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from spin.run_dir.facts import PairsFacts


def describe_memorisation(shards: Sequence[PairsFacts]) -> str | None:
    """Return a warning when most pairs of an iteration had identical completions; else None.

    Args:
        shards: What the ledger records about all shards of pairs of the iteration.
    """
    # Replayed pairs do not count: they are of earlier opponents.
    kept = 0
    dropped: Counter[str] = Counter()
    for facts in shards:
        kept += facts.rows - facts.replayed
        dropped.update(facts.dropped)
    if dropped["identical"] <= kept:
        return None
    return (
        f"warning: {dropped['identical']} of {dropped.total() + kept} pairs had identical completions and were "
        "dropped; the opponent has nearly memorised the targets"
    )
