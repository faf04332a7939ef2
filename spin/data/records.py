"""The rows that touch disk, and the one way they are written and read.

A shard is a plain parquet file: pandas and `datasets` open it. A file is finished by rename, so whoever sees its name sees it whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Prompt:
    """One usable row of the SFT set, rendered to token ids once. Example: ``Prompt(7, [1, 9, 4], [5, 2], "stop", "Sort: ba", "ab", "ab")``."""

    prompt_id: int
    """Position among the usable rows of its set."""
    prompt_ids: list[int]
    """The rendered prompt, generation header included. The same ids serve generation, training, scoring and benchmarks."""
    completion_ids: list[int]
    """The ground truth's tokens; ends with the end-of-turn id unless ``finish_reason`` is ``length``."""
    finish_reason: str
    """``stop``, or ``length`` where the truth was cut at the limit and so carries no end of sequence."""
    prompt_text: str
    completion_text: str
    answer: str | None
    """What an answer must match exactly to be right; None where the truth matches no answer pattern."""


@dataclass(frozen=True)
class Sample:
    """One answer of a policy to one prompt, as token ids, exactly as they were sampled."""

    prompt_id: int
    sample_index: int
    completion_ids: list[int]
    finish_reason: str
    """``stop`` or ``length``; a cut sample carries no end of sequence."""
    logp: float
    """Sum of the untempered token log-probabilities under the policy that sampled, from the engine."""
    text: str


@dataclass(frozen=True)
class Score:
    """The reward that one source gives one sample."""

    prompt_id: int
    sample_index: int
    reward: float


@dataclass(frozen=True)
class Pair:
    """What the main player learns from: the real completion (chosen) and the opponent's (rejected) for one prompt."""

    prompt_id: int
    """Position in the training set, or among the labelled pairs."""
    sample_index: int
    source: str
    """``self-play`` or ``labelled``."""
    iteration: int | None
    """Iteration whose opponent sampled the rejected completion; None for a labelled pair."""
    prompt_ids: list[int]
    chosen_ids: list[int]
    rejected_ids: list[int]
    reference_chosen_logp: float
    """log π_ref(real | prompt), summed over tokens."""
    reference_rejected_logp: float
    sampler_rejected_logp: float
    """The engine's own figure for the generated half under the policy that sampled it: an independent check. NaN for labelled data."""


@dataclass(frozen=True)
class Rating:
    """One completion that somebody called desirable or not. Example: ``Rating(3, [1, 9, 4], [5, 2], True, -7.5)``."""

    rating_id: int
    """Position among the usable ratings of its set."""
    prompt_ids: list[int]
    completion_ids: list[int]
    desirable: bool
    reference_logp: float
    """log π_ref(completion | prompt), summed over tokens; NaN until it was scored."""


@dataclass(frozen=True)
class HeldoutAnswer:
    """What one policy answers to one held-out prompt: all that its figures are made of, and the next iteration's win rate is measured against it."""

    prompt_id: int
    prompt_text: str
    target_text: str
    greedy_text: str
    greedy_right: bool
    sampled_text: str
    """The first of `benchmark.samples` answers."""
    sampled_right: bool
    sampled_ids: list[int]
    sampled_finish: str
    target_logp: float
    """log π(real | prompt) under this policy, summed over tokens."""
    sampled_logp: float
    target_tokens: int
    greedy_tokens: int
    greedy_repetition: float
    """Share of the 4-grams of the tokens that were there before."""
    sampled_share: float
    """Share of the sampled answers that are right; this and what follows are means over all of them."""
    sampled_cut: float
    sampled_tokens: float
    sampled_repetition: float
    kl: float
    """log π − log π_start of the sampled answers, in nats an answer."""
    margin: float
    """Δ of the truth against the opponent's first sampled answer; NaN without an opponent, or where that answer is the truth."""


@dataclass(frozen=True)
class Completion:
    """One completion: desirable (real, chosen) or not (generated, rejected)."""

    ids: list[int]
    desirable: bool
    reference_logp: float = math.nan


@dataclass(frozen=True)
class Example:
    """One row: a truth alone, a pair as (real, generated), or a rated completion alone."""

    name: str
    prompt_ids: list[int]
    completions: tuple[Completion, ...]

    @property
    def tokens(self) -> int:
        """Tokens of prompt and completion, summed over the halves."""
        return sum(len(self.prompt_ids) + len(half.ids) for half in self.completions)

    def with_reference(self, logps: Sequence[float]) -> Example:
        """The same row with the reference's log-probabilities of its halves."""
        return replace(
            self,
            completions=tuple(
                replace(half, reference_logp=logp) for half, logp in zip(self.completions, logps, strict=True)
            ),
        )


def from_prompt(row: Prompt) -> Example:
    """The ground truth alone."""
    return Example(f"prompt {row.prompt_id}", row.prompt_ids, (Completion(row.completion_ids, True),))


def from_pair(row: Pair) -> Example:
    """Both halves."""
    name = (
        f"labelled pair {row.prompt_id}"
        if row.iteration is None
        else f"prompt {row.prompt_id} sample {row.sample_index} of iteration {row.iteration}"
    )
    return Example(
        name,
        row.prompt_ids,
        (
            Completion(row.chosen_ids, True, row.reference_chosen_logp),
            Completion(row.rejected_ids, False, row.reference_rejected_logp),
        ),
    )


def from_rating(row: Rating) -> Example:
    """The rated completion."""
    return Example(
        f"rating {row.rating_id}", row.prompt_ids, (Completion(row.completion_ids, row.desirable, row.reference_logp),)
    )
