"""Held-out figures with their intervals, from the judged answers alone.

`benchmark.json` of a policy is flat, figure by figure, and has two more keys:

    {"heldout": 500, "exact_match_greedy": 0.81, …, "win_rate": null,
     "intervals": {"exact_match_greedy": [0.78, 0.85], …},
     "speed": {"seconds_generate": 2.6, …}}

Every figure is a ratio of two sums over prompts, so that one resample of the prompts serves all of them, and differences of two policies are
paired: both are resampled alike. `intervals` hold 95 %; a figure that is null has none. `speed` is what the clock said: it differs from run to run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spin.config.benchmark import HIGHER_IS_BETTER
from spin.data.answer_matching import is_right
from spin.data.records import HeldoutAnswer, Prompt, Sample

Column = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Numerator and denominator of a figure, prompt by prompt. Shape (prompts,) each."""


COMPARED = ("exact_match_greedy", "exact_match_sampled", "nll")
"""Those that are also given as a change against the policy before, ``nll_change`` and so on."""


RESAMPLES, BLOCK = 2000, 100


def columns(answers: Sequence[HeldoutAnswer]) -> dict[str, Column]:
    """The figures' columns; a figure whose denominators are all 0 is null."""

    def over(values: Iterable[float], weights: Iterable[float]) -> Column:
        return np.array(list(values), dtype=np.float64), np.array(list(weights), dtype=np.float64)

    def mean(values: Iterable[float]) -> Column:
        return over(values, np.ones(len(answers)))

    return {
        "exact_match_greedy": mean(a.greedy_right for a in answers),
        "exact_match_sampled": mean(a.sampled_share for a in answers),
        "nll": over((-a.real_logp for a in answers), (a.real_tokens for a in answers)),
        "win_rate": over((a.margin > 0 for a in answers), (not math.isnan(a.margin) for a in answers)),
        "cut": mean(a.sampled_cut for a in answers),
        "length_greedy": mean(a.greedy_tokens for a in answers),
        "length_sampled": mean(a.sampled_tokens for a in answers),
        "repetition_greedy": mean(a.greedy_repetition for a in answers),
        "repetition_sampled": mean(a.sampled_repetition for a in answers),
        "kl_to_start": mean(a.kl for a in answers),
    }


def figures(
    answers: Sequence[HeldoutAnswer], before: Sequence[HeldoutAnswer] | None = None, seed: int = 0
) -> dict[str, Any]:
    """What `benchmark.json` holds, but for speed; `before`: the answers of the policy before, to the same prompts.

    exact_match_*: share of right answers. nll: of the truth, nats a token. win_rate: share of prompts whose margin is positive. cut: share of the
    sampled answers without an end. length_*: tokens, the end included. kl_to_start: nats an answer, estimated on the policy's own answers.
    """
    own = columns(answers)
    values: dict[str, Any] = {"heldout": len(answers)}
    intervals: dict[str, list[float]] = {}
    found = bootstrap(own, seed)
    for name, (value, low, high) in found.items():
        values[name] = value
        intervals |= {name: [low, high]}
    if before is not None:
        for name, (value, low, high) in difference(own, columns(before), COMPARED, seed).items():
            values[f"{name}_change"] = value
            intervals |= {f"{name}_change": [low, high]}
    for name in HIGHER_IS_BETTER:
        values.setdefault(name, None)
    return {**values, "intervals": intervals}


def bootstrap(own: dict[str, Column], seed: int) -> dict[str, tuple[float, float, float]]:
    """Each figure with the ends of its 95 % interval, by resampling prompts; null figures are left out."""
    names = [name for name, (_, weights) in own.items() if weights.sum() > 0]
    means = _resampled([own[name] for name in names], seed)
    return {
        name: (float(own[name][0].sum() / own[name][1].sum()), *_ends(means[:, at])) for at, name in enumerate(names)
    }


def difference(
    ours: dict[str, Column], theirs: dict[str, Column], names: Sequence[str], seed: int
) -> dict[str, tuple[float, float, float]]:
    """Our figures minus theirs on the same prompts, with 95 % intervals of the paired difference."""
    means = _resampled([side[name] for side in (ours, theirs) for name in names], seed)
    value = {name: [float(side[name][0].sum() / side[name][1].sum()) for side in (ours, theirs)] for name in names}
    return {
        name: (value[name][0] - value[name][1], *_ends(means[:, at] - means[:, len(names) + at]))
        for at, name in enumerate(names)
    }


def worse(change: float, interval: Sequence[float], name: str) -> bool:
    """Whether a change is for the worse beyond its interval."""
    return interval[1] < 0 if HIGHER_IS_BETTER[name] else interval[0] > 0


def _resampled(own: Sequence[Column], seed: int) -> NDArray[np.float64]:
    """The figures of RESAMPLES draws of as many prompts, with replacement. Shape (resamples, figures); NaN where a draw has no denominator."""
    tops, bottoms = (np.stack([column[side] for column in own], axis=1) for side in (0, 1))  # [prompts, figures]
    rng, count = np.random.default_rng(seed), len(tops)
    means = []
    for _ in range(RESAMPLES // BLOCK):  # in blocks: memory
        times = rng.multinomial(count, np.full(count, 1 / count), size=BLOCK).astype(
            np.float64
        )  # how often each prompt was drawn
        with np.errstate(invalid="ignore"):
            means.append((times @ tops) / (times @ bottoms))
    return np.concatenate(means)


def _ends(draws: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return float(low), float(high)


def judge(
    prompts: Sequence[Prompt],
    greedy: Sequence[Sample],
    sampled: Sequence[Sequence[Sample]],
    logps: Sequence[Sequence[float]],
    start_logps: Sequence[Sequence[float]] | None,
    opponent: Sequence[HeldoutAnswer] | None,
    pattern: str | None,
) -> list[HeldoutAnswer]:
    """One row a prompt.

    `logps`: for each prompt those of the truth, of every sampled answer and (with an opponent) of the opponent's first sampled answer, under the policy.
    `start_logps`: those of every sampled answer under the starting policy; None where the policy is that.
    """
    rows = []
    for at, (prompt, best, samples) in enumerate(zip(prompts, greedy, sampled, strict=True)):
        own = logps[at]
        rows.append(
            HeldoutAnswer(
                prompt_id=prompt.prompt_id,
                prompt_text=prompt.prompt_text,
                real_text=prompt.real_text,
                greedy_text=best.text,
                greedy_right=is_right(prompt, best, pattern),
                sampled_text=samples[0].text,
                sampled_right=is_right(prompt, samples[0], pattern),
                sampled_ids=samples[0].token_ids,
                sampled_finish=samples[0].finish_reason,
                real_logp=own[0],
                sampled_logp=own[1],
                real_tokens=len(prompt.real_ids),
                greedy_tokens=len(best.token_ids),
                greedy_repetition=repetition(best.token_ids),
                sampled_share=_mean([is_right(prompt, sample, pattern) for sample in samples]),
                sampled_cut=_mean([sample.finish_reason == "length" for sample in samples]),
                sampled_tokens=_mean([len(sample.token_ids) for sample in samples]),
                sampled_repetition=_mean([repetition(sample.token_ids) for sample in samples]),
                kl=_mean([now - then for now, then in zip(own[1:], start_logps[at], strict=False)])
                if start_logps
                else 0.0,
                margin=margin(prompt, opponent[at], own) if opponent else math.nan,
            )
        )
    return rows


def repetition(token_ids: Sequence[int], n: int = 4) -> float:
    """Share of the n-grams that occurred before: 1 − distinct ÷ all (rep-n of arXiv 1908.04319); 0 for fewer than n tokens."""
    grams = [tuple(token_ids[at : at + n]) for at in range(len(token_ids) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def margin(prompt: Prompt, opponent: HeldoutAnswer, logps: Sequence[float]) -> float:
    """Δ of the truth against the opponent's answer, the opponent being the reference. `logps`: the policy's, of the truth first and of that answer last."""
    if opponent.sampled_ids == prompt.real_ids:
        return math.nan  # identical halves carry none
    return (logps[0] - opponent.real_logp) - (logps[-1] - opponent.sampled_logp)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
