"""Score training rows under the reference policy.

    samples ──► pairs ──► dropped pairs go ──► replayed pairs come ──► log π_ref ──► pairs/0

One shard of samples gives one finished file of pairs. Labelled rows are scored as they are.
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
    from spin.training.policy_scorer import PolicyScorer


def allowed_engine_gap(dtype: Dtype) -> float:
    """Return by how much engine and trainer may differ for one policy, in nats per token."""
    return {Dtype.float32: 1e-3, Dtype.bfloat16: 5e-2}[dtype]


def engine_gap(trainer_logps: Sequence[float], engine_logps: Sequence[float], num_tokens: int) -> float:
    """Return the mean difference between trainer and engine, in nats per token."""
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


def score_pairs(trainer: PolicyScorer, job: PairsJob) -> dict[str, Any]:
    """Write one shard of pairs with the reference's log-probabilities.

    Returns:
        The facts of the ledger line.

    Raises:
        RuntimeError: Engine and trainer disagree about the opponent's samples.
    """
    # Build the pairs of the shard and add replayed ones.
    start = time.perf_counter()
    pairs, dropped = build_pairs(job)
    for iteration, path in job.replayed:
        pairs += [pair for pair in read_rows(Path(path), Pair) if pair.iteration == iteration]
    pairs = _score(trainer, job.reference, pairs, job.config)

    # If the reference wrote the samples, its figures must be those of the engine.
    own = [pair for pair in pairs if pair.iteration == job.iteration]
    gap = math.nan
    if job.reference.digest == job.opponent.digest:
        trainer_logps = [pair.reference_rejected_logp for pair in own]
        engine_logps = [pair.sampler_rejected_logp for pair in own]
        gap = engine_gap(trainer_logps, engine_logps, sum(len(pair.rejected_ids) for pair in own))
        allowed = allowed_engine_gap(job.config.model.dtype)
        # Written so that NaN fails too.
        if not gap <= allowed:
            raise RuntimeError(
                f"{job.samples}: engine and trainer differ by {gap:.3g} nats a token (allowed {allowed:g}): "
                "they do not hold the same weights"
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


def score_labelled(trainer: PolicyScorer, job: LabelledJob) -> dict[str, Any]:
    """Write a set of labelled pairs or ratings with the reference's log-probabilities.

    Returns:
        The facts of the ledger line.
    """
    start = time.perf_counter()
    rows: list[Any]
    if job.kind is Pair:
        rows = _score(trainer, job.reference, read_rows(Path(job.path), Pair), job.config)
    else:
        ratings = read_rows(Path(job.path), Rating)
        groups, places = group_by_prompt([from_rating(rating) for rating in ratings])
        scores = trainer.score(job.reference, groups, job.config.training)
        rows = []
        for rating, (group, (place,)) in zip(ratings, places, strict=True):
            rows.append(replace(rating, reference_logp=scores[group][place]))
    return {
        "out": job.out,
        "sha256": write_rows(Path(job.out), job.kind, rows),
        "rows": len(rows),
        "seconds": time.perf_counter() - start,
    }


def _score(trainer: PolicyScorer, reference: Policy, pairs: list[Pair], config: RunConfig) -> list[Pair]:
    """Return pairs with the reference's log-probabilities.

    Each distinct completion of a prompt is scored once, however many pairs it is in.
    """
    groups, places = group_by_prompt([from_pair(pair) for pair in pairs])
    scores = trainer.score(reference, groups, config.training)
    scored = []
    for pair, (group, (chosen, rejected)) in zip(pairs, places, strict=True):
        logps = scores[group]
        scored.append(replace(pair, reference_chosen_logp=logps[chosen], reference_rejected_logp=logps[rejected]))
    return scored
