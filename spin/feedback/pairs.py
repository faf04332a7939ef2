"""Build the pairs of one shard of samples, and drop the pairs that carry no signal."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from spin.config.groups import PairsConfig
from spin.config.run import RunConfig
from spin.data.answer_matching import is_identical, is_right
from spin.data.records import Pair, Prompt, Sample
from spin.feedback.reward_files import sum_rewards
from spin.feedback.row_builders import make_row_builder
from spin.feedback.sample_group import read_sample_groups
from spin.models.policy import Policy


@dataclass(frozen=True)
class PairsJob:
    """One shard of samples to build pairs from, which are then scored."""

    config: RunConfig
    iteration: int
    opponent: Policy
    reference: Policy
    prompts: str
    samples: str
    rewards: list[str]
    """The file with the rewards of each source of `feedback.rewards`."""
    replayed: list[tuple[int, str]]
    """Earlier iterations, each with its shard of pairs for the same prompts."""
    out: str

    @property
    def inputs(self) -> list[Path]:
        """All files that are read."""
        replayed = [path for _, path in self.replayed]
        return [Path(path) for path in (self.prompts, self.samples, *self.rewards, *replayed)]


def build_pairs(job: PairsJob) -> tuple[list[Pair], dict[str, int]]:
    """Return the pairs of one shard that are kept, and the number of dropped ones by reason.

    Raises:
        RuntimeError: The row builder returned more rows than it says.
    """
    # Read the shard with the sum of its rewards.
    config = job.config
    builder = make_row_builder(config.feedback)
    groups = read_sample_groups(Path(job.prompts), Path(job.samples), job.iteration)
    rewards = sum_rewards(config.feedback.rewards, job.rewards, groups)

    kept: list[Pair] = []
    dropped: Counter[str] = Counter()
    for group, group_rewards in zip(groups, rewards, strict=True):
        # Build the rows of one prompt.
        rows, counts = builder.build(group, group_rewards)
        dropped.update(counts)
        most = builder.count_rows(len(group.samples))
        if len(rows) > most:
            raise RuntimeError(
                f"feedback.rows={config.feedback.rows} built {len(rows)} rows for prompt {group.prompt.prompt_id}; "
                f"expected at most {most}, as count_rows says"
            )

        # Drop rows without signal; the reasons are the same for all builders.
        samples = {sample.sample_index: sample for sample in group.samples}
        for pair in rows:
            rejected = samples[pair.sample_index]
            reason = drop_reason(config.pairs, group.prompt, pair, rejected, config.data.answer_pattern)
            if reason is None:
                kept.append(pair)
            else:
                dropped[reason] += 1
    return kept, dict(dropped)


def drop_reason(config: PairsConfig, prompt: Prompt, pair: Pair, rejected: Sample, pattern: str | None) -> str | None:
    """Return why a pair is not trained on: ``identical``, ``cut`` or ``right``; None if it is."""
    # A sample with the target's text is the target, whatever its tokens are.
    identical = pair.chosen_ids == pair.rejected_ids
    if pair.chosen_ids == prompt.completion_ids:
        identical = is_identical(prompt, rejected.completion_ids, rejected.finish_reason, rejected.text)

    # The first reason that applies is the one that is counted.
    if config.drop_identical and identical:
        return "identical"
    if config.drop_cut and rejected.finish_reason == "length":
        return "cut"
    if config.drop_right and is_right(prompt, rejected, pattern):
        return "right"
    return None
