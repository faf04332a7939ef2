"""Compute held-out metrics and their 95 % intervals from the judged answers of a policy.

`benchmark.json` of a policy has one key for each metric, and the keys `intervals` and `speed`:

    {"heldout": 500, "exact_match_greedy": 0.81, …, "win_rate": null,
     "intervals": {"exact_match_greedy": [0.78, 0.85], …},
     "speed": {"seconds_generate": 2.6, …}}

Every metric is a ratio of two sums over prompts, so one bootstrap resample of the prompts serves
all metrics. Differences of two policies are paired: both policies use the same resamples. A metric
that is null has no interval. `speed` differs from run to run, the other values do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spin.benchmark.bootstrap import Column, bootstrap, bootstrap_difference
from spin.config.benchmark import HIGHER_IS_BETTER
from spin.data.records import HeldoutAnswer

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
