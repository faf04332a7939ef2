"""The rows that the trainer reads, made from stored records.

Prompt, Pair, Rating, Ranking, Rollout ──► to_example ──► Example
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from spin.data.records import Pair, Prompt, Ranking, Rating, TrainingRow
from spin.data.rollouts import Rollout


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
    """True for a ground truth that PPO-ptx trains beside the answers."""
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
    for place, (first, second) in enumerate(combinations(range(len(row.completions)), 2)):
        if row.completions[first] == row.completions[second]:
            continue
        # A judge has compared each pair for itself.
        if row.pair_preferences:
            preference = row.pair_preferences[place]
            if not math.isnan(preference):
                pairs.append(RankedPair(first, second, preference, 0.0))
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
