"""Compute held-out metrics and their 95 % intervals from the judged answers of a policy.

`benchmark.json` of a policy has one key for each metric, and the keys `intervals` and `speed`:

    {"heldout": 500, "exact_match_greedy": 0.81, …, "win_rate": null,
     "intervals": {"exact_match_greedy": [0.78, 0.85], …},
     "speed": {"seconds_generate": 2.6, …}}

Every metric is a ratio of two sums over prompts, so one bootstrap resample of the prompts serves
all metrics. Differences of two policies are paired: both policies use the same resamples. A metric that
is null has no interval. `speed` differs from run to run, the other values do not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spin.config.benchmark import HIGHER_IS_BETTER
from spin.data.answer_matching import is_identical, is_right
from spin.data.records import HeldoutAnswer, Prompt, Sample

Column = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Numerator and denominator of a metric for each prompt. Shapes (prompts,)."""

Interval = tuple[float, float, float]
"""Value of a metric, then the lower and the upper end of its 95 % interval."""

MEANS = {
    "exact_match_greedy": "greedy_right",
    "exact_match_sampled": "sampled_share",
    "truncated": "sampled_cut",
    "length_greedy": "greedy_tokens",
    "length_sampled": "sampled_tokens",
    "repetition_greedy": "greedy_repetition",
    "repetition_sampled": "sampled_repetition",
    "kl_to_start": "kl",
}
"""Metrics that are the mean of a field of `HeldoutAnswer` over the prompts, with that field."""

COMPARED = ("exact_match_greedy", "exact_match_sampled", "nll")
"""Metrics whose change since the previous policy is a metric too, such as ``nll_change``."""

RESAMPLES = 2000
"""Number of bootstrap resamples."""

BLOCK = 100
"""Number of resamples drawn at the same time, to limit memory."""


def compute_columns(answers: Sequence[HeldoutAnswer]) -> dict[str, Column]:
    """Return the columns of all metrics. The denominators of a null metric sum to 0."""
    columns = {}
    ones = np.ones(len(answers))
    for name, field in MEANS.items():
        columns[name] = (_field_column(answers, field), ones)
    # The NLL is a mean over tokens: long targets weigh more.
    columns["nll"] = (-_field_column(answers, "target_logp"), _field_column(answers, "target_tokens"))
    # The margin is NaN without an opponent, and if the opponent's answer is the target. Such a
    # prompt does not count.
    margins = _field_column(answers, "margin")
    columns["win_rate"] = ((margins > 0).astype(np.float64), (~np.isnan(margins)).astype(np.float64))
    return {name: columns[name] for name in HIGHER_IS_BETTER}


def _field_column(answers: Sequence[HeldoutAnswer], field: str) -> NDArray[np.float64]:
    """Return one field of all answers, Shape (prompts,)."""
    return np.asarray([getattr(answer, field) for answer in answers], dtype=np.float64)


def compute_metrics(
    answers: Sequence[HeldoutAnswer], before: Sequence[HeldoutAnswer] | None = None, seed: int = 0
) -> dict[str, Any]:
    """Return the content of `benchmark.json` except `speed`.

    Args:
        answers: Judged answers of the policy.
        before: Judged answers of the previous policy to the same prompts; None for the start.
        seed: Seed of the bootstrap.

    Returns: by name,
        exact_match_*: Share of right answers.
        nll: Negative log-likelihood of the target, in nats per token.
        win_rate: Share of prompts with a positive margin.
        truncated: Share of the sampled answers that reached the token limit.
        length_*: Tokens of an answer, including the end token.
        repetition_*: Share of the 4-grams of an answer that occurred before.
        kl_to_start: Nats per answer, estimated on the policy's own answers.
    """
    # The metrics, and the changes of some since the previous policy.
    columns = compute_columns(answers)
    found = bootstrap(columns, seed)
    if before is not None:
        changes = bootstrap_difference(columns, compute_columns(before), COMPARED, seed)
        for name, change in changes.items():
            found[f"{name}_change"] = change

    # The file lists each metric by name and all intervals under one key.
    metrics: dict[str, Any] = {"heldout": len(answers)}
    intervals = {}
    for name, (value, low, high) in found.items():
        metrics[name] = value
        intervals[name] = [low, high]
    # A null metric is listed too, so that all files have the same keys.
    for name in HIGHER_IS_BETTER:
        metrics.setdefault(name, None)
    metrics["intervals"] = intervals
    return metrics


def bootstrap(columns: Mapping[str, Column], seed: int) -> dict[str, Interval]:
    """Return each metric that is not null with its 95 % interval, by resampling prompts."""
    known = {name: column for name, column in columns.items() if column[1].sum() > 0}
    draws = _resample(list(known.values()), seed)
    intervals = {}
    for index, (name, column) in enumerate(known.items()):
        intervals[name] = (_ratio(column), *_find_ends(draws[:, index]))
    return intervals


def bootstrap_difference(
    ours: Mapping[str, Column], theirs: Mapping[str, Column], names: Sequence[str], seed: int
) -> dict[str, Interval]:
    """Return our metrics minus theirs on the same prompts, with 95 % intervals."""
    columns = [ours[name] for name in names]
    columns += [theirs[name] for name in names]
    # Both policies in one call, so that each resample takes the same prompts of both.
    draws = _resample(columns, seed)
    differences = draws[:, : len(names)] - draws[:, len(names) :]
    intervals = {}
    for index, name in enumerate(names):
        value = _ratio(ours[name]) - _ratio(theirs[name])
        intervals[name] = (value, *_find_ends(differences[:, index]))
    return intervals


def is_worse(interval: Sequence[float], name: str) -> bool:
    """Return True if a metric changed for the worse, and its interval (low, high) excludes 0."""
    low, high = interval
    if HIGHER_IS_BETTER[name]:
        return high < 0
    return low > 0


def _ratio(column: Column) -> float:
    numerators, denominators = column
    return float(numerators.sum() / denominators.sum())


def _resample(columns: Sequence[Column], seed: int) -> NDArray[np.float64]:
    """Return the metrics of RESAMPLES bootstrap resamples of the prompts.

    Each resample draws as many prompts as there are, with replacement.

    Returns: Shape (RESAMPLES, metrics); NaN where the denominator of a resample is 0.
    """
    numerators = np.stack([column[0] for column in columns], axis=1)  # [prompts, metrics]
    denominators = np.stack([column[1] for column in columns], axis=1)  # [prompts, metrics]
    num_prompts = len(numerators)
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(RESAMPLES // BLOCK):
        # How often each prompt was drawn: sums over a resample are then one matrix product.
        counts = rng.multinomial(num_prompts, np.full(num_prompts, 1 / num_prompts), size=BLOCK)
        counts = counts.astype(np.float64)  # [BLOCK, prompts]
        with np.errstate(invalid="ignore"):
            draws.append((counts @ numerators) / (counts @ denominators))
    return np.concatenate(draws)


def _find_ends(draws: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return float(low), float(high)


def judge_answers(
    prompts: Sequence[Prompt],
    greedy: Sequence[Sample],
    sampled: Sequence[Sequence[Sample]],
    logps: Sequence[Sequence[float]],
    start_logps: Sequence[Sequence[float]] | None,
    opponent: Sequence[HeldoutAnswer] | None,
    pattern: str | None,
) -> list[HeldoutAnswer]:
    """Return one judged row for each prompt.

    Args:
        prompts: Held-out prompts. All other arguments have one item for each, in this order.
        greedy: Greedy answer of the policy.
        sampled: Sampled answers of the policy.
        logps: Log-probabilities under the policy: of the target, of each sampled answer and, with
            an opponent, of the opponent's first sampled answer.
        start_logps: Log-probabilities under the starting policy, of each sampled answer. None if
            this policy is the starting policy.
        opponent: Judged answers of the previous policy; None for the starting policy.
        pattern: Regular expression for the part of an answer to compare; None: the whole text.
    """
    rows = []
    for index, (prompt, best, samples) in enumerate(zip(prompts, greedy, sampled, strict=True)):
        own_logps = logps[index]
        # Estimate of the KL: the mean of log p − log p_start over the policy's own answers. An
        # opponent's answer at the end of `own_logps` has no partner.
        kl = 0.0
        if start_logps is not None:
            log_ratios = []
            for own, start in zip(own_logps[1:], start_logps[index], strict=False):
                log_ratios.append(own - start)
            kl = _mean(log_ratios)

        # Measures of each sampled answer; the row keeps their means.
        rights: list[bool] = []
        truncated: list[bool] = []
        lengths: list[int] = []
        repetitions: list[float] = []
        for sample in samples:
            rights.append(is_right(prompt, sample, pattern))
            truncated.append(sample.finish_reason == "length")
            lengths.append(len(sample.completion_ids))
            repetitions.append(measure_repetition(sample.completion_ids))

        margin = math.nan
        if opponent is not None:
            margin = compute_margin(prompt, opponent[index], own_logps)
        row = HeldoutAnswer(
            prompt_id=prompt.prompt_id,
            prompt_text=prompt.prompt_text,
            target_text=prompt.completion_text,
            greedy_text=best.text,
            greedy_right=is_right(prompt, best, pattern),
            sampled_text=samples[0].text,
            sampled_right=rights[0],
            sampled_ids=samples[0].completion_ids,
            sampled_finish=samples[0].finish_reason,
            target_logp=own_logps[0],
            sampled_logp=own_logps[1],
            target_tokens=len(prompt.completion_ids),
            greedy_tokens=len(best.completion_ids),
            greedy_repetition=measure_repetition(best.completion_ids),
            sampled_share=_mean(rights),
            sampled_cut=_mean(truncated),
            sampled_tokens=_mean(lengths),
            sampled_repetition=_mean(repetitions),
            kl=kl,
            margin=margin,
        )
        rows.append(row)
    return rows


def measure_repetition(token_ids: Sequence[int], n: int = 4) -> float:
    """Return the share of n-grams that occurred before: 1 − distinct ÷ all.

    This is rep-n of arXiv 1908.04319. It is 0 for fewer than n tokens.
    """
    num_grams = len(token_ids) - n + 1
    if num_grams <= 0:
        return 0.0
    distinct = set()
    for first in range(num_grams):
        distinct.add(tuple(token_ids[first : first + n]))
    return 1 - len(distinct) / num_grams


def compute_margin(prompt: Prompt, opponent: HeldoutAnswer, logps: Sequence[float]) -> float:
    """Return the margin of the target over the opponent's answer, with the opponent as reference.

    Args:
        prompt: Held-out prompt with its target.
        opponent: Judged answer of the opponent to this prompt.
        logps: Log-probabilities under the policy, first of the target, last of the opponent's
            answer.

    Returns: nats; NaN if the opponent's answer is the target.
    """
    if is_identical(prompt, opponent.sampled_ids, opponent.sampled_finish, opponent.sampled_text):
        return math.nan
    # Implicit rewards of the SPIN objective without the factor beta, which changes no sign.
    target_reward = logps[0] - opponent.target_logp
    opponent_reward = logps[-1] - opponent.sampled_logp
    return target_reward - opponent_reward


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
