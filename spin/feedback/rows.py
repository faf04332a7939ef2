"""Build the training rows of one shard of samples, and drop the rows that carry no signal."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from spin.config.run import RunConfig
from spin.data.records import TrainingRow
from spin.feedback.dropped_rows import find_drop_reason
from spin.feedback.reward_files import sum_rewards
from spin.feedback.row_builders import make_row_builder
from spin.feedback.sample_group import add_judgements, read_sample_groups
from spin.models.policy import Policy
from spin.run_dir.reward_statistics import RewardStatistics


@dataclass(frozen=True)
class RowsJob:
    """One shard of samples to build training rows from, which are then scored."""

    config: RunConfig
    iteration: int
    opponent: Policy
    reference: Policy
    prompts: str
    samples: str
    rewards: list[str]
    """The file with the rewards of each source of `feedback.rewards`."""
    replayed: list[tuple[int, str]]
    """Earlier iterations, each with its shard of rows for the same prompts."""
    out: str
    base: Policy | None = None
    """The policy that iteration 0 started from, if the reference is a mixture with it."""
    start_samples: str | None = None
    """Iteration 0's samples for the same prompts, if the objective needs them."""
    judgements: str | None = None
    """The file with the judge's comparisons or scores of the samples; None without a judge."""

    critic: Policy | None = None
    """The critic that gives the values of PPO; None with other objectives."""

    @property
    def inputs(self) -> list[Path]:
        """All files that are read."""
        replayed = [path for _, path in self.replayed]
        paths = [self.prompts, self.samples, *self.rewards, *replayed]
        if self.start_samples is not None:
            paths.append(self.start_samples)
        if self.judgements is not None:
            paths.append(self.judgements)
        return [Path(path) for path in paths]


@dataclass(frozen=True)
class BuiltRows:
    """The rows of one shard, before the reference has scored them."""

    rows: list[TrainingRow]
    row_type: type[TrainingRow]
    dropped: dict[str, int]
    """Number of rows that were dropped, or could not be built, by reason."""
    rewards: RewardStatistics | None
    """Statistics of the summed rewards; None without reward sources."""


def build_rows(job: RowsJob) -> BuiltRows:
    """Build the rows of one shard, and leave out those without signal.

    Raises:
        RuntimeError: The row builder returned more rows than it says.
    """
    # Read the shard with the sum of its rewards.
    config = job.config
    builder = make_row_builder(config.feedback)
    builder.use_objective(config.objective)
    groups = read_sample_groups(Path(job.prompts), Path(job.samples), job.iteration)
    if job.judgements is not None:
        groups = add_judgements(groups, Path(job.judgements), config.judge.mode)
    rewards = sum_rewards(config.feedback.rewards, job.rewards, groups)
    statistics = RewardStatistics()

    kept: list[TrainingRow] = []
    dropped: Counter[str] = Counter()
    for group, group_rewards in zip(groups, rewards, strict=True):
        # Build the rows of one prompt.
        combined = builder.combine_rewards(group, group_rewards)
        if combined is None:
            dropped["judge_failed"] += len(group.samples)
            continue
        statistics.add_prompt(combined.samples, config.feedback.threshold, combined.truth)
        rows, counts = builder.build(group, combined.samples)
        dropped.update(counts)
        most = builder.count_rows(len(group.samples))
        if len(rows) > most:
            raise RuntimeError(
                f"feedback.rows={config.feedback.rows} built {len(rows)} rows for prompt {group.prompt.prompt_id}; "
                f"expected at most {most}, as count_rows says"
            )

        # Drop rows without signal; the reasons are the same for all builders.
        samples = {sample.sample_index: sample for sample in group.samples}
        for row in rows:
            reason = find_drop_reason(config.pairs, group.prompt, row, samples[row.sample_index])
            if reason is None:
                kept.append(row)
            else:
                dropped[reason] += 1
    if not builder.uses_rewards:
        return BuiltRows(kept, builder.row_type, dict(dropped), None)
    return BuiltRows(kept, builder.row_type, dict(dropped), statistics)
