"""The samples of one prompt, which reward sources score and row builders turn into rows."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path

from spin.config.judge import JudgeMode
from spin.data.judge_records import JudgedScore, Judgement
from spin.data.parquet import read_rows
from spin.data.records import Prompt, Sample

TRUTH_INDEX = -1
"""Sample index of the ground truth among rewards."""


@dataclass(frozen=True)
class SampleGroup:
    """One prompt with all its samples of one iteration."""

    prompt: Prompt
    samples: list[Sample]
    """In the order of `sample_index`."""
    iteration: int
    """The iteration whose opponent wrote the samples."""
    judgements: list[Judgement] = field(default_factory=list)
    """A judge's comparisons of the answers; empty without any."""
    scores: list[JudgedScore] = field(default_factory=list)
    """A judge's scores of the answers; empty without any."""


def read_sample_groups(prompts: Path, samples: Path, iteration: int) -> list[SampleGroup]:
    """Return one shard of samples by prompt, in the order of the file.

    Args:
        prompts: The prepared set; the id of a prompt is its position in it.
        samples: The shard; it is not empty.
        iteration: The iteration whose opponent wrote the samples.
    """
    # Group the samples by prompt.
    samples_of: dict[int, list[Sample]] = {}
    for sample in read_rows(samples, Sample):
        samples_of.setdefault(sample.prompt_id, []).append(sample)

    # Read only the row groups that hold these prompts.
    rows = read_rows(prompts, Prompt, min(samples_of), max(samples_of) + 1)
    prompt_of = {prompt.prompt_id: prompt for prompt in rows}
    return [SampleGroup(prompt_of[prompt_id], group, iteration) for prompt_id, group in samples_of.items()]


def make_truth_group(group: SampleGroup) -> SampleGroup:
    """Return the prompt of a group with its ground truth in place of the samples."""
    prompt = group.prompt
    truth = Sample(
        prompt.prompt_id, TRUTH_INDEX, prompt.completion_ids, prompt.finish_reason, math.nan, prompt.completion_text
    )
    return SampleGroup(prompt, [truth], group.iteration)


def add_judgements(groups: list[SampleGroup], path: Path, mode: JudgeMode) -> list[SampleGroup]:
    """Return the groups of one shard with a judge's comparisons or scores, from its file."""
    if mode is JudgeMode.scores:
        scores_of: dict[int, list[JudgedScore]] = {}
        for score in read_rows(path, JudgedScore):
            scores_of.setdefault(score.prompt_id, []).append(score)
        return [replace(group, scores=scores_of[group.prompt.prompt_id]) for group in groups]
    judgements_of: dict[int, list[Judgement]] = {}
    for judgement in read_rows(path, Judgement):
        judgements_of.setdefault(judgement.prompt_id, []).append(judgement)
    return [replace(group, judgements=judgements_of[group.prompt.prompt_id]) for group in groups]
