"""The judgements of one shard of samples as a file, and what they say of the judge."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spin.config.judge import JudgedPairsConfig, JudgeMode, OnFailure
from spin.config.objective import PsipoObjective
from spin.config.objective_base import ObjectiveConfig
from spin.config.run import RunConfig
from spin.data.judge_records import JudgedScore, Judgement
from spin.data.parquet import write_rows
from spin.errors import TrainingError
from spin.feedback.judge_comparison import TRUTH, compare_answers, find_bias, is_tie, picks_same_place
from spin.feedback.judge_scores import compare_with_truth, find_scale_bias, picks_same_end, score_answers
from spin.feedback.judge_template import AskJudge, JudgeTemplate
from spin.feedback.sample_group import read_sample_groups
from spin.models.policy import Policy
from spin.run_dir.judge_statistics import JudgeStatistics


@dataclass(frozen=True)
class JudgementsJob:
    """One shard of samples to be judged."""

    config: RunConfig
    iteration: int
    judge: Policy
    """The judge's weights."""
    template: JudgeTemplate
    prompts: str
    samples: str
    out: str


def write_judgements(ask: AskJudge, job: JudgementsJob) -> dict[str, Any]:
    """Let a judge judge the answers of one shard; returns the facts of the ledger line.

    Raises:
        TrainingError: More judgements failed than `feedback.judged.max_failures` allows.
    """
    start = time.perf_counter()
    config = job.config
    settings = config.feedback.judged
    groups = read_sample_groups(Path(job.prompts), Path(job.samples), job.iteration)
    record: type[Judgement] | type[JudgedScore] = Judgement
    judgements: Sequence[Judgement] | Sequence[JudgedScore]
    if config.judge.mode is JudgeMode.scores:
        record = JudgedScore
        judgements = scores = score_answers(ask, config, job.template, groups)
        statistics = measure_scores(scores)
        asked_twice = config.judge.both_scales
    else:
        judgements = comparisons = compare_answers(ask, config, job.template, groups)
        statistics = measure_judge(comparisons, settings, find_clamp(config.objective))
        asked_twice = config.judge.both_orders
    statistics.questions = len(judgements) * (1 + asked_twice)

    # Look for a broken judge before anything is written.
    check_failures(statistics, settings, job.samples)
    return {
        "out": job.out,
        "sha256": write_rows(Path(job.out), record, judgements),
        "rows": len(judgements),
        "judge": asdict(statistics),
        "seconds": time.perf_counter() - start,
    }


def find_clamp(objective: ObjectiveConfig) -> float:
    """Return to how far from 0 and 1 an objective limits preferences; 0 if it does not."""
    # The identity is not clamped.
    if isinstance(objective, PsipoObjective) and objective.psi != "identity":
        return objective.clamp
    return 0.0


def measure_judge(judgements: Sequence[Judgement], settings: JudgedPairsConfig, clamp: float = 0.0) -> JudgeStatistics:
    """Return the statistics of a judge's comparisons.

    Args:
        judgements: The comparisons.
        settings: `feedback.judged`.
        clamp: Preferences below it, or above 1 − it, are counted.
    """
    statistics = JudgeStatistics(comparisons=len(judgements))
    failures: Counter[str] = Counter()
    for judgement in judgements:
        if judgement.failure is not None:
            failures[judgement.failure] += 1
            continue
        statistics.mass.add(judgement.mass_forward)
        # Both orders are needed to tell the answers from their places.
        if not math.isnan(judgement.backward):
            statistics.mass.add(judgement.mass_backward)
            statistics.bias.add(find_bias(judgement))
            statistics.same_place.add(float(picks_same_place(judgement)))
        statistics.ties += is_tie(judgement, settings.tie_band)
        statistics.clamped += not clamp <= judgement.preference <= 1 - clamp
        # The truth is always the first of a comparison.
        if judgement.first == TRUTH:
            statistics.truth.add(1.0 if judgement.preference > 0.5 else 0.5 * (judgement.preference == 0.5))
    statistics.failures = dict(failures)
    return statistics


def measure_scores(scores: Sequence[JudgedScore]) -> JudgeStatistics:
    """Return the statistics of a judge's scores."""
    statistics = JudgeStatistics(comparisons=len(scores))
    failures: Counter[str] = Counter()
    for score in scores:
        if score.failure is not None:
            failures[score.failure] += 1
            continue
        if score.sample_index != TRUTH:
            statistics.score.add(score.score)
        statistics.mass.add(score.mass_forward)
        # Both scales are needed to tell the answer from the numbers.
        if not math.isnan(score.backward):
            statistics.mass.add(score.mass_backward)
            statistics.bias.add(find_scale_bias(score))
            statistics.same_place.add(float(picks_same_end(score)))
    for agreement in compare_with_truth(scores):
        statistics.truth.add(agreement)
    statistics.failures = dict(failures)
    return statistics


def check_failures(statistics: JudgeStatistics, settings: JudgedPairsConfig, samples: str) -> None:
    """Raise TrainingError when too many judgements of a shard failed."""
    allowed = settings.max_failures
    if settings.on_failure is OnFailure.abort:
        allowed = 0.0
    failed = statistics.num_failures
    if failed <= allowed * statistics.comparisons:
        return
    reasons = [f"{count} {reason}" for reason, count in sorted(statistics.failures.items())]
    raise TrainingError(
        f"{samples}: the judge failed in {failed} of {statistics.comparisons} judgements ({', '.join(reasons)}); "
        f"allowed are {allowed:.0%}: see feedback.judged.max_failures, min_mass and judge.max_prompt_tokens"
    )
