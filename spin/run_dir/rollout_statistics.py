"""Figures of the answers that a policy gradient learns from, added up over shards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass
class RolloutStatistics:
    """Sums over the answers that are trained on."""

    answers: int = 0
    tokens: int = 0
    truncated: int = 0
    logp_sum: float = 0.0
    """Sum of log π_old over all tokens, in nats."""
    scored_by_base: int = 0
    """Answers that the base has scored."""
    log_ratio_sum: float = 0.0
    """Sum of log π_old − log π_base over these answers, in nats."""

    def add(self, old_logps: Sequence[float], base_logps: Sequence[float], truncated: bool) -> None:
        """Add one scored answer; without a base, `base_logps` is empty."""
        self.answers += 1
        self.tokens += len(old_logps)
        self.truncated += truncated
        self.logp_sum += sum(old_logps)
        if base_logps:
            self.scored_by_base += 1
            self.log_ratio_sum += sum(old_logps) - sum(base_logps)

    def to_figures(self) -> dict[str, float]:
        """Return means by name.

        `rollout_kl` estimates KL(opponent, start) in nats an answer; `rollout_entropy` the entropy
        of the opponent in nats a token, since the opponent wrote the tokens.
        """
        figures = {
            "rollout_tokens": self.tokens / self.answers,
            "rollout_truncated": self.truncated / self.answers,
            "rollout_entropy": -self.logp_sum / self.tokens,
        }
        if self.scored_by_base:
            figures["rollout_kl"] = self.log_ratio_sum / self.scored_by_base
        return figures

    def describe(self) -> str:
        """Return ``9.3 tokens an answer, 1% truncated, entropy 0.21, KL to the start 0.52``."""
        figures = self.to_figures()
        text = f"{figures['rollout_tokens']:.1f} tokens an answer, {figures['rollout_truncated']:.0%} truncated"
        text += f", entropy {figures['rollout_entropy']:.3f}"
        if "rollout_kl" in figures:
            text += f", KL to the start {figures['rollout_kl']:.3f}"
        return text


def sum_rollout_statistics(shards: Iterable[Mapping[str, Any] | None]) -> RolloutStatistics | None:
    """Add up the statistics that the ledger records of shards; None if no shard has any."""
    total = RolloutStatistics()
    for shard in shards:
        for name, value in (shard or {}).items():
            setattr(total, name, getattr(total, name) + value)
    if not total.answers:
        return None
    return total
