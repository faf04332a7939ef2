"""The records that are stored as rows of parquet files, and the rows that the trainer reads.

pandas and `datasets` open the files. A file is written under another name and renamed when it is
complete.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

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
    engine."""
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


@dataclass(frozen=True)
class Completion:
    """A completion that is desirable (chosen) or not (rejected)."""

    ids: list[int]
    desirable: bool
    reference_logp: float = math.nan
    base_logp: float = math.nan
    """log π_base; NaN unless the reference is a mixture with the base."""
    win_rate: float = math.nan
    """P(it is better than an answer of the opponent); NaN unless it belongs to a pair."""
    rollout: Rollout | None = None
    """The answer with its reward and figures of each token; None except for policy gradients."""


@dataclass(frozen=True)
class RankedPair:
    """Two completions of a ranking, named by their places in it."""

    first: int
    second: int
    preference: float
    """P(the first one is better), from 0 to 1; ½ is a tie."""
    margin: float
    """By how much the reward of the first one should be larger; below 0 if it is the worse one."""


@dataclass(frozen=True)
class Example:
    """A row of the trainer: a target, a pair (chosen, rejected), a rating, or a ranking."""

    name: str
    """How error messages name the row."""
    prompt_ids: list[int]
    completions: tuple[Completion, ...]
    preference: float = 1.0
    """Probability of the label, from 0 to 1; 1 is a hard label."""
    target: float = math.nan
    """Target of ΨPO; NaN if the row has none."""
    pretraining: bool = False
    """Whether it is a ground truth that PPO-ptx trains beside its answers."""
    mismatched: tuple[Completion, ...] = ()
    """KTO only: completions of another prompt, scored under this one."""
    ranked_pairs: tuple[RankedPair, ...] = ()
    """Rankings only: the pairs of completions that can be compared."""

    @property
    def tokens(self) -> int:
        """Return the number of tokens, with the prompt counted once for each completion."""
        return sum(len(self.prompt_ids) + len(completion.ids) for completion in self.completions)

    @property
    def completion_tokens(self) -> int:
        """Return the number of tokens of all completions."""
        return sum(len(completion.ids) for completion in self.completions)

    def with_reference(self, logps: Sequence[float]) -> Example:
        """Return the row with the reference's log-probabilities of its completions."""
        completions = []
        for completion, logp in zip(self.completions, logps, strict=True):
            completions.append(replace(completion, reference_logp=logp))
        return replace(self, completions=tuple(completions))


def from_prompt(row: Prompt) -> Example:
    """Return the target completion as a row of the trainer."""
    return Example(f"prompt {row.prompt_id}", row.prompt_ids, (Completion(row.completion_ids, True),))


def from_pair(row: Pair) -> Example:
    """Return a pair as a row of the trainer."""
    name = _name_row(row, "pair")
    # Without a judge, the two completions are all that is known of the prompt's answers.
    win_rates = [row.chosen_win_rate, row.rejected_win_rate]
    if math.isnan(row.chosen_win_rate):
        win_rates = [row.preference, 1 - row.preference]
    chosen = Completion(row.chosen_ids, True, row.reference_chosen_logp, row.base_chosen_logp, win_rates[0])
    rejected = Completion(row.rejected_ids, False, row.reference_rejected_logp, row.base_rejected_logp, win_rates[1])
    completions: tuple[Completion, ...] = (chosen, rejected)
    if row.start_ids:
        completions += (Completion(row.start_ids, False, row.reference_start_logp),)
    return Example(name, row.prompt_ids, completions, row.preference, row.target)


def from_rating(row: Rating) -> Example:
    """Return a rated completion as a row of the trainer."""
    completion = Completion(row.completion_ids, row.desirable, row.reference_logp)
    return Example(_name_row(row, "rating"), row.prompt_ids, (completion,))


def from_ranking(row: Ranking) -> Example:
    """Return a ranking with all its pairs as a row of the trainer."""
    completions = tuple(Completion(ids, False) for ids in row.completions)
    return Example(f"ranking {row.ranking_id}", row.prompt_ids, completions, ranked_pairs=tuple(compare_ranked(row)))


def compare_ranked(row: Ranking) -> list[RankedPair]:
    """Return all pairs of a ranking, ties included; equal completions cannot be compared."""
    pairs = []
    for first, second in combinations(range(len(row.completions)), 2):
        if row.completions[first] == row.completions[second]:
            continue
        gap = row.ranks[second] - row.ranks[first]
        if gap > 0:
            pairs.append(RankedPair(first, second, row.preference, row.margin))
        elif gap < 0:
            pairs.append(RankedPair(first, second, 1 - row.preference, -row.margin))
        else:
            pairs.append(RankedPair(first, second, 0.5, 0.0))
    return pairs


def from_rollout(row: Rollout) -> Example:
    """Return an answer with its reward as a row of the trainer."""
    completion = Completion(row.completion_ids, False, sum(row.old_logps), rollout=row)
    return Example(_name_row(row, "rollout"), row.prompt_ids, (completion,))


def to_example(row: Prompt | TrainingRow | Ranking) -> Example:
    """Return a record of any type as a row of the trainer."""
    if isinstance(row, Ranking):
        return from_ranking(row)
    if isinstance(row, Prompt):
        return from_prompt(row)
    if isinstance(row, Pair):
        return from_pair(row)
    if isinstance(row, Rollout):
        return from_rollout(row)
    return from_rating(row)


def _name_row(row: TrainingRow, kind: str) -> str:
    """Return how error messages name a row; `kind` is the word for a labelled one."""
    if row.iteration is None:
        return f"labelled {kind} {row.prompt_id}"
    return f"prompt {row.prompt_id} sample {row.sample_index} of iteration {row.iteration}"
