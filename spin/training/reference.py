"""From samples to scored pairs: label, drop what teaches nothing, add what is replayed, score under the reference.

One shard is one finished file. Labelled data take the second half of the same way.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spin.config.run import RunConfig
from spin.config.training import Dtype
from spin.data.parquet import read_rows, write_rows
from spin.data.records import Pair, Rating, from_pair, from_rating
from spin.feedback.pairs import PairsJob, build_pairs
from spin.models.policy import Policy
from spin.training.batches import group_by_prompt

if TYPE_CHECKING:
    from spin.training.trainer import Trainer


def allowed_engine_gap(dtype: Dtype) -> float:
    """Return the largest mean difference, in nats a token, that engine and trainer may have for one policy."""
    return {Dtype.float32: 1e-3, Dtype.bfloat16: 5e-2}[dtype]


def engine_gap(trainer_logps: Sequence[float], engine_logps: Sequence[float], num_tokens: int) -> float:
    """Return the mean difference of log-probabilities between trainer and engine, in nats a token."""
    difference = sum(abs(ours - theirs) for ours, theirs in zip(trainer_logps, engine_logps, strict=True))
    return difference / max(1, num_tokens)


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
    pairs, dropped = build_pairs(job)
    for iteration, path in job.replayed:
        pairs += [pair for pair in read_rows(Path(path), Pair) if pair.iteration == iteration]
    pairs = _scored(trainer, job.reference, pairs, job.config)
    own = [pair for pair in pairs if pair.iteration == job.iteration]
    gap = math.nan
    if job.reference.digest == job.opponent.digest:
        trainer_logps = [pair.reference_rejected_logp for pair in own]
        engine_logps = [pair.sampler_rejected_logp for pair in own]
        gap = engine_gap(trainer_logps, engine_logps, sum(len(pair.rejected_ids) for pair in own))
        allowed = allowed_engine_gap(job.config.model.dtype)
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


def score_labelled(trainer: Trainer, job: LabelledJob) -> dict[str, Any]:
    """A whole set of labelled pairs or ratings with the reference's log-probabilities."""
    start = time.perf_counter()
    rows: list[Any]
    if job.kind is Pair:
        rows = _scored(trainer, job.reference, read_rows(Path(job.path), Pair), job.config)
    else:
        ratings = read_rows(Path(job.path), Rating)
        groups, places = group_by_prompt([from_rating(rating) for rating in ratings])
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
    groups, places = group_by_prompt([from_pair(pair) for pair in pairs])
    scores = trainer.score(reference, groups, config.training)
    return [
        replace(pair, reference_chosen_logp=scores[group][chosen], reference_rejected_logp=scores[group][rejected])
        for pair, (group, (chosen, rejected)) in zip(pairs, places, strict=True)
    ]
