"""What became of the samples of an iteration: rewards, judgements, and rows that were dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from spin.run_dir.facts import JudgementsFacts, PairsFacts
from spin.run_dir.judge_statistics import JudgeStatistics, sum_judge_statistics
from spin.run_dir.paths import Stage
from spin.run_dir.reward_statistics import RewardStatistics, sum_statistics
from spin.run_dir.rollout_statistics import RolloutStatistics, sum_rollout_statistics
from spin.run_dir.run_state import RunState


def list_finished(state: RunState, stage: Stage) -> list[PairsFacts]:
    """Return what the ledger records of the finished shards of rows of a stage."""
    units = [unit for unit in state.units(stage, "pairs") if state.done(unit)]
    return [state.facts(unit, PairsFacts) for unit in units]


def sum_rewards(state: RunState, stage: Stage) -> RewardStatistics | None:
    """Return the rewards of the samples of an iteration so far; None without reward sources."""
    return sum_statistics(facts.rewards for facts in list_finished(state, stage))


def sum_rollouts(state: RunState, stage: Stage) -> RolloutStatistics | None:
    """Return figures of the answers that a policy gradient learns from; None with other rows."""
    return sum_rollout_statistics(facts.rollouts for facts in list_finished(state, stage))


def describe_rewards(state: RunState, stages: Sequence[Stage]) -> list[str]:
    """Return a text for each iteration with rewards: ``iteration 0 reward 0.4±0.1 (…)``."""
    texts = []
    for stage in stages:
        statistics = sum_rewards(state, stage)
        if statistics is not None:
            texts.append(f"{stage.label} {statistics.describe()}")
    return texts


def list_judgements(state: RunState, stage: Stage) -> list[dict[str, Any] | None]:
    """Return the judge's statistics of each finished shard of an iteration."""
    units = [unit for unit in state.units(stage, "judgements") if state.done(unit)]
    return [state.facts(unit, JudgementsFacts).judge for unit in units]


def sum_judgements(state: RunState, stage: Stage) -> JudgeStatistics | None:
    """Return what is known of the judge of an iteration so far; None without a judge."""
    return sum_judge_statistics(list_judgements(state, stage))


def describe_judge(state: RunState, stages: Sequence[Stage]) -> list[str]:
    """Return a text for each iteration with a judge: ``iteration 0 judge bias 0.1±0.01, …``."""
    texts = []
    for stage in stages:
        statistics = sum_judgements(state, stage)
        if statistics is not None:
            texts.append(f"{stage.label} {statistics.describe()}")
    return texts


def describe_dropped(state: RunState, stages: Sequence[Stage]) -> list[str]:
    """Return a text for each iteration that dropped rows: ``iteration 0: 3 identical``."""
    texts = []
    for stage in stages:
        dropped: Counter[str] = Counter()
        for facts in list_finished(state, stage):
            dropped.update(facts.dropped)
        if dropped:
            counts = [f"{count:,} {reason}" for reason, count in sorted(dropped.items())]
            texts.append(f"{stage.label}: {', '.join(counts)}")
    return texts
