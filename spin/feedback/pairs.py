"""Turn the samples of one shard into preference pairs, and drop the pairs that carry no signal."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from spin.config.groups import PairsConfig
from spin.config.run import RunConfig, import_target
from spin.data.answer_matching import is_identical, is_right
from spin.data.parquet import read_rows
from spin.data.records import Pair, Prompt, Sample
from spin.models.policy import Policy


@dataclass(frozen=True)
class PairsJob:
    """One shard of samples to label and score."""

    config: RunConfig
    iteration: int
    opponent: Policy
    reference: Policy
    prompts: str
    samples: str
    replayed: list[tuple[int, str]]
    """Earlier iterations, each with its shard of pairs for the same prompts."""
    out: str


def label(job: PairsJob) -> tuple[list[Pair], dict[str, int]]:
    """The pairs of one shard of samples that are kept, and how many were dropped by which reason."""
    answers: dict[int, list[Sample]] = {}
    for sample in read_rows(Path(job.samples), Sample):
        answers.setdefault(sample.prompt_id, []).append(sample)
    prompts = {
        prompt.prompt_id: prompt for prompt in read_rows(Path(job.prompts), Prompt, min(answers), max(answers) + 1)
    }  # an id is a position
    assert job.config.feedback._target_ is not None
    feedback = import_target("feedback._target_", job.config.feedback._target_)()
    kept: list[Pair] = []
    dropped: Counter[str] = Counter()
    for prompt_id, group in answers.items():
        samples = {sample.sample_index: sample for sample in group}
        for pair in feedback.label(prompts[prompt_id], group, job.iteration):
            reason = drop_reason(
                job.config.pairs, prompts[prompt_id], pair, samples[pair.sample_index], job.config.data.answer_pattern
            )
            if reason is None:
                kept.append(pair)
            else:
                dropped[reason] += 1
    return kept, dict(dropped)


def drop_reason(config: PairsConfig, prompt: Prompt, pair: Pair, sample: Sample, pattern: str | None) -> str | None:
    """Why a pair is not trained on: ``identical``, ``cut`` or ``right``; None where it is."""
    identical = pair.chosen_ids == pair.rejected_ids
    if pair.chosen_ids == prompt.completion_ids:
        identical = is_identical(prompt, sample.completion_ids, sample.finish_reason, sample.text)
    if config.drop_identical and identical:
        return "identical"
    if config.drop_cut and sample.finish_reason == "length":
        return "cut"
    if config.drop_right and is_right(prompt, sample, pattern):
        return "right"
    return None
