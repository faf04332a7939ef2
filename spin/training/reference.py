"""Score training rows under the reference policy.

    samples ──► rows ──► dropped rows go ──► replayed rows come ──► log π_ref ──► pairs/0

One shard of samples gives one finished file of pairs or ratings. Labelled rows are scored as they
are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spin.config.policy_gradient import has_critic_head
from spin.config.run import RunConfig
from spin.config.training import Dtype
from spin.data.examples import to_example
from spin.data.parquet import read_rows, write_rows
from spin.data.records import Pair, Rating, TrainingRow
from spin.data.rollouts import Rollout
from spin.feedback.rows import RowsJob, build_rows
from spin.feedback.start_answers import add_start_answers
from spin.models.policy import Policy
from spin.training.batches import group_by_prompt
from spin.training.rollout_scoring import add_advantages, measure_rollouts, score_rollouts

if TYPE_CHECKING:
    from spin.training.policy_scorer import PolicyScorer


def allowed_engine_gap(dtype: Dtype, uses_gpu: bool) -> float:
    """Return by how much engine and trainer may differ for one policy, in nats per token.

    On a GPU vLLM's float32 attention multiplies in TF32, with 10 bits of precision: up to 0.0024
    nats were seen on an H100 with a policy that is sure of its answers.
    """
    if dtype is Dtype.bfloat16:
        return 5e-2
    if uses_gpu:
        return 1e-2
    return 1e-3


def engine_gap(trainer_logps: Sequence[float], engine_logps: Sequence[float], num_tokens: int) -> float:
    """Return the mean difference between trainer and engine, in nats per token."""
    difference = sum(abs(ours - theirs) for ours, theirs in zip(trainer_logps, engine_logps, strict=True))
    return difference / max(1, num_tokens)


@dataclass(frozen=True)
class LabelledJob:
    """A set of labelled pairs or ratings to score."""

    config: RunConfig
    reference: Policy
    row_type: type[TrainingRow]
    path: str
    out: str
    base: Policy | None = None
    """The policy that iteration 0 started from, if the reference is a mixture with it."""


def score_rows(trainer: PolicyScorer, job: RowsJob) -> dict[str, Any]:
    """Write one shard of pairs or ratings with the reference's log-probabilities.

    Returns:
        The facts of the ledger line.

    Raises:
        RuntimeError: Engine and trainer disagree about the opponent's samples.
    """
    # Build the rows of the shard and add replayed ones.
    start = time.perf_counter()
    built = build_rows(job)
    rows = list(built.rows)
    for iteration, path in job.replayed:
        rows += [row for row in read_rows(Path(path), built.row_type) if row.iteration == iteration]
    rows = add_start_answers(rows, job.start_samples)
    rollouts = [row for row in rows if isinstance(row, Rollout)]
    if rollouts:
        objective = job.config.objective
        policies = (job.opponent, job.base, job.critic)
        scored = score_rollouts(trainer, *policies, rollouts, job.config.training, has_critic_head(objective))
        rollouts = add_advantages(scored, objective)
        rows = [*rollouts]
    else:
        rows = _score(trainer, job.reference, job.base, rows, job.config)

    # If the reference wrote the samples, its figures must be those of the engine.
    own = [row for row in rows if row.iteration == job.iteration]
    gap = math.nan
    if job.reference.digest == job.opponent.digest:
        gap = _measure_gap(own)
        uses_gpu = trainer.accelerator.device.type == "cuda"
        allowed = allowed_engine_gap(job.config.model.dtype, uses_gpu)
        # Written so that NaN fails too.
        if not gap <= allowed:
            raise RuntimeError(
                f"{job.samples}: engine and trainer differ by {gap:.3g} nats a token (allowed {allowed:g}): "
                "they do not hold the same weights"
            )
    rewards = None
    if built.rewards is not None:
        rewards = asdict(built.rewards)
    return {
        "out": job.out,
        "sha256": write_rows(Path(job.out), built.row_type, rows),
        "rows": len(rows),
        "replayed": len(rows) - len(own),
        "dropped": built.dropped,
        "rewards": rewards,
        "rollouts": measure_rollouts(rollouts),
        "engine_gap": gap if math.isfinite(gap) else None,
        "seconds": time.perf_counter() - start,
    }


def score_labelled(trainer: PolicyScorer, job: LabelledJob) -> dict[str, Any]:
    """Write a set of labelled pairs or ratings with the reference's log-probabilities.

    Returns:
        The facts of the ledger line.
    """
    start = time.perf_counter()
    rows = _score(trainer, job.reference, job.base, read_rows(Path(job.path), job.row_type), job.config)
    return {
        "out": job.out,
        "sha256": write_rows(Path(job.out), job.row_type, rows),
        "rows": len(rows),
        "seconds": time.perf_counter() - start,
    }


def _score(
    trainer: PolicyScorer,
    reference: Policy,
    base: Policy | None,
    rows: Sequence[TrainingRow],
    config: RunConfig,
) -> list[TrainingRow]:
    """Return rows with the log-probabilities of the reference and, if given, of the base.

    Each distinct completion of a prompt is scored once, however many rows it is in.
    """
    groups, places = group_by_prompt([to_example(row) for row in rows])
    scores = trainer.score(reference, groups, config.training)
    # In iteration 0 the opponent is the base.
    base_scores = scores
    if base is not None and base.digest != reference.digest:
        base_scores = trainer.score(base, groups, config.training)

    scored: list[TrainingRow] = []
    for row, (group, row_places) in zip(rows, places, strict=True):
        logps = [scores[group][place] for place in row_places]
        if isinstance(row, Pair):
            row = replace(row, reference_chosen_logp=logps[0], reference_rejected_logp=logps[1])
            if row.start_ids:
                row = replace(row, reference_start_logp=logps[2])
            # A replayed pair may have figures of a base that this objective does not mix.
            base_logps = [math.nan, math.nan]
            if base is not None:
                base_logps = [base_scores[group][place] for place in row_places]
            row = replace(row, base_chosen_logp=base_logps[0], base_rejected_logp=base_logps[1])
            scored.append(row)
        elif isinstance(row, Rating):
            scored.append(replace(row, reference_logp=logps[0]))
    return scored


def _measure_gap(rows: Sequence[TrainingRow]) -> float:
    """Return the gap between trainer and engine over the samples that the rows were built from."""
    trainer_logps: list[float] = []
    engine_logps: list[float] = []
    num_tokens = 0
    for row in rows:
        if isinstance(row, Pair):
            trainer_logps.append(row.reference_rejected_logp)
            engine_logps.append(row.sampler_rejected_logp)
            num_tokens += len(row.rejected_ids)
        elif isinstance(row, Rollout):
            trainer_logps.append(sum(row.old_logps))
            engine_logps.append(row.sampler_logp)
            num_tokens += len(row.completion_ids)
        else:
            trainer_logps.append(row.reference_logp)
            engine_logps.append(row.sampler_logp)
            num_tokens += len(row.completion_ids)
    return engine_gap(trainer_logps, engine_logps, num_tokens)
