"""The judgements of one shard of samples as a file, and what they say of the judge."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spin.config.judge import Contestants, JudgedPairChoice, JudgedPairsConfig, OnFailure
from spin.config.objective import PsipoObjective
from spin.config.objective_base import ObjectiveConfig
from spin.config.run import RunConfig
from spin.data.parquet import write_rows
from spin.data.records import Judgement
from spin.errors import TrainingError
from spin.feedback.judge_comparison import (
    TRUTH,
    combine_orders,
    find_bias,
    is_tie,
    list_comparisons,
    picks_same_place,
)
from spin.feedback.judge_labels import LabelProbabilities
from spin.feedback.judge_template import JudgeTemplate, Question
from spin.feedback.sample_group import SampleGroup, read_sample_groups
from spin.models.policy import Policy
from spin.run_dir.judge_statistics import JudgeStatistics

AskJudge = Callable[[Sequence[Question]], list[LabelProbabilities]]
"""Asks a judge; returns the probabilities of the labels for each question."""


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


def list_contestants(group: SampleGroup, contestants: Contestants) -> list[int]:
    """Return the indices of the answers that are compared."""
    samples = [sample.sample_index for sample in group.samples]
    if contestants is Contestants.truth_and_samples:
        return [TRUTH, *samples]
    return samples


def write_judgements(ask: AskJudge, job: JudgementsJob) -> dict[str, Any]:
    """Let a judge compare the answers of one shard; returns the facts of the ledger line.

    Raises:
        TrainingError: More comparisons failed than `feedback.judged.max_failures` allows.
    """
    start = time.perf_counter()
    settings = job.config.feedback.judged
    groups = read_sample_groups(Path(job.prompts), Path(job.samples), job.iteration)

    # Every pair of answers in both orders, or in the first one alone.
    keys: list[tuple[int, tuple[int, int]]] = []
    questions: list[Question] = []
    for group in groups:
        texts = {sample.sample_index: sample.text for sample in group.samples}
        texts[TRUTH] = group.prompt.completion_text
        prompt = group.prompt.prompt_text
        answers = list_contestants(group, settings.contestants)
        for first, second in list_comparisons(answers, settings.pairs is JudgedPairChoice.truth):
            keys.append((group.prompt.prompt_id, (first, second)))
            questions.append(job.template.ask(prompt, [texts[first], texts[second]]))
            if job.config.judge.both_orders:
                questions.append(job.template.ask(prompt, [texts[second], texts[first]]))

    # Ask all at once, so that an engine can work in batches.
    replies = iter(ask(questions))
    judgements = []
    for prompt_id, pair in keys:
        forward = next(replies)
        backward = None
        if job.config.judge.both_orders:
            backward = next(replies)
        judgements.append(combine_orders(prompt_id, pair, forward, backward, settings.min_mass))

    # Look for a broken judge before anything is written.
    statistics = measure_judge(judgements, settings, find_clamp(job.config.objective))
    statistics.questions = len(questions)
    check_failures(statistics, settings, job.samples)
    return {
        "out": job.out,
        "sha256": write_rows(Path(job.out), Judgement, judgements),
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


def check_failures(statistics: JudgeStatistics, settings: JudgedPairsConfig, samples: str) -> None:
    """Raise TrainingError when too many comparisons of a shard failed."""
    allowed = settings.max_failures
    if settings.on_failure is OnFailure.abort:
        allowed = 0.0
    failed = statistics.num_failures
    if failed <= allowed * statistics.comparisons:
        return
    reasons = [f"{count} {reason}" for reason, count in sorted(statistics.failures.items())]
    raise TrainingError(
        f"{samples}: the judge failed in {failed} of {statistics.comparisons} comparisons ({', '.join(reasons)}); "
        f"allowed are {allowed:.0%}: see feedback.judged.max_failures, min_mass and judge.max_prompt_tokens"
    )
