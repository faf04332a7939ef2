"""Config group `feedback.rollouts`: how rewards are adjusted before a policy gradient uses them."""

from __future__ import annotations

from dataclasses import dataclass

from spin.config.ranges import bounded, check_ranges


@dataclass
class RolloutsConfig:
    """Adjustments of the rewards of single answers."""

    missing_eos: float = bounded(1.0, at_least=0, at_most=1e9)
    """Taken from the reward of an answer that was truncated and has no end of turn, at least 0."""
    judge_weight: float = bounded(1.0, above=0, at_most=1e9)
    """Factor of the judge's reward beside those of the sources, above 0, with judged_rollouts."""
    reward_clip: float | None = bounded(None, above=0, at_most=1e9)
    """Limits the sum of all sources to this size, above 0, before `missing_eos`; null: no limit."""

    def __post_init__(self) -> None:
        check_ranges(self, "feedback.rollouts.")
