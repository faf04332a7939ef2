"""The records that are stored as rows of parquet files.

pandas and `datasets` open the files. A file is written under another name and renamed when it is
complete.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from spin.data.rollouts import Rollout


@dataclass(frozen=True)
class Prompt:
    """A usable row of the SFT set as token ids.

    Example: ``Prompt(7, [1, 9, 4], [5, 2], "stop", "Sort: ba", "ab", "ab")``.
    """

    prompt_id: int
    """Position among the usable rows of its set."""
    prompt_ids: list[int]
    """The rendered prompt with the generation header. Generation, training, scoring and benchmark
    all use these ids."""
    completion_ids: list[int]
    """The target; ends with the end-of-turn id unless ``finish_reason`` is ``length``."""
    finish_reason: str
    """``stop``, or ``length`` if the target was cut at the limit and has no end of turn."""
    prompt_text: str
    completion_text: str
    answer: str | None
    """The answer that counts as right; None if the target matches no `data.answer_pattern`."""


@dataclass(frozen=True)
class Sample:
    """One answer of a policy to one prompt, with the token ids as they were sampled."""

    prompt_id: int
    sample_index: int
    completion_ids: list[int]
    finish_reason: str
    """``stop`` or ``length``; a truncated sample has no end of turn."""
    logp: float
    """log π(y|x) under the policy that sampled, at temperature 1, summed over tokens; from the
    engine. NaN for held-out answers, which the trainer scores."""
    text: str


@dataclass(frozen=True)
class Score:
    """The reward that one source gives one sample."""

    prompt_id: int
    sample_index: int
    """−1: the ground truth."""
    reward: float


@dataclass(frozen=True)
class Pair:
    """A chosen and a rejected completion of one prompt.

    In SPIN, the target is chosen and a sample of the opponent is rejected.
    """

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
    """log π_ref(chosen | prompt), summed over tokens; NaN until it was scored."""
    reference_rejected_logp: float
    sampler_rejected_logp: float
    """The engine's log-probability of the rejected completion under the policy that sampled it, to
    compare with the trainer's. NaN for labelled pairs."""
    preference: float = 1.0
    """P(chosen is better than rejected), from 0 to 1; 1 is a hard label."""
    chosen_win_rate: float = math.nan
    """Mean of P(chosen is better than k) over the answers k of the prompt, itself with ½; for SPPO.
    NaN without a judge: then it is `preference`."""
    rejected_win_rate: float = math.nan
    """The same of the rejected completion. NaN without a judge: then it is 1 − `preference`."""
    target: float = math.nan
    """What ΨPO fits τ times the margin to, from all judged answers of the prompt. NaN without a
    judge: then it is computed from `preference`."""
    base_chosen_logp: float = math.nan
    """log π_base(chosen | prompt); NaN unless the reference is a mixture with the base."""
    base_rejected_logp: float = math.nan
    start_ids: list[int] = field(default_factory=list)
    """Answer of iteration 0's opponent to the prompt, for T-SPIN; empty without one."""
    reference_start_logp: float = math.nan
    """log π_ref(start | prompt); NaN without such an answer."""


@dataclass(frozen=True)
class Rating:
    """A completion that is desirable or not.

    Example: ``Rating(3, 0, None, [1, 9, 4], [5, 2], True, -7.5)``.
    """

    prompt_id: int
    """Position in the training set, or among the labelled ratings."""
    sample_index: int
    iteration: int | None
    """Iteration whose opponent sampled the completion; None for a labelled rating."""
    prompt_ids: list[int]
    completion_ids: list[int]
    desirable: bool
    reference_logp: float
    """log π_ref(completion | prompt), summed over tokens; NaN until it was scored."""
    sampler_logp: float = math.nan
    """The engine's log-probability of the completion under the policy that sampled it; NaN for a
    labelled rating."""


@dataclass(frozen=True)
class Ranking:
    """Several ranked answers to one prompt, from which a reward model learns.

    Example: ``Ranking(0, [1, 9, 4], [[5, 2], [7, 2], [8, 2]], [1.0, 2.0, 2.0], 1.0, 0.0, None)``.
    """

    ranking_id: int
    """Position in its set."""
    prompt_ids: list[int]
    completions: list[list[int]]
    ranks: list[float]
    """Rank of each completion; the lowest is the best, and equal ranks are ties."""
    preference: float
    """P(a better-ranked completion is better than a worse-ranked one), from 0 to 1; 1 is a hard
    label."""
    margin: float
    """By how much the reward of the better completion should be larger; 0 without a margin."""
    subset: str | None
    """Part of the set that figures are also given for; None if the set has no parts."""
    pair_preferences: list[float] = field(default_factory=list)
    """P(completion i is better than j) of the pairs (0, 1), (0, 2), …, (1, 2), …, as a judge gave
    them; NaN: not compared. Empty: `ranks` and `preference` tell."""


TrainingRow = Pair | Rating | Rollout
"""The rows that are built from samples or labels, and that the reference scores."""


@dataclass(frozen=True)
class HeldoutAnswer:
    """The answers of one policy to one held-out prompt, from which all metrics are computed.

    The win rate of the next iteration is measured against these answers.
    """

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
    """log π(target | prompt) under this policy, summed over tokens."""
    sampled_logp: float
    target_tokens: int
    greedy_tokens: int
    greedy_repetition: float
    """Share of the 4-grams of tokens that occurred before in the same answer."""
    sampled_share: float
    """Share of the sampled answers that are right. This and the next fields are means over all
    sampled answers."""
    sampled_cut: float
    sampled_tokens: float
    sampled_repetition: float
    kl: float
    """log π − log π_start of the sampled answers, in nats an answer."""
    margin: float
    """Δ of the target against the first sampled answer of the opponent; NaN without an opponent, or
    if that answer is the target."""
