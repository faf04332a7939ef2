"""Warn when most answers of the opponent equal the targets.

Pairs of equal completions are dropped. The opponent may have memorised the targets of the training
set, or it may simply be right.
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
        "dropped: the opponent gives the targets as its answers. If exact match on held-out prompts is as high, it is "
        "right and little is left to learn; if not, it has memorised the training set"
    )
