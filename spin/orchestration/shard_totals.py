"""Totals of the shards of one kind that were made in this session, and how they are printed."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from spin.run_dir.facts import JudgementsFacts, PairsFacts, RewardsFacts, SamplesFacts, read_facts
from spin.run_dir.judge_statistics import JudgeStatistics, sum_judge_statistics
from spin.run_dir.reward_statistics import RewardStatistics, sum_statistics
from spin.run_dir.rollout_statistics import RolloutStatistics, sum_rollout_statistics
from spin.run_dir.unit import Unit

ShardFacts = SamplesFacts | RewardsFacts | JudgementsFacts | PairsFacts


def read_shard_facts(kind: str, record: dict[str, Any]) -> ShardFacts:
    """Return what the ledger records of a shard of one kind."""
    if kind == "samples":
        return read_facts(record, SamplesFacts)
    if kind == "rewards":
        return read_facts(record, RewardsFacts)
    if kind == "judgements":
        return read_facts(record, JudgementsFacts)
    return read_facts(record, PairsFacts)


@dataclass
class ShardTotals:
    """Totals of the shards of one kind that were made in this session."""

    rows: int = 0
    tokens: int = 0
    truncated: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    started: float = field(default_factory=time.perf_counter)
    # By reward source. A mean is taken at the end, because shards differ in their number of rows.
    _reward_rows: Counter[str] = field(default_factory=Counter)
    _reward_sums: dict[str, float] = field(default_factory=dict)
    _statistics: list[dict[str, Any] | None] = field(default_factory=list)
    _judged: list[dict[str, Any] | None] = field(default_factory=list)
    _rollouts: list[dict[str, Any] | None] = field(default_factory=list)

    def add(self, unit: Unit, facts: ShardFacts) -> None:
        """Add one finished shard."""
        self.rows += facts.rows
        if isinstance(facts, SamplesFacts):
            self.tokens += facts.tokens
            self.truncated += facts.truncated
        elif isinstance(facts, RewardsFacts):
            source = unit.reward_source
            self._reward_rows[source] += facts.rows
            self._reward_sums[source] = self._reward_sums.get(source, 0.0) + facts.rows * facts.mean
        elif isinstance(facts, JudgementsFacts):
            self._judged.append(facts.judge)
        else:
            self.dropped.update(facts.dropped)
            self._statistics.append(facts.rewards)
            self._rollouts.append(facts.rollouts)

    @property
    def reward_statistics(self) -> RewardStatistics | None:
        """Statistics of the rewards summed over all sources; None without sources."""
        return sum_statistics(self._statistics)

    @property
    def rollout_statistics(self) -> RolloutStatistics | None:
        """Figures of the answers that a policy gradient learns from; None with other rows."""
        return sum_rollout_statistics(self._rollouts)

    @property
    def judge_statistics(self) -> JudgeStatistics | None:
        """What the comparisons say of the judge; None without any."""
        return sum_judge_statistics(self._judged)

    @property
    def mean_rewards(self) -> dict[str, float]:
        """Mean reward over all samples, for each source."""
        return {source: total / self._reward_rows[source] for source, total in self._reward_sums.items()}

    def to_metrics(self, kind: str, seconds: float) -> dict[str, Any]:
        """Return the totals for the log of metrics.

        Args:
            kind: ``samples``, ``rewards``, ``judgements`` or ``pairs``.
            seconds: How long they took.
        """
        values: dict[str, Any] = {
            "kind": kind,
            "rows": self.rows,
            "tokens": self.tokens,
            "cut": self.truncated,
            "dropped": dict(self.dropped),
            "seconds": round(seconds, 3),
        }
        if kind == "rewards":
            values["mean"] = self.mean_rewards
        # The rewards of all sources are summed where the rows are built.
        statistics = self.reward_statistics
        if statistics is not None:
            values |= statistics.to_figures()
        rollouts = self.rollout_statistics
        if rollouts is not None:
            values |= rollouts.to_figures()
        judge = self.judge_statistics
        if judge is not None:
            values |= judge.to_figures()
        return values

    def describe(self, word: str, seconds: float) -> str:
        """Return the totals as one line, such as ``300 pairs in 4.0 s; dropped: 2 identical``.

        Args:
            word: The word for the rows.
            seconds: How long they took.
        """
        text = f"{self.rows:>7,} {word} in {seconds:6.1f} s"
        if self.tokens:
            text += f", {self.tokens / seconds:,.0f} tokens/s, {self.truncated} cut at the limit"
        if self._reward_sums:
            means = [f"{source} {mean:.4g}" for source, mean in self.mean_rewards.items()]
            text += f", mean {', '.join(means)}"
        if self.dropped:
            counts = [f"{count} {reason}" for reason, count in sorted(self.dropped.items())]
            text += f"; dropped: {', '.join(counts)}"
        statistics = self.reward_statistics
        if statistics is not None:
            text += f"; {statistics.describe()}"
        rollouts = self.rollout_statistics
        if rollouts is not None:
            text += f"; {rollouts.describe()}"
        judge = self.judge_statistics
        if judge is not None:
            text += f"; {judge.describe()}"
        return text
