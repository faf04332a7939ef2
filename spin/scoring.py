"""From samples to scored pairs: label, drop what teaches nothing, add what is replayed, score under the reference.

One shard is one finished file. Labelled data take the second half of the same way.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spin.benchmark.heldout import is_right
from spin.config import RunConfig, imported
from spin.examples import from_pair, from_rating, merge
from spin.groups import PairsConfig
from spin.model import Policy
from spin.records import Pair, Prompt, Rating, Sample, read_rows, write_rows

if TYPE_CHECKING:
    from spin.trainer import Trainer

ENGINE_GAP_PER_TOKEN = {"float32": 1e-3, "bfloat16": 5e-2}
"""Largest mean difference, in nats a token, between the engine's log-probabilities and the trainer's before the run is refused."""


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


@dataclass(frozen=True)
class LabelledJob:
    """A set of labelled pairs or ratings to score."""

    config: RunConfig
    reference: Policy
    kind: type
    path: str
    out: str


def score_pairs(trainer: Trainer, job: PairsJob) -> dict[str, Any]:
    """The shard's pairs with the reference's log-probabilities. Raises RuntimeError when engine and trainer do not agree about the opponent's samples."""
    start = time.perf_counter()
    pairs, dropped = label(job)
    for iteration, path in job.replayed:
        pairs += [pair for pair in read_rows(Path(path), Pair) if pair.iteration == iteration]
    pairs = _scored(trainer, job.reference, pairs, job.config)
    own = [pair for pair in pairs if pair.iteration == job.iteration]
    gap = math.nan
    if job.reference.digest == job.opponent.digest:
        gap = sum(abs(p.reference_generated_logp - p.engine_generated_logp) for p in own) / max(
            1, sum(len(p.generated_ids) for p in own)
        )
        allowed = ENGINE_GAP_PER_TOKEN[job.config.model.dtype.name]
        if not gap <= allowed:  # NaN too
            raise RuntimeError(
                f"{job.samples}: engine and trainer differ by {gap:.3g} nats a token (allowed {allowed:g}): they do not hold the same weights"
            )
    return {
        "out": job.out,
        "sha256": write_rows(Path(job.out), Pair, pairs),
        "rows": len(pairs),
        "replayed": len(pairs) - len(own),
        "dropped": dropped,
        "engine_gap": gap if math.isfinite(gap) else None,
        "seconds": time.perf_counter() - start,
    }


def label(job: PairsJob) -> tuple[list[Pair], dict[str, int]]:
    """The pairs of one shard of samples that are kept, and how many were dropped by which reason."""
    answers: dict[int, list[Sample]] = {}
    for sample in read_rows(Path(job.samples), Sample):
        answers.setdefault(sample.prompt_id, []).append(sample)
    prompts = {
        prompt.prompt_id: prompt for prompt in read_rows(Path(job.prompts), Prompt, min(answers), max(answers) + 1)
    }  # an id is a position
    assert job.config.feedback._target_ is not None
    feedback = imported("feedback._target_", job.config.feedback._target_)()
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
    if config.drop_identical and pair.real_ids == pair.generated_ids:
        return "identical"
    if config.drop_cut and sample.finish_reason == "length":
        return "cut"
    if config.drop_right and is_right(prompt, sample, pattern):
        return "right"
    return None


def score_labelled(trainer: Trainer, job: LabelledJob) -> dict[str, Any]:
    """A whole set of labelled pairs or ratings with the reference's log-probabilities."""
    start = time.perf_counter()
    rows: list[Any]
    if job.kind is Pair:
        rows = _scored(trainer, job.reference, read_rows(Path(job.path), Pair), job.config)
    else:
        ratings = read_rows(Path(job.path), Rating)
        groups, places = merge([from_rating(rating) for rating in ratings])
        scores = trainer.score(job.reference, groups, job.config.training)
        rows = [
            replace(rating, reference_logp=scores[group][at])
            for rating, (group, (at,)) in zip(ratings, places, strict=True)
        ]
    return {
        "out": job.out,
        "sha256": write_rows(Path(job.out), job.kind, rows),
        "rows": len(rows),
        "seconds": time.perf_counter() - start,
    }


def _scored(trainer: Trainer, reference: Policy, pairs: list[Pair], config: RunConfig) -> list[Pair]:
    """Every distinct completion of a prompt is scored once, however many pairs it stands in."""
    groups, places = merge([from_pair(pair) for pair in pairs])
    scores = trainer.score(reference, groups, config.training)
    return [
        replace(pair, reference_real_logp=scores[group][real], reference_generated_logp=scores[group][generated])
        for pair, (group, (real, generated)) in zip(pairs, places, strict=True)
    ]
