"""Compute held-out metrics with their intervals from the judged answers.

`benchmark.json` of a policy has one key for each metric, and two more:

    {"heldout": 500, "exact_match_greedy": 0.81, …, "win_rate": null,
     "intervals": {"exact_match_greedy": [0.78, 0.85], …},
     "speed": {"seconds_generate": 2.6, …}}

Every metric is a ratio of two sums over prompts. One resample of the prompts therefore serves all
metrics, and differences of two policies are paired: both are resampled alike. `intervals` are 95 %
intervals; a metric that is null has none. `speed` differs from run to run.
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
"""Numerator and denominator of a metric for each prompt. Shape (prompts,) each."""


Interval = tuple[float, float, float]
"""A value with the lower and upper end of its 95 % interval."""


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
"""Metrics that are the mean over the prompts of a field of `HeldoutAnswer`."""


COMPARED = ("exact_match_greedy", "exact_match_sampled", "nll")
"""Metrics whose change against the policy before is a metric too, such as ``nll_change``."""


RESAMPLES = 2000
"""Number of bootstrap resamples."""


BLOCK = 100
"""Resamples drawn at a time, to limit memory."""


def compute_columns(answers: Sequence[HeldoutAnswer]) -> dict[str, Column]:
    """Return the columns of all metrics. A metric with a denominator of 0 is null."""
    columns = {}
    ones = np.ones(len(answers))
    for name, field in MEANS.items():
        columns[name] = (_array([getattr(answer, field) for answer in answers]), ones)
    nlls = _array([-answer.target_logp for answer in answers])
    columns["nll"] = (nlls, _array([answer.target_tokens for answer in answers]))
    # A margin is NaN, and does not count, without an opponent or if its answer is the target.
    margins = _array([answer.margin for answer in answers])
    columns["win_rate"] = (_array(margins > 0), _array(~np.isnan(margins)))
    return {name: columns[name] for name in HIGHER_IS_BETTER}


def _array(values: Any) -> NDArray[np.float64]:
    return np.asarray(values, dtype=np.float64)


def compute_metrics(
    answers: Sequence[HeldoutAnswer], before: Sequence[HeldoutAnswer] | None = None, seed: int = 0
) -> dict[str, Any]:
    """Return the content of `benchmark.json` without the speed.

    Args:
        answers: the judged answers of the policy.
        before: those of the policy before it, to the same prompts.
        seed: of the resampling.

    Returns:
        exact_match_*: share of right answers. nll: of the target, nats per token. win_rate: share
        of prompts with a positive margin. truncated: share of the sampled answers that reached the
        token limit. length_*: tokens, with the end token. kl_to_start: nats per answer, estimated
        on the policy's own answers.
    """
    columns = compute_columns(answers)
    found = bootstrap(columns, seed)
    if before is not None:
        changes = bootstrap_difference(columns, compute_columns(before), COMPARED, seed)
        for name, change in changes.items():
            found[f"{name}_change"] = change
    metrics: dict[str, Any] = {"heldout": len(answers)}
    intervals = {}
    for name, (value, low, high) in found.items():
        metrics[name] = value
        intervals[name] = [low, high]
    for name in HIGHER_IS_BETTER:
        metrics.setdefault(name, None)
    metrics["intervals"] = intervals
    return metrics


def bootstrap(columns: Mapping[str, Column], seed: int) -> dict[str, Interval]:
    """Return each metric with its 95 % interval, by resampling prompts; leave out null metrics."""
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
    draws = _resample(columns, seed)
    differences = draws[:, : len(names)] - draws[:, len(names) :]
    intervals = {}
    for index, name in enumerate(names):
        value = _ratio(ours[name]) - _ratio(theirs[name])
        intervals[name] = (value, *_find_ends(differences[:, index]))
    return intervals


def is_worse(interval: Sequence[float], name: str) -> bool:
    """Return True if the whole interval of a metric's change is on the worse side of 0."""
    low, high = interval
    if HIGHER_IS_BETTER[name]:
        return high < 0
    return low > 0


def _ratio(column: Column) -> float:
    numerators, denominators = column
    return float(numerators.sum() / denominators.sum())


def _resample(columns: Sequence[Column], seed: int) -> NDArray[np.float64]:
    """Return the metrics of RESAMPLES draws of as many prompts, with replacement.

    Shape (resamples, metrics). NaN where the denominator of a draw is 0.
    """
    numerators = np.stack([column[0] for column in columns], axis=1)  # [prompts, metrics]
    denominators = np.stack([column[1] for column in columns], axis=1)  # [prompts, metrics]
    num_prompts = len(numerators)
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(RESAMPLES // BLOCK):
        # How often each prompt was drawn. Shape (BLOCK, prompts)
        counts = rng.multinomial(num_prompts, np.full(num_prompts, 1 / num_prompts), size=BLOCK)
        counts = counts.astype(np.float64)
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
        prompts: the held-out prompts; all other arguments are in their order.
        greedy: the greedy answer.
        sampled: the sampled answers.
        logps: under the policy, of the target, of every sampled answer and, with an opponent, of
            the opponent's first sampled answer.
        start_logps: under the starting policy, of every sampled answer; None if the policy is it.
        opponent: the judged answers of the policy before.
        pattern: extracts what is compared from an answer; None: the whole text.
    """
    rows = []
    for index, (prompt, best, samples) in enumerate(zip(prompts, greedy, sampled, strict=True)):
        own_logps = logps[index]
        # The estimate of the KL: the mean of log p − log p_start over the policy's own answers.
        kl = 0.0
        if start_logps is not None:
            pairs = zip(own_logps[1:], start_logps[index], strict=False)
            kl = _mean([own - start for own, start in pairs])
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
            sampled_right=is_right(prompt, samples[0], pattern),
            sampled_ids=samples[0].completion_ids,
            sampled_finish=samples[0].finish_reason,
            target_logp=own_logps[0],
            sampled_logp=own_logps[1],
            target_tokens=len(prompt.completion_ids),
            greedy_tokens=len(best.completion_ids),
            greedy_repetition=measure_repetition(best.completion_ids),
            sampled_share=_mean([is_right(prompt, sample, pattern) for sample in samples]),
            sampled_cut=_mean([sample.finish_reason == "length" for sample in samples]),
            sampled_tokens=_mean([len(sample.completion_ids) for sample in samples]),
            sampled_repetition=_mean([measure_repetition(sample.completion_ids) for sample in samples]),
            kl=kl,
            margin=margin,
        )
        rows.append(row)
    return rows


def measure_repetition(token_ids: Sequence[int], n: int = 4) -> float:
    """Return the share of n-grams that occurred before: 1 − distinct ÷ all; 0 below n tokens.

    This is rep-n of arXiv 1908.04319.
    """
    num_grams = len(token_ids) - n + 1
    if num_grams <= 0:
        return 0.0
    distinct = {tuple(token_ids[first : first + n]) for first in range(num_grams)}
    return 1 - len(distinct) / num_grams


def compute_margin(prompt: Prompt, opponent: HeldoutAnswer, logps: Sequence[float]) -> float:
    """Return the margin of the target over the opponent's answer, with the opponent as reference.

    NaN if the opponent's answer is the target. `logps`: under the policy, of the target first and
    of the opponent's answer last.
    """
    if is_identical(prompt, opponent.sampled_ids, opponent.sampled_finish, opponent.sampled_text):
        return math.nan
    target_reward = logps[0] - opponent.target_logp
    opponent_reward = logps[-1] - opponent.sampled_logp
    return target_reward - opponent_reward


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
